"""``rankwise plan`` for a machine that is not here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.budgets import resolution
from rankwise.study.planning.plan import plan_study
from tests.planted.results import planted_run_record
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

CARD = ("--device", "cuda", "--memory", "80GB")


def test_plan_for_a_card_elsewhere(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("CUDA was asked")

    for name in ("is_bf16_supported", "mem_get_info", "get_device_name", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    full = ("train.precision=auto", "--study-dir", study_file.parent / "elsewhere")
    said = rankwise("plan", study_file, *full, *CARD).stdout
    sentence(said, "card", names=("planned for", "80.0 GB", "bfloat16"), part=True)
    sentence(said, "pass", names=("pass 2: ", "float32", "adamw"), part=True)
    # a third of 989 TFLOP/s, over 4 of each of 60,912 weights
    sentence(said, "speed", names=("1,353,044,830", "H100"), part=True, SECONDS=r"[\d.]+ m?s\b")
    plan = json.loads(rankwise("plan", study_file, *full, *CARD, "--json").stdout)
    assert (plan["device"], plan["precision"]) == ("cuda", "bfloat16")
    here = json.loads(rankwise("plan", study_file, *full, "--json").stdout)
    assert (here["device"], here["seconds"], here["tokens_per_second"]) == ("cpu", None, None)


def test_plan_says_how_long_the_study_takes(study_file: Path, sentence: Sentences) -> None:
    study = (study_file, "--study-dir", study_file.parent / "timed", "--tokens-per-second", "100")
    plan = json.loads(rankwise("plan", *study, "--json").stdout)
    slower = {"heads": 3.5, "spectra": 0.0}  # which is known by arithmetic
    work = [stage["work"] * slower.get(stage["kind"], 1.0) for stage in plan["stages"]]
    assert work.count(0.0) == 1
    # a token of training is 2.5 scored
    (weights,) = (unit["seconds"] for unit in plan["units"] if unit["kind"] == "spectra")
    assert plan["seconds"] == pytest.approx(sum(work) / 250 + weights, rel=1e-6)
    assert 0 < weights < 1
    stay = sum(stage["disk_bytes"] for stage in plan["stages"])
    trained = max(
        sum(run["num_trainable_parameters"] for run in plan["runs"] if run["name"] in each["runs"])
        for each in plan["passes"]
    )
    assert stay < plan["disk_bytes"] <= stay + 2 * trained * 12
    assert not plan["is_rate_assumed"]
    sentence(rankwise("plan", *study).stdout, names=("time: ", "100"), part=True)


def test_plan_says_what_margins_take(study_file: Path, sentence: Sentences) -> None:
    def margins(*options: str) -> list[dict[str, Any]]:
        where = ("--study-dir", study_file.parent / "margins")
        found = json.loads(rankwise("plan", study_file, *where, *options, "--json").stdout)
        return [cost for cost in found["margins"] if cost["relation"] == "in_domain"]

    half, own, double = margins()
    assert [half["margin"], own["margin"], double["margin"]] == [1.5, 3.0, 6.0]
    assert (
        half["num_items"] == 4 * own["num_items"] == pytest.approx(16 * double["num_items"], 0.01)
    )
    able = resolution(plan_study(load_config(study_file))).in_domain
    assert able is not None
    assert own["num_items"] == able.num_items
    of_one = own["num_tokens"] / own["num_items"]
    assert half["num_tokens"] / half["num_items"] == pytest.approx(of_one, 0.01)
    assert own["seconds"] is None
    # of a training token's time, 2.5 are scored
    timed = margins("--tokens-per-second", "100")[1]
    assert timed["seconds"] == pytest.approx(own["num_tokens"] / 250)
    said = rankwise("plan", study_file).stdout
    sentence(said, names=("in-domain: 1.5 points",), part=True)
    assert f"{own['num_planned']} of {own['num_available']}" in words(said)


def test_what_does_not_fit_a_card_is_refused(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    done = rankwise("plan", study_file, "--device", "cuda", "--memory", "0.001MB")
    assert done.exit_code == 2
    assert "methods.lora: " in done.stderr
    assert "colours-lora-r004-a008-s0-" in done.stderr
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = rankwise("plan", study_file, "--device", "cuda")
    assert done.exit_code == 2
    sentence(done.stderr, names=("--memory",))


def test_plan_keeps_what_the_folder_s_study_took(study_file: Path) -> None:
    bfloat16 = "methods.full={weights: bfloat16}"
    folder = StudyFolder(study_file.parent / "kept")
    folder.write(folder.study_file, plan_study(load_config(study_file, [bfloat16])).record)

    def full(*more: Any) -> Any:
        done = rankwise("plan", study_file, *CARD, "--json", *more)
        return [run["full"] for run in json.loads(done.stdout)["runs"] if run["full"]]

    kept = {"weights": "bfloat16", "optimizer": "adamw"}
    assert full("--study-dir", folder.root) == [kept]
    folder.study_file.write_text("{")  # what is damaged is no reason
    assert full("--study-dir", folder.root) == [{"weights": "float32", "optimizer": "adamw"}]
    took = plan_study(load_config(study_file, [bfloat16])).record.runs
    (run,) = (each for each in took if each.full)  # but a finished run says what it took
    folder.write(folder.run_file(run.name), planted_run_record(run, diverged=False))
    assert full("--study-dir", folder.root) == [kept]


@pytest.mark.parametrize("rate", ["0", "-1", "nan"])
def test_a_speed_that_is_none_is_refused(study_file: Path, rate: str) -> None:
    assert rankwise("plan", study_file, "--tokens-per-second", rate).exit_code == 2
