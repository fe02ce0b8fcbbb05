"""Forms of weights: what is read back is what the libraries write, and odd rows are not lost."""

from __future__ import annotations

import sys
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from rankwise.engine.models.loading import prepare_quantised
from rankwise.errors import ConfigError, ModelError
from rankwise.records.forms import BITSANDBYTES_FORMS, FLOAT_FORMS, GGUF_FORMS, known_form
from rankwise.weights.forms import find_forms, in_dtype, in_gguf


def weights(rows: int = 6, columns: int = 64) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", GGUF_FORMS)
def test_gguf_s_own_round_trip(name: str) -> None:
    (form,) = find_forms([name])
    (stored,) = form.matrices([("layer.weight", weights())])
    kind = gguf.GGMLQuantizationType[name.removeprefix("gguf:").upper()]
    blocks = gguf.quants.quantize(weights().numpy(), kind)
    assert np.array_equal(stored.weight.numpy(), gguf.quants.dequantize(blocks, kind))
    size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    assert stored.num_bytes == weights().numel() // size * num_bytes
    assert not stored.is_instead


def test_a_q8_0_block_by_hand() -> None:
    """32 numbers share one scale, their largest over 127, itself in float16."""
    row = torch.zeros(1, 32)
    row[0, :4] = torch.tensor([12.7, 6.37, -0.06, 0.04])
    stored = in_gguf("Q8_0")(row)
    scale = float(torch.tensor(0.1).half())
    assert stored.weight[0, :4].tolist() == pytest.approx([127 * scale, 64 * scale, -scale, 0.0])
    assert stored.num_bytes == 34


def test_rows_of_no_whole_number_of_blocks_are_float16() -> None:
    stored = in_gguf("Q4_0")(weights(columns=48))
    assert torch.equal(stored.weight, weights(columns=48).half().float())
    assert (stored.is_instead, stored.num_bytes) == (True, 2 * 6 * 48)


def test_numbers_of_a_dtype() -> None:
    stored = in_dtype(torch.bfloat16)(torch.tensor([1.0 + 2**-9, 1.0 + 2**-7, 3.0]))
    assert stored.weight.tolist() == [1.0, 1.0 + 2**-7, 3.0]
    assert (stored.weight.dtype, stored.num_bytes) == (torch.float32, 6)


def test_each_form_has_its_name_and_is_found_once() -> None:
    there = [*FLOAT_FORMS, *GGUF_FORMS]
    assert [form.name for form in find_forms([*there, there[0]])] == there


def test_unknown_forms_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        find_forms(["gguf:q8_1", "merged-bf16", "onnx"])
    first, second = caught.value.problems
    assert "did you mean 'gguf:q8_0'?" in first
    assert "merged-bf16, merged-fp16" in second
    with pytest.raises(ConfigError, match="--forms names no form; there is merged-bf16"):
        find_forms([])
    assert known_form("http://host/v1#a") == "http://host/v1#a"
    for url, said in {
        "http:///v1": "is no URL",
        "http://host/v1/chat/completions": "is of chats",
        "http://me:secret@host/v1/chat": "OPENAI_API_KEY",
        "http://host/v1?version=2": "has a query",
    }.items():
        with pytest.raises(ValueError, match=said) as refused:
            known_form(url)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", BITSANDBYTES_FORMS)
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=rf"the form {name} needs bitsandbytes"):
        find_forms([name])


@pytest.mark.parametrize(("name", "most"), [("merged-8bit", 0.01), ("merged-4bit", 0.12)])
def test_bitsandbytes_layers_hold_the_same_numbers(name: str, most: float) -> None:
    """An identity matrix through the library's own layer gives its weights."""
    nn: Any = pytest.importorskip("bitsandbytes.nn", exc_type=ImportError)
    (form,) = find_forms([name])
    (stored,) = form.matrices([("layer.weight", weights())])
    layer: Any
    if name == "merged-4bit":
        layer = nn.Linear4bit(64, 6, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.weight = nn.Params4bit(weights(), requires_grad=False, quant_type="nf4")
    else:
        layer = nn.Linear8bitLt(64, 6, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = nn.Int8Params(weights(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").eval()
    prepare_quantised(layer)
    read = layer(torch.eye(64)).T.float()
    assert torch.allclose(read, stored.weight, atol=2e-3)
    error = float((stored.weight - weights()).norm() / weights().norm())
    assert 0 < error < most
    assert stored.num_bytes < weights().numel() * 1.2
