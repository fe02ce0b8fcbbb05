"""Runs on fewer rows: planned and trained with the others, scored, and no part of the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankwise.cli.terminal import pass_lines, plan_table
from rankwise.errors import ConfigError
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.records.study_file import load_config
from rankwise.report.page import study_page
from tests.support.sentences import Sentences
from tests.support.small_studies import ONE_BY_ONE, Finished, finished_study, planned, weights_of
from tests.support.studies import run
from tests.support.tables import csv_rows

SETTINGS = """
train:
  task: colours
  max_examples: [6, 12, 24]
  epochs: 2
  learning_rate: {lora: 1e-2}
  precision: float32
  batch_size: 2
  gradient_accumulation_steps: 2
methods:
  lora: {ranks: [2, 4]}
  full: null
evaluation: {held_out_text: [], retention: [sums], num_train_items: 0, trained_format: false}
analysis: {spectra: false, heads: false}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Finished:
    root = tmp_path_factory.mktemp("rows")
    return finished_study(root, tiny_model_folder, SETTINGS, ONE_BY_ONE)


def with_rows(study: StudyRecord, number: int) -> tuple[PlannedRun, ...]:
    models = (*study.runs, *study.of_role("fewer_rows"))
    return tuple(model for model in models if model.num_examples == number)


