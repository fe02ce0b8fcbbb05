"""GRPO and self-distillation of several ranks in one pass against TRL, which trains each alone.

Texts and rewards are held fixed. TRL multiplies the KL by the ratio (``use_bias_correction_kl``)
unless it is told not to; here it is not multiplied, as in the paper. It needs TRL: ``pip install
trl``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from rankwise.engine.models.structure import adaptable_shapes, resolved_targets, target_shapes
from rankwise.engine.models.trained_adapters import Adapter, adapted
from rankwise.engine.scoring.decode.decoder import Decoder, WrittenText
from rankwise.engine.training import loop as training
from rankwise.engine.training.trainees import AdapterTrainee
from rankwise.engine.writing import Judge, Writer
from rankwise.records.config.objectives import GrpoConfig
from rankwise.records.config.training import TrainConfig
from rankwise.tasks.rewards import advantages
from rankwise.tasks.training_rows import AskedRow, Example
from tests.support.passes import CPU, Heard, config, planned
from tests.support.tiny_models import tiny

trl = pytest.importorskip("trl")
grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")

STEPS, BATCH, ACCUMULATION, GENERATIONS, LONGEST = 20, 2, 2, 4, 9
RANKS = (2, 6)
END = 2
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "scale_rewards": "batch"},
    "held to the base": {"loss_type": "dapo", "beta": 0.04},
    "two iterations": {"loss_type": "grpo", "num_iterations": 2},
    "sequences": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "num_iterations": 2,
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "beta": 0.04,
        "temperature": 0.8,
    },
}


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    model = tiny(family)
    for name, weights in model.named_parameters():
        if name.endswith("bias"):  # transformers begins them at zero
            nn.init.normal_(weights, std=0.3)
    return model.eval()


def fixed(prompt: Sequence[int], draw: int) -> tuple[int, ...]:
    """A text that stands for one that was sampled; some are cut at the limit."""
    rng = random.Random(f"{list(prompt)} {draw}")
    tokens = rng.choices(range(3, 64), k=rng.randint(1, LONGEST))
    return tuple(tokens) if len(tokens) == LONGEST else (*tokens, END)


def worth(tokens: Sequence[int]) -> float:
    return sum(tokens) % 11 / 11


def written(_: Decoder, __: Any, prompts: Any, ___: Any) -> list[list[WrittenText]]:
    """In place of ``Decoder.write``; the texts of a row come one after another."""
    found: list[list[WrittenText]] = []
    for of in prompts:
        draws = Counter[tuple[int, ...]]()
        found.append([])
        for prompt in of:
            text = fixed(prompt.tokens, draws[prompt.tokens])
            draws[prompt.tokens] += 1
            found[-1].append(WrittenText(text, "", text[-1] == END))
    return found


def judge(scale: str) -> Judge:
    def judged(
        _: Sequence[AskedRow], __: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> tuple[list[float], dict[str, Any]]:
        totals, values = advantages([[worth(x) for x in tokens]], (1.0,), GENERATIONS, scale)
        return values, {"reward": sum(x for x in totals if x is not None) / len(totals)}

    return judged


def rows(number: int, num_texts: int) -> list[Example]:
    random.seed(1)

    def text() -> tuple[int, ...]:
        # half of them are long enough to be read once for all texts of a row
        return tuple(random.choices(range(3, 64), k=random.randint(3, 30)))

    asked = [(text(), text()) for _ in range(number)]
    return [
        Example(prompt, 0, False, asks=AskedRow("{}", "", num_texts, LONGEST, "", answer + prompt))
        if num_texts == 1
        else Example(prompt, 0, False, asks=AskedRow("{}", "", num_texts, LONGEST))
        for prompt, answer in asked
    ]


def tokenizer_of_words() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    # none is the beginning of another: special ones are found within words
    tokens = Tokenizer(WordLevel({f"t{n:02}": n for n in range(64)}, unk_token="t00"))
    tokens.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="t00", eos_token="t02")


def as_words(tokens: Sequence[int]) -> str:
    return " ".join(f"t{n:02}" for n in tokens)


def arguments(folder: Path, **settings: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "gradient_accumulation_steps": ACCUMULATION,
        "max_completion_length": LONGEST,
        "num_train_epochs": 1,
        "shuffle_dataset": False,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 2,
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        **settings,
    }


def logged(trainer: Any) -> list[dict[str, float]]:
    trainer.train()
    return [line for line in trainer.state.log_history if "grad_norm" in line]


def rewarded_by_trl(
    model: Any, rows: Sequence[Example], folder: Path, case: dict[str, Any]
) -> list[dict[str, float]]:
    from datasets import Dataset

    def write(asked: list[str], _: Any) -> dict[str, Any]:
        ids = [[int(each[1:]) for each in prompt.split()] for prompt in asked]
        texts = [list(fixed(prompt, place % GENERATIONS)) for place, prompt in enumerate(ids)]
        return {"prompt_ids": ids, "completion_ids": texts, "logprobs": None}

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [worth(each) for each in completion_ids]

    settings = arguments(
        folder,
        per_device_train_batch_size=BATCH * GENERATIONS,
        num_generations=GENERATIONS,
        use_bias_correction_kl=False,
        **case,
    )
    return logged(
        trl.GRPOTrainer(
            model=model,
            args=trl.GRPOConfig(**settings),
            train_dataset=Dataset.from_list([{"prompt": as_words(row.tokens)} for row in rows]),
            processing_class=tokenizer_of_words(),
            reward_funcs=[reward],
            rollout_func=write,
        )
    )


def taught_by_trl(
    model: Any, rows: Sequence[Example], folder: Path, case: dict[str, Any]
) -> list[dict[str, float]]:
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    class FixedTexts(SDFTTrainer):
        def _generate(self, prompt_ids: list[list[int]]) -> Any:
            return prompt_ids, [list(fixed(each, 0)) for each in prompt_ids]

    settings = arguments(
        folder,
        per_device_train_batch_size=BATCH,
        num_generations=1,
        temperature=case["temperature"],
        distillation_mode="full_logits",
        distillation_alpha=float(case["direction"] == "reverse"),
        distillation_is_clip=None,
        teacher_prompt_template="{privileged_context} {prompt}",
    )
    told = [
        {
            "prompt": as_words(row.tokens),
            "privileged_context": as_words(row.asks.teacher[: -len(row.tokens)]),
        }
        for row in rows
        if row.asks is not None
    ]
    return logged(
        FixedTexts(
            model=model,
            args=SDFTConfig(**settings),
            train_dataset=Dataset.from_list(told),
            processing_class=tokenizer_of_words(),
        )
    )


def compare(
    family: str,
    train: TrainConfig,
    examples: Sequence[Example],
    judged: Judge | None,
    peer_of: Callable[[Any, Sequence[Example]], list[dict[str, float]]],
) -> None:
    """Train all ranks in one pass, and each by the peer, from the same weights."""
    base = model_of(family).requires_grad_(False)
    every = adaptable_shapes(base)
    shapes = target_shapes(every, resolved_targets(every, ["all-linear"]))
    trainees: list[AdapterTrainee] = []
    for rank in RANKS:
        run = planned(
            STEPS, name=f"rank {rank}", rank=rank, alpha=2.0 * rank, learning_rate=1e-3, epochs=1
        )
        adapter = Adapter(
            shapes, rank=rank, scaling=2.0, dropout=0.0, seed=rank, device=CPU, dtype=torch.float32
        )
        trainees.append(AdapterTrainee(run, examples, train, adapter))
    begun = {
        trainee.run.name: {name: pair[0].clone() for name, pair in trainee.adapter.factors.items()}
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
            writer=Writer(base, None, train, judged, max_tokens=60),
        )
    own = train.written
    times = own.num_iterations if isinstance(own, GrpoConfig) else 1
    for rank, trainee in zip(RANKS, trainees, strict=True):
        modules = sorted({name.rpartition(".")[2] for name in shapes})
        lora = peft.LoraConfig(
            task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=modules
        )
        peer = peft.get_peft_model(model_of(family), lora)
        layers: dict[str, Any] = {
            name: peer.get_submodule(f"base_model.model.{name}") for name in shapes
        }
        for name, layer in layers.items():
            layer.lora_A["default"].weight.data.copy_(begun[trainee.run.name][name])
        theirs = peer_of(peer, [row for batch in trainee.batches[::times] for row in batch])
        lines = heard.lines[trainee.run.name]
        assert len(lines) == len(theirs) == STEPS
        for ours, peer_line in zip(lines, theirs, strict=True):
            assert ours.grad_norm == pytest.approx(peer_line["grad_norm"], rel=1e-4, abs=1e-6)
            assert ours.loss_nats == pytest.approx(peer_line["loss"], rel=1e-4, abs=2e-5)
            assert ours.texts is not None
            if "reward" in peer_line:  # of the first step with the texts
                assert ours.texts.reward == pytest.approx(peer_line["reward"], rel=1e-5)
        for name, layer in layers.items():
            for mine, other in zip(
                trainee.adapter.factors[name], (layer.lora_A, layer.lora_B), strict=True
            ):
                peer_weights = other["default"].weight.data
                # Adam divides rounding by the size of a gradient, however small that is: so the
                # whole matrix is compared, not each number
                assert (mine - peer_weights).norm() <= 1e-5 * max(peer_weights.norm(), 1.0)


def settings_of(objective: dict[str, Any]) -> TrainConfig:
    return config(
        task=(),
        data=Path("rows.jsonl"),
        judged_by=("json",),
        objective=objective,
        epochs=1,
        batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate={"lora": 1e-3},
        max_grad_norm=0.5,
        warmup_ratio=2 / STEPS,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_ranks_in_one_pass_are_rewarded_as_trl_rewards_each(
    family: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "write", written)
    # else TRL reads the texts of a step in an order of its own, which bnpo's parts depend on
    monkeypatch.setattr(grpo_trainer, "shuffle_sequence_dict", lambda texts: texts)
    settings = CASES[case]
    grpo = {"rewards": "json", "num_generations": GENERATIONS, "max_completion_length": LONGEST}
    compare(
        family,
        settings_of({"grpo": {**grpo, **settings}}),
        rows(STEPS // settings.get("num_iterations", 1) * BATCH * ACCUMULATION, GENERATIONS),
        judge(settings.get("scale_rewards", "group")),
        lambda model, asked: rewarded_by_trl(model, asked, tmp_path, settings),
    )


@pytest.mark.parametrize(
    "case",
    [{"direction": "forward", "temperature": 1.0}, {"direction": "reverse", "temperature": 0.8}],
)
@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_ranks_in_one_pass_are_taught_as_trl_teaches_each(
    family: str, case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "write", written)
    compare(
        family,
        settings_of({"sdft": {"max_completion_length": LONGEST, **case}}),
        rows(STEPS * BATCH * ACCUMULATION, 1),
        None,
        lambda model, asked: taught_by_trl(model, asked, tmp_path, case),
    )
