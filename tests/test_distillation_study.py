"""The page of the study of self-distillation says what its record says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.distillation_study import RECORD, TASKS, study_files, tables
from rankwise.records.config.study import StudyConfig

PAGE = Path(__file__).parents[1] / "docs" / "studies" / "self-distillation.md"


def test_the_page_has_the_tables_of_the_record() -> None:
    page = PAGE.read_text(encoding="utf-8")
    made = [*tables(json.loads(RECORD.read_text(encoding="utf-8")))]
    assert len(made) == 2 * len(TASKS)
    for table in made:
        assert table in page


def test_the_sentences_on_kinship_are_true_of_the_record() -> None:
    found = json.loads(RECORD.read_text(encoding="utf-8"))["kinship"]
    gains = {each["label"]: each["gain"][0] for each in found["models"]}
    sft = [gain for label, gain in gains.items() if label.startswith("SFT, rate")]
    sdft = [gain for label, gain in gains.items() if label.startswith("SDFT")]
    assert max(sdft) < min(sft) / 2
    leads = {each["label"]: each for each in found["leads"]}
    kl = leads["SFT with KL on own texts, rate 0.002"]
    assert kl["gain"][1] < 0 < kl["gain"][2]
    assert kl["retention"][1] > 0
    at_two = leads["SDFT, rate 0.002"]
    assert at_two["retention"][2] < 0
    assert at_two["gain"][2] < 0


def test_the_sentences_on_extraction_are_true_of_the_record() -> None:
    found = json.loads(RECORD.read_text(encoding="utf-8"))["extraction"]
    models = {each["label"]: each for each in found["models"]}
    leads = {each["label"]: each for each in found["leads"]}
    at_two = leads["SDFT, rate 0.002"]
    assert at_two["gain"][1] < 0 < at_two["gain"][2]
    assert at_two["retention"][2] < 0
    assert models["SFT, rate 0.002"]["retention"][2] < 0
    kl = leads["SFT with KL on own texts, rate 0.002"]
    assert kl["retention"][1] < 0 < kl["retention"][2]
    seconds = {label: each["train_seconds"] for label, each in models.items()}
    slowest = max(each for label, each in seconds.items() if label.startswith("SFT, rate"))
    assert 6 < seconds["SDFT, rate 0.002"] / slowest < 7


def test_the_study_files_are_accepted_and_differ_in_what_is_learned(tmp_path: Path) -> None:
    files = dict(study_files(tmp_path))
    configs = {file.stem: StudyConfig.model_validate(study) for file, study in files.items()}
    assert [*configs] == [f"{task}-{kind}" for task in TASKS for kind in ("sft", "sdft")]
    for task in TASKS:
        sft, sdft = configs[f"{task}-sft"], configs[f"{task}-sdft"]
        assert sft.evaluation == sdft.evaluation
        assert sft.seeds == sdft.seeds
        assert sft.train.objective is None
        assert sdft.train.objective is not None
        same = {"objective", "learning_rate"}
        assert sft.train.model_dump(exclude=same) == sdft.train.model_dump(exclude=same)


@pytest.mark.parametrize("task", TASKS)
def test_leads_are_against_the_lower_rate_with_the_nearest_gain(task: str) -> None:
    found = json.loads(RECORD.read_text(encoding="utf-8"))[task]
    gains = {each["label"]: each["gain"][0] for each in found["models"]}
    rates = [label for label in gains if label.startswith("SFT, rate")]
    for lead in found["leads"]:
        nearest = min(rates, key=lambda rate: abs(gains[rate] - gains[lead["label"]]))
        assert lead["against"] == nearest
        difference = gains[lead["label"]] - gains[nearest]
        assert lead["gain"][0] == pytest.approx(difference)