def test_few_rows_are_among_many_and_all_are_trained_in_one_pass(
    finished: Finished, sentence: Sentences
) -> None:
    plan = planned(finished.file)
    study = plan.record
    assert [(each.num_examples, each.rank) for each in study.runs] == [(24, 2), (24, 4)]
    fewer = study.of_role("fewer_rows")
    assert [(e.num_examples, e.rank) for e in fewer] == [(6, 2), (6, 4), (12, 2), (12, 4)]
    assert [each.of for each in fewer] == 2 * [each.as_whole for each in study.runs]
    for each in (*study.runs, *fewer):
        examples = plan.examples_of(each)
        assert examples == plan.examples["colours"][: each.num_examples]
        assert each.num_steps == 2 * -(-each.num_examples // 4)
        assert each.num_tokens == 2 * sum(len(example.tokens) for example in examples)
    (only_pass,) = study.passes
    assert {*only_pass.runs} == {each.name for each in study.models}
    sentence(pass_lines(study)[0], "pass", SIZE=r"(?<=~)[\d.]+ [MG]iB")
    names = [str(cell) for cell in plan_table(study, set()).columns[0].cells]
    rows = ["", "", ", 6 rows", ", 6 rows", ", 12 rows", ", 12 rows"]
    models = zip(study.models, rows, strict=True)
    assert names == ["base", *(f"{model.name}{its}" for model, its in models)]


@pytest.mark.parametrize("number", [6, 12])
def test_a_prefix_in_one_pass_trains_what_it_trains_alone(
    finished: Finished, tmp_path: Path, number: int
) -> None:
    """To the bit, in float32."""
    run(finished.file, tmp_path, ONE_BY_ONE, f"train.max_examples={number}")
    alone = StudyFolder(tmp_path)
    for one, other in zip(with_rows(finished.study, number), alone.read_study().runs, strict=True):
        assert (one.name, one.fingerprint, one.role) == (
            other.name,
            other.fingerprint,
            "fewer_rows",
        )
        first, second = weights_of(finished.folder, one), weights_of(alone, other)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_rows_give_other_weights(finished: Finished) -> None:
    few, many = (weights_of(finished.folder, with_rows(finished.study, n)[0]) for n in (6, 12))
    assert not all(torch.equal(few[name], many[name]) for name in few)


def test_runs_on_all_rows_are_what_they_are_without_the_others(finished: Finished) -> None:
    names = [each.name for each in finished.study.runs]
    for one in ("24", "null", "[24]"):
        study = planned(finished.file, f"train.max_examples={one}").record
        assert [each.name for each in study.models] == names


def test_the_verdict_is_about_the_runs_on_all_rows(finished: Finished) -> None:
    results, recommendation, _ = finished.outcome
    (verdict,) = recommendation.by_train_task
    assert [each.label for each in verdict.verdicts] == ["rank 2", "rank 4"]
    names = {each.name for each in finished.study.runs}
    assert {name for each in verdict.verdicts for name in each.runs} == names
    fewer = results.of_role("fewer_rows")
    assert len(fewer) == 4
    for model in fewer:
        assert model.run.num_steps == model.run.planned.num_steps
        assert model.items.keys() == results.runs[0].items.keys()


def test_at_equal_steps_fewer_rows_are_read_more_often(finished: Finished, tmp_path: Path) -> None:
    at_steps = "train.rows_at=steps"
    study = planned(finished.file, at_steps).record
    assert {each.num_steps for each in study.models} == {12}
    assert [each.epochs for each in study.of_role("fewer_rows")] == [6, 6, 4, 4]
    assert [each.name for each in study.runs] == [each.name for each in finished.study.runs]
    # 10 rows are 3 steps an epoch, so that 4 epochs are 12 steps; 18 are 5: the third is cut
    ragged = "train.max_examples=[10, 18, 24]"
    whole, cut = planned(finished.file, at_steps, ragged).record.of_role("fewer_rows")[::2]
    assert [(each.epochs, each.num_steps) for each in (whole, cut)] == [(4, 12), (3, 12)]
    alone = planned(finished.file, "train.max_examples=10", "train.epochs=4").record.runs[0]
    assert alone.fingerprint == whole.fingerprint
    longer = planned(finished.file, "train.max_examples=18", "train.epochs=3").record.runs[0]
    assert (longer.num_steps, longer.fingerprint != cut.fingerprint) == (15, True)
    (results, _, _), _ = run(finished.file, tmp_path, at_steps, ragged, "methods.lora.ranks=[2]")
    assert {model.run.num_steps for model in results.models} == {12}


def test_more_rows_repeat_nothing(finished: Finished, tmp_path: Path) -> None:
    """A run on what were all rows is one on fewer when there are more."""
    folder = StudyFolder(tmp_path)
    run(finished.file, tmp_path, "train.max_examples=[6, 12]")
    files = [folder.run_file(each.name) for each in folder.read_study().models]
    before = [file.stat().st_mtime_ns for file in files]
    (results, recommendation, _), _ = run(finished.file, tmp_path, "train.max_examples=[12, 6, 24]")
    assert [file.stat().st_mtime_ns for file in files] == before
    assert [model.run.planned.of.name for model in results.of_role("fewer_rows")] == 2 * [
        each.name for each in folder.read_study().runs
    ]
    assert len(recommendation.by_train_task[0].verdicts) == 2


def test_a_group_gives_equal_shares_of_any_number(finished: Finished) -> None:
    group = finished.file.parent / "tasks" / "both.yaml"
    group.write_text("group: both\ntask: [colours, sums]\n")
    overrides = ["train.task=both", "evaluation.retention=[]"]
    plan = planned(finished.file, *overrides, "train.max_examples=[4, 7, 12]")
    for number in (4, 7, 12):
        alone = planned(finished.file, *overrides, f"train.max_examples={number}")
        (first, _), runs = with_rows(plan.record, number), alone.record.runs
        assert plan.examples_of(first) == alone.examples["both"]
        assert first.fingerprint == runs[0].fingerprint


def test_rows_that_are_left_out_do_not_count(finished: Finished) -> None:
    """What is trained on is as many rows as were asked for, without those that are scored."""
    seen = finished.file.parent / "tasks" / "seen.yaml"
    seen.write_text("include: colours.yaml\ntask: seen\ntest_split: train\n")
    overrides = ["evaluation.in_domain=[seen]", "evaluation.limit=5"]
    overrides += ["train.drop_overlapping=true", "train.max_examples=[4, 12, 24]"]
    plan = planned(finished.file, *overrides)
    assert plan.record.overlaps["colours"]["seen"] == 0
    assert {each.num_examples for each in plan.record.runs} == {19}
    assert {each.num_examples for each in plan.record.of_role("fewer_rows")} == {4, 12}


def test_numbers_that_come_to_all_rows_are_one_and_the_plan_says_so(
    finished: Finished, sentence: Sentences
) -> None:
    study = planned(finished.file, "train.max_examples=[12, 30, 40]").record
    assert [each.num_examples for each in study.of_role("fewer_rows")] == [12, 12]
    assert {each.num_examples for each in study.runs} == {24}
    (said,) = [text for text in study.warnings if "train.max_examples" in text]
    sentence(said, names=("24", "30 and 40"))


@pytest.mark.parametrize(
    "override",
    ["methods={lora: null, full: {}}", "search.policy=narrow"],
    ids=["no LoRA", "a search"],
)
def test_what_several_numbers_do_not_go_with(
    finished: Finished, override: str, sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(finished.file, [override])
    sentence(caught.value, names=("train.max_examples",))


def test_rows_are_an_axis_of_the_page(finished: Finished) -> None:
    results, recommendation, findings = finished.outcome
    (found,) = findings.axes
    assert found.rows_at == "epochs"
    assert [(axis.name, axis.values) for axis in found.axes] == [
        ("rank", ("2", "4")),
        ("rows", ("6", "12", "24")),
    ]
    labels = [f"rank {rank}{rows}" for rank in (2, 4) for rows in (", 6 rows", ", 12 rows", "")]
    assert [each.label for each in found.points] == labels
    page = study_page(results, recommendation, findings, {})
    (section,) = [each for each in page.sections if each.name == "axes"]
    assert [figure.name for figure in section.figures] == ["axis-rows-gain", "axis-rows-retention"]
    rows = csv_rows("axes", results, axes=findings.axes)
    assert len([row for row in rows if row["value"]]) == 3
