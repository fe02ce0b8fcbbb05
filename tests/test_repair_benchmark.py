"""The benchmark of repairs runs from its study file to its last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import repair


def test_the_last_line_says_which_arm_is_best(
    tiny_model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--tiny", "--model", str(tiny_model_folder), "--studies", "kinship", "--seeds", "1"]
    repair.main([*options, "--out", str(tmp_path)])
    lines = capfd.readouterr().out.splitlines()
    last = json.loads(lines[-1])
    assert last["arms"] == 3
    found = last["kinship"]
    assert {found["best_arm"], found["nearest_arm"]} == {None, "KL on prompts"}
    assert found["kl_arm_over_lower_rate_points"] is None  # the tiny one has no such arm
    assert any(line.startswith("| as trained |") for line in lines)
