"""DPO of several ranks in one pass against TRL's DPOTrainer, which trains each alone.

It needs TRL, which the test set-up does not install: ``pip install trl``.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from rankwise.engine.models.loading import load_model
from rankwise.engine.models.structure import adaptable_shapes, resolved_targets, target_shapes
from rankwise.engine.models.trained_adapters import Adapter, adapted
from rankwise.engine.training import loop as training
from rankwise.engine.training.micro_batches import base_readings
from rankwise.engine.training.trainees import AdapterTrainee, effective_batches, lora_adapter
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.tasks.training_rows import Example
from tests.support.audited_models import adapter as write_adapter
from tests.support.observers import Silent
from tests.support.passes import CPU, Heard, config, planned
from tests.support.small_studies import write_study
from tests.support.tiny_models import tiny

trl = pytest.importorskip("trl")

FAMILIES = ("Llama", "Qwen2", "Gemma2")  # Qwen2 has biases, Gemma2 caps its logits
STEPS, BATCH, ACCUMULATION = 20, 2, 2
RANKS = (2, 6)
OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({"beta": 0.3}, {"loss_type": ["sigmoid"]}),
    "ipo": ({"beta": 0.3, "loss": "ipo"}, {"loss_type": ["ipo"]}),
    "sft": (
        {"beta": 0.3, "sft_weight": 0.5},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    ),
}


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    model = tiny(family)
    for name, weights in model.named_parameters():
        if name.endswith("bias"):  # transformers begins them at zero
            nn.init.normal_(weights, std=0.3)
    return model.eval()


def pairs(equal_lengths: bool) -> list[Example]:
    """Of one length where TRL averages over a part of a step what is averaged over all of it."""
    random.seed(1)

    def text(low: int, high: int) -> tuple[int, ...]:
        return tuple(
            random.choices(range(3, 64), k=high if equal_lengths else random.randint(low, high))
        )

    found: list[Example] = []
    for _ in range(STEPS * BATCH * ACCUMULATION):
        prompt, chosen, rejected = text(3, 9), text(1, 7), text(1, 7)
        other = Example(prompt + rejected, len(rejected), False)
        found.append(Example(prompt + chosen, len(chosen), False, False, other))
    return found


class InOrder(trl.DPOTrainer):
    """Reads tokens that are there already, in their order, and keeps its first gradients."""

    num_read = 0

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, model: Any, *rest: Any, **more: Any) -> Any:
        loss = super().training_step(model, *rest, **more)
        self.num_read += 1
        if self.num_read == ACCUMULATION:  # of the first step, not clipped yet
            trained = {name: each.grad for name, each in model.named_parameters()}
            self.first = {name: grad.clone() for name, grad in trained.items() if grad is not None}
        return loss


class KeepsFirst(AdapterTrainee):
    """Keeps the gradients of its first step, before they are clipped."""

    def finish_gradients(self) -> Any:
        if not self.step:
            of_layers = self.adapter.gradients.items()
            self.first = {name: [each.clone() for each in pair] for name, pair in of_layers}
        return super().finish_gradients()


def by_trl(
    model: Any, batches: list[list[Example]], folder: Path, settings: dict[str, Any], **more: Any
) -> tuple[InOrder, list[float], list[float]]:
    """The trainer when it is done, and the losses and norms of its steps."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(WordLevel({f"t{n}": n for n in range(64)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="t0", eos_token="t2")
    rows = [
        {
            "prompt_ids": pair.tokens[: -pair.num_loss_tokens],
            "chosen_ids": pair.tokens[-pair.num_loss_tokens :],
            "rejected_ids": pair.rejected.tokens[-pair.rejected.num_loss_tokens :],
        }
        for pair in itertools.chain(*batches)
        if pair.rejected is not None
    ]
    arguments = trl.DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        num_train_epochs=1,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        warmup_steps=2,
        max_grad_norm=0.5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **settings,
    )
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **more,
    )
    trainer.train()
    steps = [line for line in trainer.state.log_history if "grad_norm" in line]
    return trainer, [x["loss"] for x in steps], [x["grad_norm"] for x in steps]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_in_one_pass_train_as_trl_trains_each(
    family: str, objective: str, tmp_path: Path
) -> None:
    ours, theirs = OBJECTIVES[objective]
    train = config(
        task=(),
        data=Path("pairs.jsonl"),
        objective={"dpo": ours},
        epochs=1,
        batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate={"lora": 1e-3},
        max_grad_norm=0.5,
        warmup_ratio=2 / STEPS,
    )
    base = model_of(family).requires_grad_(False)
    known = base_readings(base, pairs(objective == "sft"), max_tokens=100)
    every = adaptable_shapes(base)
    shapes = target_shapes(every, resolved_targets(every, ["all-linear"]))
    trainees: list[KeepsFirst] = []
    for rank in RANKS:
        run = planned(
            STEPS, name=f"rank {rank}", rank=rank, alpha=2.0 * rank, learning_rate=1e-3, epochs=1
        )
        adapter = Adapter(
            shapes, rank=rank, scaling=2.0, dropout=0.0, seed=rank, device=CPU, dtype=torch.float32
        )
        for _, lora_B in adapter.factors.values():  # where B is zero, A has no gradient
            lora_B.normal_(std=0.02)
        adapter.refresh()
        trainees.append(KeepsFirst(run, [*known.values()], train, adapter))
    begun = {
        trainee.run.name: {
            name: [factor.clone() for factor in pair]
            for name, pair in trainee.adapter.factors.items()
        }
        for trainee in trainees
    }
    heard = Heard()
    with adapted(base, list(shapes)) as bank:
        training.train_pass(
            base,
            trainees,
            bank=bank,
            max_tokens=60,
            precision="float32",
            gradient_checkpointing=False,
            observer=heard,
        )
    for rank, trainee in zip(RANKS, trainees, strict=True):
        peer = peft.get_peft_model(
            model_of(family),
            peft.LoraConfig(
                task_type="CAUSAL_LM",
                r=rank,
                lora_alpha=2 * rank,
                target_modules=sorted({name.rpartition(".")[2] for name in shapes}),
            ),
        )
        layers: dict[str, Any] = {
            name: peer.get_submodule(f"base_model.model.{name}") for name in shapes
        }
        for name, layer in layers.items():
            lora_A, lora_B = begun[trainee.run.name][name]
            layer.lora_A["default"].weight.data.copy_(lora_A)
            layer.lora_B["default"].weight.data.copy_(lora_B)
        settings = {"beta": ours["beta"], **theirs}
        # without it TRL takes the adapter as it begins for the reference, and its B is not zero
        reference = {"ref_model": model_of(family)}
        trainer, losses, norms = by_trl(peer, trainee.batches, tmp_path, settings, **reference)
        for place, side in enumerate(("lora_A", "lora_B")):
            gradients = {
                name: trainer.first[f"base_model.model.{name}.{side}.default.weight"]
                for name in shapes
            }
            largest = max(float(each.abs().max()) for each in gradients.values())
            assert largest > 0
            for name, other in gradients.items():
                mine = trainee.first[name][place]
                torch.testing.assert_close(mine, other, atol=1e-5 * largest, rtol=0)
        lines = heard.lines[trainee.run.name]
        # IPO's losses are squares of up to 25, so rounding of float32 is relative to them
        assert [line.loss_nats for line in lines] == pytest.approx(losses, rel=1e-5)
        assert [line.grad_norm for line in lines] == pytest.approx(norms, rel=1e-4, abs=1e-5)
        for name, layer in layers.items():
            for mine, other in zip(
                trainee.adapter.factors[name], (layer.lora_A, layer.lora_B), strict=True
            ):
                torch.testing.assert_close(mine, other["default"].weight.data, atol=1e-5, rtol=0)


