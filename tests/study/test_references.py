"""A study in which most runs answer a part of the items, beside the same study scored whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reference as benchmark
from rankwise.errors import ConfigError
from rankwise.findings.item_table import ItemRow, item_rows, item_table
from rankwise.integrations.lm_eval_files import export_lm_eval
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults, StudyResults, TaskItems
from rankwise.records.study import References, StudyRecord
from rankwise.records.study_file import load_config
from rankwise.study import references
from rankwise.study.conclusion import StudyOutcome, conclude
from rankwise.study.growing import Extension, extended
from rankwise.study.planning.plan import plan_study
from rankwise.study.references import (
    num_answered,
    saved_share,
    with_estimates,
    with_settled_references,
)
from rankwise.study.run import run_study
from rankwise.study.stages.graph import stages
from rankwise.tasks.item_order import in_random_order
from rankwise.tasks.requests import prepare_task
from tests.support.command_line import rankwise
from tests.support.killed_studies import run_until_path, started
from tests.support.observers import Recorder
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.studies import run

SETTINGS = """
train: {task: colours, epochs: 1, learning_rate: {lora: 1e-2, full: 1e-3}, precision: float32}
methods:
  lora: {ranks: [2, 4, 8], target_modules: [q_proj, k_proj, v_proj, o_proj]}
  full: {weights: float32}
evaluation:
  retention: [hues]
  held_out_text: [small_prose]
  num_train_items: 20
  trained_format: false
analysis: {spectra: false, heads: false}
"""
PART = "evaluation.reference={share: 0.3}"
AUTO = "evaluation.reference=auto"
TASKS, NUM_ALL, NUM_PART = ("colours", "hues"), 160, 100


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("references")
    file = write_study(root, tiny_model_folder, SETTINGS)
    module = root / "tasks" / "colours.py"
    text = module.read_text().replace("range(24, 50)", f"range(24, {24 + NUM_ALL})")
    module.write_text(text.replace("{THINGS[thing]}?", "{THINGS[thing]} of {index}?"))
    return file


@pytest.fixture(scope="module")
def whole(file: Path) -> StudyOutcome:
    return run(file, file.parent / "whole")[0]


@pytest.fixture(scope="module")
def part(file: Path) -> StudyOutcome:
    """Whatever the references tell of a random model's runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(references, "LEAST_R_SQUARED", -10.0)
        return run(file, file.parent / "part", PART, "deploy=[merged-bf16]")[0]


def by_name(results: StudyResults) -> dict[str, ModelResults]:
    return {model.name: model for model in (results.base, *results.runs)}


def estimated(results: StudyResults) -> list[ModelResults]:
    study = results.study
    return [m for m in results.runs if m.run and study.part_of(m.run.planned, "hues")]


def check_alike(own: TaskItems, other: TaskItems) -> None:
    """The same answers, but for rounding in other batches."""
    assert own.doc_ids == other.doc_ids
    assert own.values == pytest.approx(other.values, abs=1e-5)
    assert (own.scored, own.choices) == (other.scored, other.choices)


def pages(results: StudyResults, root: Path) -> dict[tuple[str, str, int], ItemRow]:
    """Model, task and item -> what its page shows."""
    table = item_table(results, StudyFolder(root).read_samples)
    assert table is not None
    return {(row.model, row.task, row.doc_id): row for row in item_rows(table)}


def test_references_are_chosen_before_any_score(file: Path, part: StudyOutcome) -> None:
    study = part.results.study
    (names,) = study.references.runs.values()
    chosen = [model for model in study.models if model.name in names]
    assert [(run.rank, run.seed) for run in chosen] == [(4, 0), (None, 0)]
    assert len(estimated(part.results)) == 2
    planned = plan_study(load_config(file, [PART, "seeds=[3, 0]"])).record
    (names,) = planned.references.runs.values()
    chosen = [model for model in planned.models if model.name in names]
    assert [(run.rank, run.seed) for run in chosen] == [(4, 3), (None, 3)]
    parts = planned.references.parts
    assert [*parts] == [*TASKS]
    assert {(part.num_items, part.num_all) for part in parts.values()} == {(NUM_PART, NUM_ALL)}


def test_what_is_answered_is_answered_as_in_the_whole_study(
    whole: StudyOutcome, part: StudyOutcome
) -> None:
    first = {*in_random_order(range(NUM_ALL))[:NUM_PART]}
    partly = {model.name for model in estimated(part.results)}
    for name, model in by_name(whole.results).items():
        own = by_name(part.results)[name]
        for task, items in model.items.items():
            if name not in partly or task not in TASKS:
                check_alike(own.items[task], items)
                continue
            mine = own.items[task]
            assert mine.doc_ids == items.doc_ids
            assert mine.scored is not None
            assert {*mine.scored.doc_ids} == first
            check_alike(mine.scored, items.limited_to(mine.scored.doc_ids))
            assert own.evaluations[task].num_examples == NUM_PART
            assert own.evaluations[task].num_available == NUM_ALL


