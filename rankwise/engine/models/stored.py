"""What a model's folder holds, against the model that its config asks for.

transformers finds out which weights go where, also where its names are not those of the files. It
is asked twice: with the headers of the files alone, and when the weights are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from rankwise.engine.models.attention import decoder_layers
from rankwise.engine.models.files import (
    DTYPES,
    not_finite,
    read_json,
    refuse_other_dtypes,
    tensor_headers,
    unusable,
)
from rankwise.errors import ModelError
from rankwise.records import quantities

_AGAIN = "Save it again."
# A name up to the number of its layer, and the part of the layer that it is in.
_IN_LAYER = re.compile(r"(.*?\.\d+)\.([^.]+)")


def loaded_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads: the whole model, or the shards of its index.

    Raises:
        ModelError: there are none, a shard is missing, or the index names a file elsewhere, which
            is in no fingerprint.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    with unusable(f"{folder} cannot be loaded", _AGAIN):
        names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
        for name in names:
            if Path(name).name != name:
                raise ValueError(f"{index.name} names {name}, which is not in its folder")
            if not (folder / name).is_file():
                raise ValueError(f"{index.name} names {name}, which is not there")
        if not names:
            raise ValueError(f"{index.name} names no file")
    return [folder / name for name in names]


def refuse_adapter(folder: Path) -> None:
    """Refuse a model's folder that holds an adapter: transformers loads both.

    Raises:
        ModelError: there is one.
    """
    path = folder / ADAPTER_CONFIG_NAME
    if not path.exists():
        return
    with unusable(f"{path} cannot be read", "Take it out of the folder of the base model."):
        base = read_json(path).get("base_model_name_or_path")
    raise ModelError(
        f"{folder} holds an adapter ({ADAPTER_CONFIG_NAME}), which transformers puts on the "
        "weights that it loads: the base's scores would be those of both. Merge the adapter into "
        "the weights and remove that file, or name the adapter's own base"
        f"{f', {base},' if isinstance(base, str) and base else ''} instead."
    )


def check_stored(folder: Path, skeleton: Any) -> list[str]:
    """Refuse files that do not hold the model, and weights that cannot be numbers of a model.

    Nothing is loaded but the headers and the first numbers of tensors. The numbers of a model that
    is stored quantised are no weights, and only its files are looked at.

    Args:
        folder: of the model.
        skeleton: it on the meta device.

    Returns:
        What the files hold beside the model, in at most one sentence.

    Raises:
        ModelError: names the first weight that is missing, of another shape, not finite, or has no
            place in the model.
    """
    files = loaded_files(folder)
    headers = {path: tensor_headers(path) for path in files}
    if getattr(skeleton.config, "quantization_config", None):
        return []
    for path in files:
        refuse_other_dtypes(path, headers[path])
    if (name := not_finite(files, sampled=True)) is not None:
        raise diverged(folder, name)
    weights = {
        name: torch.empty(header.shape, dtype=DTYPES.get(header.dtype, torch.int64), device="meta")
        for of_file in headers.values()
        for name, header in of_file.items()
    }
    with unusable(f"{folder} cannot be loaded", _AGAIN):
        model, loading = type(skeleton).from_pretrained(
            None,
            config=skeleton.config,
            state_dict=weights,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    refuse_unfit(folder, model, loading)
    beside = sorted(loading["unexpected_keys"])
    if not beside:
        return []
    tensors = quantities.counted(len(beside), "tensor")
    return [f"{folder} holds {tensors} beside the model that will not be loaded: {beside[0]} ..."]


def refuse_unfit(folder: Path, model: Any, loading: Mapping[str, Any]) -> None:
    """Refuse a model that was not loaded from just its files.

    Weights beside it are accepted where they make no difference to it: a vision tower, layers that
    predict further tokens and have parts of their own, buffers of earlier versions. Refused are
    weights within a layer of the model, and a further layer of the same parts.

    Args:
        folder: that it was loaded from.
        model: which.
        loading: what transformers says of it.

    Raises:
        ModelError: a weight is missing, which transformers would draw at random, of another shape,
            or of no use.
    """
    for name, stored, expected in sorted(loading["mismatched_keys"]):
        raise ModelError(
            f"{folder} holds {name} as {tuple(stored)}, and its config asks for {tuple(expected)}. "
            f"{_AGAIN}"
        )
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{folder} lacks {len(missing)} of its model's weights, such as {missing[0]}. {_AGAIN}"
        )
    layers = set(decoder_layers(model))
    parts = {_part_of_layer(name) for name in model.state_dict()}
    linear = {name for name, each in model.named_modules() if isinstance(each, nn.Linear | Conv1D)}
    beside: dict[str, list[str]] = {}
    for name in sorted(loading["unexpected_keys"]):
        if (layer := _IN_LAYER.match(name)) is not None:
            beside.setdefault(layer[1], []).append(name)
    for layer, names in beside.items():
        if layer in layers:
            foreign = [
                name
                for name in names
                if name.endswith(".weight") or name.removesuffix(".bias") in linear
            ]
        else:
            foreign = names if {*map(_part_of_layer, names)} <= parts else []
        if foreign:
            raise ModelError(
                f"{folder} holds {foreign[0]}, and its config.json makes a model without it. Check "
                "the number and the kind of its layers there, or save the model again."
            )


def _part_of_layer(name: str) -> tuple[str, ...] | None:
    """The list of layers that a weight is in, and the part of its layer: model.layers, mlp."""
    found = _IN_LAYER.match(name)
    return None if found is None else (found[1].rpartition(".")[0], found[2])


def diverged(folder: Path, name: str) -> ModelError:
    """The error of a model one of whose weights is not finite."""
    return ModelError(
        f"{folder} holds NaN or infinite weights in {name}: its training has diverged, or the file "
        "is damaged. Save or fetch it again."
    )
