"""As few kernels as the pages say, counted on tensors of a card that is not there."""

from __future__ import annotations

import pytest

from benchmarks import kernels

ONE_RANK = (8,) * 5


def test_a_layer_of_decoding_has_few_kernels() -> None:
    """Five adapters, whose prompts share a prefix; 215 where attention reads that apart."""
    one, two = (kernels.decode_steps(layers, kernels.RANKS) for layers in (1, 2))
    assert two[2].kernels - one[2].kernels <= 74
    assert [step.copies for step in two] == [0] * kernels.NEW_TOKENS


@pytest.mark.parametrize(("ranks", "most"), [(kernels.RANKS, 231), (ONE_RANK, 151)])
def test_a_layer_of_training_has_few_kernels(ranks: tuple[int, ...], most: int) -> None:
    """Five adapters on all linear layers; 424 from adapter to adapter."""
    one, two = (kernels.training_kernels(layers, ranks) for layers in (1, 2))
    assert two.total() - one.total() <= most
