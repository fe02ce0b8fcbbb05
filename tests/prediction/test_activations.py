"""What enters the matrices: against hooks on every layer, and of a planted rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rankwise.engine.models.base import adaptable_shapes
from rankwise.prediction.activations import activation_features, second_moments
from rankwise.tasks.training_rows import Example
from tests.support.tiny_models import tiny

ROWS = [
    Example((5, 9, 33, 12, 7), 2, is_truncated=False),
    Example((8, 41, 3), 1, is_truncated=False),
]
FIRST = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def model() -> Any:
    return tiny("Llama").requires_grad_(False)


@pytest.mark.parametrize("max_tokens", [3, 100])
def test_they_are_sums_over_all_tokens_that_are_read(model: Any, max_tokens: int) -> None:
    read: dict[str, list[Tensor]] = {}
    names = list(adaptable_shapes(model))
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: read.setdefault(name, []).append(inputs[0][0])
        )
        for name in names
    ]
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row.tokens[:-1]]))
    for hook in hooks:
        hook.remove()
    found = second_moments(model, names, ROWS, max_tokens=max_tokens)
    for name in names:
        rows = torch.cat(read[name])
        assert len(rows) == 6
        torch.testing.assert_close(found[name], rows.T @ rows, rtol=1e-4, atol=1e-5)


def test_layers_that_read_the_same_share_a_sum(model: Any) -> None:
    names = [f"model.layers.0.self_attn.{end}" for end in ("q_proj", "k_proj", "o_proj")]
    found = second_moments(model, names, ROWS, max_tokens=100)
    assert found[names[0]] is found[names[1]]
    assert found[names[0]] is not found[names[2]]


def test_as_many_directions_as_there_are_tokens(model: Any) -> None:
    """The first layer reads normalised embeddings: here of one, of two and of four directions."""
    embedding = model.get_input_embeddings().weight
    embedding.zero_()
    for token in range(4):
        embedding[10 + token, token] = 1.0
    model.model.layers[0].input_layernorm.weight.fill_(1.0)
    shapes = {FIRST: adaptable_shapes(model)[FIRST]}
    for tokens, rank in (((10,) * 9, 1), ((10, 11) * 5, 2), ((10, 11, 12, 13) * 3, 4)):
        # the last token is not read
        rows = [Example((*tokens, 10), 1, is_truncated=False)]
        features = activation_features(model, shapes, rows, max_tokens=100)
        assert features == {
            "activation_energy_rank_90": rank,
            "activation_energy_rank_90_attention": rank,
        }