def test_estimates_are_near_what_the_whole_study_finds(
    whole: StudyOutcome, part: StudyOutcome, sentence: Sentences
) -> None:
    (mine,), (theirs,) = (each.recommendation.by_train_task for each in (part, whole))
    for own, true in zip(mine.comparisons, theirs.comparisons, strict=True):
        assert (own.run, own.task) == (true.run, true.task)
        assert own.difference.lower <= true.difference.estimate <= own.difference.upper
    told = [reason for reason in mine.reasons if reason not in theirs.reasons]
    for task in TASKS:
        (said,) = [reason for reason in told if task in reason and "rank 4" in reason]
        assert all(named in said for named in ("160 items", "2 runs", "100"))
    sentence(told, names=(TASKS[0], "rank 4"), part=True, SHARE=r"\b\d+(?= % of the variance)")


def test_counts_and_pages_are_of_what_was_answered(
    file: Path, whole: StudyOutcome, part: StudyOutcome, tmp_path: Path
) -> None:
    folder = StudyFolder(file.parent / "part")
    rows, all_rows = pages(part.results, folder.root), pages(whole.results, file.parent / "whole")
    partly = {model.name for model in estimated(part.results)}
    for name in by_name(part.results):
        number = sum(model == name for model, _, _ in rows)
        assert number == len(TASKS) * (NUM_PART if name in partly else NUM_ALL)
    for key, row in rows.items():
        assert row.margin_nats == pytest.approx(all_rows[key].margin_nats, abs=1e-4)
        assert row._replace(margin_nats=None) == all_rows[key]._replace(margin_nats=None)
    (recommendation,) = part.recommendation.by_train_task
    for each in recommendation.comparisons:
        if each.run in partly and each.task in TASKS:
            own = [row for key, row in rows.items() if key[:2] == (each.run, each.task)]
            assert each.num_learned == sum(r.is_right and not r.base_is_right for r in own)
            assert each.num_forgotten == sum(r.base_is_right and not r.is_right for r in own)
    for exported in export_lm_eval(folder, tmp_path):
        content = json.loads(exported.file.read_text())
        number = NUM_PART if exported.name in partly else NUM_ALL
        original = None if exported.name in partly else NUM_ALL
        assert content["n-samples"]["hues"] == {"original": original, "effective": number}


def test_the_form_of_a_run_answers_what_the_run_does(part: StudyOutcome) -> None:
    (deployed,) = part.findings.deployed
    is_part = deployed.run in {model.name for model in estimated(part.results)}
    numbers = {score.task: score.num_examples for score in deployed.forms[0].scores}
    assert numbers["hues"] == (NUM_PART if is_part else NUM_ALL)


def test_a_study_is_whole_and_is_read_again(file: Path, part: StudyOutcome) -> None:
    root = file.parent / "part"
    assert rankwise("verify", root).exit_code == 0
    assert rankwise("report", root).exit_code == 0
    again = conclude(StudyFolder(root))
    assert again.results == part.results


def test_the_work_is_that_of_what_is_answered(
    file: Path, whole: StudyOutcome, sentence: Sentences
) -> None:
    plan = plan_study(load_config(file, [PART]))
    record = plan.record
    ours, theirs = (
        sum(stage.work for stage in stages(each) if stage.kind == "scoring")
        for each in (record, whole.results.study)
    )
    left_out = sum(
        record.scored_tokens[task] - record.references.parts[task].num_tokens for task in TASKS
    )
    assert theirs - ours == 2 * left_out
    text = rankwise("plan", file, PART, "--tokens-per-second", 1000).stdout
    sentence(text, names=("reference: ",), part=True)
    assert "100 of 160" in text


def test_the_benchmark_reads_a_study_that_was_scored_whole(
    file: Path, whole: StudyOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "NUM_ANSWERED", 50)
    cells = benchmark.cells_of(file.parent / "whole")
    assert [(cell.task, cell.relation) for cell in cells] == list(
        zip(TASKS, ("in_domain", "retention"), strict=True)
    )
    for cell in cells:  # rank 4 and full fine-tuning tell of ranks 2 and 8
        assert (cell.base.shape, cell.references.shape) == ((NUM_ALL,), (2, NUM_ALL))
        assert cell.others.shape == (2, NUM_ALL)


