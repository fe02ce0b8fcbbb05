"""Axolotl's YAML: https://docs.axolotl.ai/docs/config-reference.html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.integrations.drafts import ALL_LINEAR, Draft, TrainingSetup, shown
from rankwise.integrations.own_texts import grpo_entries, read_grpo
from rankwise.integrations.tools import LORA_KEYS, TRAINER_KEYS, Tool

_SECTION = "trl."
_CONVERSATIONS = ("chat_template", "sharegpt")


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """The settings of TRL beside the others, with the section before their keys."""
    own = content.get("trl")
    if not isinstance(own, dict):
        return content
    return content | {f"{_SECTION}{key}": value for key, value in own.items()} | {"trl": None}


def _read_own(draft: Draft) -> None:
    entries = draft.entries
    kind = entries.text("adapter")
    draft.fields["is_full"] = kind is None
    if kind not in (None, "lora", "qlora"):
        entries.problems.append(f"adapter: {shown(kind)} is not compared; give lora or qlora")
    if (method := entries.text("rl")) not in (None, "grpo"):
        says = f"rl: {shown(method)} is not compared; give grpo, or take it out"
        if method == "dpo":
            says = (
                "rl: dpo is not read from here, since pairs are prepared in many ways; take it "
                "out, and write train.objective: dpo into the study file"
            )
        entries.problems.append(says)
    draft.read_targets("lora_target_modules")
    if entries.switch("lora_target_linear"):
        draft.fields["target_modules"] = (ALL_LINEAR,)
    draft.read_initialisation("peft_init_lora_weights")
    draft.read_rate_ratio("loraplus_lr_ratio")
    draft.read_bits()
    draft.read_precision()
    draft.read_optimizer("optimizer")
    draft.read_packing("sample_packing")
    draft.read_devices("world_size")
    draft.fields["loss_on"] = "all" if entries.switch("train_on_inputs") else "completion"
    if method == "grpo":
        draft.fields |= {"max_length": None, "loss_on": "completion"}
        if not entries.has(f"{_SECTION}max_completion_length"):
            draft.to_check.append(
                "trl.max_completion_length: none is given, so Axolotl writes texts of any length; "
                "a study writes at most 512 tokens"
            )
        grpo = read_grpo(draft, _SECTION, texts=1)
        if (beta := entries.number("rl_beta")) is not None:
            grpo.setdefault("beta", beta)
        draft.fields["objective"] = {"grpo": grpo}
    _read_data(draft)


def _read_data(draft: Draft) -> None:
    """The first data set; a study trains on one."""
    entries = draft.entries
    template = entries.take("chat_template")
    first = draft.read_sets("datasets")
    if first is None:
        return
    kind = first.pop("type", None)
    turns = str(kind).startswith(_CONVERSATIONS)
    draft.fields["chat_template"] = turns
    mapped = first.pop("message_property_mappings", None)
    columns = mapped if isinstance(mapped, Mapping) else {}
    role = columns.get("role", first.pop("message_field_role", None))
    field = first.pop("field_messages", None)
    if turns:
        roles = first.pop("roles_to_train", None)
        if roles is not None and roles not in (["assistant"], ["gpt"], ["assistant", "gpt"]):
            draft.not_carried.append(f"datasets[0].roles_to_train: {shown(roles)}")
        is_messages = field in (None, "messages") and role in (None, "role")
        draft.describe_rows("messages" if is_messages else "sharegpt")
        if template is not None:
            draft.to_check.append(
                f"chat_template: {shown(template)}; the base model's own template is used"
            )
    elif str(kind).startswith("alpaca"):
        draft.describe_rows("alpaca")
    elif kind in ("completion", "pretrain"):
        draft.describe_rows("text")
    elif isinstance(kind, dict):
        fields = (kind.get("field_instruction"), kind.get("field_output"))
        if fields != ("prompt", "completion"):
            draft.not_carried.append(f"datasets[0].type: {shown(kind)}")
    elif kind is not None:
        draft.not_carried.append(f"datasets[0].type: {shown(kind)}")
    for key in ("ds_type", "message_field_role", "message_field_content", "roles", "chat_template"):
        first.pop(key, None)
    draft.not_carried += [f"datasets[0].{shown(k)}: {shown(v)}" for k, v in first.items() if v]


def _write_own(setup: TrainingSetup, folder: Path) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if not setup.is_full:
        own["adapter"] = "qlora" if setup.base_precision == "4bit" else "lora"
        if setup.target_modules == (ALL_LINEAR,):
            own["lora_target_linear"] = True
        else:
            own["lora_target_modules"] = list(setup.target_modules)
        own |= setup.in_bits
    if setup.data is not None:
        prompts = {
            "field_instruction": "prompt",
            "field_output": "completion",
            "format": "{instruction}",
            "no_input_format": "{instruction}",
        }
        rows = {"path": setup.data, "ds_type": "json", "split": setup.split, "type": prompts}
        if setup.rows == "messages":
            rows |= {"type": "chat_template", "roles_to_train": ["assistant"]}
        own["datasets"] = [rows]
    if (grpo := (setup.objective or {}).get("grpo")) is None:
        own["train_on_inputs"] = setup.loss_on == "all"
    else:  # rows that are as TRL reads them have no type
        own |= {"rl": "grpo", "trl": _trl_section(grpo)}
        for rows in own.get("datasets", ()):
            del rows["type"]
    return own | setup.in_bf16


def _trl_section(grpo: Mapping[str, Any]) -> dict[str, Any]:
    own = grpo_entries(grpo)
    return own | {"scale_rewards": own["scale_rewards"] != "none"}  # a switch there


AXOLOTL = Tool(
    name="axolotl",
    title="Axolotl",
    signs=(
        *("adapter", "micro_batch_size", "sequence_len", "sample_packing", "lora_target_linear"),
        *("lora_model_dir", "val_set_size"),
    ),
    keys={
        "base_model": "base_model",
        "revision": "revision_of_model",
        "rank": "lora_r",
        **LORA_KEYS,
        "use_rslora": "peft_use_rslora",
        "use_dora": "peft_use_dora",
        **TRAINER_KEYS,
        "num_epochs": "num_epochs",
        "batch_size": "micro_batch_size",
        "schedule": "lr_scheduler",
        "max_length": "sequence_len",
    },
    defaults={
        "dropout": 0.0,
        "epochs": 1,
        "batch_size": 1,
        "gradient_accumulation_steps": 1,
        "schedule": "cosine",
        "warmup_ratio": 0.03,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": 512,
    },
    read_own=_read_own,
    write_own=_write_own,
    flat=_flat,
    objectives=("grpo",),
    without_effect=(
        "vllm",
        "skip_prepare_dataset",
        "special_tokens",
        "model_type",
        "tokenizer_type",
        "dataset_prepared_path",
    ),
    file_name="axolotl.yaml",
    usage="axolotl train axolotl.yaml",
    warmup_key="warmup_ratio",
)
