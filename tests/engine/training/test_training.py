"""Training in one pass against the same alone, against peft, and against what must never happen."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForSeq2Seq,
    OPTConfig,
    OPTForCausalLM,
    Trainer,
    TrainingArguments,
)

from rankwise.engine.models import packed_attention, packed_kernels
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.seeds import seed_of
from rankwise.engine.training import loop as training
from rankwise.engine.training.trainees import AdapterTrainee, StepGradients
from rankwise.errors import DataError, DivergedError, RecordError
from rankwise.records.config.objectives import GrpoConfig
from rankwise.records.config.training import TrainConfig
from rankwise.tasks.training_rows import TrainingRow
from tests.support.passes import CPU, ROWS, TARGETS, Heard, Setting, config

EPOCHS_FOR_20_STEPS = 7  # 20 rows are 3 steps of 8


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def relative_difference(one: AdapterTrainee, other: AdapterTrainee) -> float:
    """The largest relative Frobenius norm of a difference, over all matrices."""
    pairs = zip(one.adapter.factors.values(), other.adapter.factors.values(), strict=True)
    return max(
        float((a - b).norm() / b.norm())
        for ours, theirs in pairs
        for a, b in zip(ours, theirs, strict=True)
    )


MIXED: list[dict[str, Any]] = [
    {"rank": 2, "name": "two"},
    {"rank": 8, "name": "eight", "scaling": 0.5, "learning_rate": 3e-3},
    {"rank": 512, "name": "other seed", "seed": 7, "learning_rate": 1e-3},
    {"rank": 4, "name": "other data", "rows": ROWS[3:17], "seed": 3},
    {"rank": 3, "name": "fewer epochs", "epochs": 2},
    {"rank": 5, "name": "two layers", "targets": ("q_proj", "v_proj")},
    {"rank": 6, "name": "other steps", "train": {"schedule": "cosine", "batch_size": 3}},
    {"rank": 7, "name": "short steps", "train": {"max_grad_norm": 0.1, "weight_decay": 0.5}},
    {"rank": 9, "name": "dropout", "train": {"dropout": 0.3, "warmup_ratio": 0.0}},
]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_many_together_equal_each_alone(setting: Setting, dropout: float) -> None:
    common = {"epochs": EPOCHS_FOR_20_STEPS, "dropout": dropout, "weight_decay": 0.01}

    def new_trainee(train: dict[str, Any] | None = None, **options: Any) -> AdapterTrainee:
        return setting.trainee(config(**(common | (train or {}))), **options)

    together = [new_trainee(**options) for options in MIXED]
    heard = setting.train(*together)
    for trainee, options in zip(together, MIXED, strict=True):
        alone = new_trainee(**options)
        name = alone.run.name
        assert setting.train(alone).losses[name] == pytest.approx(heard.losses[name], rel=1e-5)
        assert relative_difference(trainee, alone) < 1e-5
    assert len(heard.losses["two"]) == 21
    assert len(heard.losses["fewer epochs"]) == 6
    assert heard.losses["two"][-1] < heard.losses["two"][0] - 0.5


def test_dropout_changes_the_losses_and_its_masks_are_no_matter_of_the_micro_batch(
    setting: Setting,
) -> None:
    plain = setting.train(setting.trainee(config(), rank=8)).losses["run-8"]
    train = config(dropout=0.1)
    wide = setting.train(setting.trainee(train, rank=8), max_tokens=4096).losses["run-8"]
    narrow = setting.train(setting.trainee(train, rank=8), max_tokens=1).losses["run-8"]
    other = setting.train(setting.trainee(train, rank=8, seed=1)).losses["run-8"]
    assert wide == pytest.approx(narrow, rel=1e-5)
    assert wide[1:] != pytest.approx(plain[1:], rel=1e-4)
    assert wide != pytest.approx(other, rel=1e-4)


def peer_model(setting: Setting, trainee: AdapterTrainee, train: TrainConfig) -> Any:
    """PEFT on a base of its own, from the same initial weights."""
    base: Any = load_frozen(setting.folder, "float32", CPU)
    rank = trainee.adapter.rank
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(TARGETS),
        lora_dropout=train.dropout,
        task_type="CAUSAL_LM",
    )
    model: Any = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for name, (lora_A, lora_B) in trainee.adapter.factors.items():
            layer = model.get_submodule(f"base_model.model.{name}")
            layer.lora_A["default"].weight.copy_(lora_A)
            layer.lora_B["default"].weight.copy_(lora_B)
    return model


def peft_difference(trainee: AdapterTrainee, model: Any) -> float:
    """The largest relative Frobenius norm of a difference to PEFT's weights."""
    worst = 0.0
    for name, factors in trainee.adapter.factors.items():
        layer = model.get_submodule(f"base_model.model.{name}")
        for mine, peer in zip(
            factors, (layer.lora_A["default"].weight, layer.lora_B["default"].weight), strict=True
        ):
            worst = max(worst, float((mine - peer.detach()).norm() / peer.detach().norm()))
    return worst


