"""Training against peft with plain PyTorch, and against what must never happen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.nn.functional import cross_entropy

from rankwise import adapters, models, training
from rankwise.config import LearningRateConfig, TrainConfig
from rankwise.errors import DataError, DivergedError
from rankwise.records import PlannedRun
from rankwise.tasks import TrainingRow

CPU = torch.device("cpu")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
ROWS = [
    TrainingRow(f"Question: {a} and {b}?{' Say it.' * (a % 3)}\nAnswer:", f" {a + b}<|im_end|>")
    for a in range(5)
    for b in range(4)
]


def config(**options: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "task": "sums",
        "epochs": 2,
        "batch_size": 2,
        "gradient_accumulation_steps": 4,
        "learning_rate": LearningRateConfig(lora=1e-2, full=1e-3),
    }
    return TrainConfig(**(settings | options))


def planned(method: str, num_steps: int, **options: Any) -> PlannedRun:
    is_lora = method == "lora"
    settings: dict[str, Any] = {
        "name": "run",
        "fingerprint": "f",
        "method": method,
        "train_task": "sums",
        "rank": 4 if is_lora else None,
        "alpha": 8.0 if is_lora else None,
        "alpha_labels": ("2r",) if is_lora else (),
        "scaling": 2.0 if is_lora else None,
        "learning_rate": 1e-2 if is_lora else 1e-3,
        "rate_labels": ("1e-2" if is_lora else "1e-3",),
        "epochs": 2,
        "target_modules": TARGETS if is_lora else (),
        "seed": 0,
        "num_steps": num_steps,
        "num_examples": len(ROWS),
        "num_tokens": 0,
        "num_trainable_parameters": 0,
        "trainable_share": 0.0,
        "estimated_memory_bytes": 0,
    }
    return PlannedRun(**(settings | options))


class Setting:
    """A tiny base model with tokenised rows, and a way to train on them."""

    def __init__(self, folder: Path, where: Path) -> None:
        self.folder, self.where = folder, where
        self.tokenizer: Any = models.load_tokenizer(folder)
        self.base: Any = models.load_frozen(folder, "float32", CPU)

    def lora(self, train: TrainConfig, *, name: str = "adapter", **run_options: Any) -> Any:
        examples = training.tokenise_rows(ROWS, self.tokenizer, train, 256)
        steps = training.num_optimizer_steps(len(examples), train, train.epochs[0])
        lines: list[training.StepMetrics] = []
        result = training.train_lora(
            self.base,
            examples,
            planned("lora", steps, epochs=train.epochs[0], **run_options),
            train,
            folder=self.where / name,
            pad_id=self.tokenizer.pad_token_id,
            base_model_name="tiny",
            use_rslora=run_options.pop("use_rslora", False),
            precision="float32",
            on_step=lines.append,
        )
        return result, lines


@pytest.fixture
def setting(tiny_model_folder: Path, tmp_path: Path) -> Setting:
    return Setting(tiny_model_folder, tmp_path)


def peer_losses(setting: Setting, train: TrainConfig, num_steps: int) -> tuple[list[float], Any]:
    """The same training written plainly: peft, one row at a time, PyTorch's AdamW, by hand."""
    base: Any = models.load_frozen(setting.folder, "float32", CPU)
    torch.manual_seed(0)
    model: Any = peft.get_peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS), bias="none")
    )
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.0)
    examples = training.tokenise_rows(ROWS, setting.tokenizer, train, 256)
    order_generator = torch.Generator().manual_seed(0)
    warmup = math.ceil(0.1 * num_steps)
    losses: list[float] = []
    for _ in range(train.epochs[0]):
        order = torch.randperm(len(examples), generator=order_generator).tolist()
        for start in range(0, len(order), 8):
            step = len(losses)
            factor = step / warmup if step < warmup else (num_steps - step) / (num_steps - warmup)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * factor
            batch = [examples[i] for i in order[start : start + 8]]
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
    return losses, model


def test_equals_peft_with_a_plain_loop(setting: Setting) -> None:
    train = config()
    result, lines = setting.lora(train)
    losses, model = peer_losses(setting, train, result.num_steps)
    assert [line.loss_nats for line in lines] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0] - 0.5
    ours = adapters.lora_factors(adapters.load_adapter(setting.base, setting.where / "adapter"))
    theirs = adapters.lora_factors(model)
    for name, factors in ours.items():
        for mine, peer in zip(factors, theirs[name], strict=True):
            assert float((mine - peer).norm() / peer.norm()) < 1e-3


def test_micro_batches_do_not_change_the_step(setting: Setting) -> None:
    _, small = setting.lora(config(batch_size=1, gradient_accumulation_steps=8), name="small")
    _, large = setting.lora(config(batch_size=8, gradient_accumulation_steps=1), name="large")
    assert [s.loss_nats for s in small] == pytest.approx([s.loss_nats for s in large], rel=1e-4)


