"""A collection from the command line, and what is said of a study before it is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import rankwise as rw
from rankwise.cli.predict_verbs import advice_lines
from rankwise.errors import ConfigError
from rankwise.prediction import collecting, collection
from rankwise.prediction.advice import Planned, advise
from rankwise.prediction.collected import CollectedStudy
from rankwise.prediction.collecting import collected_studies
from rankwise.prediction.collection import add_study, read_collection
from rankwise.records.folder import StudyFolder
from rankwise.study import predicting
from rankwise.study.predicting import plan_untrained
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

    def measure(study: Any, *, with_probe: bool = True) -> dict[str, float]:
        asked.append(with_probe)
        return FEATURES

    monkeypatch.setattr(predicting, "measure", measure)
    monkeypatch.setattr(predicting, "measure_features", measure)
    return asked


def _of_base(study: CollectedStudy, planned: Planned) -> CollectedStudy:
    """A planted study as one of the base and the modules of a plan."""
    base = study.base_model.model_copy(update={"fingerprint": planned.base_fingerprint})
    training = study.training.model_copy(update={"target_modules": planned.target_modules})
    return study.model_copy(update={"base_model": base, "training": training})


def _fill(own: Path, study_file: Path) -> None:
    planned = plan_untrained(rw.load_config(study_file)).planned
    for curve in planted_curves(rule=True):
        add_study(own, _of_base(collected(curve, planned.rates[0]), planned))


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


def test_a_study_of_several_tasks_is_not_measured_and_nothing_is_written(
    planted: Path, own: Path, measured: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study of one task comes first; the planted one stands for one of two tasks."""
    twice = lambda folder: collected_studies(folder) * (2 if folder.root.name == "two" else 1)  # noqa: E731
    monkeypatch.setattr(collecting, "collected_studies", twice)
    shutil.copytree(planted, planted.parent / "two")
    done = rankwise("collect", planted, planted.parent / "two", "--measure")
    assert done.exit_code == 2
    assert "two trains 2 tasks, and --measure takes one" in words(done.stderr)
    assert not own.exists()


def test_a_rank_with_its_regret(own: Path, measured: list[bool], study_file: Path) -> None:
    _fill(own, study_file)
    done = rankwise("predict", study_file, "methods.lora.ranks=[4,32]", "--no-probe")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "rank 32 is expected to gain most"
    said = words(done.stdout)
    assert "rankwise run STUDY search.policy=ladder search.first_rank=32" in said
    assert "learned from 20 studies of 10 tasks" in said
    assert measured == [False]
    told = json.loads(rankwise("predict", study_file, "methods.lora.ranks=[4,32]", "--json").stdout)
    assert (told["rank"], [each["rank"] for each in told["by_rank"]]) == (32, [4, 32])
    assert told["by_rank"][1]["below_chosen"] == 0.0 < told["by_rank"][0]["below_chosen"]
    assert told["regret"]["estimate"] < told["constants"][0]["estimate"]


def test_it_cannot_say_without_a_collection(
    own: Path, measured: list[bool], study_file: Path
) -> None:
    done = rankwise("predict", study_file)
    assert done.exit_code == 0
    assert words(done.stdout).startswith("cannot say: the collection has studies of 0 tasks")
    assert not own.exists()
    assert measured == []  # the plan alone shows it


def test_where_nothing_is_better_the_constants_are_told() -> None:
    studies = [collected(curve) for curve in planted_curves(rule=False)]
    rates, alphas = (2e-4,) * len(RANKS), tuple(2.0 * rank for rank in RANKS)
    planned = Planned("b" * 64, ("q_proj",), RANKS, rates, alphas, True, {})
    lines = list(advice_lines(advise(studies, planned, FEATURES)))
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


def test_a_tiny_model_is_measured(own: Path, study_file: Path) -> None:
    """Nothing stands in for the measurement here."""
    _fill(own, study_file)
    advice = rw.predict(rw.load_config(study_file), with_probe=False)
    assert advice.num_studies == 20
    assert advice.features["train_rows"] == 24
    assert "gradient_energy_rank_90" in advice.features
    assert "gradient_energy_rank_90" in advice.dropped


@pytest.mark.parametrize(
    ("overrides", "is_in_points"),
    [
        ([], True),
        (["evaluation.in_domain=[small_prose]", "evaluation.held_out_text=[]"], False),
    ],
)
def test_a_plan_tells_what_decides(
    study_file: Path, overrides: list[str], is_in_points: bool
) -> None:
    planned = plan_untrained(rw.load_config(study_file, overrides)).planned
    assert planned.is_in_points is is_in_points
    assert planned.ranks == (2, 4)
    assert planned.rates == (0.01, 0.01)
    assert planned.alphas == (4.0, 8.0)
    assert planned.features == {"train_rows": 24.0}


def test_the_alphas_of_rslora_are_those_of_its_factor(study_file: Path) -> None:
    """16/√r times r; several rates count as their median."""
    overrides = ["methods.lora.alpha={policy: rslora, alpha: 16}", "methods.lora.ranks=[4,16]"]
    overrides += ["train.learning_rate.lora=[1e-3,2e-3,4e-3]"]
    planned = plan_untrained(rw.load_config(study_file, overrides)).planned
    assert planned.alphas == pytest.approx((32.0, 64.0))
    assert planned.rates == (2e-3, 2e-3)


def test_a_ladder_is_asked_about_with_all_its_ranks(study_file: Path) -> None:
    """Its plan has the first one alone."""
    overrides = ["search.policy=ladder", "search.first_rank=2"]
    assert plan_untrained(rw.load_config(study_file, overrides)).planned.ranks == (2, 4)
