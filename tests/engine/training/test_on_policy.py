"""Training on texts that the trainees of a pass write themselves: sdft and grpo.

Against the same alone, against PyTorch written out, and against what a kill leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.training.trainees import AdapterTrainee
from rankwise.engine.writing import Writer
from rankwise.records.config.training import TrainConfig
from rankwise.tasks.rewards import Rewards
from rankwise.tasks.training_rows import TrainingRow
from tests.support.passes import Heard, Setting, config

ROWS = [
    TrainingRow(
        f"Question: {a} and {b}?{' Say it.' * (a % 3)}\nAnswer:",
        f" {a + b}<|im_end|>",
        "<|im_end|>",
        columns={"prompt": f"{a} and {b}?", "completion": f"{a + b}"},
        taught=f"Question: {a} and {b}? It is {a + b}.\nAnswer:",
    )
    for a in range(3)
    for b in range(2)
]
GRPO: dict[str, Any] = {
    "rewards": "chrf",  # of letters, so that random texts differ
    "num_generations": 4,
    "max_completion_length": 7,
}


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def own_texts(objective: dict[str, Any], **options: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "task": (),
        "data": "rows.jsonl",
        "judged_by": ("chrf",),
        "objective": objective,
        "epochs": 2,
        "gradient_accumulation_steps": 1,
    }
    return config(**(settings | options))


def writer(setting: Setting, train: TrainConfig) -> Callable[[Any], Writer]:
    assert train.objective is not None
    judge = None
    if (grpo := train.objective.grpo) is not None:
        asked = [example.asks for example in setting.examples(train, ROWS)]
        rewards = Rewards(grpo.rewards, [each for each in asked if each is not None])
        settings: dict[str, Any] = {"group_size": grpo.num_generations, "scale": "group"}
        judge = partial(rewards.judged, **settings)
    return lambda model: Writer(model, setting.tokenizer, train, judge, max_tokens=128)


def trained(
    setting: Setting, train: TrainConfig, *trainees: AdapterTrainee, **options: Any
) -> Heard:
    return setting.train(*trainees, writer=writer(setting, train), **options)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {"grpo": GRPO},
    "held to the base, twice": {"grpo": GRPO | {"beta": 0.1, "num_iterations": 2}},
    "sequences": {
        "grpo": GRPO
        | {"importance_sampling_level": "sequence", "num_iterations": 3, "loss_type": "grpo"}
    },
    "sdft": {"sdft": {"max_completion_length": 7}},
    "reverse, cold": {
        "sdft": {"max_completion_length": 7, "direction": "reverse", "temperature": 0.7}
    },
}
MIXED: list[dict[str, Any]] = [
    {"rank": 2, "name": "two"},
    {"rank": 8, "name": "eight", "learning_rate": 3e-3},
    {"rank": 3, "name": "other seed", "seed": 7},
]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_three_in_a_pass_are_as_three_alone(setting: Setting, name: str) -> None:
    train = own_texts(OBJECTIVES[name])
    together = [setting.trainee(train, rows=ROWS, **options) for options in MIXED]
    heard = trained(setting, train, *together)
    for options, trainee in zip(MIXED, together, strict=True):
        alone = setting.trainee(train, rows=ROWS, **options)
        by_itself = trained(setting, train, alone)
        lines, expected = heard.lines[options["name"]], by_itself.lines[options["name"]]
        assert [line.num_tokens for line in lines] == [line.num_tokens for line in expected]
        assert [line.loss_nats for line in lines] == pytest.approx(
            [line.loss_nats for line in expected], rel=1e-5, abs=1e-6
        )
        for layer, factors in trainee.adapter.factors.items():
            for ours, theirs in zip(factors, alone.adapter.factors[layer], strict=True):
                assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert lines[0].texts is not None
        assert trainee.step == alone.step > 1
