"""A collection from the command line, and what is said of a study before it is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rankwise as rw
from rankwise.cli.predict_verbs import advice_lines
from rankwise.errors import ConfigError
from rankwise.prediction import collection
from rankwise.prediction.advice import advise
from rankwise.prediction.collection import add_study, read_collection
from rankwise.records.folder import StudyFolder
from rankwise.study import predicting
from tests.planted.folders import write_study
from tests.planted.rank_curves import RANKS, collected, planted_curves
from tests.planted.results import planted_study
from tests.support.command_line import rankwise, words

FEATURES = {"train_rows": 200.0, "base_accuracy": 0.7}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    write_study(StudyFolder(tmp_path / "study"), planted_study())
    return tmp_path / "study"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's collection, and none that ships."""
    monkeypatch.setattr(collection, "SHIPPED", tmp_path / "none")
    monkeypatch.setenv("RANKWISE_COLLECTION", str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Features without a model; whether a probe was asked for is noted."""
    asked: list[bool] = []

    def measure(config: Any, *, with_probe: bool = True, observer: Any = None) -> dict[str, float]:
        asked.append(with_probe)
        return FEATURES

    monkeypatch.setattr(predicting, "measure_features", measure)
    return asked


def test_a_study_is_collected_once(planted: Path, own: Path) -> None:
    assert rankwise("collect", planted).exit_code == 0
    done = rankwise("collect", planted)
    assert done.exit_code == 0, done.output
    (study,) = read_collection(own)
    assert study.task == "kinship"
    assert str(own) in done.stdout
    assert "KB)" in done.stdout


def test_measured_features_are_collected_too(
    planted: Path, own: Path, measured: list[bool]
) -> None:
    assert rankwise("collect", planted, "--measure").exit_code == 0
    (study,) = read_collection(own)
    assert study.features["base_accuracy"] == 0.7
    assert study.features["train_tokens"] == 12_000
    assert measured == [True]


def test_what_is_no_finished_study_is_refused_before_anything_is_written(
    planted: Path, own: Path, tmp_path: Path
) -> None:
    done = rankwise("collect", planted, tmp_path / "nothing")
    assert done.exit_code == 2
    assert "study.json is not there; run the study first" in words(done.stderr)
    assert not own.exists()


def test_a_rank_with_its_regret(own: Path, measured: list[bool], study_file: Path) -> None:
    for curve in planted_curves(rule=True):
        add_study(own, collected(curve))
    done = rankwise("predict", study_file, "methods.lora.ranks=[4,32]", "--no-probe")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "rank 32 is expected to gain most"
    assert lines[1].startswith("learned from 20 studies of 10 tasks")
    assert measured == [False]
    told = json.loads(rankwise("predict", study_file, "methods.lora.ranks=[4,32]", "--json").stdout)
    assert (told["rank"], [each["rank"] for each in told["by_rank"]]) == (32, [4, 32])
    assert told["regret"]["estimate"] < told["constants"][0]["estimate"]


def test_it_cannot_say_without_a_collection(
    own: Path, measured: list[bool], study_file: Path
) -> None:
    done = rankwise("predict", study_file)
    assert done.exit_code == 0
    assert words(done.stdout).startswith("cannot say: the collection has studies of 0 tasks")
    assert not own.exists()


def test_where_nothing_is_better_the_constants_are_told() -> None:
    studies = [collected(curve) for curve in planted_curves(rule=False)]
    lines = list(advice_lines(advise(studies, FEATURES, RANKS)))
    assert lines[0].startswith("cannot say: nothing is shown to choose better than a constant")
    assert lines[1].startswith("the ridge alone would take rank")
    assert [line.split(":")[0].strip() for line in lines[3:8]] == [
        "ridge", "always 16", "always 32", "best of the others", "table by data size",
    ]  # fmt: skip


def test_a_collection_that_is_not_there_is_refused(
    own: Path, measured: list[bool], study_file: Path, tmp_path: Path
) -> None:
    done = rankwise("predict", study_file, "--collection", tmp_path / "nowhere")
    assert done.exit_code == 2
    assert "no such folder" in done.stderr
    with pytest.raises(ConfigError, match="no such folder"):
        rw.predict(rw.load_config(study_file), collections=[tmp_path / "nowhere"])
    assert measured == []


def test_a_tiny_model_is_measured_and_is_outside(own: Path, study_file: Path) -> None:
    """Nothing stands in for the measurement here; the planted base has 1,000 parameters."""
    for curve in planted_curves(rule=True):
        study = collected(curve)
        add_study(own, study.with_features({"model_parameters": 1000.0}))
    advice = rw.predict(rw.load_config(study_file), with_probe=False)
    assert advice.rank is None
    assert any(reason.startswith("model_parameters is") for reason in advice.reasons)
    assert advice.features["train_rows"] == 24
