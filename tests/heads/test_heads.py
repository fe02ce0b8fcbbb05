"""Measures of heads against values made by hand, and shares of an update against delta built."""

from __future__ import annotations

import math

import pytest
import torch

from rankwise.heads.changes import (
    attention_divergence,
    attention_entropy,
    first_token_mass,
    norm_squared,
)


def test_entropy_of_one_key_is_zero_and_of_equal_keys_the_logarithm_of_their_number() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    expected = [0.0, math.log(4), math.log(2)]
    assert attention_entropy(weights).tolist() == pytest.approx(expected)


def test_divergence_is_nothing_of_equal_and_ln_2_of_disjoint_distributions() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.7, 0.3, 0.0]])
    q = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.1, 0.3, 0.6]])
    found = attention_divergence(p, q)
    m = [0.4, 0.3, 0.3]
    by_hand = sum(
        0.5 * x * math.log(x / y)
        for side in ([0.7, 0.3, 0.0], [0.1, 0.3, 0.6])
        for x, y in zip(side, m, strict=True)
        if x
    )
    assert found.tolist() == pytest.approx([0.0, math.log(2), by_hand])
    assert torch.equal(found, attention_divergence(q, p))


def test_first_token_mass_is_the_weight_of_the_first_key() -> None:
    weights = torch.tensor([[[1.0, 0.0], [0.2, 0.8]], [[1.0, 0.0], [0.6, 0.4]]])
    assert torch.equal(first_token_mass(weights), torch.tensor([[1.0, 0.2], [1.0, 0.6]]))


def test_half_precision_is_measured_in_float32() -> None:
    weights = torch.softmax(torch.randn(2, 5, 300), -1)
    exact = attention_entropy(weights.bfloat16().float())
    assert torch.equal(attention_entropy(weights.bfloat16()), exact)


@pytest.mark.parametrize("span", [slice(0, 4), slice(5, 9), slice(0, 12)])
def test_norms_of_rows_and_columns_are_those_of_delta(span: slice) -> None:
    draw = torch.Generator().manual_seed(0)
    A, B = torch.randn(3, 12, generator=draw), torch.randn(12, 3, generator=draw)
    delta = 0.7 * B.double() @ A.double()
    everything = slice(None)
    rows = norm_squared(A, B, 0.7, span, everything)
    columns = norm_squared(A, B, 0.7, everything, span)
    assert rows == pytest.approx(float(delta[span].square().sum()), rel=1e-10)
    assert columns == pytest.approx(float(delta[:, span].square().sum()), rel=1e-10)
    whole = norm_squared(A, B, 0.7, everything, everything)
    spans = (slice(i, i + 3) for i in range(0, 12, 3))
    parts = sum(norm_squared(A, B, 0.7, part, everything) for part in spans)
    assert parts == pytest.approx(whole, rel=1e-10)
