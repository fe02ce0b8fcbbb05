"""The benchmark of the first minutes: what it counts, and what it does not run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import first_run


def test_a_share_of_settled_seeds_and_no_seed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[str] = []

    def rankwise(*arguments: str, folder: Path) -> float:
        commands.append(" ".join(arguments))
        if "evaluation.limit=2" not in arguments:
            seed = int(arguments[-1].removeprefix("seed-"))
            (folder / arguments[-1]).mkdir(exist_ok=True)
            part = {"statement": "Use rank 4.", "verdicts": [{"qualifies": seed != 2}]}
            text = json.dumps({"by_train_task": [part]})
            (folder / arguments[-1] / "recommendation.json").write_text(text)
            return 100.0 + seed
        return 30.0

    monkeypatch.setattr(first_run, "rankwise", rankwise)
    options = ["--out", str(tmp_path), "--only", "study"]
    first_run.main([*options, "--seeds", "2"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "settled_share": 1,
        "seconds_median": 100.5,
        "seconds_max": 101.0,
        "tokens_per_second_lanes_over_threads": None,
        "report_seconds": None,
        "rerun_seconds": None,
    }
    first_run.main([*options, "--seeds", "3"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (round(found["settled_share"], 2), found["seconds_max"]) == (0.67, 102.0)
    started = [each for each in commands if "evaluation.limit=2" not in each]
    assert started == [f"run seeds=[{seed}] --study-dir seed-{seed}" for seed in range(3)]


def test_a_report_needs_a_study(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="report needs a study"):
        first_run.main(["--out", str(tmp_path), "--only", "report"])