STARTED = """
train:
  data: pairs.jsonl
  objective: {dpo: {beta: 0.3}}
  epochs: 1
  batch_size: 2
  gradient_accumulation_steps: 2
  held_out_fraction: 0.25
  learning_rate: {lora: 1e-3, full: 1e-3}
  max_grad_norm: 0.5
  warmup_ratio: 0.3
  precision: float32
methods: {lora: {ranks: [2], target_modules: [q_proj, v_proj], start: start}, full: {}}
analysis: {spectra: false, heads: false, gauges: false}
evaluation: {num_train_items: 0}
"""
"""Six steps, of which two are the warm-up."""


def test_a_study_from_a_start_trains_as_trl_from_the_merged_model(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    write_adapter(tiny_model_folder, tmp_path / "start", std=0.1)
    rows = [
        {"prompt": f"Say {n}.", "chosen": f" yes, {n}", "rejected": f" no, not {n}"}
        for n in range(32)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plan = plan_study(load_config(write_study(tmp_path, tiny_model_folder, STARTED)))
    folder = StudyFolder(tmp_path / "study")
    run_study(plan, folder, Silent())

    def start() -> Any:
        plain = load_model(tiny_model_folder, torch.float32)
        adapted: Any = peft.PeftModel.from_pretrained(plain, str(tmp_path / "start"))
        return adapted.merge_and_unload().requires_grad_(True)

    lora, full = plan.record.runs
    shapes = target_shapes(adaptable_shapes(start()), lora.target_modules)
    begun = lora_adapter(shapes, lora, plan.record.config, CPU, "float32")
    peer: Any = peft.get_peft_model(
        start(), peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    )
    for name, pair in begun.factors.items():
        peer.get_submodule(f"base_model.model.{name}.lora_A.default").weight.data.copy_(pair.lora_A)
    for run, model, more in ((lora, peer, {}), (full, start(), {"ref_model": start()})):
        batches = effective_batches(plan.examples_of(run), run, plan.record.config.train)
        _, losses, _ = by_trl(model, batches, tmp_path / "trl", {"beta": 0.3}, **more)
        lines = folder.metrics_file(run.name).read_text().splitlines()
        found = [json.loads(line)["loss_nats"] for line in lines]
        assert found == pytest.approx(losses, abs=1e-5)
        assert abs(found[-1] - found[0]) > 1e-3
