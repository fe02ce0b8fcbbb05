"""The forms in which weights are stored: what a matrix is after it was written and read.

A form is a table of roundings. What is computed with the numbers afterwards is the same for all of
them: LLM.int8() and llama.cpp on a CPU round the inputs of a product too, which is not done here.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.engine.models.loading import require_bitsandbytes
from rankwise.errors import ConfigError, ModelError
from rankwise.records.files import require_room, writing
from rankwise.records.forms import (
    BITSANDBYTES_FORMS,
    FORMS,
    GGUF_FORMS,
    LLAMA_CPP_FORMS,
    known_form,
)

TOOL = "llama-quantize"
# what is written for it: float32, and at most half as much again when it is quantised
_ROOM = 1.5


class Stored(NamedTuple):
    """Weights as they are read back.

    Attributes:
        weight: in the dtype and on the device of what was stored.
        num_bytes: that they take, with their scales.
        is_instead: whether a simpler format was taken, as the rows have an odd length.
    """

    weight: Float[Tensor, "*_"]
    num_bytes: int
    is_instead: bool = False


Storage = Callable[[Tensor], Stored]
"""A way to store weights (..., out_features, in_features): rows are what one output is computed
from."""

Named = tuple[str, Tensor]
MatrixStorage = Callable[[Iterable[Named]], Iterator[Stored]]
"""A way to store all matrices with their names, in the order in which they come."""


class Form(NamedTuple):
    """How each kind of weights is stored.

    Attributes:
        name: in ``records.forms.FORMS``.
        matrices: linear layers below the head, fused experts and routers.
        tables: embeddings and the head.
        vectors: norms and biases.
        dtype: in which every stored number is exact.
        is_of_linear_layers: whether fused experts and routers are stored as ``vectors`` instead.
        is_beside: whether the base alone is stored so, and the adapter is not merged into it.
    """

    name: str
    matrices: MatrixStorage
    tables: Storage
    vectors: Storage
    dtype: torch.dtype
    is_of_linear_layers: bool = False
    is_beside: bool = False


def in_dtype(dtype: torch.dtype) -> Storage:
    """Rounded to the nearest number of a dtype."""

    def store(weight: Tensor) -> Stored:
        return Stored(weight.to(dtype).to(weight.dtype), weight.numel() * dtype.itemsize)

    return store


def in_gguf(kind: str) -> Storage:
    """Stores in blocks of llama.cpp, by the gguf package; ``kind`` is its name, such as Q8_0.

    Rows that are no whole number of blocks are stored in float16, as llama.cpp does.
    """

    def store(weight: Tensor) -> Stored:
        import gguf

        type_ = gguf.GGMLQuantizationType[kind]
        block_size, _ = gguf.GGML_QUANT_SIZES[type_]
        if weight.shape[-1] % block_size:
            return in_dtype(torch.float16)(weight)._replace(is_instead=True)
        rows = np.ascontiguousarray(weight.float().cpu().numpy())
        blocks = gguf.quants.quantize(rows, type_)
        read = torch.from_numpy(gguf.quants.dequantize(blocks, type_))
        return Stored(read.to(weight.device, weight.dtype), blocks.nbytes)

    return store


def in_int8(weight: Tensor) -> Stored:
    """The weights of LLM.int8(): one scale for each row, by bitsandbytes."""
    functional: Any = importlib.import_module("bitsandbytes.functional")
    rows = weight.reshape(-1, weight.shape[-1]).half()
    whole, scales, _ = functional.int8_vectorwise_quant(rows)
    read = whole.float() * (scales.float() / 127)[:, None]
    return Stored(read.to(weight.dtype).view(weight.shape), whole.nbytes + scales.nbytes)


def in_nf4(weight: Tensor) -> Stored:
    """NF4 in blocks of 64 with doubly quantised scales, by bitsandbytes."""
    functional: Any = importlib.import_module("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        weight.contiguous(), quant_type="nf4", compress_statistics=True
    )
    read = functional.dequantize_4bit(packed, state)
    scales = state.absmax.nbytes + state.state2.absmax.nbytes
    return Stored(read.to(weight.dtype), packed.nbytes + scales)


def each(store: Storage) -> MatrixStorage:
    """Every matrix by itself."""
    return lambda weights: (store(weight) for _, weight in weights)


_FLOAT32, _BFLOAT16, _FLOAT16 = map(in_dtype, (torch.float32, torch.bfloat16, torch.float16))


def _merged(name: str, dtype: torch.dtype) -> Form:
    store = in_dtype(dtype)
    return Form(name, each(store), store, store, dtype)


def _bitsandbytes(name: str) -> Form:
    """Transformers leaves everything but linear layers in the dtype that it loads."""
    where, bits = name.split("-")
    return Form(
        name,
        each(in_int8 if bits == "8bit" else in_nf4),
        _BFLOAT16,
        _BFLOAT16,
        torch.float32,
        is_of_linear_layers=True,
        is_beside=where == "beside",
    )


def has_llama_cpp() -> bool:
    """Whether the quantiser is on the PATH."""
    return shutil.which(TOOL) is not None


def quantised(kind: str, weights: Iterable[Named]) -> Iterator[Stored]:
    """Quantise all matrices of a model together, by llama.cpp's own quantiser.

    Its mixed formats, which no Python package writes, give some matrices more bits, by their names
    and places. It gets a file with these matrices under llama.cpp's names and no more, which it
    quantises without loading it.

    Args:
        kind: llama.cpp's name of the format, such as Q4_K_M.
        weights: transformers' name and (out_features, in_features) of each.

    Raises:
        ModelError: llama.cpp has no name for a matrix, or refuses the file.
        StorageError: the disk of temporary files has no room.
    """
    import gguf

    rows: dict[str, Any] = {}
    like: dict[str, Tensor] = {}
    for name, weight in weights:
        rows[name] = np.ascontiguousarray(weight.float().cpu().numpy())
        like[name] = weight.new_empty(0)
    places = _llama_names(list(rows))
    with tempfile.TemporaryDirectory(prefix="rankwise-gguf-") as folder:
        source, target = Path(folder) / "merged.gguf", Path(folder) / "quantised.gguf"
        require_room(source, int(_ROOM * sum(each.nbytes for each in rows.values())))
        with writing(source):
            _write(source, {places[name]: each for name, each in rows.items()})
        command = [TOOL, str(source), str(target), kind]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode != 0 or not target.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            reason = said[-1] if said else "no message"
            raise ModelError(
                f"{TOOL} could not make {kind}: {reason:.300}. Check its version, or choose "
                "another form."
            )
        read: dict[str, Any] = {each.name: each for each in gguf.GGUFReader(target).tensors}
        for name in rows:
            tensor = read[places[name]]
            weight = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            yield Stored(torch.from_numpy(weight).to(like[name]), int(tensor.n_bytes))


def _llama_names(names: Sequence[str]) -> dict[str, str]:
    """Transformers' name -> llama.cpp's, for matrices that are named as a llama's are."""
    import gguf

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, _num_blocks(names))
    found = {name: table.get_name(name, try_suffixes=(".weight",)) for name in names}
    for name, place in found.items():
        if place is None:
            raise ModelError(
                f"llama.cpp's own formats need matrices that are named as a llama's are, and there "
                f"is {name}. Choose gguf:q8_0 or another form that needs no {TOOL}."
            )
    return {name: str(place) for name, place in found.items()}


