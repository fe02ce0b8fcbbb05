"""First gradients: against autograd by the weights, of a planted rank, at a known angle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rankwise.engine.models.base import adaptable_shapes
from rankwise.prediction.gradients import (
    gradient_features,
    leading_svd,
    weight_gradients,
)
from rankwise.prediction.matrices import GROUP_BYTES
from rankwise.tasks.training_rows import Example
from rankwise.weights.spectra import energy_rank
from tests.support.tiny_models import tiny

ROWS = [
    Example((5, 9, 33, 12, 7), 2, is_truncated=False),
    Example((8, 41, 3), 1, is_truncated=False),
    Example((17, 22, 6, 50, 11, 29), 3, is_truncated=False),
]
OTHERS = [
    Example((14, 2, 60, 31), 1, is_truncated=False),
    Example((25, 44, 9, 10, 30), 2, is_truncated=False),
]


def frozen(family: str) -> Any:
    return tiny(family).requires_grad_(False)


def dense(family: str, rows: Sequence[Example]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a model whose weights ask for them, each row alone."""
    model = tiny(family)
    losses: list[Tensor] = []
    for row in rows:
        logits = model(torch.tensor([row.tokens[:-1]])).logits[0, -row.num_loss_tokens :]
        right = torch.tensor(row.tokens[-row.num_loss_tokens :])
        losses.append(cross_entropy(logits, right, reduction="none"))
    loss = torch.cat(losses).mean()
    loss.backward()
    # transformers' Conv1D stores its weight transposed
    is_conv = family == "GPT2"
    gradients = {
        name: model.get_submodule(name).weight.grad.T
        if is_conv
        else model.get_submodule(name).weight.grad
        for name in adaptable_shapes(model)
    }
    return float(loss.detach()), gradients


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma2"])
@pytest.mark.parametrize("max_tokens", [4, 100])
def test_they_are_those_of_autograd(family: str, max_tokens: int) -> None:
    loss, expected = dense(family, ROWS)
    model = frozen(family)
    found = weight_gradients(model, expected, ROWS, max_tokens=max_tokens)
    assert found.loss_nats == pytest.approx(loss, rel=1e-5)
    assert found.of_layers.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found.of_layers[name], gradient, rtol=1e-4, atol=1e-6)


def test_sums_of_a_bfloat16_model_are_float32() -> None:
    _, expected = dense("Llama", ROWS)
    found = weight_gradients(frozen("Llama").bfloat16(), expected, ROWS, max_tokens=4).of_layers
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        error = float((found[name] - gradient).norm() / gradient.norm())
        assert 0.0 < error < 0.05


def test_a_layer_that_reads_nothing_is_left_out() -> None:
    model = frozen("Llama")
    model.unread = torch.nn.Linear(4, 4)
    shapes = adaptable_shapes(model)
    assert "unread" in shapes
    features = gradient_features(model, shapes, ROWS, OTHERS, max_tokens=100)
    del shapes["unread"]
    assert features == gradient_features(model, shapes, ROWS, OTHERS, max_tokens=100)


def test_the_base_is_left_as_it_was() -> None:
    model = frozen("Llama")
    weight_gradients(model, adaptable_shapes(model), ROWS, max_tokens=100)
    assert all(not weight.requires_grad and weight.grad is None for weight in model.parameters())
    hooks = [each for module in model.modules() for each in module._forward_hooks.values()]
    assert hooks == []


def test_of_one_learned_token_the_last_layer_has_rank_one() -> None:
    model = frozen("Llama")
    names = [f"model.layers.1.{end}" for end in ("self_attn.o_proj", "mlp.down_proj")]
    for rows, rank in ((ROWS[1:2], 1), ([*ROWS[1:2], *OTHERS[:1]], 2)):
        found = weight_gradients(model, names, rows, max_tokens=100)
        for gradient in found.of_layers.values():
            assert leading_svd(gradient).U.shape[1] == rank
    shapes = {name: adaptable_shapes(model)[name] for name in names}
    features = gradient_features(model, shapes, ROWS[1:2], [], max_tokens=100)
    assert features.keys() == {
        "train_loss",
        "gradient_energy_rank_90",
        "gradient_energy_rank_90_attention",
        "gradient_energy_rank_90_mlp",
    }
    assert features["gradient_energy_rank_90"] == 1.0


def test_the_same_rows_have_a_cosine_of_one() -> None:
    model = frozen("Llama")
    shapes = adaptable_shapes(model)
    features = gradient_features(model, shapes, ROWS, ROWS, max_tokens=100)
    assert features["gradient_cosine"] == pytest.approx(1.0)
    assert features["gradient_overlap_left"] == pytest.approx(1.0)
    assert features["gradient_overlap_right"] == pytest.approx(1.0)


def test_the_cosine_is_that_of_all_weights_together(monkeypatch: pytest.MonkeyPatch) -> None:
    _, own = dense("Llama", ROWS)
    _, others = dense("Llama", OTHERS)
    first, second = (torch.cat([g.flatten() for g in each.values()]) for each in (own, others))
    expected = float(first @ second / first.norm() / second.norm())
    assert abs(expected) < 0.9
    # one matrix in each group
    monkeypatch.setitem(GROUP_BYTES, "cpu", 1)
    model = frozen("Llama")
    features = gradient_features(model, adaptable_shapes(model), ROWS, OTHERS, max_tokens=100)
    assert features["gradient_cosine"] == pytest.approx(expected, abs=1e-5)
    overlaps = [_overlap(own[name], others[name]) for name in own]
    left, right = (sum(side) / len(side) for side in zip(*overlaps, strict=True))
    assert features["gradient_overlap_left"] == pytest.approx(left, abs=1e-4)
    assert features["gradient_overlap_right"] == pytest.approx(right, abs=1e-4)


def _overlap(first: Tensor, second: Tensor) -> tuple[float, float]:
    """By torch's own decomposition: ‖U1ᵀ U2‖² / k of 8 vectors, or as many as there are."""
    parts = [torch.linalg.svd(each.double(), full_matrices=False) for each in (first, second)]
    k = min(8, *(int((1e-5 * S[0] < S).sum()) for _, S, _ in parts))
    (U1, _, V1), (U2, _, V2) = parts
    left, right = U1[:, :k].T @ U2[:, :k], V1[:k] @ V2[:k].T
    return float(left.square().sum()) / k, float(right.square().sum()) / k


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_leading_vectors_of_a_planted_matrix(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(size, 3, generator=generator)).Q for size in shape)
    planted = (U * torch.tensor([2.0, 1.0, 1.0])) @ V.T
    found = leading_svd(planted)
    assert found.S[:3].tolist() == pytest.approx([2.0, 1.0, 1.0], abs=1e-6)
    # 4/6 and 5/6 of the energy are below 90 %
    assert energy_rank(found.S, 0.9) == 3
    assert found.U.shape == (shape[0], 3)
    assert found.Vh.shape == (3, shape[1])
    assert math.isclose(float((found.U[:, 0] @ U[:, 0].double()).abs()), 1.0, abs_tol=1e-6)
    assert math.isclose(float((found.Vh[0] @ V[:, 0].double()).abs()), 1.0, abs_tol=1e-6)


def test_a_gradient_of_zero_has_no_direction() -> None:
    found = leading_svd(torch.zeros(4, 6))
    assert found.U.shape == (4, 0)
    assert energy_rank(found.S, 0.9) == 0