def test_equals_peft_with_a_plain_loop(setting: Setting) -> None:
    train = config(epochs=EPOCHS_FOR_20_STEPS)
    trainee = setting.trainee(train)
    model = peer_model(setting, trainee, train)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.0)
    num_steps = len(trainee.batches)
    warmup = math.ceil(0.1 * num_steps)
    losses: list[float] = []
    for step, batch in enumerate(trainee.batches):
        factor = step / warmup if step < warmup else (num_steps - step) / (num_steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * factor
        count = sum(e.num_loss_tokens for e in batch)
        total = 0.0
        for example in batch:
            tokens = torch.tensor([example.tokens])
            logits = model(tokens).logits[0]
            n = example.num_loss_tokens
            loss = cross_entropy(logits[-n - 1 : -1], tokens[0, -n:], reduction="sum") / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    ours = setting.train(trainee).losses["run-4"]
    assert ours == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0] - 0.5
    assert peft_difference(trainee, model) < 1e-3


class _Dropped(torch.nn.Module):
    """Drops the inputs that a run of this seed drops in this layer, of the sequence ``draw``."""

    def __init__(self, share: float, *seed: Any) -> None:
        super().__init__()
        self.share, self.seed, self.draw = share, seed, (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(*self.seed, *self.draw))
        kept = torch.empty(x.shape[1:]).bernoulli_(1 - self.share, generator=generator)
        return x * kept / (1 - self.share)


def test_dropout_is_peft_s_where_the_same_inputs_are_dropped(setting: Setting) -> None:
    train = config(dropout=0.3, batch_size=2, gradient_accumulation_steps=2, warmup_ratio=0.0)
    trainee = setting.trainee(train, seed=4, learning_rate=1e-2)
    model = peer_model(setting, trainee, train)
    drops: list[_Dropped] = []
    for name in trainee.adapter.factors:
        layer = model.get_submodule(f"base_model.model.{name}")
        drops.append(_Dropped(0.3, 4, name))
        layer.lora_dropout["default"] = drops[-1]
    weights = [p for p in model.parameters() if p.requires_grad]
    losses: list[float] = []
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.0)
    num_steps = len(trainee.batches)
    for step, batch in enumerate(trainee.batches):
        optimizer.param_groups[0]["lr"] = 1e-2 * (num_steps - step) / num_steps
        count, total = sum(e.num_loss_tokens for e in batch), 0.0
        for place, example in enumerate(batch):
            for drop in drops:
                drop.draw = (step, place)
            tokens, n = torch.tensor([example.tokens]), example.num_loss_tokens
            logits = model(tokens[:, :-1]).logits[0]
            loss = cross_entropy(logits[-n:], tokens[0, -n:], reduction="sum") / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    heard = setting.train(trainee, setting.trainee(train, rank=3, seed=9), max_tokens=64)
    assert heard.losses["run-4"] == pytest.approx(losses, rel=1e-4)
    assert peft_difference(trainee, model) < 1e-3


def test_equals_transformers_trainer(setting: Setting, tmp_path: Path) -> None:
    """Padded batches of 2, four of them a step: the loss is a mean over the step's loss tokens.

    The last of 20 steps has 4 rows. Warm-up and schedule are the Trainer's own.
    """
    train = config(epochs=1)
    trainee = setting.trainee(train, rows=(ROWS * 8)[:156])
    assert [len(batch) for batch in trainee.batches] == [8] * 19 + [4]
    model = peer_model(setting, trainee, train)
    rows = [
        {
            "input_ids": list(example.tokens),
            "attention_mask": [1] * len(example.tokens),
            "labels": [-100] * (len(example.tokens) - example.num_loss_tokens)
            + list(example.tokens[-example.num_loss_tokens :]),
        }
        for batch in trainee.batches
        for example in batch
    ]

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)  # pyright: ignore

    settings = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_train_epochs=1,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        warmup_steps=2,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    peer = InOrder(
        model,
        args=settings,
        train_dataset=rows,  # pyright: ignore
        data_collator=DataCollatorForSeq2Seq(setting.tokenizer, padding=True),
    )
    peer.train()
    losses = [line["loss"] for line in peer.state.log_history if "loss" in line]
    ours = setting.train(trainee).losses["run-4"]
    assert len(losses) == 20
    assert ours == pytest.approx(losses, rel=1e-3)
    assert peft_difference(trainee, model) < 1e-3


