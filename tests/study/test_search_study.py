"""Searches as studies: what is trained, on which items they decide, and how they go on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.search import SearchRecord
from rankwise.records.study import RunRecord, StudyRecord
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.study.status import study_status
from rankwise.study.stopping import Stopped
from tests.support.observers import Recorder
from tests.support.small_studies import SEARCHED, write_study
from tests.support.studies import run

NARROW = (
    "search.policy=narrow", "train.learning_rate.tune=true", "seeds=[0, 1]",
    "recommendation.delta_points=1e-6",  # no rank has a rival
)  # fmt: skip


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    settings = "methods: {lora: {ranks: [2, 8], target_modules: attention}, full: null}\n"
    return write_study(tmp_path_factory.mktemp("searches"), tiny_model_folder, settings + SEARCHED)


@pytest.fixture(scope="module")
def narrowed(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = tmp_path_factory.mktemp("narrowed") / "study"
    run(study_file, folder, *NARROW)
    return StudyFolder(folder)


def scored_tasks(folder: StudyFolder, name: str) -> set[str]:
    return {path.stem for path in (folder.model_folder(name) / "eval").glob("*.json")}


def search_of(folder: StudyFolder) -> SearchRecord:
    return read_record(folder.search_file, SearchRecord)


def test_only_what_is_left_answers_test_items(narrowed: StudyFolder) -> None:
    study = narrowed.read_study()
    assert study.of_role("searched")
    assert study.runs
    for run_ in study.runs:
        assert {"colours", "sums"} <= scored_tasks(narrowed, run_.name)
    for candidate in study.of_role("searched"):
        tasks = scored_tasks(narrowed, candidate.name)
        assert tasks <= {"colours@validation", "sums@validation"}


def test_the_record_says_what_was_known_and_why(narrowed: StudyFolder) -> None:
    record = search_of(narrowed)
    assert record.policy == "narrow"
    (part,) = record.by_train_task
    assert part.num_items == {"colours": 6, "sums": 6}
    first, *_, last = part.decisions
    assert first.shown == ()
    assert len(first.wanted) == 6  # three rates of two ranks
    study = narrowed.read_study()
    assert set(last.finalists) == {run_.name for run_ in study.runs}
    wanted = [name for decision in part.decisions for name in decision.wanted]
    shown = [each.run for each in part.shown]
    assert shown == wanted  # everything that was wanted was shown, in order
    assert all(decision.statement for decision in part.decisions)
    rates = {run_.rank: run_.learning_rate for run_ in study.runs}
    tuned = {(each.rank, each.learning_rate) for each in part.shown if each.share == 1.0}
    assert set(rates.items()) <= tuned


def test_ranks_at_their_own_rates_are_one_axis(narrowed: StudyFolder) -> None:
    study = narrowed.read_study()
    assert {run_.rate_labels for run_ in study.runs} == {("tuned",)}


def test_a_finished_search_does_nothing_again(study_file: Path, narrowed: StudyFolder) -> None:
    before = narrowed.search_file.read_bytes()
    _, recorder = run(study_file, narrowed.root, *NARROW)
    assert recorder.stages == []
    assert narrowed.search_file.read_bytes() == before


def test_other_validation_items_are_those_of_the_base_too(study_file: Path, tmp_path: Path) -> None:
    """Scores of the base on the items before are there when the search begins again."""
    folder = StudyFolder(tmp_path / "study")
    config = load_config(study_file, NARROW)
    with pytest.raises(Stopped):
        run_study(plan_study(config), folder, _Stopping(4))
    assert {"colours@validation", "sums@validation"} <= scored_tasks(folder, "base")
    fewer = load_config(study_file, [*NARROW, "search.validation_items=4"])
    run_study(plan_study(fewer, folder=folder), folder, Recorder(), replace=True)
    (part,) = search_of(folder).by_train_task
    assert part.num_items == {"colours": 4, "sums": 4}
    assert folder.read_study().runs


def test_status_names_candidates(narrowed: StudyFolder) -> None:
    study = narrowed.read_study()
    lines = {line.model: line for line in study_status(narrowed)}
    for candidate in study.of_role("searched"):
        assert lines[candidate.name].left == ()


class _Stopping(Recorder):
    """Asks the study to stop when so many stages have begun."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def stage_finished(self) -> None:
        super().stage_finished()
        self._left -= 1
        if self._left == 0:
            raise Stopped(15)


def _results(folder: StudyFolder, study: StudyRecord) -> dict[str, object]:
    records = {
        model.name: read_record(folder.run_file(model.name), RunRecord) for model in study.runs
    }
    return {
        name: (record.final_loss_nats, record.files["adapter/adapter_model.safetensors"].sha256)
        for name, record in records.items()
    }


def test_a_search_that_is_stopped_again_and_again_ends_the_same(
    study_file: Path, narrowed: StudyFolder, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path)
    config = load_config(study_file, NARROW)
    for _ in range(20):
        try:
            run_study(plan_study(config), folder, _Stopping(7))
        except Stopped:
            continue
        break
    study, whole = folder.read_study(), narrowed.read_study()
    assert [run_.name for run_ in study.runs] == [run_.name for run_ in whole.runs]
    assert _results(folder, study) == _results(narrowed, whole)
    assert search_of(folder).by_train_task == search_of(narrowed).by_train_task


