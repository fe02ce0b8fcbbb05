"""The one reader and the one writer of the factors in a PEFT adapter folder.

An adapter that is more than plain LoRA is refused by name: its update is not the product of two
factors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.engine.models.adapter_config import (
    CONFIG_FILE,
    layer_settings,
    read_adapter_config,
    refuse_beyond_lora,
)
from rankwise.engine.models.files import opened, refuse_other_dtypes, tensor_headers
from rankwise.engine.models.structure import linear_shape
from rankwise.errors import BeyondLoraError, ModelError
from rankwise.records.files import share_as_usual, write_atomically, writing

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SIDES = (".lora_A.weight", ".lora_B.weight")


class ScaledFactors(NamedTuple):
    """The factors of one layer, which adds scaling * x @ lora_A.T @ lora_B.T to its output."""

    lora_A: Float[Tensor, "rank in_features"]
    lora_B: Float[Tensor, "out_features rank"]
    scaling: float


def read_factors(folder: Path) -> dict[str, ScaledFactors]:
    """Read the factors of every adapted layer as saved; ranks and alphas may differ by layer.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors, as PEFT writes them.

    Returns:
        The factors by the layer's name in the base model.

    Raises:
        ModelError: the folder cannot be read.
        BeyondLoraError: it asks for more than plain LoRA on linear layers (DoRA, ``lora_bias``,
            ``modules_to_save``, ``target_parameters`` ...).
    """
    config = read_adapter_config(folder)
    refuse_beyond_lora(config, folder)
    path = adapter_weights(folder)
    layers, odd = _layers(path)
    if odd or not layers:
        examples = ", ".join(odd[:3]) or "none at all"
        raise BeyondLoraError(
            f"{path} holds other weights than pairs of lora_A and lora_B of layers: {examples}."
        )
    settings = layer_settings(config, layers, folder)
    for name, layer in layers.items():
        _refuse_other_rank(settings[name].rank, name, layer, folder)
    with opened(path) as file:
        return {
            name: ScaledFactors(
                file.get_tensor(layer.key_A), file.get_tensor(layer.key_B), settings[name].scaling
            )
            for name, layer in layers.items()
        }


def write_factors(
    folder: Path, factors: Mapping[str, tuple[Tensor, Tensor]], config: str | None = None
) -> int:
    """Write adapter_model.safetensors, and then adapter_config.json where its text is given.

    Args:
        folder: is created.
        factors: lora_A and lora_B by the layer's name in the base model, in the dtype to save.
        config: the text of adapter_config.json; None leaves that file alone.

    Returns:
        The bytes of the weights.

    Raises:
        StorageError: the folder cannot be written.
    """
    tensors = {
        f"{_PREFIX}{name}{side}": matrix.cpu().contiguous()
        for name, pair in factors.items()
        for side, matrix in zip(_SIDES, pair, strict=True)
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        share_as_usual(folder / WEIGHTS_FILE)
    if config is not None:
        write_atomically(folder / CONFIG_FILE, config)
    return (folder / WEIGHTS_FILE).stat().st_size


def rewrite_config(folder: Path, **entries: Any) -> None:
    """Give entries of the adapter_config.json that PEFT has just written other values.

    Raises:
        StorageError: it cannot be written.
    """
    path = folder / CONFIG_FILE
    content = json.loads(path.read_text(encoding="utf-8")) | entries
    # PEFT holds them as a set, whose order is another one in every process
    content["target_modules"] = sorted(content["target_modules"])
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True))


def has_update(weights: Path) -> bool:
    """Whether any lora_B is not zero; works for every kind of LoRA, also for those refused here.

    Args:
        weights: the safetensors file of an adapter.

    Raises:
        ModelError: the file cannot be read.
    """
    with opened(weights) as tensors:
        return any(
            bool(tensors.get_tensor(name).any())
            for name in tensors.keys()  # noqa: SIM118  (it is not a dictionary)
            if ".lora_B" in name
        )


def adapter_weights(folder: Path) -> Path:
    """The safetensors file of an adapter.

    Raises:
        ModelError: there is none.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ModelError(
            f"{folder} has no {WEIGHTS_FILE}; other formats can run code when they are loaded. "
            "Save the adapter again with safetensors."
        )
    return path