@pytest.mark.parametrize("targets", [TARGETS, ("gate_proj", "up_proj", "down_proj")])
def test_gradients_are_those_of_the_dense_formulation(
    setting: Setting, targets: tuple[str, ...]
) -> None:
    """Autograd through W + scaling * B @ A, of the same loss; B drawn so that A has a gradient."""
    train = config()
    trainee = setting.trainee(train, targets=targets)
    generator = torch.Generator().manual_seed(1)
    for factors in trainee.adapter.factors.values():
        factors.lora_B.copy_(torch.randn(factors.lora_B.shape, generator=generator) * 0.3)
    trainee.adapter.refresh()
    leaves = {
        name: tuple(matrix.clone().requires_grad_() for matrix in factors)
        for name, factors in trainee.adapter.factors.items()
    }
    dense = {
        f"{name}.weight": setting.base.get_submodule(name).weight + 2.0 * lora_B @ lora_A
        for name, (lora_A, lora_B) in leaves.items()
    }
    loss = torch.zeros(())
    count = trainee.num_loss_tokens
    for example in trainee.batch:
        tokens = torch.tensor([example.tokens])
        logits = torch.func.functional_call(setting.base, dense, (tokens,)).logits[0]
        n = example.num_loss_tokens
        loss = loss + cross_entropy(logits[-n - 1 : -1], tokens[0, -n:], reduction="sum") / count
    loss.backward()
    gathered: dict[str, tuple[Tensor, Tensor]] = {}

    def take_step(step: StepGradients, *, vocab_size: int) -> Any:
        del vocab_size
        for name, (grad_A, grad_B) in trainee.adapter.gradients.items():
            gathered[name] = (grad_A.clone(), grad_B.clone())
        assert step.loss_nats == pytest.approx(float(loss.detach()), rel=1e-5)
        raise KeyboardInterrupt

    trainee.take_step = take_step  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        setting.train(trainee)
    for name, pair in leaves.items():
        for leaf, found in zip(pair, gathered[name], strict=True):
            assert leaf.grad is not None
            assert float(leaf.grad.norm()) > 1e-4
            assert float((found - leaf.grad).norm() / leaf.grad.norm()) < 1e-4


def test_base_is_bit_identical_afterwards(setting: Setting) -> None:
    before = {name: p.clone() for name, p in setting.base.state_dict().items()}
    modules = [type(module) for module in setting.base.modules()]
    setting.train(setting.trainee(config()))
    after = setting.base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [type(module) for module in setting.base.modules()] == modules


def test_the_caller_s_randomness_is_left_alone(setting: Setting) -> None:
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    setting.train(setting.trainee(config(dropout=0.1)))
    assert torch.equal(torch.rand(1), expected)


def test_initial_weights_are_drawn_as_peft_draws_them(setting: Setting) -> None:
    trainee = setting.trainee(config(), rank=32)
    model: Any = peft.get_peft_model(
        load_frozen(setting.folder, "float32", CPU),  # pyright: ignore
        peft.LoraConfig(r=32, target_modules=list(TARGETS)),
    )
    for name, (lora_A, lora_B) in trainee.adapter.factors.items():
        peer = model.get_submodule(f"base_model.model.{name}").lora_A["default"].weight
        assert float(lora_A.abs().max()) == pytest.approx(float(peer.abs().max()), rel=0.02)
        assert float(lora_A.std()) == pytest.approx(float(peer.std()), rel=0.1)
        assert not bool(lora_B.any())


