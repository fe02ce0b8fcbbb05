"""The forms in which merged weights are stored: what a matrix is after it was written and read.

A form is a table of roundings. What is computed with the numbers afterwards is the same for all of
them: LLM.int8() and llama.cpp on a CPU round the inputs of a product too, which is not done here.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.engine.models.base import require_bitsandbytes
from rankwise.errors import ConfigError, ModelError
from rankwise.records.forms import (
    BITSANDBYTES_FORMS,
    FORMS,
    GGUF_FORMS,
    LLAMA_CPP_FORMS,
    known_form,
)
from rankwise.weights.llama_cpp import TOOL, has_llama_cpp, quantised


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
"""Of weights (..., out_features, in_features): rows are what one output is computed from."""

Named = tuple[str, Tensor]
MatrixStorage = Callable[[Iterable[Named]], Iterator[Stored]]
"""Of all matrices with their names, in the order in which they come."""


class Form(NamedTuple):
    """How each kind of weights is stored.

    Attributes:
        name: in ``records.forms.FORMS``.
        matrices: linear layers below the head, fused experts and routers.
        tables: embeddings and the head.
        vectors: norms and biases.
        dtype: in which every stored number is exact.
        is_of_linear_layers: whether fused experts and routers are stored as ``vectors`` instead.
    """

    name: str
    matrices: MatrixStorage
    tables: Storage
    vectors: Storage
    dtype: torch.dtype
    is_of_linear_layers: bool = False


def in_dtype(dtype: torch.dtype) -> Storage:
    """Rounded to the nearest number of a dtype."""

    def store(weight: Tensor) -> Stored:
        return Stored(weight.to(dtype).to(weight.dtype), weight.numel() * dtype.itemsize)

    return store


def in_gguf(kind: str) -> Storage:
    """In blocks of llama.cpp, by the gguf package; ``kind`` is its name, such as Q8_0.

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


def _gguf(name: str) -> Form:
    """llama.cpp stores embeddings and head of small types in Q6_K; Q8_0 is the nearest here."""
    kind = name.removeprefix("gguf:").upper()
    matrices = each(in_gguf(kind))
    if name in LLAMA_CPP_FORMS:  # by its own quantiser, all together
        matrices = lambda weights: itertools.starmap(Stored, quantised(kind, weights))  # noqa: E731
    return Form(name, matrices, in_gguf("Q8_0"), _FLOAT32, torch.float32)


_TABLE = {
    form.name: form
    for form in (
        _merged("merged-bf16", torch.bfloat16),
        _merged("merged-fp16", torch.float16),
        _merged("merged-fp32", torch.float32),
        # transformers leaves everything but linear layers in the dtype that it loads
        Form("8bit", each(in_int8), _BFLOAT16, _BFLOAT16, torch.float32, is_of_linear_layers=True),
        Form("4bit", each(in_nf4), _BFLOAT16, _BFLOAT16, torch.float32, is_of_linear_layers=True),
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
            problems.append(f"--as: {error}")
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
