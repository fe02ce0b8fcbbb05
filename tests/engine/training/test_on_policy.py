"""Training on texts that the trainees of a pass write themselves: sdft and grpo.

Against the same alone, against PyTorch written out, and against what a kill leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.trained_adapters import adapted
from rankwise.engine.training import loop as training
from rankwise.engine.training import micro_batches
from rankwise.engine.training.terms import PolicyTerms
from rankwise.engine.training.trainees import AdapterTrainee
from rankwise.engine.writing import Writer
from rankwise.records.config.objectives import GrpoConfig
from rankwise.records.config.training import TrainConfig
from rankwise.tasks.rewards import advantages
from rankwise.tasks.training_rows import AskedRow, TrainingRow
from tests.support.passes import CPU, Heard, Setting, config

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
    "rewards": "chrf",  # in place of which the tests have ``worth``
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
    judge = None if train.objective.grpo is None else worth
    return lambda model: Writer(model, setting.tokenizer, train, judge, max_tokens=128)


def worth(
    _: Sequence[AskedRow], __: Sequence[str], tokens: Sequence[Sequence[int]]
) -> tuple[list[float], dict[str, Any]]:
    """What random texts differ in."""
    rewards = [sum(text) % 7 / 7 for text in tokens]
    totals, values = advantages([rewards], (1.0,), GRPO["num_generations"], "group")
    return values, {"reward": sum(filter(None, totals)) / len(totals)}


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
        assert all(line.grad_norm > 1e-4 for line in lines)
        assert trainee.step == alone.step > 1


@pytest.mark.parametrize("kind", ["adapter", "full"])
@pytest.mark.parametrize("name", ["grpo", "held to the base, twice", "sdft"])
def test_a_prompt_that_is_read_once_changes_nothing(
    setting: Setting, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    train, pack = own_texts(OBJECTIVES[name]), training.pack
    read: list[int] = []
    weights: list[list[torch.Tensor]] = []
    lines: list[list[float]] = []

    def counted(*arguments: Any) -> Any:
        batch = pack(*arguments)
        read[-1] += batch.tokens.layout.num_tokens
        return batch

    monkeypatch.setattr(training, "pack", counted)
    for least in (1, 10**6):
        monkeypatch.setitem(micro_batches._LEAST_SHARED, "cpu", least)
        read.append(0)
        if kind == "adapter":
            trainee = setting.trainee(train, rows=ROWS, name="it")
            heard = trained(setting, train, trainee)
            weights.append(trainee.adapter.weights)
        else:
            model, base = (load_frozen(tiny_model_folder, "float32", CPU) for _ in range(2))
            heard, judge = Heard(), None if name == "sdft" else worth
            training.train_pass(
                model,
                [setting.full(train, model, rows=ROWS, name="it")],
                bank=None,
                max_tokens=200,
                precision="float32",
                gradient_checkpointing=False,
                observer=heard,
                writer=Writer(
                    model,
                    setting.tokenizer,
                    train,
                    judge,
                    other=base,
                    is_base=False,
                    max_tokens=128,
                ),
            )
            weights.append([*model.parameters()])
        lines.append([line.grad_norm for line in heard.lines["it"]])
    assert lines[0][0] == pytest.approx(lines[1][0], rel=1e-6)
    assert lines[0] == pytest.approx(lines[1], rel=1e-4)  # Adam divides rounding by small gradients
    for ours, theirs in zip(*weights, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * max(float(theirs.norm()), 1.0)
    if name == "sdft":  # a single text of each row shares nothing
        assert read[0] == read[1]
    else:
        assert read[0] < 0.6 * read[1]


def test_a_base_beside_a_full_model_teaches_as_the_base_below_adapters(
    setting: Setting, tiny_model_folder: Path
) -> None:
    train = own_texts(OBJECTIVES["sdft"])
    adapter = setting.trainee(train, rows=ROWS, name="adapter")
    heard = trained(setting, train, adapter)
    model, other = (load_frozen(tiny_model_folder, "float32", CPU) for _ in range(2))
    full = setting.full(train, model, rows=ROWS, name="full")
    teach = Writer(model, setting.tokenizer, train, other=other, is_base=False, max_tokens=128)
    training.train_pass(
        model,
        [full],
        bank=None,
        max_tokens=128,
        precision="float32",
        gradient_checkpointing=False,
        observer=heard,
        writer=teach,
    )
    first = [heard.lines[name][0].loss_nats for name in ("adapter", "full")]
    assert first[0] == pytest.approx(first[1], rel=1e-5)  # both begin as the base


@pytest.mark.parametrize("objective", ["sdft", "grpo"])
def test_texts_are_drawn_as_they_are_weighed_and_end_as_rows_do(
    setting: Setting, objective: str
) -> None:
    """Whatever the base's generation config says of sampling, and though it names another end."""
    train = own_texts(OBJECTIVES[objective])

    def written(end: str) -> list[Any]:
        rows = [row._replace(completion=f" 3{end}", end=end) for row in ROWS]
        trainee = setting.trainee(train, rows=rows)
        with adapted(setting.base, list(trainee.adapter.factors)):
            write = writer(setting, train)(setting.base)
            write.write([trainee])
        assert trainee.written is not None
        return [example.tokens[-example.num_loss_tokens :] for example in trainee.written.examples]

    expected = written("<|im_end|>")
    assert {len(tokens) for tokens in expected} == {7}
    often = setting.tokenizer.decode(expected[0][2])
    cut = written(often)
    setting.base.generation_config.update(
        min_p=0.9,
        typical_p=0.5,
        no_repeat_ngram_size=1,
        suppress_tokens=list({tokens[0] for tokens in expected}),
        min_new_tokens=20,
        bad_words_ids=[[expected[0][1]]],
    )
    assert written("<|im_end|>") == expected
    assert written(often) == cut
    assert len(cut[0]) <= 3
    assert all(tokens == whole[: len(tokens)] for tokens, whole in zip(cut, expected, strict=True))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_losses_of_texts_are_those_of_the_formula(level: str) -> None:
    """With ratios on both sides of both limits, and a text that nothing old is known of."""
    torch.manual_seed(0)
    counts = torch.tensor([5, 1, 7, 4])
    advantages, weights = torch.tensor([1.3, -0.4, -2.0, 0.7]), torch.rand(4)
    nats, old, base = torch.rand(17) * 3, torch.rand(17) * 3, torch.rand(17) * 3
    old[:5] = float("nan")
    settings = GRPO | {"beta": 0.3, "epsilon": 0.2, "epsilon_high": 0.4}
    grpo = GrpoConfig(**settings, importance_sampling_level=level)
    terms = PolicyTerms(counts, advantages, weights, old, base, are_new=False)
    found, gradient = terms.losses(nats, grpo)
    log_pi = (-nats).clone().requires_grad_()
    expected: list[torch.Tensor] = []
    for text in range(4):
        part = slice(int(counts[:text].sum()), int(counts[: text + 1].sum()))
        log_mu = log_pi[part].detach() if text == 0 else -old[part]
        log_ratio = log_pi[part] - log_mu
        ratio = (log_ratio.mean().expand_as(log_ratio) if level == "sequence" else log_ratio).exp()
        surrogate = torch.min(ratio * advantages[text], ratio.clamp(0.8, 1.4) * advantages[text])
        d = -base[part] - log_pi[part]
        expected.append(weights[text] * (0.3 * (d.exp() - d - 1) - surrogate).sum())
    torch.stack(expected).sum().backward()
    torch.testing.assert_close(found, torch.stack(expected).detach())
    assert log_pi.grad is not None
    torch.testing.assert_close(gradient, -log_pi.grad)
    new = terms._replace(old_nats=torch.full((17,), float("nan")), base_nats=None, are_new=True)
    torch.testing.assert_close(new.losses(nats, grpo)[1], new.new_weights())
