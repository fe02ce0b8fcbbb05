"""Arms against forgetting, all in one pass, against a dense reference that trains each alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from rankwise.engine.models import own_texts
from rankwise.engine.models.own_texts import write_texts
from rankwise.engine.training.trainees import AdapterTrainee, Beside, rate_factor
from rankwise.records.config.mitigations import MitigationConfig
from rankwise.records.config.training import TrainConfig
from rankwise.tasks.training_rows import Example
from tests.support.passes import ROWS, Heard, Setting, config

ARMS: dict[str, dict[str, Any]] = {
    "nothing": {"learning_rate_factor": 1.0},
    "prompts": {"kl": {"at": "prompts", "weight": 0.7}},
    "completions": {"kl": {"at": "completions"}},
    "masked": {"kl": {"at": "completions", "mask_target": True, "weight": 2.0}},
    "own texts": {"kl": {"at": "own_texts", "share": 0.3}},
    "rows": {"kl": {"at": "rows", "share": 0.2, "rows": {"task": "other"}}},
    "replay": {"replay": {"share": 0.2}},
    "both": {"replay": {"share": 0.1}, "kl": {"share": 0.3, "weight": 0.5}},
    "decay": {"weight_decay": 5.0},
}


@pytest.fixture(scope="module")
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


@pytest.fixture(scope="module")
def texts(setting: Setting) -> list[tuple[int, ...]]:
    return write_texts(setting.base, 1, number=7, num_tokens=12, seed=3)


def arm_of(name: str) -> MitigationConfig:
    return MitigationConfig.model_validate(ARMS[name])


def trainee_of(setting: Setting, name: str, texts: Sequence[tuple[int, ...]]) -> AdapterTrainee:
    learned = [Example(text, len(text) - 1, is_truncated=False) for text in texts]
    beside = Beside(learned, [text._replace(num_loss_tokens=0) for text in learned])
    return setting.trainee(
        train_config(), name=name, mitigation=arm_of(name), beside=beside, seed=5
    )


def train_config() -> TrainConfig:
    return config(epochs=2, max_grad_norm=0.5, warmup_ratio=0.0)


class Dense:
    """Trains one arm with whole matrices: W + scaling B A in every layer, one text at a time."""

    def __init__(self, setting: Setting, trainee: AdapterTrainee) -> None:
        self.base, self.adapter, self.run = setting.base, trainee.adapter, trainee.run
        self.batches = trainee.batches
        self.arm = trainee.run.mitigation or MitigationConfig()
        self.factors = {
            name: [each.clone().requires_grad_() for each in pair]
            for name, pair in trainee.adapter.factors.items()
        }
        self.losses: list[float] = []
        self.kls: list[float | None] = []

    def delta(self, name: str) -> Tensor:
        lora_A, lora_B = self.factors[name]
        return self.adapter.scaling * lora_B @ lora_A

    def logits(self, tokens: Sequence[int], *, adapted: bool) -> Tensor:
        ids = torch.tensor([tokens[:-1]])
        if not adapted:
            with torch.no_grad():
                return self.base(input_ids=ids).logits[0]
        changed = {
            f"{name}.weight": self.base.get_submodule(name).weight + self.delta(name)
            for name in self.factors
        }
        return functional_call(self.base, changed, (ids,)).logits[0]

    def train(self, train: TrainConfig) -> None:
        weights = [each for pair in self.factors.values() for each in pair]
        decay = 0.0 if self.arm.weight_decay is None else self.arm.weight_decay
        optimizer = torch.optim.AdamW(weights, lr=1.0, weight_decay=decay, fused=False)
        factor = rate_factor(train, len(self.batches))
        for step, batch in enumerate(self.batches):
            self.backward(batch)
            torch.nn.utils.clip_grad_norm_(weights, train.max_grad_norm)
            optimizer.param_groups[0]["lr"] = (self.run.learning_rate or 0.0) * factor(step)
            optimizer.step()
            optimizer.zero_grad()

    def backward(self, batch: Sequence[Example]) -> None:
        nats: list[Tensor] = []
        kls: list[Tensor] = []
        kl = self.arm.kl
        for example in batch:
            target = torch.tensor(example.tokens[1:])
            log_q = self.logits(example.tokens, adapted=True).log_softmax(dim=-1)
            of_target = log_q.gather(1, target[:, None])[:, 0]
            learned = torch.arange(len(target)) >= len(target) - example.num_loss_tokens
            nats.append(-of_target[learned])
            if kl is None:
                continue
            log_p = self.logits(example.tokens, adapted=False).log_softmax(dim=-1)
            if kl.mask_target:
                absent = torch.zeros_like(log_p).scatter_(1, target[:, None], 1.0) > 0
                log_p, log_q = (
                    each.masked_fill(absent, -1e30).log_softmax(dim=-1) for each in (log_p, log_q)
                )
            terms = log_p.exp() * (log_p - log_q)
            is_beside = example.num_loss_tokens == 0
            where = {
                "prompts": ~learned,
                "completions": learned,
                "own_texts": torch.full_like(learned, is_beside),
                "rows": torch.full_like(learned, is_beside),
            }[kl.at]
            kls.append(terms.sum(dim=-1)[where])
        loss = torch.cat(nats).mean()
        self.losses.append(float(loss.detach()))
        self.kls.append(float(torch.cat(kls).mean().detach()) if kls else None)
        if kl is not None:
            loss = loss + kl.weight * torch.cat(kls).mean()
        loss.backward()


@pytest.fixture(scope="module")
def together(setting: Setting, texts: list[tuple[int, ...]]) -> tuple[list[AdapterTrainee], Heard]:
    trainees = [trainee_of(setting, name, texts) for name in ARMS]
    return trainees, setting.train(*trainees)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_among_others_is_the_dense_one_alone(
    setting: Setting,
    texts: list[tuple[int, ...]],
    together: tuple[list[AdapterTrainee], Heard],
    name: str,
) -> None:
    trainees, heard = together
    (trainee,) = (each for each in trainees if each.run.name == name)
    dense = Dense(setting, trainee_of(setting, name, texts))
    dense.train(train_config())
    assert heard.losses[name] == pytest.approx(dense.losses, rel=1e-4)
    kls = [line.kl_nats for line in heard.lines[name]]
    if dense.arm.kl is None:
        assert kls == [None] * len(dense.losses)
    else:
        assert kls[0] == 0.0  # the update begins at zero
        assert kls == pytest.approx(dense.kls, rel=1e-3, abs=1e-6)
        assert (kls[-1] or 0.0) > 1e-4
    for layer, (lora_A, lora_B) in trainee.adapter.factors.items():
        ours = trainee.adapter.scaling * lora_B @ lora_A
        assert float((ours - dense.delta(layer)).norm().detach() / ours.norm()) < 2e-3, layer


def test_arms_that_go_on_in_half_the_micro_batches_are_the_same(
    setting: Setting,
    texts: list[tuple[int, ...]],
    together: tuple[list[AdapterTrainee], Heard],
    tmp_path: Path,
) -> None:
    undisturbed, expected = together
    begun = [trainee_of(setting, name, texts) for name in ARMS]
    with pytest.raises(KeyboardInterrupt):
        setting.train(*begun, heard=Heard(stop_at=3))
    resumed = [trainee_of(setting, name, texts) for name in ARMS]
    for one, other in zip(begun, resumed, strict=True):
        one.save_state(tmp_path / one.run.name)
        other.load_state(tmp_path / one.run.name)
    heard = setting.train(*resumed, max_tokens=64)
    for ours, theirs in zip(resumed, undisturbed, strict=True):
        name = ours.run.name
        assert heard.losses[name] == pytest.approx(expected.losses[name][3:], rel=1e-4)
        weights, before = ours.adapter.weights[0].detach(), theirs.adapter.weights[0].detach()
        assert float((weights - before).norm() / before.norm()) < 1e-3, name


def test_arms_differ_from_the_run_that_they_repeat(
    together: tuple[list[AdapterTrainee], Heard],
) -> None:
    trainees, _ = together
    plain = trainees[0].adapter
    for trainee in trainees[1:]:
        pairs = zip(trainee.adapter.factors.values(), plain.factors.values(), strict=True)
        assert any(float((one.lora_B - other.lora_B).norm()) > 1e-3 for one, other in pairs)


def test_held_to_the_base_it_stays_nearer(together: tuple[list[AdapterTrainee], Heard]) -> None:
    """More weight, less KL: the penalty pulls the way that it should."""
    _, heard = together
    kls = {name: heard.lines[name][-1].kl_nats for name in ("own texts", "both")}
    assert all(kl is not None and 0 < kl < 1 for kl in kls.values())


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_others_come_at_their_exact_share(setting: Setting, share: float) -> None:
    others = [Example((1, 2, place), 2, is_truncated=False) for place in range(3, 14)]
    arm = MitigationConfig.model_validate({"replay": {"share": share}})
    trainee = setting.trainee(
        config(epochs=5), mitigation=arm, beside=Beside(replayed=others), seed=1
    )
    plain = setting.trainee(config(epochs=5), seed=1)
    num_own = num_others = 0
    seen: list[tuple[int, ...]] = []
    for mixed, own in zip(trainee.batches, plain.batches, strict=True):
        assert mixed[: len(own)] == own  # the run's own rows, in its own order
        assert all(example in others for example in mixed[len(own) :])
        seen += [example.tokens for example in mixed[len(own) :]]
        num_own, num_others = num_own + len(own), num_others + len(mixed) - len(own)
        assert abs(num_others - share * (num_own + num_others)) <= 1 - share / 2
    first = seen[: len(others)]
    assert len({*first}) == len(first)  # each once before any comes again
    assert num_own == 5 * len(ROWS)


def test_a_state_goes_on_bit_for_bit(
    setting: Setting, texts: list[tuple[int, ...]], tmp_path: Path
) -> None:
    for name in ("decay", "both"):
        whole = trainee_of(setting, name, texts)
        setting.train(whole)
        stopped = trainee_of(setting, name, texts)
        with pytest.raises(KeyboardInterrupt):
            setting.train(stopped, heard=Heard(stop_at=3))
        stopped.save_state(tmp_path / name)
        resumed = trainee_of(setting, name, texts)
        resumed.load_state(tmp_path / name)
        setting.train(resumed)
        assert torch.equal(resumed.adapter.weights[0], whole.adapter.weights[0])


def test_micro_batches_change_nothing(setting: Setting, texts: list[tuple[int, ...]]) -> None:
    large, small = (trainee_of(setting, "both", texts) for _ in range(2))
    expected, got = (
        setting.train(trainee, max_tokens=budget)
        for trainee, budget in ((large, 4096), (small, 24))
    )
    assert got.losses["both"] == pytest.approx(expected.losses["both"], rel=1e-5)


def test_texts_are_samples_of_the_model(setting: Setting) -> None:
    """The second token's frequencies are the model's probabilities after the first."""
    number = 4000
    texts = write_texts(setting.base, 1, number=number, num_tokens=2, seed=0)
    with torch.no_grad():
        shares = setting.base(input_ids=torch.tensor([[1]])).logits[0, -1].softmax(dim=-1)
    counts = torch.bincount(torch.tensor([text[1] for text in texts]), minlength=len(shares))
    # Pearson's statistic over tokens of which 5 are expected at least; its mean is their number
    often = shares * number >= 5
    statistic = float(((counts - number * shares).square() / (number * shares))[often].sum())
    freedom = int(often.sum())
    assert freedom > 20
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_first_texts_do_not_depend_on_their_number(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = write_texts(setting.base, 1, number=9, num_tokens=6, seed=1)
    monkeypatch.setattr(own_texts, "_BATCH", 2)
    assert write_texts(setting.base, 1, number=4, num_tokens=6, seed=1) == many[:4]
    assert write_texts(setting.base, 1, number=4, num_tokens=6, seed=2) != many[:4]
    assert {text[0] for text in many} == {1}


@pytest.mark.parametrize(
    ("arm", "held"), [("prompts", [0, 1, 4, 5, 6]), ("completions", [2, 3, 7])]
)
def test_an_arm_is_held_between_the_turns_that_are_learned_or_in_them(
    setting: Setting, arm: str, held: list[int]
) -> None:
    example = Example(tuple(range(9)), 3, is_truncated=False, learned=(3, 4, 8))
    assert [*trainee_of(setting, arm, ()).held_rows(example)] == held
