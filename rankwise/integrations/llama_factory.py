"""LLaMA-Factory's YAML: https://llamafactory.readthedocs.io, the arguments of its trainer.

Names of data sets are looked up in its ``dataset_info.json``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rankwise.integrations.drafts import ALL_LINEAR, Draft, TrainingSetup, read_content, shown
from rankwise.integrations.tools import LORA_KEYS, TRAINER_DEFAULTS, TRAINER_KEYS, Tool

DATASET_INFO = "dataset_info.json"
_DPO = {
    "pref_beta": "beta",
    "pref_loss": "loss",
    "dpo_label_smoothing": "label_smoothing",
    "pref_ftx": "sft_weight",
}


def _read_own(draft: Draft) -> None:
    entries = draft.entries
    kind, stage = entries.text("finetuning_type") or "lora", entries.text("stage") or "sft"
    if kind not in ("lora", "full"):
        entries.problems.append(
            f"finetuning_type: {shown(kind)} is not compared; give lora or full"
        )
    if stage not in ("sft", "dpo"):
        entries.problems.append(f"stage: {shown(stage)} is not compared; give sft or dpo")
    draft.fields["objective"] = {"dpo": _read_dpo(draft)} if stage == "dpo" else None
    draft.fields["is_full"] = kind == "full"
    draft.read_targets("lora_target")
    draft.read_rate_ratio("loraplus_lr_ratio")
    if entries.switch("pissa_init"):
        draft.set_variant("pissa")
    bits = entries.whole("quantization_bit")
    draft.fields["base_precision"] = {4: "4bit", 8: "8bit"}.get(bits or 0)
    if bits not in (None, 4, 8):
        draft.not_carried.append(f"quantization_bit: {bits}; a study quantises to 4 or 8")
    draft.read_precision()
    draft.read_optimizer("optim")
    draft.read_packing("packing", "neat_packing")
    draft.read_devices()
    draft.fields["loss_on"] = "all" if entries.switch("train_on_prompt") else "completion"
    draft.fields["max_examples"] = entries.whole("max_samples")
    template = entries.text("template")
    draft.fields["chat_template"] = template not in ("empty", "default", "vanilla")
    if template is not None and draft.fields["chat_template"]:
        draft.to_check.append(f"template: {shown(template)}; the base model's own template is used")
    _read_data(draft)


def _read_dpo(draft: Draft) -> dict[str, Any]:
    entries = draft.entries
    loss = entries.text("pref_loss") or "sigmoid"
    if loss not in ("sigmoid", "ipo"):
        draft.not_carried.append(f"pref_loss: {shown(loss)}; sigmoid is used")
        loss = "sigmoid"
    if sft := entries.number("pref_ftx"):
        draft.to_check.append(
            f"pref_ftx: {sft:g} is of each answer's mean loss, sft_weight of the mean over all "
            "tokens of a step"
        )
    return {
        "beta": entries.number("pref_beta") or 0.1,
        "loss": loss,
        "label_smoothing": entries.number("dpo_label_smoothing") or 0.0,
        "sft_weight": sft or 0.0,
    }


def _read_data(draft: Draft) -> None:
    """The first data set, as ``dataset_info.json`` describes it, where that is there."""
    names = draft.entries.names("dataset")
    folder = draft.entries.text("dataset_dir") or "data"
    if not names:
        return
    draft.not_carried += [f"dataset: {shown(name)}; a study trains on one" for name in names[1:]]
    place = next(
        (each for each in draft.places(folder) if os.path.isfile(each / DATASET_INFO)), None
    )
    described: Any = None
    if place is not None:
        described = read_content(place / DATASET_INFO).get(names[0])
    if not isinstance(described, dict):
        draft.fields["data"] = names[0]
        draft.to_check.append(
            f"dataset: {shown(names[0])} is not described in {shown(folder)}/{DATASET_INFO} here; "
            "write the path of its rows into train.data"
        )
        return
    described = {str(key): value for key, value in described.items()}
    file = described.get("file_name")
    draft.fields["data"] = described.get("hf_hub_url")
    if isinstance(file, str) and place is not None:
        draft.fields["data"] = str(place / file)
    if columns := described.get("columns"):
        draft.to_check.append(f"train.data: its columns are {shown(columns)}")
    tags = described.get("tags")
    is_messages = isinstance(tags, dict) and tags.get("role_tag") == "role"
    kind = described.get("formatting") or "alpaca"
    has_prompts = isinstance(columns, dict) and columns.get("prompt") == "prompt"
    what = "messages" if is_messages else None if has_prompts else str(kind)
    draft.describe_rows(what, learns_last=draft.entries.switch("mask_history"))


def _write_own(setup: TrainingSetup, folder: Path) -> dict[str, Any]:
    own: dict[str, Any] = {
        "stage": setup.stage,
        "do_train": True,
        "finetuning_type": "full" if setup.is_full else "lora",
    }
    if not setup.is_full:
        own["lora_target"] = ",".join(setup.target_modules).replace(ALL_LINEAR, "all")
        if setup.base_precision is not None:
            own["quantization_bit"] = int(setup.base_precision.removesuffix("bit"))
    if setup.data is not None:
        own |= {"dataset": Path(setup.data).stem, "dataset_dir": str(folder.absolute())}
    if setup.rows != "messages" and not setup.chat_template:
        own["template"] = "empty"
    if setup.dpo is None:
        own["train_on_prompt"] = setup.loss_on == "all"
        if setup.turns is not None:
            own["mask_history"] = setup.turns == "last"
    else:
        own |= {key: setup.dpo[field] for key, field in _DPO.items()}
    if setup.max_examples is not None:
        own["max_samples"] = setup.max_examples
    return own | setup.in_bf16


def dataset_info(setup: TrainingSetup) -> dict[str, Any]:
    """The description of the rows that LLaMA-Factory looks for beside them."""
    if setup.data is None:
        return {}
    description: dict[str, Any] = {"file_name": setup.data}
    if setup.rows == "messages":
        names = ("role", "content", "user", "assistant", "system")
        description |= {
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {f"{name}_tag": name for name in names},
        }
    elif setup.rows == "pairs":
        columns = {name: name for name in ("prompt", "chosen", "rejected")}
        description |= {"ranking": True, "columns": columns}
    else:
        description |= {"columns": {"prompt": "prompt", "response": "completion"}}
    return {Path(setup.data).stem: description}


LLAMA_FACTORY = Tool(
    name="llamafactory",
    title="LLaMA-Factory",
    signs=(
        *("finetuning_type", "lora_rank", "lora_target", "cutoff_len", "stage", "template"),
        "quantization_bit",
    ),
    keys={
        "base_model": "model_name_or_path",
        "revision": "model_revision",
        "rank": "lora_rank",
        **LORA_KEYS,
        **TRAINER_KEYS,
        "max_length": "cutoff_len",
    },
    defaults={
        "rank": 8,
        "alpha": lambda fields: 2.0 * fields["rank"],
        "dropout": 0.0,
        "target_modules": (ALL_LINEAR,),
        **TRAINER_DEFAULTS,
        "max_length": 2048,
    },
    read_own=_read_own,
    write_own=_write_own,
    file_name="llamafactory.yaml",
    objectives=("dpo",),
    without_effect=("pissa_iter", "pissa_convert"),
    usage="llamafactory-cli train llamafactory.yaml output_dir=OUT",
    warmup_key="warmup_ratio",
)
