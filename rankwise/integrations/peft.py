"""PEFT's ``adapter_config.json``: https://huggingface.co/docs/peft, ``LoraConfig``.

It has no settings of the training. A Trainer's folder has some of them beside it: see ``sources``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankwise.integrations.drafts import Draft, Tool, TrainingSetup, shown
from rankwise.integrations.wordings import (
    read_bias,
    read_devices,
    read_initialisation,
    read_targets,
    targets_entry,
)

CONFIG_FILE = "adapter_config.json"
# Lines of the card that transformers' Trainer writes.
_OF_CARD = {
    "learning_rate": "learning_rate",
    "num_epochs": "num_epochs",
    "max_steps": "training_steps",
    "batch_size": "train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "schedule": "lr_scheduler_type",
    "warmup_ratio": "lr_scheduler_warmup_ratio",
    "warmup_steps": "lr_scheduler_warmup_steps",
    "seed": "seed",
}
_KEYS = {
    "base_model": "base_model_name_or_path",
    "revision": "revision",
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    **_OF_CARD,
}
_WITHOUT_EFFECT = (
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "megatron_core"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying", "eval_batch_size"),
)


def _read_own(draft: Draft) -> None:
    entries = draft.entries
    if (kind := entries.text("peft_type")) not in (None, "LORA"):
        entries.problems.append(f"peft_type: {shown(kind)} is not LoRA; give a LoRA adapter")
    draft.fields["is_full"] = kind is None
    read_bias(draft)
    for key in _WITHOUT_EFFECT:
        entries.take(key)
    read_targets(draft, "target_modules")
    read_initialisation(draft, "init_lora_weights")
    draft.fields["data"] = entries.text("dataset")
    if draft.fields["learning_rate"] is None:
        draft.to_check.append(
            f"train: {CONFIG_FILE} has no learning rate, epochs and batch size; the study's "
            "defaults stand in their place"
        )
    else:
        read_devices(draft, "num_devices")
        draft.to_check.append("train: weight_decay, max_grad_norm and max_length are in no card")


def _write_own(setup: TrainingSetup, folder: Path) -> dict[str, Any]:
    targets = targets_entry(setup)
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": targets, "bias": "none",
    }  # fmt: skip


PEFT = Tool(
    name="peft",
    title="PEFT",
    signs=("peft_type",),
    keys=_KEYS,
    defaults={},
    read_own=_read_own,
    write_own=_write_own,
    file_name=CONFIG_FILE,
    warmup_key="lr_scheduler_warmup_ratio",
    # without what LoraConfig has no field for
    arranged=lambda entries: {k: v for k, v in entries.items() if k not in _OF_CARD.values()},
)
