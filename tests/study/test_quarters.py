"""Studies until they are decided: their planned items in quarters, with a look after each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import PlanError
from rankwise.records.config.study import StudyConfig
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.search import SearchRecord
from rankwise.records.study_file import load_config
from rankwise.study import growing, references
from rankwise.study.conclusion import StudyOutcome
from rankwise.study.growing import run_to_verdict
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.tasks import update_guard
from rankwise.tasks.item_order import in_random_order
from tests.support.killed_studies import grow_until_path, started
from tests.support.observers import Recorder
from tests.support.sentences import Sentences
from tests.support.small_studies import SEARCHED, write_study

NUM_ITEMS, NUM_ANSWERED = 160, 120
SETTINGS = """
train: {task: colours, epochs: 20, learning_rate: {lora: 1e-2}, precision: float32}
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, k_proj, v_proj, o_proj]}, full: null}
evaluation: {held_out_text: [small_prose], num_train_items: 0, trained_format: false}
analysis: {spectra: false, heads: false, gauges: false}
recommendation: {delta_points: 50}
search: {until: decided}
"""
UNDECIDED = ["train.epochs=1", "recommendation.confidence=0.9999"]


def with_items(file: Path, number: int = NUM_ITEMS) -> Path:
    """The same, with so many items of the tasks of colours and hues."""
    module = file.parent / "tasks" / "colours.py"
    text = module.read_text().replace("range(24, 50)", f"range(24, {24 + number})")
    module.write_text(text.replace("{THINGS[thing]}?", "{THINGS[thing]} of {index}?"))
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("quarters")
    return with_items(write_study(root, tiny_model_folder, SETTINGS))


@pytest.fixture(scope="module")
def settled(file: Path) -> StudyOutcome:
    return grown(load_config(file), file.parent / "settled")


def grown(config: StudyConfig, root: Path, observer: Recorder | None = None) -> StudyOutcome:
    return run_to_verdict(config, plan_study, StudyFolder(root), observer or Recorder())


def shares(outcome: StudyOutcome) -> list[float]:
    (part,) = outcome.recommendation.by_train_task
    return [look.share for look in part.looks]


def test_a_study_stops_at_the_first_look_that_settles(
    file: Path, settled: StudyOutcome, sentence: Sentences
) -> None:
    """The larger rank learns enough that three quarters of the items show it."""
    (part,) = settled.recommendation.by_train_task
    assert part.outcome == "recommended"
    assert shares(settled) == [0.25, 0.5, 0.75]
    outcomes = [look.outcome for look in part.looks]
    assert outcomes == ["no_evidence", "no_evidence", "recommended"]
    study, first = settled.results.study, in_random_order(range(NUM_ITEMS))[:NUM_ANSWERED]
    assert study.share == 0.75
    for model in (settled.results.base, *settled.results.runs):
        assert [*model.items["colours"].doc_ids] == sorted(first)
        prose = model.evaluations["small_prose"]
        assert prose.num_available is not None
        assert prose.num_examples == max(math.ceil(0.75 * prose.num_available), 2)
    folder = StudyFolder(file.parent / "settled")
    growths = read_record(folder.search_file, SearchRecord).growths
    assert [growth.share for growth in growths] == [0.5, 0.75, 0.75]
    assert [growth.is_last for growth in growths] == [False, False, True]
    sentence(growths[0].statement)


def test_a_settled_study_has_nothing_left_to_do(file: Path, settled: StudyOutcome) -> None:
    observer = Recorder()
    again = grown(load_config(file), file.parent / "settled", observer)
    assert observer.stages == []
    assert again.recommendation == settled.recommendation


def test_what_one_quarter_answered_is_kept_by_the_next(
    file: Path, settled: StudyOutcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = ResidentScorer.log_likelihoods

    def asking(self: Any, models: Any, items: Any, *rest: Any) -> Any:
        asked.append(len(models) * len(items))
        return ask(self, models, items, *rest)

    monkeypatch.setattr(update_guard, "refuse_unapplied", lambda *_: None)
    monkeypatch.setattr(ResidentScorer, "log_likelihoods", asking)
    config = load_config(file, ["evaluation.held_out_text=[]"])
    outcome = grown(config, tmp_path / "study")
    models = ["base", *(run.name for run in outcome.results.study.runs)]
    lines = [StudyFolder(tmp_path / "study").read_samples(name, "colours") for name in models]
    assert sum(asked) == sum(len(line["resps"]) for its in lines for line in its)
    # as if it had been planned so
    monkeypatch.undo()
    fewer = [f"evaluation.limit={NUM_ANSWERED}", "search.until=null"]
    plan = plan_study(load_config(file, fewer))
    once = run_study(plan, StudyFolder(tmp_path / "once"), Recorder())
    for mine, other in zip(outcome.results.runs, once.results.runs, strict=True):
        own, its = mine.items["colours"], other.items["colours"]
        assert own.doc_ids == its.doc_ids
        assert own.values == pytest.approx(its.values, abs=1e-5)


def test_a_study_that_no_look_settles_does_its_whole_plan(file: Path, tmp_path: Path) -> None:
    """And what was whole before it was to be decided is not taken back."""
    whole = ["search.until=null", *UNDECIDED]
    once = grown(load_config(file, whole), tmp_path / "whole")
    observer = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing, "LEAST_CHANCE", 1.1)
        outcome = grown(load_config(file, UNDECIDED), tmp_path / "study")
        again = grown(load_config(file, UNDECIDED), tmp_path / "whole", observer)
    assert shares(outcome) == [0.25, 0.5, 0.75, 1.0]
    (part,) = outcome.recommendation.by_train_task
    assert [look.num_items["colours"] for look in part.looks] == [40, 80, 120, 160]
    assert sum(look.alpha for look in part.looks) == pytest.approx(0.8e-4)
    assert observer.stages == []
    assert shares(again) == shares(once) == [1.0]


@pytest.mark.parametrize(
    "place", [(("search.json",), 0), (("runs", "colours.samples"), 8)], ids=["between", "amid"]
)
def test_a_study_that_was_killed_goes_on_with_its_quarter(
    file: Path, settled: StudyOutcome, tmp_path: Path, place: tuple[tuple[str, ...], int]
) -> None:
    process = started(grow_until_path, file, tmp_path / "study", *place)
    process.join()
    assert process.exitcode == -9
    folder = StudyFolder(tmp_path / "study")
    assert folder.read_study().share in (0.25, 0.5)
    observer = Recorder()
    outcome = grown(load_config(file), folder.root, observer)
    assert "training" not in [stage for _, stage in observer.stages]
    (own,), (other,) = (each.recommendation.by_train_task for each in (outcome, settled))
    assert own.looks == other.looks
    assert own.verdicts == other.verdicts


def test_parts_that_are_estimated_from_references_grow_too(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 160 items 100 are answered, as few as may be: of 120 too, and of fewer all are."""
    monkeypatch.setattr(references, "LEAST_R_SQUARED", -10.0)
    monkeypatch.setattr(growing, "LEAST_CHANCE", 1.1)
    reference = ["evaluation.reference={share: 0.3}", "evaluation.held_out_text=[]"]
    outcome = grown(load_config(file, [*UNDECIDED, *reference]), tmp_path / "study")
    (part,) = outcome.recommendation.by_train_task
    assert [dict(look.num_scored) for look in part.looks] == [
        {}, {}, {"colours": 100}, {"colours": 100}
    ]  # fmt: skip
    assert [look.num_items["colours"] for look in part.looks] == [40, 80, 120, 160]
    study = outcome.results.study
    (names,) = study.references.runs.values()
    assert ({*study.references.answered}, study.references.whole) == ({*names}, ())
    counts = [run.evaluations["colours"].num_examples for run in outcome.results.runs]
    assert sorted(counts) == [100, 160]