def _num_blocks(names: Iterable[str]) -> int:
    numbers = [int(part) for name in names for part in name.split(".") if part.isdigit()]
    return max(numbers, default=-1) + 1


def _write(path: Path, rows: dict[str, Any]) -> None:
    """A file with what the quantiser asks for: layers, and heads that share keys and values."""
    import gguf

    query, key = rows.get("blk.0.attn_q.weight"), rows.get("blk.0.attn_k.weight")
    num_groups = 1 if query is None or key is None else len(query) // len(key)
    width = next(iter(rows.values())).shape[-1]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(_num_blocks(rows))
    writer.add_context_length(1)
    writer.add_embedding_length(width if query is None else query.shape[-1])
    writer.add_feed_forward_length(width)
    writer.add_head_count(num_groups)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(1)
    for name, each in rows.items():
        writer.add_tensor(name, each)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf(name: str) -> Form:
    """llama.cpp stores embeddings and head of small types in Q6_K; Q8_0 is the nearest here."""
    kind = name.removeprefix("gguf:").upper()
    matrices = partial(quantised, kind) if name in LLAMA_CPP_FORMS else each(in_gguf(kind))
    return Form(name, matrices, in_gguf("Q8_0"), _FLOAT32, torch.float32)


_TABLE = {
    form.name: form
    for form in (
        _merged("merged-bf16", torch.bfloat16),
        _merged("merged-fp16", torch.float16),
        _merged("merged-fp32", torch.float32),
        *map(_bitsandbytes, BITSANDBYTES_FORMS),
        *(_gguf(name) for name in (*GGUF_FORMS, *LLAMA_CPP_FORMS)),
    )
}


def find_forms(names: Sequence[str]) -> list[Form]:
    """The forms of these names, each once, in the order given.

    Raises:
        ConfigError: a name is unknown, or none is given.
        ModelError: a form needs a package or a program that is not here.
    """
    problems: list[str] = []
    for name in names:
        try:
            known_form(name)
        except ValueError as error:
            problems.append(f"--forms: {error}")
    problems += [f"--forms names no form; there is {', '.join(FORMS)}"] * (not names)
    if problems:
        raise ConfigError("check", problems)
    for name in names:
        if name in BITSANDBYTES_FORMS:
            require_bitsandbytes(f"the form {name}")
        if name in LLAMA_CPP_FORMS and not has_llama_cpp():
            there = [form for form in FORMS if form not in (*BITSANDBYTES_FORMS, *LLAMA_CPP_FORMS)]
            raise ModelError(
                f"the form {name} needs {TOOL} of llama.cpp, which is not on the PATH. Install "
                f"llama.cpp, or choose among {', '.join(there)}."
            )
    return [_TABLE[name] for name in dict.fromkeys(names)]