def test_base_is_bit_identical_afterwards(setting: Setting) -> None:
    before = {name: p.clone() for name, p in setting.base.state_dict().items()}
    setting.lora(config())
    after = setting.base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_saved_adapter_gives_peft_the_same_logits(setting: Setting) -> None:
    setting.lora(config())
    tokens = torch.tensor([setting.tokenizer.encode("Question: 3 and 2?\nAnswer:")])
    plain: Any = models.load_frozen(setting.folder, "float32", CPU)
    with torch.no_grad():
        untouched = plain(tokens).logits
        theirs = peft.PeftModel.from_pretrained(plain, str(setting.where / "adapter"))(
            tokens
        ).logits
        ours = adapters.load_adapter(setting.base, setting.where / "adapter")(tokens).logits
    assert torch.equal(ours, theirs)
    assert float((ours - untouched).abs().max()) > 1e-2
    names = {path.name for path in (setting.where / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    saved = json.loads((setting.where / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["base_model_name_or_path"]) == (4, 8, "tiny")


def test_seed_decides_everything_and_leaves_the_caller_alone(setting: Setting) -> None:
    train = config(dropout=0.1)
    torch.manual_seed(123)
    _, first = setting.lora(train, name="a")
    after_first = torch.rand(1)
    torch.manual_seed(456)
    torch.rand(7)
    _, second = setting.lora(train, name="b")
    _, other = setting.lora(train, name="c", seed=1)
    assert first == second
    assert [line.loss_nats for line in first] != [line.loss_nats for line in other]
    torch.manual_seed(123)
    assert torch.equal(after_first, torch.rand(1))


def test_a_rate_that_moves_nothing_is_a_zero_update(setting: Setting) -> None:
    result, _ = setting.lora(config(), learning_rate=1e-45)
    assert result.update_is_zero
    result, _ = setting.lora(config(), name="moved")
    assert not result.update_is_zero


def test_full_fine_tuning_moves_weights_and_saves_a_checkpoint(
    setting: Setting, tmp_path: Path
) -> None:
    train = config()
    examples = training.tokenise_rows(ROWS, setting.tokenizer, train, 256)
    lines: list[training.StepMetrics] = []
    model: Any = models.load_frozen(setting.folder, "float32", CPU)
    result = training.train_full(
        model,
        setting.tokenizer,
        examples,
        planned("full", 6),
        train,
        folder=tmp_path / "checkpoint",
        pad_id=setting.tokenizer.pad_token_id,
        precision="float32",
        on_step=lines.append,
    )
    assert lines[-1].loss_nats < lines[0].loss_nats
    assert not result.update_is_zero
    again: Any = models.load_frozen(tmp_path / "checkpoint", "float32", CPU)
    tokens = torch.tensor([setting.tokenizer.encode("Question: 3 and 2?")])
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
        assert not torch.equal(again(tokens).logits, setting.base(tokens).logits)
    assert result.weights_bytes == (tmp_path / "checkpoint" / "model.safetensors").stat().st_size


def test_divergence_is_said_with_the_step_and_saves_nothing(setting: Setting) -> None:
    setting.base.model.norm.weight.data.fill_(float("inf"))
    with pytest.raises(DivergedError, match="step 1"):
        setting.lora(config())
    assert not (setting.where / "adapter").exists()
    assert not adapters.lora_factors(setting.base)


def test_the_end_token_is_learned_although_it_is_the_pad_token(setting: Setting) -> None:
    assert setting.tokenizer.pad_token_id == setting.tokenizer.eos_token_id
    examples = training.tokenise_rows(ROWS, setting.tokenizer, config(), 256)
    for example, row in zip(examples, ROWS, strict=True):
        learned = example.tokens[-example.num_loss_tokens :]
        assert setting.tokenizer.decode(learned) == row.completion
        assert learned[-1] == setting.tokenizer.eos_token_id


def test_loss_on_all_learns_the_prompt_too(setting: Setting) -> None:
    examples = training.tokenise_rows(ROWS[:3], setting.tokenizer, config(loss_on="all"), 256)
    assert all(e.num_loss_tokens == len(e.tokens) - 1 for e in examples)


def test_long_prompts_lose_their_left_end_and_long_completions_are_refused(
    setting: Setting,
) -> None:
    row = TrainingRow("Question: " + "very " * 200 + "long?\nAnswer:", " 7<|im_end|>")
    (example,) = training.tokenise_rows([row], setting.tokenizer, config(max_length=32), 256)
    assert len(example.tokens) == 32
    assert example.is_truncated
    assert setting.tokenizer.decode(example.tokens).endswith("long?\nAnswer: 7<|im_end|>")
    with pytest.raises(DataError, match=r"row 0.*an example may have 2"):
        training.tokenise_rows([row], setting.tokenizer, config(max_length=2), 256)


def test_steps_count_the_last_partial_batch() -> None:
    assert training.num_optimizer_steps(20, config(), 2) == 6
    assert training.num_optimizer_steps(16, config(), 2) == 4
    assert training.num_optimizer_steps(1, config(), 3) == 3


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_warm_up(setting: Setting, schedule: str) -> None:
    _, lines = setting.lora(config(schedule=schedule, warmup_ratio=0.5))
    rates = [line.learning_rate for line in lines]
    assert rates[:3] == pytest.approx([0.0, 1e-2 / 3, 2e-2 / 3])
    assert rates[3] == pytest.approx(1e-2)
    assert (rates[-1] == pytest.approx(1e-2)) == (schedule == "constant")
