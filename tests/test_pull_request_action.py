"""The action for pull requests: its steps are run in a shell, with the command of this tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.planted.score_tables import scores, write_csv

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


def judged(folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The step that judges, as a runner would call it, in a folder of a user's."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    command = tools / "rankwise"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rankwise "$@"\n')
    command.chmod(0o755)
    given = {name: str(each["default"]) for name, each in ACTION["inputs"].items()} | inputs
    wanted = STEPS["Judge"]["env"]
    environment = {
        name: given.get(value.removeprefix("${{ inputs.").removesuffix(" }}"), str(ROOT))
        for name, value in wanted.items()
    }
    return subprocess.run(
        ["bash", "-e", "-c", STEPS["Judge"]["run"]],
        cwd=folder,
        env=os.environ
        | environment
        | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_scores_are_judged_and_the_report_is_a_comment(tmp_path: Path) -> None:
    right = [1, 0, 1, 1, 1] * 20
    write_csv(tmp_path / "scores.csv", scores(base=[0, 0, 1, 0, 0] * 20, r4=right, r16=right))
    done = judged(tmp_path, scores="scores.csv", options="--delta 10")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "rankwise-report.md").read_text()
    assert report.startswith("~~~~~~text\nUse rank 4.")
    assert "δ = 10.0 points" in report
    done = judged(tmp_path, scores="nowhere.csv")
    assert done.returncode == 2
    assert "nowhere.csv does not exist" in (tmp_path / "rankwise-report.md").read_text()


def test_what_is_missing_is_no_failure_of_a_contract(tmp_path: Path) -> None:
    for inputs in ({}, {"contract": "contract.yaml"}):
        done = judged(tmp_path, **inputs)
        assert done.returncode == 2
        assert (tmp_path / "rankwise-report.md").read_text()


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_contract_is_checked(tmp_path: Path, tiny_model_folder: Path, is_kept: bool) -> None:
    """By the adapter that changes nothing, and by a file that is none."""
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(str(tmp_path / "adapter"))
    rows = [{"prompt": f"Question {n}:", "completion": " yes"} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    clause = {"says_yes": {"data": "rows.jsonl", "judged_by": "loss", "max_loss": 99.0}}
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump(clause if is_kept else {"x": {}}))
    done = judged(
        tmp_path, contract="contract.yaml", base=str(tiny_model_folder), adapter="adapter"
    )
    report = (tmp_path / "rankwise-report.md").read_text()
    assert done.returncode == (0 if is_kept else 2), done.stderr
    assert report.startswith("# Pass" if is_kept else "ConfigError"), report


def test_what_a_pull_request_says_is_no_code_of_the_shell() -> None:
    """Inputs reach the shell as variables only."""
    for step in STEPS.values():
        assert "${{" not in step["run"], step["name"]
