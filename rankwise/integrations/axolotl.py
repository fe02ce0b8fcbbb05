"""Axolotl's YAML: https://docs.axolotl.ai/docs/config-reference.html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.integrations.drafts import Draft, Tool, TrainingSetup, shown
from rankwise.integrations.wordings import (
    ALL_LINEAR,
    bits_entries,
    describe_rows,
    precision_entries,
    read_bits,
    read_devices,
    read_initialisation,
    read_optimizer,
    read_packing,
    read_precision,
    read_rate_ratio,
    read_split,
    read_targets,
    split_of,
)

_KEYS = {
    "base_model": "base_model",
    "revision": "revision_of_model",
    "rank": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "use_rslora": "peft_use_rslora",
    "use_dora": "peft_use_dora",
    "learning_rate": "learning_rate",
    "num_epochs": "num_epochs",
    "max_steps": "max_steps",
    "batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "schedule": "lr_scheduler",
    "warmup_ratio": "warmup_ratio",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "seed": "seed",
    "max_length": "sequence_len",
}
_DEFAULTS = {
    "dropout": 0.0,
    "epochs": 1,
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "schedule": "cosine",
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_length": 512,
}
_WITHOUT_EFFECT = ("special_tokens", "model_type", "tokenizer_type", "dataset_prepared_path")
_CONVERSATIONS = ("chat_template", "sharegpt")


def _read_own(draft: Draft) -> None:
    entries = draft.entries
    kind = entries.text("adapter")
    draft.fields["is_full"] = kind is None
    if kind not in (None, "lora", "qlora"):
        entries.problems.append(f"adapter: {shown(kind)} is not compared; give lora or qlora")
    if (method := entries.text("rl")) is not None:
        entries.problems.append(f"rl: {shown(method)} is not supervised training; take that out")
    for key in _WITHOUT_EFFECT:
        entries.take(key)
    read_targets(draft, "lora_target_modules")
    if entries.switch("lora_target_linear"):
        draft.fields["target_modules"] = (ALL_LINEAR,)
    read_initialisation(draft, "peft_init_lora_weights")
    read_rate_ratio(draft, "loraplus_lr_ratio")
    read_bits(draft)
    read_precision(draft)
    read_optimizer(draft, "optimizer")
    read_packing(draft, "sample_packing")
    read_devices(draft, "world_size")
    draft.fields["loss_on"] = "all" if entries.switch("train_on_inputs") else "completion"
    _read_data(draft)


def _read_data(draft: Draft) -> None:
    """The first data set; a study trains on one."""
    entries = draft.entries
    template = entries.take("chat_template")
    given = entries.take("datasets")
    sets = [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
    if given is not None and not sets:
        entries.problems.append(f"datasets: {shown(given)} is not a list of data sets; correct it")
    if not sets:
        return
    first = {str(key): value for key, value in sets[0].items()}
    files, path = first.pop("data_files", None), first.pop("path", None)
    files = files[0] if isinstance(files, list) and files else files
    draft.fields["data"] = path if files is None else files
    kind = first.pop("type", None)
    turns = str(kind).startswith(_CONVERSATIONS)
    draft.fields["chat_template"] = turns
    mapped = first.pop("message_property_mappings", None)
    columns = mapped if isinstance(mapped, Mapping) else {}
    role = columns.get("role", first.pop("message_field_role", None))
    field = first.pop("field_messages", None)
    if turns:
        is_messages = field in (None, "messages") and role in (None, "role")
        describe_rows(draft, "messages" if is_messages else "sharegpt")
        if template is not None:
            draft.to_check.append(
                f"chat_template: {shown(template)}; the base model's own template is used"
            )
    elif str(kind).startswith("alpaca"):
        describe_rows(draft, "alpaca")
    elif kind in ("completion", "pretrain"):
        describe_rows(draft, "text")
    elif isinstance(kind, dict):
        fields = (kind.get("field_instruction"), kind.get("field_output"))
        if fields != ("prompt", "completion"):
            draft.not_carried.append(f"datasets[0].type: {shown(kind)}")
    elif kind is not None:
        draft.not_carried.append(f"datasets[0].type: {shown(kind)}")
    read_split(draft, "datasets[0].split", first.pop("split", None))
    for key in ("ds_type", "message_field_role", "message_field_content", "roles", "chat_template"):
        first.pop(key, None)
    draft.not_carried += [f"datasets[0].{shown(k)}: {shown(v)}" for k, v in first.items() if v]
    draft.not_carried += [
        f"datasets[{place}]: {shown(each.get('path'))}; a study trains on one"
        for place, each in enumerate(sets[1:], start=1)
    ]


def _write_own(setup: TrainingSetup, folder: Path) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if not setup.is_full:
        own["adapter"] = "qlora" if setup.base_precision == "4bit" else "lora"
        if setup.target_modules == (ALL_LINEAR,):
            own["lora_target_linear"] = True
        else:
            own["lora_target_modules"] = list(setup.target_modules)
        own |= bits_entries(setup)
    if setup.data is not None:
        own["datasets"] = [
            {
                "path": setup.data,
                "ds_type": "json",
                "split": split_of(setup),
                "type": _type_of_rows(setup),
            }
        ]
    own["train_on_inputs"] = setup.loss_on == "all"
    return own | precision_entries(setup)


def _type_of_rows(setup: TrainingSetup) -> Any:
    if setup.rows == "messages":
        return "chat_template"
    return {
        "field_instruction": "prompt",
        "field_output": "completion",
        "format": "{instruction}",
        "no_input_format": "{instruction}",
    }


AXOLOTL = Tool(
    name="axolotl",
    title="Axolotl",
    signs=(
        *("adapter", "micro_batch_size", "sequence_len", "sample_packing", "lora_target_linear"),
        *("lora_model_dir", "val_set_size"),
    ),
    keys=_KEYS,
    defaults=_DEFAULTS,
    read_own=_read_own,
    write_own=_write_own,
    file_name="axolotl.yaml",
    usage="axolotl train axolotl.yaml",
    warmup_key="warmup_ratio",
)