def test_a_rate_that_moves_nothing_is_a_zero_update(setting: Setting) -> None:
    still = setting.trainee(config(), learning_rate=1e-45)
    moved = setting.trainee(config(), name="moved")
    setting.train(still, moved)
    assert still.adapter.is_zero_update
    assert not moved.adapter.is_zero_update


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["grouped_attention", "flex_attention"])
def test_one_that_diverges_stops_alone(
    setting: Setting, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where attention multiplies what a token does not see by zero: NaN stays NaN there."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    chosen = getattr(packed_kernels, kernel)
    monkeypatch.setattr(packed_attention, "kernel_for", lambda *_: chosen)
    poisoned = setting.trainee(config(), name="poisoned")
    healthy = setting.trainee(config(), name="healthy", rank=8)
    next(iter(poisoned.adapter.factors.values())).lora_A.fill_(float("nan"))
    poisoned.adapter.refresh()
    heard = setting.train(poisoned, healthy)
    alone = setting.trainee(config(), name="healthy", rank=8)
    assert heard.errors == {"poisoned": "the loss was nan at step 1"}
    assert list(heard.results) == ["healthy"]
    assert heard.losses["healthy"] == pytest.approx(
        setting.train(alone).losses["healthy"], rel=1e-5
    )


def test_a_loss_far_above_a_uniform_guess_has_exploded(setting: Setting) -> None:
    trainee = setting.trainee(config())

    def step(loss: float) -> None:
        norm = float(trainee.finish_gradients())
        trainee.take_step(StepGradients(loss, None, norm), vocab_size=400)

    step(1.0)
    step(2 * math.log(400) - 0.1)
    with pytest.raises(DivergedError, match=r"at step 3, above 11\.98: 2 times the first loss"):
        step(2 * math.log(400) + 0.1)


def test_a_loss_of_rewards_has_their_scale_and_has_not_exploded(setting: Setting) -> None:
    trainee = setting.trainee(config())
    trainee.own = GrpoConfig(rewards=("json",))
    norm = float(trainee.finish_gradients())
    trainee.take_step(StepGradients(1.0, None, norm), vocab_size=400)
    with pytest.raises(DivergedError, match="the loss was nan"):
        trainee.take_step(StepGradients(math.nan, None, norm), vocab_size=400)
    trainee.take_step(StepGradients(1000.0, None, norm), vocab_size=400)
    assert trainee.metrics[-1].loss_nats == 1000.0


@pytest.mark.parametrize("at", [1, 5])
def test_out_of_memory_shrinks_the_micro_batches_and_changes_nothing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    undisturbed = setting.trainee(config(), rank=8)
    expected = setting.train(undisturbed, max_tokens=200).losses["run-8"]
    calls = 0
    real = training.backward_losses

    def failing(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        losses = real(*args)
        if calls == at:  # after the gradients of this micro-batch were gathered
            raise torch.OutOfMemoryError("injected")
        return losses

    monkeypatch.setattr(training, "backward_losses", failing)
    trainee = setting.trainee(config(), rank=8)
    heard = setting.train(trainee, max_tokens=200)
    assert heard.budgets == [100]
    assert heard.losses["run-8"] == pytest.approx(expected, rel=1e-5)
    assert relative_difference(trainee, undisturbed) < 1e-4


def test_an_example_that_does_not_fit_alone_is_an_error(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(training, "backward_losses", failing)
    heard = Heard()
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        setting.train(setting.trainee(config()), heard=heard, max_tokens=200)
    assert heard.budgets[0] == 100
    assert heard.budgets == sorted(heard.budgets, reverse=True)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_saved_state_goes_on_with_the_same_losses(
    setting: Setting, tmp_path: Path, dropout: float
) -> None:
    train = config(dropout=dropout)
    undisturbed = setting.trainee(train)
    expected = setting.train(undisturbed).losses["run-4"]
    interrupted = setting.trainee(train)
    with pytest.raises(KeyboardInterrupt):
        setting.train(interrupted, heard=Heard(stop_at=3))
    interrupted.save_state(tmp_path / "state.pt")
    resumed = setting.trainee(train)
    resumed.load_state(tmp_path / "state.pt")
    assert [line.loss_nats for line in resumed.metrics] == expected[:3]
    assert setting.train(resumed).losses["run-4"] == expected[3:]
    assert relative_difference(resumed, undisturbed) == 0.0
    with pytest.raises(RecordError, match="belongs to the run f"):
        setting.trainee(train, fingerprint="another").load_state(tmp_path / "state.pt")
    (tmp_path / "state.pt").write_bytes(b"torn")
    with pytest.raises(RecordError, match="not a saved state of"):
        setting.trainee(train).load_state(tmp_path / "state.pt")


def test_gradient_checkpointing_changes_nothing(setting: Setting) -> None:
    train = config(dropout=0.1)
    kept, again = setting.trainee(train), setting.trainee(train)
    expected = setting.train(kept).losses["run-4"]
    found = setting.train(again, gradient_checkpointing=True).losses["run-4"]
    assert found == pytest.approx(expected, rel=1e-6)
    assert relative_difference(again, kept) < 1e-5
    assert not any(module.training for module in setting.base.modules())


def test_gradient_checkpointing_leaves_out_what_a_layer_drops_itself(setting: Setting) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "dropout": 0.1}
        setting.base = OPTForCausalLM(OPTConfig(vocab_size=len(setting.tokenizer), **sizes))
    setting.base.eval().requires_grad_(False)
    kept, again = (setting.trainee(config(), targets=("q_proj", "v_proj")) for _ in range(2))
    expected = setting.train(kept).losses["run-4"]
    assert setting.train(again, gradient_checkpointing=True).losses["run-4"] == pytest.approx(
        expected, rel=1e-6
    )
    assert {layer.dropout for layer in setting.base.model.decoder.layers} == {0.1}


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
@pytest.mark.parametrize("base_precision", ["4bit", "8bit"])
def test_a_quantised_base_is_learned_on(setting: Setting, base_precision: Any) -> None:
    setting.base = load_frozen(setting.folder, "float32", CPU, base_precision)
    before = {name: p.clone() for name, p in setting.base.named_parameters()}
    train = config(epochs=4)
    alone, trainee = setting.trainee(train), setting.trainee(train)
    losses = setting.train(trainee, setting.trainee(train, rank=16, seed=1)).losses
    assert losses["run-4"][-1] < losses["run-4"][0] - 0.3
    assert losses["run-16"][-1] < losses["run-16"][0] - 0.3
    tolerance = 1e-4 if base_precision == "4bit" else 0.1  # 8 bits round by what is in the batch
    assert setting.train(alone).losses["run-4"] == pytest.approx(losses["run-4"], rel=tolerance)
    after = dict(setting.base.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_bfloat16_is_close_to_float32(setting: Setting) -> None:
    expected = setting.train(setting.trainee(config())).losses["run-4"]
    setting.base = load_frozen(setting.folder, "bfloat16", CPU)
    trainee = setting.trainee(config(), dtype=torch.bfloat16)
    found = setting.train(trainee, precision="bfloat16").losses["run-4"]
    assert found == pytest.approx(expected, rel=2e-2)
    assert trainee.adapter.weights[0].dtype == torch.float32


def test_the_end_token_is_learned_although_it_is_the_pad_token(setting: Setting) -> None:
    assert setting.tokenizer.pad_token_id == setting.tokenizer.eos_token_id
    for example, row in zip(setting.examples(config()), ROWS, strict=True):
        learned = example.tokens[-example.num_loss_tokens :]
        assert setting.tokenizer.decode(learned) == row.completion
        assert learned[-1] == setting.tokenizer.eos_token_id


def test_loss_on_all_learns_the_prompt_too(setting: Setting) -> None:
    examples = setting.examples(config(loss_on="all"), ROWS[:3])
    assert all(e.num_loss_tokens == len(e.tokens) - 1 for e in examples)


def test_long_prompts_lose_their_left_end_and_long_completions_are_refused(
    setting: Setting,
) -> None:
    row = TrainingRow("Question: " + "very " * 200 + "long?\nAnswer:", " 7<|im_end|>")
    (example,) = setting.examples(config(max_length=32), [row])
    assert len(example.tokens) == 32
    assert example.is_truncated
    assert setting.tokenizer.decode(example.tokens).endswith("long?\nAnswer: 7<|im_end|>")
    with pytest.raises(DataError, match=r"row 0.*an example may have 2"):
        setting.examples(config(max_length=2), [row])


def test_steps_count_the_last_partial_batch() -> None:
    assert training.num_optimizer_steps(20, config(), 2) == 6
    assert training.num_optimizer_steps(16, config(), 2) == 4
    assert training.num_optimizer_steps(1, config(), 3) == 3


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_warm_up(setting: Setting, schedule: str) -> None:
    train = config(schedule=schedule, warmup_ratio=0.5)
    lines = setting.train(setting.trainee(train)).lines["run-4"]
    rates = [line.learning_rate for line in lines]
    assert rates[:3] == pytest.approx([0.0, 1e-2 / 3, 2e-2 / 3])
    assert rates[3] == pytest.approx(1e-2)
    assert (rates[-1] == pytest.approx(1e-2)) == (schedule == "constant")