def adapter_digest(folder: Path) -> str:
    """The sha256 of an adapter's config and weights together.

    Raises:
        ModelError: it is no adapter.
    """
    read_adapter_config(folder)
    digest = hashlib.sha256((folder / CONFIG_FILE).read_bytes())
    with adapter_weights(folder).open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class FactorShapes(NamedTuple):
    """The factors of one layer in a file: their keys there, and their shapes."""

    key_A: str
    key_B: str
    lora_A: tuple[int, ...]
    lora_B: tuple[int, ...]


def check_fit(folder: Path, model: nn.Module) -> int:
    """Refuse an adapter that does not fit a base, before any of its weights is read.

    Adapters beyond plain LoRA are checked as far as their factors go: pairs of lora_A and lora_B
    stand for layers of the base, have their sizes and the rank that the config records.

    Args:
        folder: of the adapter.
        model: the base; may be on the meta device.

    Returns:
        The number of all weights in the file.

    Raises:
        ModelError: it does not fit, lacks one factor of a pair, or cannot be read.
    """
    config, weights = read_adapter_config(folder), adapter_weights(folder)
    layers, odd = _layers(weights)
    headers = tensor_headers(weights)
    lonely = sorted(name for name in odd if name.endswith(_SIDES) and name not in headers)
    if lonely:
        raise ModelError(
            f"{weights} has a factor without its partner: {lonely[0]} is missing. The file is not "
            "complete; save the adapter again."
        )
    settings = layer_settings(config, layers, folder)
    for name, factors in layers.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ModelError(
                f"{folder} adapts {name}, which the base model does not have. Choose the base "
                "that it was trained from."
            ) from error
        shape = linear_shape(module)
        if shape is None:
            continue
        _refuse_other_rank(settings[name].rank, name, factors, folder)
        if shape != (factors.lora_A[1], factors.lora_B[0]):
            size = shape.out_features, shape.in_features
            raise ModelError(
                f"{folder} does not fit {name}: its factors are {factors.lora_A} and "
                f"{factors.lora_B}, and the layer {size}. Choose the base that it was trained from."
            )
    return sum(math.prod(header.shape) for header in headers.values())


def _layers(weights: Path) -> tuple[dict[str, FactorShapes], list[str]]:
    """Pairs of factors that are matrices, and the names of what is beside them, or missing."""
    headers = tensor_headers(weights)
    refuse_other_dtypes(weights, headers)
    names = {key.removesuffix(side) for key in headers for side in _SIDES if key.endswith(side)}
    wanted = {name + side for name in names for side in _SIDES}
    layers: dict[str, FactorShapes] = {}
    for name in sorted(names):
        keys = (name + _SIDES[0], name + _SIDES[1])
        A, B = (headers[key].shape if key in headers else None for key in keys)
        if A is None or B is None:
            continue
        if len(A) != 2 or len(B) != 2:
            wanted -= set(keys)
        elif A[0] != B[1] or not min(*A, *B):
            raise ModelError(
                f"{weights}: lora_A {A} and lora_B {B} of {name} have no rank in common. Save the "
                "adapter again."
            )
        elif (layer := name.removeprefix(_PREFIX)) in layers:
            raise ModelError(f"{weights} has two pairs of factors of {layer}. Save it again.")
        else:
            layers[layer] = FactorShapes(*keys, A, B)
    return layers, sorted(wanted ^ headers.keys())


def _refuse_other_rank(recorded: int, name: str, factors: FactorShapes, folder: Path) -> None:
    if recorded != (rank := factors.lora_A[0]):
        raise ModelError(
            f"the adapter in {folder} says rank {recorded} for {name}, its weights have rank "
            f"{rank}. Config and weights belong to different adapters."
        )
