"""The simulated contracts of benchmarks/checks: drawn as they say, judged as ``check`` judges."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks.checks import MARGIN, ROWS, Cell, Rows, draw, simulate


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: rows.name)
def test_items_lose_what_was_planted(rows: Rows) -> None:
    pair = draw(rows, 100_000, 4.0, np.random.default_rng(0))
    assert pair.base.mean() == pytest.approx(100 * rows.alpha / (rows.alpha + rows.beta), abs=0.5)
    assert pair.gain.mean() == pytest.approx(-4.0, abs=0.6)


def test_models_that_decode_alike_disagree_less() -> None:
    sampled, greedy = (
        (draw(rows, 100_000, 0.0, np.random.default_rng(0)).gain != 0).mean() for rows in ROWS[1:]
    )
    assert sampled == pytest.approx(0.09, abs=0.005)
    assert greedy == pytest.approx(0.2 * sampled, abs=0.005)


def test_a_large_drift_is_found_and_an_unchanged_model_is_no_alarm() -> None:
    drifted, unchanged = (simulate(Cell(ROWS[2], 200, loss), 60) for loss in (20.0, 0.0))
    assert drifted.exits_1.share > 0.95
    assert drifted.exits_0.number == 0
    assert unchanged.exits_1.number == 0
    assert unchanged.passes_at > MARGIN


def test_a_contract_fails_by_one_of_its_clauses() -> None:
    many = simulate(Cell(ROWS[2], 200, 20.0, num_clauses=3), 30)
    assert many.exits_1.share > 0.9


def test_the_command_needs_no_torch_and_ends_with_its_numbers() -> None:
    program = (
        "import sys\nfrom benchmarks import checks\nsys.argv[1:] = ['--contracts', '4']\n"
        "checks.main()\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["contracts"] == 4
    assert found["drift_of_4_found"]["easy, greedy"].keys() == {"200", "400", "1000"}
    assert 0.0 <= found["false_alarms_upper95"] <= 1.0
