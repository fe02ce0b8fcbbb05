"""The base with training rows in its prompt: planned, scored on the same items, beside the runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwise.errors import PlanError
from rankwise.report.page import study_page
from rankwise.study.planning.plan import StudyPlan
from tests.support.sentences import Sentences
from tests.support.small_studies import Finished, finished_study, planned, write_study
from tests.support.studies import run

SETTINGS = """
train:
  task: colours
  epochs: 1
  learning_rate: {lora: 1e-2}
  precision: float32
methods:
  lora: {ranks: [2, 4]}
  full: null
  prompt: {shots: [0, 2, 3]}
seeds: [0, 1]
evaluation: {held_out_text: [], retention: [sums], num_train_items: 0, limit: 10}
analysis: {spectra: false, heads: false, gauges: false}
"""

NAMES = ["prompt-0", "prompt-2-s0", "prompt-2-s1", "prompt-3-s0", "prompt-3-s1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Finished:
    return finished_study(tmp_path_factory.mktemp("prompted"), tiny_model_folder, SETTINGS)


def first_prompt(plan: StudyPlan, name: str) -> str:
    return plan.tasks[f"colours@{name}"].instances[0].args[0]


def test_the_prompts_hold_drawn_rows_and_ask_the_same_items(finished: Finished) -> None:
    plan = planned(finished.file)
    prompted = plan.record.prompted["colours"]
    assert [each.name for each in prompted] == [f"colours@{name}" for name in NAMES]
    assert [(each.shots, each.seed) for each in prompted] == [
        (0, None), (2, 0), (2, 1), (3, 0), (3, 1)
    ]  # fmt: skip
    standard = plan.tasks["colours"]
    rows = [plan.tokenizer.decode(each.tokens) for each in plan.examples["colours"]]
    for each in prompted:
        task = plan.tasks[each.name]
        assert task.doc_ids == standard.doc_ids
        assert task.num_fewshot == each.shots
        assert first_prompt(plan, each.name.partition("@")[2]).count("Question:") == each.shots + 1
    question = standard.instances[0].args[0]
    shown = first_prompt(plan, "prompt-3-s0").removesuffix(question).strip().split("\n\n")
    assert len(shown) == 3
    for text in shown:
        assert any(text.split("\n")[0] in row for row in rows)


def test_fewer_rows_begin_more_and_seeds_draw_others(finished: Finished) -> None:
    plan = planned(finished.file)
    question = plan.tasks["colours"].instances[0].args[0]
    shown = {name: first_prompt(plan, name).removesuffix(question) for name in NAMES}
    assert shown["prompt-0"] == ""
    assert shown["prompt-3-s0"].startswith(shown["prompt-2-s0"])
    assert shown["prompt-2-s0"] != shown["prompt-2-s1"]
    again = planned(finished.file, "seeds=[1]")
    assert first_prompt(again, "prompt-2-s1").removesuffix(question) == shown["prompt-2-s1"]


def test_the_base_alone_is_asked_and_nothing_else_changes(finished: Finished) -> None:
    without = planned(finished.file, "methods.prompt=null").record
    study = finished.study
    assert [each.fingerprint for each in study.runs] == [each.fingerprint for each in without.runs]
    assert {*study.tasks_of(None)} - {*without.tasks_of(None)} == {f"colours@{n}" for n in NAMES}
    for each in study.runs:
        assert study.tasks_of(each) == without.tasks_of(each)
    base = finished.outcome.results.base
    assert base.items["colours@prompt-2-s0"].doc_ids == base.items["colours"].doc_ids
    for model in finished.outcome.results.runs:
        assert not any("@prompt" in name for name in model.items)


def test_it_is_compared_with_the_base_and_every_option(finished: Finished) -> None:
    results, recommendation, findings = finished.outcome
    (found,) = findings.prompting
    assert [(row.shots, row.num_seeds) for row in found.alone] == [(0, 1), (2, 2), (3, 2)]
    base = results.base
    for row in found.alone:
        names = [e.name for e in finished.study.prompted["colours"] if e.shots == row.shots]
        means = [sum(base.items[n].values) / len(base.items[n].values) for n in names]
        known = sum(base.items["colours"].values) / len(base.items["colours"].values)
        gain = 100.0 * (sum(means) / len(means) - known)
        assert row.gain.estimate == pytest.approx(gain)
    for shots in (0, 2, 3):
        against = [row.against for row in found.rows if row.shots == shots]
        assert against == ["base", "rank 2", "rank 4"]
    costs = [row.more_tokens for row in found.alone]
    assert costs[0] == 0.0
    assert 0 < costs[1] < costs[2]
    page = study_page(results, recommendation, findings, {})
    assert "prompting" in [each.name for each in page.sections]


def test_what_cannot_be_asked_is_a_problem(finished: Finished, sentence: Sentences) -> None:
    with pytest.raises(PlanError) as caught:
        planned(finished.file, "methods.prompt.shots=[99]")
    sentence(caught.value, "shots", names=("methods.prompt.shots", "99", "colours", "24"))
    with pytest.raises(PlanError) as caught:
        planned(finished.file, "evaluation.in_domain=[sums]", "evaluation.retention=[]")
    sentence(caught.value, "task", names=("methods.prompt", "colours"))


OWN = """
train:
  data: rows.jsonl
  held_out_fraction: 0.5
  judged_by: [loss, exact]
  epochs: 1
  learning_rate: {lora: 1e-2}
  precision: float32
methods:
  lora: {ranks: [2]}
  full: null
  prompt: {shots: [0, 2]}
seeds: [0]
evaluation: {held_out_text: [], retention: [], num_train_items: 0}
analysis: {spectra: false, heads: false, gauges: false}
"""


def test_own_rows_stand_before_held_out_rows(tmp_path: Path, tiny_model_folder: Path) -> None:
    """As they are trained on, but for the end of a text, behind which a model starts anew."""
    rows = [{"prompt": f"say {n}: ", "completion": f"it is {n}"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    file = write_study(tmp_path, tiny_model_folder, OWN)
    plan = planned(file)
    (prompted,) = plan.record.prompted.values()
    assert [(each.task, each.name, each.shots) for each in prompted] == [
        ("data_rows", "data_rows@prompt-0", 0),
        ("data_rows", "data_rows@prompt-2-s0", 2),
        ("data_rows_texts", "data_rows_texts@prompt-0", 0),
        ("data_rows_texts", "data_rows_texts@prompt-2-s0", 2),
    ]
    for task in ("data_rows", "data_rows_texts"):
        alone = [each.args[0] for each in plan.tasks[task].instances]
        assert [each.args[0] for each in plan.tasks[f"{task}@prompt-0"].instances] == alone
        behind = [each.args[0] for each in plan.tasks[f"{task}@prompt-2-s0"].instances]
        (shown,) = {text.removesuffix(own) for text, own in zip(behind, alone, strict=True)}
        examples = shown.removesuffix("\n\n").split("\n\n")
        said = {f"{row['prompt']}{row['completion']}" for row in rows}
        assert len(examples) == 2
        assert set(examples) <= said  # and none is asked
        assert not any(example.startswith(own) for example in examples for own in alone)
    outcome, _ = run(file, tmp_path / "study")
    (finding,) = outcome.findings.prompting
    assert [row.shots for row in finding.alone] == [0, 2]
