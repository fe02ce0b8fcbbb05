"""Quantised bases: what is missing is said, and what is loaded can be trained through."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rankwise.engine.models.loading import is_quantised, prepare_quantised, quantization_config
from rankwise.errors import ModelError
from rankwise.records.config.training import BasePrecision

CPU = torch.device("cpu")
QUANTISED: list[BasePrecision] = ["8bit", "4bit"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    path = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)
    return path


def loaded(folder: Path, precision: BasePrecision, dtype: torch.dtype = torch.float32) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=dtype,
        quantization_config=quantization_config(precision, dtype, CPU),
        device_map=None if precision == "auto" else {"": CPU},
    )
    prepare_quantised(model)
    return model.requires_grad_(False).eval()


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.detach().float() - expected.detach()).norm() / expected.detach().norm())


def test_auto_is_no_quantisation(folder: Path) -> None:
    assert quantization_config("auto", torch.float32, torch.device("meta")) is None
    model = loaded(folder, "auto")
    assert not is_quantised(model)


@pytest.mark.parametrize("precision", QUANTISED)
def test_a_missing_package_is_named(
    precision: BasePrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"pip install '\.\[quantization\]'"):
        quantization_config(precision, torch.bfloat16, CPU)


def test_another_device_is_refused() -> None:
    with pytest.raises(ModelError, match=r"4bit is not available on mps\. Use cpu or cuda"):
        quantization_config("4bit", torch.bfloat16, torch.device("mps"))


def test_whole_numbers_among_the_weights_are_quantised() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert not is_quantised(model)
    whole = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    model.register_parameter("whole", whole)
    assert is_quantised(model)


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_near_the_unquantised(
    folder: Path, precision: BasePrecision, dtype: torch.dtype
) -> None:
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    exact, model = loaded(folder, "auto"), loaded(folder, precision, dtype)
    assert is_quantised(model)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert type(model.get_output_embeddings()) is nn.Linear  # the head is left as it is
    tokens = torch.arange(18).reshape(2, 9)
    bound = {"8bit": 0.03, "4bit": 0.2}[precision]
    with torch.no_grad():
        assert 0 < distance(model(tokens).logits, exact(tokens).logits) < bound
    gradients = []
    for each in (exact, model):
        inputs = each.get_input_embeddings()(tokens).detach().requires_grad_()
        each(inputs_embeds=inputs).logits.float().square().sum().backward()
        gradients.append(inputs.grad)
    assert 0 < distance(gradients[1], gradients[0]) < 2 * bound


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_gives_its_input_a_gradient_after_scoring(
    folder: Path, precision: BasePrecision, training: bool
) -> None:
    """Scoring comes first on purpose: it must not repack weights for a kernel without backward."""
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    model = loaded(folder, precision, torch.bfloat16)
    exact = loaded(folder, "auto").model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        model(torch.arange(9)[None])
    layer = model.model.layers[0].mlp.down_proj.train(training)
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (128, 64)
    for length in (1, 5):
        inputs = torch.randn(1, length, 128).bfloat16().requires_grad_()
        outputs = layer(inputs)
        assert outputs.shape == (1, length, 64)
        assert outputs.dtype == torch.bfloat16
        assert distance(outputs, inputs.float() @ exact.T) < 0.2
        outputs.sum().backward()
        assert inputs.grad is not None
        assert distance(inputs.grad, exact.sum(0).expand(1, length, 128)) < 0.2
