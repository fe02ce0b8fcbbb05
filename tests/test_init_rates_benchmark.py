"""The benchmark of the best rate by rank finds planted rates and planted powers."""

from __future__ import annotations

import math
import random

import pytest

from benchmarks import init_rates


def parabola(best: float, rates: tuple[float, ...]) -> dict[float, float]:
    return {rate: 2.0 + 0.1 * math.log2(rate / best) ** 2 for rate in rates}


def test_the_vertex_between_two_rates_is_found() -> None:
    found = init_rates.best_rate(parabola(3e-3, init_rates.LORA_RATES))
    assert found[0] == pytest.approx(3e-3)
    assert not found[2]


def test_a_best_rate_at_the_edge_is_named() -> None:
    rate, _, is_edge = init_rates.best_rate(parabola(1.0, init_rates.LORA_RATES))
    assert (rate, is_edge) == (max(init_rates.LORA_RATES), True)


def test_a_diverged_neighbour_does_not_move_the_rate() -> None:
    losses = parabola(4e-3, init_rates.LORA_RATES)
    losses[8e-3] = math.inf
    assert init_rates.best_rate(losses)[0] == 4e-3


@pytest.mark.parametrize("power", [-0.5, 0.0, -1.0])
def test_a_planted_power_is_found(power: float) -> None:
    rates = [1e-2 * rank**power for rank in init_rates.RANKS]
    assert init_rates.slope(rates) == pytest.approx(power, abs=1e-12)


def test_texts_are_pieces_of_the_source() -> None:
    code = init_rates.source()
    for example in init_rates.windows(code, 5, random.Random(0)):
        assert bytes(example.tokens).decode("ascii") in code.encode("ascii", "replace").decode()
        assert example.num_loss_tokens == init_rates.LENGTH - 1
