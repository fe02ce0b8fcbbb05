"""Files of models and adapters that others wrote: whatever is wrong with one is a ModelError.

JSON may be anything at all, a safetensors header may lie, and a name may lead nowhere or to a pipe.
Headers are read without any weights, so that sizes can be checked before memory is taken.

What a model's folder holds is compared with the model that its config asks for. transformers finds
out which weights go where, also where its names are not those of the files. It is asked twice: with
the headers of the files alone, and when the weights are loaded.
"""

from __future__ import annotations

import contextlib
import json
import re
import traceback
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from rankwise.engine.models.attention import decoder_layers
from rankwise.engine.models.devices import is_out_of_memory
from rankwise.errors import ModelError, RankwiseError, is_fault
from rankwise.records import quantities
from rankwise.records.provenance import package_version
from rankwise.records.versions import untested

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""safetensors' names of the dtypes that weights are stored in; all of them can be computed in."""

CHECK_CONFIG = "Check its config.json, or save the model again."
"""What to do about a config that cannot be used."""
CHECK_BOTH = "Check its config.json and its weights."
"""What to do about a model that a library refuses."""

# A config has a few kilobytes; one with long lists of layers, some hundreds.
_MAX_JSON_BYTES = 1 << 24
# Of each tensor of a file, and tensors of a file.
_SAMPLED_NUMBERS, _SAMPLED_TENSORS = 4096, 1000
# Characters of a library's reason that are passed on; some go on with advice for pages.
_MAX_REASON = 300
_AGAIN = "Save it again."
# Errors that say themselves which file, or which package, is at fault.
_KNOWN = (OSError, SafetensorError, UnicodeError, json.JSONDecodeError, ImportError)
# What can refuse a file for a reason of its own.
_LIBRARIES = ("transformers", "peft", "torch")
# A name up to the number of its layer, and the part of the layer that it is in.
_IN_LAYER = re.compile(r"(.*?\.\d+)\.([^.]+)")
# What torch.compile and FSDP put into the names of the modules that they wrap.
_WRAPPER = r"\b(?:_orig_mod|_fsdp_wrapped_module)\."


@contextlib.contextmanager
def unusable(what: str, remedy: str) -> Generator[None]:
    """Within the block, whatever a library raises about files that it cannot use is a ModelError.

    transformers and peft let through what their own code meets on entries that make no sense, and
    tokenizers raises plain Exceptions, so the kind of error says nothing: it may be the files, or
    the library's own mistake. So the error names the library that refused, with its version, and
    where that is not among the tested ones, the remedy is one that is. Errors of ours stay what
    they are, and memory that runs out.

    Args:
        what: cannot be done, such as "gpt2 cannot be loaded".
        remedy: what to do about it.

    Raises:
        ModelError: with the beginning of the library's reason.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, RankwiseError) or is_out_of_memory(error) or not is_fault(error):
            raise
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        if isinstance(error, ImportError):  # such as optimum, for a model that is stored quantised
            remedy = "Install what it names, and try again."
        library = None if isinstance(error, _KNOWN) else _refusing(error)
        if library is not None:
            reason = f"{library} {package_version(library)} refused it: {reason}"
            remedy = f"{untested([library])}." if untested([library]) else remedy
        raise ModelError(f"{what}: {reason.rstrip('.:')}. {remedy}") from error


def _refusing(error: BaseException) -> str | None:
    """The library within which an error was raised; torch only where it called no other."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    return next((name for name in _LIBRARIES if name in packages), None)


def unwrapped(name: str) -> str:
    """The name of a weight in a model that neither torch.compile nor FSDP has wrapped."""
    return re.sub(_WRAPPER, "", name)


def renaming(names: Iterable[str]) -> dict[str, str]:
    """The ``key_mapping`` of ``from_pretrained`` for files of these names; most need none.

    An entry takes one wrapper out of a name, so there are as many as any name has.
    """
    most = max((len(re.findall(_WRAPPER, name)) for name in names), default=0)
    return {_WRAPPER + "(?:)" * number: "" for number in range(most)}


class TensorHeader(NamedTuple):
    """What a safetensors file says of one tensor: safetensors' name of the dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; to be called within ``unusable``.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: it holds no JSON object of a reasonable size.
        RecursionError: it is nested too deeply.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not there, or is not a file")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has more than {_MAX_JSON_BYTES >> 20} MiB")
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content  # pyright: ignore[reportUnknownVariableType]


@contextlib.contextmanager
def opened(path: Path) -> Generator[Any]:
    """Open a safetensors file; errors of reading it within the block are ours too.

    The library checks that the header's sizes are those of the file.

    Raises:
        ModelError: the file cannot be read.
    """
    with unusable(f"{path} cannot be read", "Save it again."):
        if not path.is_file():
            raise FileNotFoundError("it is not there, or is not a file")
        with safe_open(str(path), framework="pt") as file:
            yield file


def tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """What a safetensors file holds, by name, without reading it.

    Raises:
        ModelError: the file cannot be read.
    """
    with opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: TensorHeader(part.get_dtype(), tuple(part.get_shape()))
            for name, part in slices.items()
        }


def refuse_other_dtypes(path: Path, headers: dict[str, TensorHeader]) -> None:
    """Refuse weights in float8 or other dtypes that nothing here computes in; buffers may be whole.

    Raises:
        ModelError: names the first such tensor.
    """
    for name, header in headers.items():
        is_buffer = header.dtype[0] in "IUB" and not name.endswith(".weight")
        if header.dtype not in DTYPES and not is_buffer:
            raise ModelError(
                f"{path} holds {name} in {header.dtype}, and only weights in "
                f"{', '.join(DTYPES)} can be used. Save it again in one of these."
            )


def not_finite(paths: Iterable[Path], *, sampled: bool = False) -> str | None:
    """The name of the first weight that holds NaN or infinity; None where all are finite.

    One tensor is in memory at a time. If it is ``sampled``, the beginning of the first row of some
    tensors is read: bytes that are no weights are NaN or infinite in one of 256 numbers.

    Raises:
        ModelError: a file cannot be read.
    """
    for path in paths:
        with opened(path) as file:
            names = list(file.keys())
            for name in names[:: 1 + len(names) // _SAMPLED_TENSORS] if sampled else names:
                part = file.get_slice(name)
                first = (*[slice(0, 1)] * (len(part.get_shape()) - 1), slice(0, _SAMPLED_NUMBERS))
                numbers = part[first] if sampled and part.get_shape() else file.get_tensor(name)
                if not bool(torch.isfinite(numbers).all()):
                    return name
    return None


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder, by name."""
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def weights_bytes(folder: Path) -> int:
    """The bytes of the safetensors files of a model's folder."""
    return sum(path.stat().st_size for path in weights_files(folder))


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
        unwrapped(name): torch.empty(
            header.shape, dtype=DTYPES.get(header.dtype, torch.int64), device="meta"
        )
        for of_file in headers.values()
        for name, header in of_file.items()
    }
    with unusable(f"{folder} cannot be loaded", CHECK_BOTH):
        model, loading = type(skeleton).from_pretrained(
            None,
            config=skeleton.config,
            state_dict=weights,
            device_map="meta",
            use_kernels=False,
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
