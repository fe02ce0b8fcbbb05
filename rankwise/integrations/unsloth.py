"""Unsloth's arguments: https://unsloth.ai/docs, and the YAML of ``unsloth train --config``.

Unsloth is called from Python. So a config has a section for each call, with its arguments; a flat
one with all of them is read too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankwise.integrations.drafts import Draft, TrainingSetup, shown
from rankwise.integrations.tools import LORA_KEYS, TRAINER_KEYS, Tool
from rankwise.integrations.trl import SFT_DEFAULTS, read_sft_settings, sft_entries

CALLS = ("from_pretrained", "get_peft_model", "SFTConfig", "load_dataset")
_CALL_OF = {
    **dict.fromkeys(("model_name", "revision", "max_seq_length"), "from_pretrained"),
    **dict.fromkeys(("r", "lora_alpha", "lora_dropout", "use_rslora"), "get_peft_model"),
}
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Keys of the command's YAML -> arguments of the calls.
_ARGUMENTS = {
    "model": "model_name",
    "dataset": "path",
    "lora_r": "r",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "random_seed": "seed",
    "train_on_completions": "completion_only_loss",
}
_COMMAND_DEFAULTS = {
    "r": 64,
    "lora_alpha": 16,
    "learning_rate": 2e-4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "warmup_steps": 5,
    "weight_decay": 0.01,
    "seed": 3407,
    "completion_only_loss": False,
}


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """All arguments of all calls; the command's keys become theirs."""
    sections = [value for key, value in content.items() if _is_section(key, value)]
    flat = {key: value for key, value in content.items() if not _is_section(key, value)}
    for section in sections:
        flat |= section
    if "model" not in content:
        return flat
    renamed = {_ARGUMENTS.get(str(key), key): value for key, value in flat.items()}
    files = renamed.pop("local_dataset", None)
    if isinstance(files, list) and files:
        renamed["data_files"] = files[0] if len(files) == 1 else files
    return _COMMAND_DEFAULTS | renamed


def _is_section(key: str, value: Any) -> bool:
    return isinstance(value, dict) and key in (*CALLS, "data", "training", "lora", "logging")


def _read_own(draft: Draft) -> None:
    entries = draft.entries
    full = entries.switch("full_finetuning")
    draft.fields["is_full"] = full or entries.text("training_type") == "full"
    draft.read_targets("target_modules")
    draft.read_initialisation("init_lora_weights")
    is_eight = entries.switch("load_in_8bit")
    is_said = is_eight or draft.fields["is_full"] or entries.take("load_in_4bit") is not None
    is_four = entries.switch("load_in_4bit") if is_said else not entries.switch("load_in_16bit")
    entries.take("load_in_16bit")  # says nothing beside the others
    draft.fields["base_precision"] = "8bit" if is_eight else "4bit" if is_four else None
    if is_four and not is_said:
        draft.to_check.append("load_in_4bit is not given, so Unsloth's default: 4 bits")
    draft.read_bias()
    read_sft_settings(draft)
    path, files = entries.text("path"), entries.take("data_files")
    if isinstance(files, list):
        draft.not_carried += [f"data_files: {shown(file)}; a study has one" for file in files[1:]]
        files = files[0] if files else None
    draft.fields["data"] = path if files is None else files
    draft.read_split("split")


def _write_own(setup: TrainingSetup, folder: Path) -> dict[str, Any]:
    bits = {"load_in_4bit": False, **setup.in_bits}
    sections: dict[str, Any] = {"from_pretrained": bits}
    if setup.is_full:
        bits["full_finetuning"] = True
    else:
        targets = {"target_modules": setup.targets, "random_state": setup.seed}
        sections["get_peft_model"] = targets
    sections["SFTConfig"] = sft_entries(setup)
    if rows := setup.json_rows:
        sections["load_dataset"] = rows
    return sections


def _sections(entries: dict[str, Any]) -> dict[str, Any]:
    """Each argument in the section of its call."""
    sections = {call: dict(entries[call]) for call in CALLS if call in entries}
    for key, value in entries.items():
        if key not in CALLS:
            sections.setdefault(_CALL_OF.get(key, "SFTConfig"), {})[key] = value
    return {call: sections[call] for call in CALLS if call in sections}


UNSLOTH = Tool(
    name="unsloth",
    title="Unsloth",
    signs=("get_peft_model", "from_pretrained", "model_name", "r", "lora", "training"),
    keys={
        "base_model": "model_name",
        "revision": "revision",
        "rank": "r",
        **LORA_KEYS,
        "max_length": "max_seq_length",
        **TRAINER_KEYS,
    },
    defaults={
        "rank": 16,
        "alpha": 16.0,
        "dropout": 0.0,
        "target_modules": _TARGETS,
        "max_length": 2048,
        **SFT_DEFAULTS,
        "seed": 3407,
    },
    read_own=_read_own,
    write_own=_write_own,
    without_effect=(
        *("random_state", "dtype", "format_type"),
        *("finetune_vision_layers", "finetune_language_layers"),
        *("finetune_attention_modules", "finetune_mlp_modules"),
    ),
    file_name="unsloth.yaml",
    usage="Each section has the arguments of the call that it is named after.",
    flat=_flat,
    arranged=_sections,
)