def test_a_study_that_was_scored_whole_goes_on_in_part(
    file: Path, whole: StudyOutcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "LEAST_R_SQUARED", -10.0)
    root = tmp_path / "study"
    shutil.copytree(file.parent / "whole", root)
    again, recorder = run(file, root, PART)
    assert not recorder.stages
    assert not estimated(again.results)
    grown, _ = run(file, root, PART, "methods.lora.ranks=[2, 4, 8, 16]")
    (new,) = estimated(grown.results)
    assert new.run is not None
    assert new.run.planned.rank == 16
    scored = new.items["hues"].scored
    assert scored is not None
    assert len(scored.doc_ids) == NUM_PART
    for name, model in by_name(whole.results).items():
        assert by_name(grown.results)[name].items == model.items


def test_a_killed_study_goes_on(file: Path, part: StudyOutcome, tmp_path: Path) -> None:
    settings = file.with_name("killed.yaml")
    settings.write_text(file.read_text().replace("  retention", "  reference: {}\n  retention"))
    process = started(
        run_until_path, settings, tmp_path / "study", ("runs", "eval", "hues.json"), 1
    )
    process.join(120)
    assert process.exitcode == -9
    done = [path.stem for path in tmp_path.glob("study/runs/*/eval/*.json")]
    assert done.count("colours") == 3
    assert "hues" not in done
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(references, "LEAST_R_SQUARED", -10.0)
        outcome, _ = run(settings, tmp_path / "study")
    for name, model in by_name(part.results).items():
        assert by_name(outcome.results)[name].items == model.items


