"""Trainings of the tiny model by transformers' Trainer, on rows of the tiny tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peft
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from rankwise.engine.models.loading import load_tokenizer
from rankwise.tasks.resolution import load_tasks
from tests.support.audited_models import load

TOKENS = 40


class Row(NamedTuple):
    """A question and an answer."""

    prompt: str
    completion: str


def rows(tasks_folder: Path, answer: str) -> list[Row]:
    """The scored questions of the task colours, all with this answer."""
    found: Any = load_tasks(["colours"], (tasks_folder,), allow_code=True)
    docs = found["colours"][0].task.test_docs()
    return [Row(f"Question: {doc['question']}\nAnswer:", f" {answer}") for doc in docs]


def lora(**options: Any) -> peft.LoraConfig:
    """Of rank 4 on two kinds of layers, with dropout."""
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, **options}
    return peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], **settings
    )


def arguments(folder: Path, steps: int, rate: float, **options: Any) -> dict[str, Any]:
    """Of a short training on the CPU that logs every loss and writes nothing."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }


def small_trainer(
    base: Path,
    data: Sequence[Row],
    settings: dict[str, Any],
    callbacks: Sequence[TrainerCallback] = (),
    adapter: peft.LoraConfig | None = None,
    evaluated: Sequence[Row] = (),
) -> Trainer:
    """A trainer of all weights, or of an adapter; equal arguments train equally."""
    set_seed(0)
    tokenizer, model = load_tokenizer(base), load(base)
    if adapter is not None:
        model = peft.get_peft_model(model, adapter)
    return Trainer(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=_examples(tokenizer, data),
        eval_dataset=_examples(tokenizer, evaluated) if evaluated else None,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def _examples(tokenizer: Any, data: Sequence[Row]) -> Dataset:
    return Dataset.from_list([_example(tokenizer, row) for row in data])


def _example(tokenizer: Any, row: Row) -> dict[str, list[int]]:
    prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in row)
    padding = [tokenizer.pad_token_id] * (TOKENS - len(prompt) - len(answer))
    return {
        "input_ids": prompt + answer + padding,
        "labels": [-100] * len(prompt) + answer + [-100] * len(padding),
    }
