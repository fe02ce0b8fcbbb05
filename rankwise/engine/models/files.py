"""Files of models and adapters that others wrote: whatever is wrong with one is a ModelError.

JSON may be anything at all, a safetensors header may lie, and a name may lead nowhere or to a pipe.
Headers are read without any weights, so that sizes can be checked before memory is taken.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from rankwise.engine.models.devices import is_out_of_memory
from rankwise.errors import ModelError, RankwiseError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""safetensors' names of the dtypes that weights are stored in; all of them can be computed in."""

# A config has a few kilobytes; one with long lists of layers, some hundreds.
_MAX_JSON_BYTES = 1 << 24
# Of each tensor of a file, and tensors of a file.
_SAMPLED_NUMBERS, _SAMPLED_TENSORS = 4096, 1000
# Characters of a library's reason that are passed on; some go on with advice for pages.
_MAX_REASON = 300


@contextlib.contextmanager
def unusable(what: str, remedy: str) -> Generator[None]:
    """Within the block, whatever a library raises about files that it cannot use is a ModelError.

    transformers and peft let through what their own code meets on entries that make no sense, and
    tokenizers raises plain Exceptions, so the kind of error says nothing. Errors of ours stay what
    they are, and memory that runs out.

    Args:
        what: cannot be done, such as "gpt2 cannot be loaded".
        remedy: what to do about it.

    Raises:
        ModelError: with the beginning of the library's reason.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RankwiseError) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        if isinstance(error, ImportError):  # such as optimum, for a model that is stored quantised
            remedy = "Install what it names, and try again."
        raise ModelError(f"{what}: {reason.rstrip('.:')}. {remedy}") from error


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
