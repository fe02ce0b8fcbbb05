"""Studies on what the runs write themselves: to the verdict, stopped, and resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.engine.models import variants
from rankwise.engine.models.initialisation import input_directions
from rankwise.engine.training.memory import PassMemory
from rankwise.errors import ConfigError, PlanError
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.search import SearchRecord
from rankwise.records.study import PlannedRun, RunRecord
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.tasks.training_rows import Example
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.studies import run
from tests.support.tiny_models import tiny

SETTINGS = """
train:
  data: rows.jsonl
  judged_by: chrf
  max_new_tokens: 8
  objective: {grpo: {rewards: chrf, num_generations: 3, max_completion_length: 8}}
  epochs: 1
  batch_size: 4
  gradient_accumulation_steps: 1
  held_out_fraction: 0.25
  learning_rate: {lora: 2e-2, full: 2e-3}
  precision: float32
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, v_proj]}, full: {}}
analysis: {spectra: false, heads: false}
evaluation: {retention: [sums], num_train_items: 8}
"""
ROWS = [{"prompt": f"Say {n}.", "completion": f" yes, {n}", "kind": n % 3} for n in range(24)]
CODE = """
import pathlib


def kinds(prompts, completions, kind, **rest):
    assert len(prompts) == len(completions) == len(kind)
    return [len(set(text)) / 10 for text in completions]


def same(completions, **rest):
    return [0.5] * len(completions)


def nothing(completions, **rest):
    return [None] * len(completions)


def says_yes(row, answer):
    return float("yes" in answer)


def failing(completions, **rest):
    kinds.calls = getattr(kinds, "calls", 0) + 1
    are_there = kinds.calls != 4 or pathlib.Path(__file__).with_name("there").exists()
    return [len(set(text)) / 10 for text in completions] if are_there else ["good"] * 8
