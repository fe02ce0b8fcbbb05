"""DPO in the same pass, against a dense reference that reads each answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from rankwise.engine.models.loading import load_frozen
from rankwise.engine.training import loop as training
from rankwise.engine.training import micro_batches
from rankwise.engine.training.micro_batches import base_readings
from rankwise.engine.training.trainees import AdapterTrainee, Trainee, rate_factor
from rankwise.records.config.training import DpoConfig, TrainConfig
from rankwise.tasks.training_rows import Example, TrainingRow
from tests.support.passes import CPU, ROWS, Heard, Setting, config

PAIRS = [
    row._replace(rejected=f" {'no, ' * (number % 3)}it is {number}<|im_end|>")
    for number, row in enumerate(ROWS)
]
LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "stronger": {"beta": 0.7},
    "smoothed": {"label_smoothing": 0.2},
    "ipo": {"loss": "ipo"},
    "with sft": {"sft_weight": 0.5},
}


@pytest.fixture(scope="module")
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def train_config(**options: Any) -> TrainConfig:
    dpo = options.pop("dpo", {})
    settings = {"task": (), "data": Path("pairs.jsonl"), "objective": {"dpo": dpo}}
    return config(**(settings | {"max_grad_norm": 0.5, "warmup_ratio": 0.0} | options))


def trainee_of(setting: Setting, train: TrainConfig, **options: Any) -> AdapterTrainee:
    trainee = setting.trainee(train, rows=PAIRS, **options)
    read(trainee, setting.base)
    return trainee


def read(trainee: Trainee, model: Any) -> None:
    """Put what the base says into the batches of a trainee."""
    known = base_readings(
        model, (pair for batch in trainee.batches for pair in batch), max_tokens=128
    )
    trainee.batches = [[known[pair] for pair in batch] for batch in trainee.batches]


def log_likelihood(logits: Tensor, sequence: Example) -> Tensor:
    count = sequence.num_loss_tokens
    predicted = logits[0, -count:].double().log_softmax(-1)  # (count, vocab)
    return predicted.gather(1, torch.tensor(sequence.tokens[-count:])[:, None]).sum()


def mean_loss(pairs: Sequence[Example], ours: Any, theirs: Any, dpo: DpoConfig) -> Tensor:
    """The loss of a step as it stands in the papers."""
    losses: list[Tensor] = []
    chosen_nats: list[Tensor] = []
    for pair in pairs:
        assert pair.rejected is not None
        chosen, rejected = (ours(each) for each in pair.sequences)
        base_chosen, base_rejected = (theirs(each) for each in pair.sequences)
        chosen_nats.append(-chosen)
        if dpo.loss == "ipo":
            margin = (chosen - base_chosen) / pair.num_loss_tokens
            margin = margin - (rejected - base_rejected) / pair.rejected.num_loss_tokens
            losses.append((margin - 1 / (2 * dpo.beta)) ** 2)
        else:
            margin = dpo.beta * (chosen - base_chosen - rejected + base_rejected)
            right, wrong = torch.sigmoid(margin).log(), torch.sigmoid(-margin).log()
            losses.append(-(1 - dpo.label_smoothing) * right - dpo.label_smoothing * wrong)
    sft = torch.stack(chosen_nats).sum() / sum(pair.num_loss_tokens for pair in pairs)
    return torch.stack(losses).mean() + dpo.sft_weight * sft


class Dense:
    """Trains one adapter with whole matrices, W + scaling B A in every layer, answer by answer."""

    def __init__(self, setting: Setting, trainee: AdapterTrainee, train: TrainConfig) -> None:
        self.base, self.adapter, self.trainee, self.train = (
            setting.base,
            trainee.adapter,
            trainee,
            train,
        )
        self.factors = {
            name: [each.clone().requires_grad_() for each in pair]
            for name, pair in trainee.adapter.factors.items()
        }
        self.losses: list[float] = []

    def nats(self, sequence: Example, *, adapted: bool) -> Tensor:
        weights = dict(self.base.named_parameters())
        if adapted:
            for name, (lora_A, lora_B) in self.factors.items():
                key = f"{name}.weight"
                weights[key] = weights[key] + self.adapter.scaling * lora_B @ lora_A
        ids = torch.tensor([sequence.tokens[:-1]])
        return log_likelihood(functional_call(self.base, weights, (ids,)).logits, sequence)

    def run(self) -> None:
        dpo = self.train.dpo
        assert dpo is not None
        leaves = [each for pair in self.factors.values() for each in pair]
        optimizer = torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.0)
        batches = self.trainee.batches
        factor = rate_factor(self.train, len(batches))
        for step, batch in enumerate(batches):
            loss = mean_loss(
                batch,
                lambda each: self.nats(each, adapted=True),
                lambda each: self.nats(each, adapted=False).detach(),
                dpo,
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(leaves, self.train.max_grad_norm)
            optimizer.param_groups[0]["lr"] = 1e-2 * factor(step)
            optimizer.step()
            self.losses.append(loss.item())


@pytest.mark.parametrize(("name", "least"), [*((name, 16) for name in LOSSES), ("with sft", 2)])
def test_ranks_in_one_pass_learn_as_each_would_alone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, name: str, least: int
) -> None:
    # of two tokens on a prompt is read once for both answers
    monkeypatch.setitem(micro_batches._LEAST_SHARED, "cpu", least)
    train = train_config(dpo=LOSSES[name])
    trainees = [
        trainee_of(setting, train, name=f"rank {rank}", rank=rank, alpha=2.0 * rank, seed=rank)
        for rank in (2, 4, 8)
    ]
    dense = [Dense(setting, trainee, train) for trainee in trainees]
    heard = setting.train(*trainees, max_tokens=200)
    for one in dense:
        one.run()
        assert heard.losses[one.trainee.run.name] == pytest.approx(one.losses, abs=1e-4)
        for layer, pair in one.trainee.adapter.factors.items():
            for ours, theirs in zip(pair, one.factors[layer], strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
        assert one.losses[-1] < one.losses[0]


def test_before_any_step_a_run_is_the_base(setting: Setting) -> None:
    heard = setting.train(trainee_of(setting, train_config()))
    assert heard.losses["run-4"][0] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)


def test_micro_batches_change_nothing_and_keep_pairs_together(setting: Setting) -> None:
    train = train_config(dpo={"sft_weight": 0.3}, dropout=0.2)
    found: list[Heard] = []
    for max_tokens, lanes in ((1, 1), (150, 1), (4000, 2)):  # of 1: every pair alone
        trainee = trainee_of(setting, train)
        found.append(setting.train(trainee, max_tokens=max_tokens, max_lanes=lanes))
        assert not found[-1].budgets
    first, *others = (heard.losses["run-4"] for heard in found)
    for other in others:
        assert other == pytest.approx(first, abs=1e-4)


def test_a_resumed_training_is_one_that_never_stopped(setting: Setting, tmp_path: Path) -> None:
    train = train_config(dropout=0.1)
    whole = setting.train(trainee_of(setting, train)).losses["run-4"]
    stopped = trainee_of(setting, train)
    with pytest.raises(KeyboardInterrupt):
        setting.train(stopped, heard=Heard(stop_at=3))
    stopped.save_state(tmp_path / "state.pt")
    resumed = trainee_of(setting, train)
    resumed.load_state(tmp_path / "state.pt")
    assert setting.train(resumed).losses["run-4"] == pytest.approx(whole[3:], abs=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "with sft"])
def test_full_fine_tuning_learns_the_same_way(
    setting: Setting, tiny_model_folder: Path, name: str
) -> None:
    train = train_config(dpo=LOSSES[name], epochs=1, learning_rate={"full": 1e-3})
    model: Any = load_frozen(tiny_model_folder, "float32", CPU)
    examples = setting.examples(train, PAIRS)
    known = base_readings(model, examples, max_tokens=100)
    trainee = setting.full(train, model, rows=PAIRS)
    trainee.batches = [[known[pair] for pair in batch] for batch in trainee.batches]
    batches = trainee.batches
    dense: Any = load_frozen(tiny_model_folder, "float32", CPU).requires_grad_()
    optimizer = torch.optim.AdamW(dense.parameters(), lr=1e-3, weight_decay=0.0)
    factor, dpo = rate_factor(train, len(batches)), train.dpo
    assert dpo is not None

    def nats(model: Any, sequence: Example) -> Tensor:
        return log_likelihood(model(torch.tensor([sequence.tokens[:-1]])).logits, sequence)

    losses: list[float] = []
    for step, batch in enumerate(batches):
        loss = mean_loss(
            batch,
            lambda each: nats(dense, each),
            lambda each: nats(setting.base, each).detach(),
            dpo,
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dense.parameters(), train.max_grad_norm)
        optimizer.param_groups[0]["lr"] = 1e-3 * factor(step)
        optimizer.step()
        losses.append(loss.item())
    heard = Heard()
    training.train_pass(
        model,
        [trainee],
        bank=None,
        max_tokens=150,
        precision="float32",
        gradient_checkpointing=False,
        observer=heard,
    )
    assert heard.losses[trainee.run.name] == pytest.approx(losses, abs=1e-4)
    for (layer, ours), theirs in zip(model.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3, msg=layer)


def test_answers_that_are_read_again_are_told_apart(setting: Setting) -> None:
    """Both answers of a pair are dropped by masks of their own."""
    same = [TrainingRow(row.prompt, row.completion, rejected=row.completion) for row in PAIRS]
    train = train_config(dropout=0.5, epochs=1)
    trainee = setting.trainee(train, rows=same)
    read(trainee, setting.base)
    losses = setting.train(trainee).losses["run-4"]
    assert len({round(loss, 6) for loss in losses}) > 1