def test_a_search_decides_on_whole_validation_items(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "LEAST_CHANCE", 1.1)
    file = with_items(write_study(tmp_path, tiny_model_folder, SEARCHED), 40)
    settings = ["search.policy=narrow", "search.until=decided", "methods.full=null"]
    settings += ["methods.lora.ranks=[2, 4]", "evaluation.retention=[]", *UNDECIDED]
    outcome = grown(load_config(file, settings), tmp_path / "study")
    (part,) = outcome.recommendation.by_train_task
    assert [look.num_items["colours"] for look in part.looks] == [10, 20, 30, 40]
    assert len({look.runs for look in part.looks}) == 1  # it is not decided again
    validated = outcome.results.study.validation_tasks("colours")
    assert [outcome.results.base.evaluations[task].num_examples for task in validated] == [6]


def test_where_a_quarter_cannot_be_planned_the_next_is(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So few items may not show that the base can do any task of a set."""
    lead, tried = growing.lead, list[float]()

    def leading(*arguments: Any, share: float, **options: Any) -> StudyOutcome:
        tried.append(share)
        if share < 0.5 or len(tried) > 3:
            raise PlanError("study", "base", ["no task is left"])
        return lead(*arguments, share=share, **options)

    monkeypatch.setattr(growing, "lead", leading)
    outcome = grown(load_config(file), tmp_path / "study")
    assert (tried, shares(outcome)) == ([0.25, 0.5, 0.75], [0.5, 0.75])
    with pytest.raises(PlanError):
        grown(load_config(file), tmp_path / "study")
    assert tried[3:] == [0.75, 1.0]
