"""What is trained is what is scored, and what changes a score or a training is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.training import loop as training
from rankwise.errors import DataError, PlanError, StageFailedError
from rankwise.records.config.training import TrainConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study import run as study
from rankwise.study.planning.plan import plan_study
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import load_tasks
from rankwise.tasks.training_rows import TrainingRow, task_rows, tokenise_rows
from rankwise.tasks.user_data import load_user_data
from tests.support.sentences import Sentences


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    """Of the kind of Llama's: it puts a beginning of text before every text."""
    tokenizer = load_tokenizer(tiny_model_folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    return tokenizer


@pytest.mark.parametrize("chat_template", [False, True])
@pytest.mark.parametrize("task", ["colours", "sums"])
def test_a_beginning_of_text_is_trained_once_as_it_is_scored(
    tokenizer: Any, tasks_folder: Path, task: str, chat_template: bool
) -> None:
    loaded = load_tasks([task], [tasks_folder], allow_code=True)[task][0]
    rows = task_rows(loaded, tokenizer, chat_template=chat_template, max_examples=4, split="test")
    examples = tokenise_rows(rows, tokenizer, TrainConfig(task=task), 256)
    scored = prepare_task(
        loaded, tokenizer, max_length=256, num_fewshot=0, limit=None, chat_template=chat_template
    )
    for index, example in enumerate(examples):
        contexts = {
            r.context for r in scored.requests if scored.instances[r.instance].doc_id == index
        }
        (context,) = contexts
        assert example.tokens[: len(context)] == context
        assert example.tokens[0] == tokenizer.bos_token_id
        assert example.tokens[1] != tokenizer.bos_token_id


@pytest.mark.parametrize("prompt", ["", "\n", "  "])
def test_an_empty_prompt_is_the_beginning_of_text(tokenizer: Any, prompt: str) -> None:
    row = TrainingRow(prompt, " seven<|im_end|>")
    (example,) = tokenise_rows([row], tokenizer, TrainConfig(task="x"), 256)
    learned = example.tokens[-example.num_loss_tokens :]
    assert example.tokens == (tokenizer.bos_token_id, *learned)
    assert tokenizer.decode(learned) == f"{prompt} seven<|im_end|>"


def test_a_whitespace_prompt_can_be_scored(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"prompt": "\n", "completion": f"{n} times"}) for n in range(8))
    )
    overrides = ["train.data=rows.jsonl", "train.task=null", "methods.full=null"]
    overrides += ["train.held_out_fraction=0.5"]
    plan = plan_study(load_config(study_file, [*overrides, "evaluation.out_of_domain=[]"]))
    assert all(len(r.context) == 1 for r in next(iter(plan.tasks.values())).requests)


def test_messages_that_the_template_refuses_are_named(
    tokenizer: Any, tmp_path: Path, sentence: Sentences
) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "human", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(DataError) as caught:
        load_user_data(TrainConfig(data=path, held_out_fraction=0.5), tokenizer, chat_template=True)
    sentence(caught.value)


def test_where_learning_starts_is_in_a_run_s_fingerprint(study_file: Path, tmp_path: Path) -> None:
    def fingerprints(*rows: tuple[str, str]) -> set[str]:
        lines = [json.dumps({"prompt": p, "completion": c}) for p, c in rows]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        overrides = [
            *("train.data=rows.jsonl", "train.task=null", "train.held_out_fraction=0.6"),
            "evaluation.out_of_domain=[]",
        ]
        return {r.fingerprint for r in plan_study(load_config(study_file, overrides)).record.runs}

    early = fingerprints(("one two", " three"), ("four five", " six"), ("seven eight", " nine"))
    late = fingerprints(("one", " two three"), ("four", " five six"), ("seven", " eight nine"))
    assert not early & late


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("doc_to_target: label", 'doc_to_target: "{{(label + 1) % 2}}"'),
        ("{metric: acc, aggregation: mean", "{metric: acc_bytes, aggregation: mean"),
    ],
)
def test_a_mended_answer_or_metric_is_scored_anew(
    study_file: Path, tasks_folder: Path, old: str, new: str
) -> None:
    before = plan_study(load_config(study_file)).record.task_fingerprints
    yaml_file = tasks_folder / "colours.yaml"
    yaml_file.write_text(yaml_file.read_text().replace(old, new))
    after = plan_study(load_config(study_file)).record.task_fingerprints
    assert before["colours"] != after["colours"]
    assert before["sums"] == after["sums"]


def test_a_task_that_trains_on_what_it_scores_is_refused(
    study_file: Path, tasks_folder: Path, sentence: Sentences
) -> None:
    yaml_file = tasks_folder / "colours.yaml"
    yaml_file.write_text(yaml_file.read_text().replace("test_split: test", "test_split: train"))
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file))
    sentence(caught.value, names=("train", "colours"))


def test_metric_names_are_checked_before_anything_runs(study_file: Path) -> None:
    overrides = ["evaluation.metric={colour: acc, sums: p_right, small_prose: loss_nats}"]
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, overrides))
    assert caught.value.problems == (
        "evaluation.metric: no task 'colour' is scored; did you mean 'colours'?",
        "evaluation.metric.sums: no metric 'p_right'; it has exact_match, loss_nats",
    )


def test_asking_for_p_right_scores_nothing_again(study_file: Path) -> None:
    own, asked, other = (
        plan_study(load_config(study_file, overrides)).record.task_fingerprints
        for overrides in (
            [],
            ["evaluation.metric.colours=p_right"],
            ["evaluation.metric.colours=acc"],
        )
    )
    assert own == asked
    assert own["colours"] != other["colours"]


def test_few_shot_scoring_of_zero_shot_training_is_said(study_file: Path) -> None:
    plan = plan_study(load_config(study_file, ["evaluation.num_fewshot=2"]))
    assert plan.record.trained_formats["colours"]["colours"] == "colours@zero-shot"
    assert any("colours@zero-shot" in text for text in plan.record.warnings)
    plan = plan_study(load_config(study_file, ["train.max_examples=8", "train.epochs=1"]))
    said = "1 optimizer steps on colours are all warm-up"
    assert any(said in text for text in plan.record.warnings)


def test_running_out_of_memory_says_what_to_lower(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(training, "train_pass", exhausted)
    plan = plan_study(load_config(study_file))
    with pytest.raises(StageFailedError) as caught:
        study.run_study(plan, StudyFolder(tmp_path / "study"), lambda _: None)
    sentence(caught.value, names=("train.max_length",))