"""


@pytest.fixture
def study_file(tmp_path: Path, tiny_model_folder: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "rewards.py").write_text(CODE)
    return write_study(tmp_path, tiny_model_folder, SETTINGS)


def with_objective(file: Path, objective: Any, **train: Any) -> Path:
    content = yaml.safe_load(file.read_text())
    content["train"] |= {"objective": objective, **train}
    file.write_text(yaml.safe_dump(content))
    return file


def trained(folder: StudyFolder) -> dict[PlannedRun, RunRecord]:
    runs = {run: folder.finished_run(run) for run in folder.read_study().runs}
    return {run: record for run, record in runs.items() if record is not None}


def written(folder: StudyFolder, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics_file(name).read_text().splitlines()]


OBJECTIVES: dict[str, Any] = {
    "rewarded": {
        "grpo": {
            "rewards": [{"code": "rewards.py:kinds"}, {"check": "chrf", "weight": 2.0}],
            "num_generations": 3,
            "max_completion_length": 8,
            "beta": 0.05,
            "num_iterations": 2,
        }
    },
    "taught": {"sdft": {"max_completion_length": 8}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_own_texts_are_learned_up_to_the_verdict(
    study_file: Path, tmp_path: Path, name: str
) -> None:
    outcome, told = run(with_objective(study_file, OBJECTIVES[name]), tmp_path / "study")
    folder = StudyFolder(tmp_path / "study")
    runs = trained(folder)
    assert [record.status for record in runs.values()] == ["trained"] * 3
    assert len(outcome.results.runs) == 3
    assert outcome.results.study.ending_items == {}  # nobody taught how the rows end
    times, texts_of_row = (2, 3) if name == "rewarded" else (1, 1)
    for model, record in runs.items():
        lines = written(folder, model.name)
        assert len(lines) == model.num_steps == times * 5  # 18 rows, 4 a step
        texts = [line["texts"] for line in lines]
        assert [each["num_texts"] for each in texts[:-times]] == [4 * texts_of_row] * 4 * times
        read = sum(each["num_tokens"] for each in texts)
        assert record.num_loss_tokens == read
        gauges = [step.gauges for step in told.steps if step.run == model.name]
        assert [each["completion_length"] for each in gauges] == [
            each["num_tokens"] / each["num_texts"] for each in texts
        ]
        assert [each.get("reward") for each in gauges] == [each["reward"] for each in texts]
        assert record.learned_texts is not None
        of_steps = sum(each["num_texts"] for each in texts)  # two steps with the same texts
        assert record.learned_texts.num_texts == of_steps / times
        assert record.learned_texts.reward_first == texts[0]["reward"]  # a tenth is one step
        assert record.learned_texts.cut_last == texts[-1]["cut_share"]
        if name == "taught":
            assert all(line["loss_nats"] > 0 for line in lines)
            continue
        assert texts[0]["rewards"].keys() == {"kinds", "chrf"}
        first = texts[0]
        assert first["reward"] == pytest.approx(
            first["rewards"]["kinds"] + 2 * first["rewards"]["chrf"]
        )
        assert first["kl_nats"] == pytest.approx(0, abs=1e-6)  # a run begins as the base
        assert texts[1]["rewards"] == first["rewards"]  # the second step with the same texts
        assert texts[1]["num_tokens"] == first["num_tokens"]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_plan_counts_what_is_written_and_a_prompt_once(study_file: Path, dropout: float) -> None:
    rows = [{**row, "prompt": f"Say {'it, ' * (n % 8)}{n}."} for n, row in enumerate(ROWS)]
    (study_file.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with_objective(study_file, OBJECTIVES["rewarded"], dropout=dropout)
    plan = plan_study(load_config(study_file))
    prompts = [len(example.tokens) for example in plan.examples["rows"]]
    assert min(prompts) < 17 < max(prompts)  # 16 tokens without its last: it is read once
    for each in plan.record.runs:
        assert each.num_tokens == 2 * sum(3 * (prompt + 8) for prompt in prompts)  # 2 iterations
        once = 2 * sum(2 * (prompt - 1) for prompt in prompts if prompt > 16)
        assert each.num_shared_tokens == (0 if dropout else once)
        assert each.num_written_tokens == sum(3 * 8 for _ in prompts)
        assert each.num_beside_tokens == sum(3 * (prompt + 8) for prompt in prompts)  # of the base


def test_a_teacher_beside_the_model_is_in_the_plan_s_memory(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PassMemory, "_process_bytes", lambda _: 0)

    def bytes_of(objective: Any) -> dict[str, int]:
        plan = plan_study(load_config(with_objective(study_file, objective)))
        return {run.method: run.estimated_memory_bytes for run in plan.record.runs}

    base = load_config(study_file).base_model.name
    from transformers import AutoModelForCausalLM

    size = 4 * AutoModelForCausalLM.from_pretrained(base).num_parameters()
    alone = bytes_of({"sdft": {"max_completion_length": 8}})
    taught = bytes_of({"sdft": {"max_completion_length": 8, "teacher": str(base)}})
    grpo = {"rewards": "chrf", "max_completion_length": 8}
    free, held = bytes_of({"grpo": grpo}), bytes_of({"grpo": {**grpo, "beta": 0.1}})
    assert taught["lora"] - alone["lora"] == size
    assert taught["full"] == alone["full"]  # one model beside it, whichever it is
    assert held["full"] - free["full"] == size
    assert held["lora"] == free["lora"]


class Stopped(Exception):
    """In place of a kill, between two steps."""


@pytest.mark.parametrize("max_examples", [None, 6])
def test_rates_are_chosen_by_what_runs_write(
    study_file: Path, tmp_path: Path, max_examples: int | None
) -> None:
    settings = ("train.learning_rate.tune=true", "search.validation_items=8", "methods.full=null")
    with_objective(study_file, OBJECTIVES["rewarded"], max_examples=max_examples)
    run(study_file, tmp_path / "study", *settings)
    folder = StudyFolder(tmp_path / "study")
    study = folder.read_study()
    (by_relation,) = study.validation_items.values()
    assert [*by_relation["in_domain"]] == ["data_rows_texts"]  # no loss of right answers
    (part,) = read_record(folder.search_file, SearchRecord).by_train_task
    assert part.unit == "points"
    number = part.num_items["data_rows_texts"]
    # a quarter of 24 rows is scored; where 6 are trained on, eight others are left, else a quarter
    # of the 18 is held out
    assert number == (4 if max_examples is None else 8)
    assert {one.num_examples for one in study.runs} == {max_examples or 18 - number}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_stopped_training_goes_on_with_the_same_texts(
    study_file: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankwise.study.stages.training_pass import TrainingPass

    with_objective(study_file, OBJECTIVES[name], save_every="1s")
    whole, _ = run(study_file, tmp_path / "whole", "methods.full=null")
    stepped = TrainingPass.stepped

    def stop(self: TrainingPass, trainee: Any, metrics: Any) -> None:
        self._last_save = 0.0  # so that every step is saved
        stepped(self, trainee, metrics)
        if metrics.step == 3 and trainee is self._trainees[-1]:  # between two with the same texts
            raise Stopped

    monkeypatch.setattr(TrainingPass, "stepped", stop)
    with pytest.raises(Stopped):
        run(study_file, tmp_path / "stopped", "methods.full=null")
    monkeypatch.undo()
    again, _ = run(study_file, tmp_path / "stopped", "methods.full=null")
    folders = StudyFolder(tmp_path / "whole"), StudyFolder(tmp_path / "stopped")
    for ours, theirs in zip(whole.results.runs, again.results.runs, strict=True):
        lines, expected = (
            written(folder, model.name)
            for folder, model in zip(folders, (ours, theirs), strict=True)
        )
        assert [line["texts"] for line in lines] == [line["texts"] for line in expected]
        assert [line["loss_nats"] for line in lines] == [line["loss_nats"] for line in expected]


def test_a_reward_that_fails_stops_its_run_alone_which_goes_on_later(
    study_file: Path, tmp_path: Path
) -> None:
    failing = {"rewards": {"code": "rewards.py:failing"}}
    grpo = {**failing, "num_generations": 2, "max_completion_length": 8}
    with_objective(study_file, {"grpo": grpo})
    study, whole = StudyFolder(tmp_path / "study"), StudyFolder(tmp_path / "whole")
    run(study_file, study.root, "methods.full=null")
    assert [run.rank for run in trained(study)] == [2]
    (failure,) = study.failures()
    second = next(run for run in study.read_study().runs if run.rank == 4)
    assert failure.runs == (second.name,)
    for named in (second.name, "step 2", "rewards.py:failing", "'Say ", "gives 'good'"):
        assert named in failure.message
    assert [line["step"] for line in written(study, second.name)] == [1]
    (tmp_path / "there").touch()
    run(study_file, study.root, "methods.full=null")
    run(study_file, whole.root, "methods.full=null")
    assert not study.failures()
    for each in (*trained(study), second):
        assert [line["texts"] for line in written(study, each.name)] == [
            line["texts"] for line in written(whole, each.name)
        ]


@pytest.mark.parametrize("objective", ["sdft", "grpo"])
def test_a_variant_that_reads_rows_reads_the_prompts_of_rows_that_it_answers(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    grpo = {"rewards": "chrf", "num_generations": 2, "num_iterations": 2}
    settings = {"max_completion_length": 8, **(grpo if objective == "grpo" else {})}
    with_objective(study_file, {objective: settings})
    read: list[Sequence[Example]] = []

    def directions(*arguments: Any) -> Any:
        read.append(arguments[3])
        return input_directions(*arguments)

    monkeypatch.setattr(variants, "input_directions", directions)
    study = StudyFolder(tmp_path / "study")
    overrides = ("methods.full=null", "methods.lora.ranks=[2]", "methods.variants.names=[eva]")
    run(study_file, study.root, *overrides)
    statuses = {record.planned.variant: record.status for record in study.readable_runs()}
    assert statuses == {None: "trained", "eva": "trained"}
    (prompts,) = read
    assert len({example.tokens for example in prompts}) == len(prompts) == 18


@pytest.mark.parametrize(
    ("function", "said"),
    [("same", "same reward, 0.5 (96 texts)"), ("nothing", "no reward gave a number")],
)
def test_a_run_that_learns_nothing_is_reported(
    study_file: Path, tmp_path: Path, function: str, said: str
) -> None:
    grpo = {"rewards": {"code": f"rewards.py:{function}"}, "num_generations": 8}
    settings = {"max_completion_length": 8, "num_iterations": 2}
    with_objective(study_file, {"grpo": grpo | settings}, epochs=2)
    overrides = ("methods.full=null", "methods.lora.ranks=[2]", "train.batch_size=4")
    _, heard = run(study_file, tmp_path / "study", *overrides)
    assert [note for note in heard.notes if said in note]


def test_rows_without_a_right_answer_have_a_placeholder(study_file: Path) -> None:
    rows = [{"prompt": f"Say {n}.", "completion": "-", "kind": n % 3} for n in range(24)]
    (study_file.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    grpo = {"grpo": {"rewards": {"code": "rewards.py:kinds"}, "max_completion_length": 8}}
    judged_by = {"code": "rewards.py:says_yes"}
    plan = plan_study(load_config(with_objective(study_file, grpo, judged_by=judged_by)))
    assert plan.record.runs
    assert not any("completion" in warning for warning in plan.record.warnings)


def test_what_cannot_be_learned_so_is_refused_before_anything_is_trained(
    study_file: Path, tmp_path: Path, sentence: Sentences
) -> None:
    other = tmp_path / "other"
    tiny("Llama").save_pretrained(other)
    from transformers import AutoTokenizer

    base = load_config(study_file).base_model.name
    AutoTokenizer.from_pretrained(base).save_pretrained(other)
    code = {"grpo": {"rewards": {"code": "rewards.py:kinds"}, "max_completion_length": 8}}
    as_it_was = study_file.read_text()
    cases: dict[str, tuple[Any, dict[str, Any], str | None]] = {
        "code without a yes": (code, {}, "allow_task_code=false"),
        "too long": ({"sdft": {"max_completion_length": 250}}, {}, None),
        "another vocabulary": ({"sdft": {"teacher": str(other)}}, {}, None),
        "no judge": (code, {"judged_by": "loss", "max_new_tokens": None}, None),
        "learns everything": ("sdft", {"loss_on": "all"}, None),
    }
    for case, (objective, train, override) in cases.items():
        study_file.write_text(as_it_was)
        file = with_objective(study_file, objective, **train)
        with pytest.raises((ConfigError, PlanError)) as refused:
            plan_study(load_config(file, [] if override is None else [override]))
        sentence(refused.value, case)
