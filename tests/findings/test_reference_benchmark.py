"""The simulated studies of benchmarks/reference: scored as they say, and tallied as they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reference
from benchmarks.decision_rule import PLAIN
from benchmarks.decision_studies import Rate, Truth, draw_study


def test_one_run_answers_all_items_and_the_others_a_part() -> None:
    rng = np.random.default_rng(0)
    truth = Truth(np.full(3, 5.0), np.zeros((5, 3)))
    family = PLAIN._replace(law="p(right)", run_sd=(0.0, 0.0))
    study = draw_study(family, truth, 1000, 2, rng, 0.9)
    at = reference.At("rank", 2, 1000, 0.2)
    (whole,), found = study.gains, reference.scored_in_part(study.gains[0], at, rng)
    assert found.num_scored == 200
    assert (found.values[0, 1] == whole.values[0, 1]).all()
    assert (found.values[1, 1] != whole.values[1, 1]).mean() > 0.99
    assert found.values.mean() == pytest.approx(whole.values.mean(), abs=2.0)
    # what is said of an odd reference is worth nothing: the estimates spread as answers alone do
    odd = reference.scored_in_part(study.gains[0], at._replace(is_odd=True), rng)
    of_run = [task.values[1, 0].var() for task in (whole, found, odd)]
    assert 1.1 < of_run[1] / of_run[0] < 2.0
    assert 4.0 < of_run[2] / of_run[0] < 6.0


def test_a_task_of_fewer_items_is_scored_whole() -> None:
    rng = np.random.default_rng(0)
    study = draw_study(PLAIN, Truth(np.full(3, 5.0), np.zeros((5, 3))), 300, 1, rng)
    at = reference.At("adapters", 1, 300, 0.2)
    assert reference.scored_in_part(study.losses[0], at, rng) is study.losses[0]
    assert reference.scored_in_part(study.gains[0], at, rng).num_scored == 100


def test_a_bound_that_misses_too_often_is_counted_again() -> None:
    def tally(missed: int) -> reference.Tally:
        shares = [1.0] * missed + [0.0] * (400 - missed)
        return reference.Tally(Rate(0, 400), {("gain", "below", reference.SINGLE): shares})

    assert tally(10).ratios == {("gain", "below", reference.SINGLE): pytest.approx(1.0)}
    assert not reference.is_counted_again(tally(10))
    assert not reference.is_counted_again(tally(15))
    assert reference.is_counted_again(tally(24))


def test_every_group_gives_its_part_of_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    reference.main(["--studies", "2", "--cells", "0", "1"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["cost_share_16_models"] == 0.3
    assert 0.0 <= summary["coverage_min"] <= 1.0
    assert {"worst_error_rate_upper95", "effective_items_gain_median"} <= summary.keys()


def test_edge_cells_are_done_in_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def piece(*options: str) -> dict[str, float]:
        file = str(tmp_path / "cells.jsonl")
        reference.main(["--studies", "2", "--only", "edges", "--file", file, *options])
        return json.loads(capsys.readouterr().out)

    assert piece("--cells", "0", "2")["cells_edges"] == "2 of 2"
    first = (tmp_path / "cells.jsonl").read_text()
    whole = piece("--cells", "0", "3")
    lines = (tmp_path / "cells.jsonl").read_text()
    assert lines.startswith(first)
    assert lines.count("\n") == 3
    later = piece("--seconds", "1e-9")
    assert later["cells_edges"] == f"3 of {len(reference.edge_cells())}"
    assert later | {"cells_edges": "3 of 3", "seconds": 0} == whole | {"seconds": 0}
    # what is read says the same as what was counted
    at_once = ["--studies", "2", "--only", "edges", "--cells", "0", "3"]
    reference.main(at_once)
    assert json.loads(capsys.readouterr().out) | {"seconds": 0} == whole | {"seconds": 0}