def test_auto_is_on_where_it_saves_a_quarter_of_the_work(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(references, "LEAST_R_SQUARED", -10.0)
    folder = StudyFolder(tmp_path / "study")

    def planned(*settings: str) -> StudyRecord:
        config = load_config(file, [AUTO, *settings])
        return with_settled_references(plan_study(config).record, folder)

    few = ("methods.full=null", "evaluation.held_out_text=[]", "train.max_examples=4")
    many = (*few, "seeds=[0, 1, 2, 3]")
    parts = planned(*few).references.parts
    assert not parts
    for case, *settings in (
        ("little is saved", AUTO, *few),
        ("few items", AUTO, *few, "evaluation.limit=100"),
        ("one run", PART, *few, "methods.lora.ranks=[4]"),
    ):
        text = rankwise("plan", str(file), *settings).stdout
        sentence(text, case, names=("reference: ",), part=True)
    study = planned(*many)
    assert [*study.references.parts] == [*TASKS]
    (names,) = study.references.runs.values()
    assert len(names) == 1
    # by hand: 2 tasks, 12 runs of which one answers all of 160 items, 100 of them at most
    whole = study.model_copy(update={"references": References()})
    per_model = sum(whole.scored_tokens[task] for task in study.tasks_of(None))
    spared = 11 * sum(
        study.scored_tokens[task] - part.num_tokens for task, part in study.references.parts.items()
    )
    trained = sum(2.5 * run.num_tokens for run in study.models)
    assert saved_share(study) == pytest.approx(spared / (13 * per_model + trained))
    assert saved_share(study) > 0.25

    run_study(plan_study(load_config(file, [AUTO, *many])), folder, Recorder())
    assert planned(*few).references.runs == study.references.runs  # what was begun so stays so
    for wrong in ("{shre: 0.2}", "always"):
        with pytest.raises(ConfigError) as caught:
            load_config(file, [f"evaluation.reference={wrong}"])
        sentence(caught.value, wrong, names=("evaluation.reference",))
    searched = load_config(file, [AUTO, "search={policy: ladder, validation_items: 2}"])
    assert not plan_study(searched).record.references.parts


@pytest.mark.parametrize("setting", [AUTO, PART])
def test_runs_that_were_scored_whole_stay_so_where_there_are_more_items(
    file: Path, tmp_path: Path, setting: str
) -> None:
    """With 140 items nothing is answered in part; with 160 it would be 100, less than they have."""
    few = ["methods.full=null", "evaluation.held_out_text=[]", "train.max_examples=4"]
    config = load_config(file, [setting, *few, "seeds=[0, 1, 2, 3]", "evaluation.limit=140"])
    folder = StudyFolder(tmp_path / "study")
    first = run_study(plan_study(config), folder, Recorder())
    assert not first.results.study.references.parts
    grown = extended(config, Extension(num_items=20))
    outcome = run_study(plan_study(grown), folder, Recorder())
    assert not estimated(outcome.results)
    counts = {run.evaluations["hues"].num_examples for run in outcome.results.runs}
    assert counts == {NUM_ALL}
    # a seed that is new has answered nothing yet
    share = saved_share(with_settled_references(plan_study(grown).record, folder))
    assert share == 0.0


def test_more_items_are_added_to_those_that_are_known(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "LEAST_R_SQUARED", -10.0)
    small = ["evaluation.reference={share: 0.64}", "methods.full=null"]
    small += ["methods.lora.ranks=[2, 4]", "evaluation.held_out_text=[]"]
    config = load_config(file, [*small, "evaluation.limit=155"])
    first = run_study(plan_study(config), StudyFolder(tmp_path / "grown"), Recorder())
    before = {m.name: m.evaluations["hues"].score_seconds for m in estimated(first.results)}
    grown = run_study(
        plan_study(extended(config, Extension(num_items=5, ranks=(8, 16)))),
        StudyFolder(tmp_path / "grown"),
        Recorder(),
    )
    assert grown.results.study.references.runs == first.results.study.references.runs
    (name,) = before
    own = by_name(grown.results)[name]
    assert own.evaluations["hues"].num_examples == 103
    assert own.evaluations["hues"].score_seconds > before[name]
    config = load_config(file, [*small, "evaluation.limit=160"])
    fresh = run_study(plan_study(config), StudyFolder(tmp_path / "fresh"), Recorder())
    (part,) = estimated(fresh.results)
    at_once, grown = by_name(fresh.results)[name].items["hues"].scored, own.items["hues"].scored
    assert part.name == name
    assert at_once is not None
    assert grown is not None
    check_alike(at_once, grown)


def test_tasks_of_which_the_references_tell_too_little_are_answered_whole(
    file: Path,
    whole: StudyOutcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sentence: Sentences,
) -> None:
    monkeypatch.setattr(references, "LEAST_R_SQUARED", 2.0)
    outcome, _ = run(file, tmp_path / "study", PART)
    assert outcome.results.study.references.whole == TASKS
    assert not estimated(outcome.results)
    for name, model in by_name(whole.results).items():
        for task, items in model.items.items():
            check_alike(by_name(outcome.results)[name].items[task], items)
    (mine,) = outcome.recommendation.by_train_task
    said = [each for each in mine.reasons if each.startswith("All runs answered all items of ")]
    assert len(said) == len(TASKS)
    sentence(said[0], names=TASKS[:1], SHARE=r"\b\d+(?= %)")
    monkeypatch.undo()
    _, again = run(file, tmp_path / "study", PART)
    assert again.stages == []


def test_one_task_that_is_answered_whole_leaves_the_others_in_part(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = TASKS
    monkeypatch.setattr(references, "_is_too_little", lambda items: items[0].task == first)
    outcome, _ = run(file, tmp_path / "study", PART)
    assert outcome.results.study.references.whole == (first,)
    assert {*outcome.results.study.references.parts} == {*others}
    again, told = run(file, tmp_path / "study", PART)
    assert told.stages == []
    parts = [model for model in again.results.models if model.items[others[0]].scored is not None]
    assert parts
    assert all(model.items[first].scored is None for model in parts)


def test_without_its_reference_a_run_is_estimated_from_the_base(part: StudyOutcome) -> None:
    results = part.results
    (names,) = results.study.references.runs.values()
    alone = next(model for model in estimated(results) if model.name not in names)
    items = {task: its.limited_to(its.doc_ids) for task, its in alone.items.items()}
    raw = alone.model_copy(update={"items": items})
    (model,) = with_estimates(results.study, results.base, [raw])
    assert len(model.items["hues"].values) == NUM_ALL
    assert model.items["hues"].scored == alone.items["hues"].scored


def test_a_search_has_no_references(file: Path, sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, [PART, "search.policy=narrow"])
    sentence(caught.value, names=("evaluation.reference",))


@pytest.mark.parametrize(
    ("num_items", "share", "number"),
    [(1000, 0.2, 200), (1001, 0.2, 201), (150, 0.2, None), (151, 0.2, 100), (1000, 0.7, None)],
)
def test_a_task_is_answered_in_part_where_that_saves_enough(
    num_items: int, share: float, number: int | None
) -> None:
    assert num_answered(num_items, share) == number


def test_the_first_items_of_a_task_are_those_of_a_limit(file: Path) -> None:
    plan = plan_study(load_config(file, []))
    task = plan.tasks["hues"]
    settings: Any = {"max_length": 256, "num_fewshot": None, "chat_template": False}
    limited = prepare_task(task.loaded, plan.tokenizer, limit=100, **settings)
    first = task.first(100)
    for name in ("doc_ids", "digest", "chance", "num_options", "requests", "num_distinct_tokens"):
        assert getattr(first, name) == getattr(limited, name)
