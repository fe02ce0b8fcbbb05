"""What several tools say with the same keys, because they pass them on to transformers and PEFT."""

from __future__ import annotations

import re
from typing import Any

from rankwise.integrations.drafts import Draft, TrainingSetup, shown
from rankwise.records.config.variants import VariantName

ALL_LINEAR = "all-linear"
_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw")
_INITIALISATIONS: dict[str, VariantName] = {"pissa": "pissa", "olora": "olora", "eva": "eva"}
_PLAIN_INITIALISATIONS = ("true", "gaussian")
RATE_RATIO = 16.0
"""LoRA+ as a study trains it: the rate of B over that of A."""

TRAINER_KEYS = {
    "learning_rate": "learning_rate",
    "num_epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "schedule": "lr_scheduler_type",
    "warmup_ratio": "warmup_ratio",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "seed": "seed",
}
"""``warmup_ratio`` is of transformers before 5, where ``warmup_steps`` takes a share too."""
TRAINER_DEFAULTS = {
    "learning_rate": 5e-5,
    "epochs": 3,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "schedule": "linear",
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 42,
}
"""Of transformers' ``TrainingArguments``."""

_COLUMNS = {
    "alpaca": "instruction, input and output",
    "sharegpt": "conversations, turns with from and value",
    "messages": "messages, turns with role and content",
    "text": "whole texts",
}


def read_targets(draft: Draft, key: str) -> None:
    """The adapted layers: names, all linear ones, or a pattern, which a study file cannot say."""
    value = draft.entries.take(key)
    if isinstance(value, str) and value.strip() in ("all", "all-linear", "all_linear"):
        draft.fields["target_modules"] = (ALL_LINEAR,)
    elif isinstance(value, str) and any(sign in value for sign in r"*\()[]|^$+?"):
        draft.not_carried.append(f"{key}: {shown(value)}, a pattern; name the layers")
    elif names := draft.entries.names(key):
        is_all = {*names} & {"all", "all-linear", "all_linear"}
        draft.fields["target_modules"] = (ALL_LINEAR,) if is_all else names


def targets_entry(setup: TrainingSetup) -> Any:
    """The adapted layers as PEFT takes them: names, or all linear ones."""
    every = setup.target_modules == (ALL_LINEAR,)
    return ALL_LINEAR if every else list(setup.target_modules)


def read_bits(draft: Draft) -> None:
    """Whether the frozen base is quantised."""
    in_four, in_eight = (draft.entries.switch(f"load_in_{bits}bit") for bits in (4, 8))
    draft.fields["base_precision"] = "4bit" if in_four else "8bit" if in_eight else None


def read_precision(draft: Draft) -> None:
    """What is computed in; a study has no float16."""
    value = draft.entries.take("bf16")
    if value not in (None, "auto") and draft.entries.switch("bf16"):
        draft.fields["precision"] = "bfloat16"
    if draft.entries.switch("fp16"):
        draft.not_carried.append("fp16: a study computes in bfloat16 or float32")


def read_bias(draft: Draft) -> None:
    """PEFT can train biases beside the factors."""
    if (value := draft.entries.take("bias")) not in (None, "none"):
        draft.not_carried.append(f"bias: {shown(value)}")


def read_initialisation(draft: Draft, key: str) -> None:
    """What A and B begin at: variants of LoRA differ in it."""
    value = draft.entries.take(key)
    name = str(value).lower()
    if value is None or name in _PLAIN_INITIALISATIONS:
        return
    variant = _INITIALISATIONS.get(name.partition("_niter_")[0])
    if variant is None:
        draft.not_carried.append(f"{key}: {shown(value)}")
    draft.set_variant(variant)


def read_rate_ratio(draft: Draft, key: str) -> None:
    """LoRA+, whose ratio of rates is fixed in a study."""
    ratio = draft.entries.number(key)
    if ratio is None:
        return
    draft.set_variant("lora_plus")
    if ratio != RATE_RATIO:
        draft.not_carried.append(f"{key}: {ratio:g}; LoRA+ is trained with {RATE_RATIO:g}")


def read_optimizer(draft: Draft, key: str) -> None:
    """Adapters are always trained with AdamW."""
    name = draft.entries.take(key)
    if name is None or str(name) in _ADAMW:
        return
    is_adamw = "adamw" in str(name)
    more = "AdamW with float32 moments is used" if is_adamw else "AdamW is used"
    draft.not_carried.append(f"{key}: {shown(name)}; {more}")


def read_packing(draft: Draft, *keys: str) -> None:
    """Packed sequences, of which a batch holds more rows than it has sequences."""
    packed = [draft.entries.switch(key) for key in keys]
    if any(packed):
        draft.to_check.append(
            "packing: a step saw as many rows as its sequences hold; a study counts rows, so "
            "raise train.gradient_accumulation_steps for as many"
        )


def read_devices(draft: Draft, key: str | None = None) -> None:
    """A step's rows come from all devices; a study trains on one."""
    devices = draft.entries.whole(key) if key else None
    if devices and devices > 1:
        steps = draft.fields.get("gradient_accumulation_steps") or 1
        draft.fields["gradient_accumulation_steps"] = steps * devices
    elif devices is None:
        draft.to_check.append(
            "devices: the number of devices is not given; with n of them multiply "
            "train.gradient_accumulation_steps by n"
        )


def describe_rows(draft: Draft, kind: str | None) -> None:
    """Say what the rows are, where ``train.data`` may want other columns."""
    if kind in ("sharegpt", "messages"):
        draft.to_check.append(
            "train.data: of a conversation only the last turn of the assistant is learned"
        )
    if kind in ("alpaca", "sharegpt", "text"):
        draft.to_check.append(
            f"train.data: the rows are {kind}'s ({_COLUMNS[kind]}); it takes prompt and "
            "completion, or messages"
        )


def precision_entries(setup: TrainingSetup) -> dict[str, Any]:
    """bf16, as transformers takes it."""
    return {} if setup.precision is None else {"bf16": setup.precision == "bfloat16"}


def bits_entries(setup: TrainingSetup) -> dict[str, Any]:
    """The quantised base, as transformers takes it."""
    return {} if setup.base_precision is None else {f"load_in_{setup.base_precision}": True}


def json_rows(setup: TrainingSetup) -> dict[str, Any]:
    """The rows as ``datasets.load_dataset`` takes them; empty where they are a task's."""
    if setup.data is None:
        return {}
    return {"path": "json", "data_files": setup.data, "split": split_of(setup)}


def split_of(setup: TrainingSetup) -> str:
    """The rows of a file that are read, as ``datasets`` writes it."""
    return "train" if setup.max_examples is None else f"train[:{setup.max_examples}]"


def read_split(draft: Draft, key: str, value: Any = None) -> None:
    """The first rows of the training split; another split is none of a study's.

    Args:
        draft: of a setup.
        key: as it is called in what is said about it.
        value: the split; None: the entry ``key``.
    """
    split = draft.entries.take(key) if value is None else value
    first = re.fullmatch(r"train\[:(\d{1,9})\]", str(split))
    if first is not None:
        draft.fields["max_examples"] = int(first[1])
    elif split not in (None, "train"):
        draft.not_carried.append(f"{key}: {shown(split)}")
