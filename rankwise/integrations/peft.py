"""PEFT's ``adapter_config.json``: https://huggingface.co/docs/peft, ``LoraConfig``.

It has no settings of the training. A Trainer's folder has some of them beside it: see ``sources``.
"""

from __future__ import annotations

from typing import Any

from rankwise.integrations.drafts import Draft, TrainingSetup, shown
from rankwise.integrations.tools import LORA_KEYS, Tool
from rankwise.records.patterns import rank_entries

CONFIG_FILE = "adapter_config.json"
# Lines of the card that transformers' Trainer writes.
OF_CARD = {
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


def _read_own(draft: Draft) -> None:
    entries = draft.entries
    if (kind := entries.text("peft_type")) not in (None, "LORA"):
        entries.problems.append(f"peft_type: {shown(kind)} is not LoRA; give a LoRA adapter")
    draft.fields["is_full"] = kind is None
    draft.read_bias()
    draft.read_targets("target_modules")
    draft.read_initialisation("init_lora_weights")
    if entries.take("rank_pattern"):
        draft.not_carried.append(
            "rank_pattern, a rank for each layer: name the adapter's folder in "
            "methods.lora.rank_pattern"
        )
    draft.fields["data"] = entries.text("dataset")
    if draft.fields["learning_rate"] is None:
        draft.to_check.append(
            f"train: {CONFIG_FILE} has no learning rate, epochs and batch size; the study's "
            "defaults stand in their place"
        )
    else:
        draft.read_devices("num_devices")
        draft.to_check.append("train: weight_decay, max_grad_norm and max_length are in no card")


def _ranks_of_layers(setup: TrainingSetup) -> dict[str, Any]:
    """The entries of layers with ranks of their own, where a setup has such."""
    if not setup.layer_ranks or setup.alpha is None or setup.rank is None:
        return {}
    return rank_entries(dict(setup.layer_ranks), setup.alpha / setup.rank)


PEFT = Tool(
    name="peft",
    title="PEFT",
    signs=("peft_type",),
    keys={
        "base_model": "base_model_name_or_path",
        "revision": "revision",
        "rank": "r",
        **LORA_KEYS,
        **OF_CARD,
    },
    defaults={},
    read_own=_read_own,
    write_own=lambda setup, _: {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "target_modules": setup.targets,
        "bias": "none",
        **_ranks_of_layers(setup),
    },
    without_effect=(
        *("task_type", "auto_mapping", "peft_version", "inference_mode", "megatron_core"),
        *("qalora_group_size", "runtime_config", "ensure_weight_tying", "eval_batch_size"),
    ),
    file_name=CONFIG_FILE,
    warmup_key="lr_scheduler_warmup_ratio",
    # without what LoraConfig has no field for
    arranged=lambda entries: {k: v for k, v in entries.items() if k not in OF_CARD.values()},
)