def test_the_course_does_not_depend_on_test_items(
    study_file: Path, narrowed: StudyFolder, tmp_path: Path
) -> None:
    """Only validation scores are read: the same decisions come without any test score."""
    shutil.copytree(narrowed.root, tmp_path / "study")
    copy = StudyFolder(tmp_path / "study")
    for name in ("base", *(run_.name for run_ in copy.read_study().runs)):
        for task in ("colours", "sums"):
            copy.evaluation_file(name, task).unlink()
    before = search_of(copy)
    run(study_file, copy.root, *NARROW)
    assert search_of(copy) == before


def test_what_a_search_dropped_is_trained_again_where_it_is_wanted_later(
    study_file: Path, narrowed: StudyFolder, tmp_path: Path
) -> None:
    """A search first, and then every rank at its tuned rate: as if there had been no search."""
    shutil.copytree(narrowed.root, tmp_path / "study")
    copy = StudyFolder(tmp_path / "study")
    every = ("train.learning_rate.tune=true", "seeds=[0, 1]")
    run(study_file, copy.root, *every)
    run(study_file, tmp_path / "alone", *every)
    alone = StudyFolder(tmp_path / "alone")
    names = [run_.name for run_ in alone.read_study().runs]
    assert [run_.name for run_ in copy.read_study().runs] == names
    assert len(names) > len(narrowed.read_study().runs)
    assert _results(copy, copy.read_study()) == _results(alone, alone.read_study())


@pytest.mark.parametrize("policy", ["narrow", "ladder"])
def test_a_policy_without_tuning(study_file: Path, tmp_path: Path, policy: str) -> None:
    settings: Sequence[str] = (f"search.policy={policy}", "seeds=[0]")
    (results, recommendation, _), _ = run(study_file, tmp_path, *settings)
    assert results.search is not None
    assert results.search.policy == policy
    assert recommendation.by_train_task[0].verdicts


def test_full_fine_tuning_is_tuned_too(study_file: Path, tmp_path: Path) -> None:
    settings = ("train.learning_rate.tune=true", "methods.full={}", "methods.lora.ranks=[2]")
    (results, _, _), _ = run(study_file, tmp_path, *settings, "train.epochs=1")
    (part,) = results.search.by_train_task if results.search else ()
    full = {each.learning_rate for each in part.shown if each.rank is None}
    assert len(full) >= 3
    assert [run_.method for run_ in results.study.runs].count("full") == 1
    folder = StudyFolder(tmp_path)
    for candidate in results.study.of_role("searched"):  # checkpoints of a whole model are large
        assert not folder.weights_folder(candidate).exists()
        assert not folder.training_state_file(candidate).exists()


def test_arms_are_of_what_the_search_leaves(study_file: Path, tmp_path: Path) -> None:
    arms = "mitigations=[{learning_rate_factor: 0.1}, {kl: {at: prompts}}]"
    outcome, _ = run(study_file, tmp_path / "study", *NARROW, arms)
    study = StudyFolder(tmp_path / "study").read_study()
    rates = {run_.name: run_.learning_rate for run_ in study.runs}
    assert {arm.of.name for arm in study.of_role("mitigated") if arm.of} == {*rates}
    assert len(study.of_role("mitigated")) == 2 * len(study.runs)
    assert {model.name for model in outcome.results.of_role("mitigated")} == {
        m.name for m in study.of_role("mitigated")
    }
    for arm in study.of_role("mitigated"):
        assert arm.mitigation is not None
        assert arm.of is not None
        factor = arm.mitigation.learning_rate_factor
        assert arm.learning_rate == pytest.approx(rates[arm.of.name] * (factor or 1.0))


def test_what_was_compared_before_stays_and_what_leaves_the_verdict_is_said(
    study_file: Path, tmp_path: Path
) -> None:
    """With a wide margin the smaller rank is left out, of which another margin had a finalist."""
    settings = ("search.policy=narrow", "seeds=[0, 1]", "train.learning_rate.tune=false")
    folder = StudyFolder(tmp_path / "study")
    run(study_file, folder.root, *settings, "recommendation.delta_points=100")
    compared = folder.read_study().runs
    weights = [folder.weights_folder(each) for each in compared]
    assert {each.rank for each in compared} == {2, 8}
    assert all(path.exists() for path in weights)
    _, observer = run(study_file, folder.root, *settings, "recommendation.delta_points=1e-6")
    left = {each.name for each in folder.read_study().runs}
    gone = [each.name for each in compared if each.name not in left]
    assert gone
    assert all(path.exists() for path in weights)
    (note,) = (each for each in observer.notes if "would not be in this plan" in each)
    assert gone[0] in note
    assert "recommendation.delta_points" in note
    _, again = run(study_file, folder.root, *settings, "recommendation.delta_points=100")
    assert not [stage for stage in again.stages if stage[0] == "training"]
    assert {each.name for each in folder.read_study().runs} == {each.name for each in compared}
