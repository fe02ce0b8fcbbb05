"""TRL's YAML for ``trl sft --config``: https://huggingface.co/docs/trl/clis.

Its keys are the fields of ``SFTConfig``, ``ModelConfig``, ``ScriptArguments`` and
``DatasetMixtureConfig``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.integrations.drafts import Draft, Tool, TrainingSetup, shown
from rankwise.integrations.wordings import (
    TRAINER_DEFAULTS,
    TRAINER_KEYS,
    bits_entries,
    describe_rows,
    json_rows,
    precision_entries,
    read_bits,
    read_devices,
    read_optimizer,
    read_packing,
    read_precision,
    read_split,
    read_targets,
    targets_entry,
)

SFT_DEFAULTS = {**TRAINER_DEFAULTS, "learning_rate": 2e-5}
"""Of ``SFTConfig``."""
_KEYS = {
    "base_model": "model_name_or_path",
    "revision": "model_revision",
    "rank": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "max_length": "max_length",
    **TRAINER_KEYS,
}
_DEFAULTS = {
    "rank": 16,
    "alpha": 32.0,
    "dropout": 0.05,
    "target_modules": ("q_proj", "v_proj"),
    "max_length": 1024,
    **SFT_DEFAULTS,
}


def _read_own(draft: Draft) -> None:
    entries = draft.entries
    draft.fields["is_full"] = not entries.switch("use_peft")
    read_targets(draft, "lora_target_modules")
    old_length = entries.whole("max_seq_length")
    if draft.fields["max_length"] is None:
        draft.fields["max_length"] = old_length
    read_bits(draft)
    for key in ("dtype", "torch_dtype", "bnb_4bit_quant_type", "use_bnb_nested_quant"):
        entries.take(key)
    read_sft_settings(draft, "num_processes")
    name, mixed = entries.text("dataset_name"), entries.take("datasets")
    if mixed is not None:
        name = _first_of(draft, mixed)
    read_split(draft, "dataset_train_split")
    draft.fields["data"] = name


def read_sft_settings(draft: Draft, devices: str | None = None) -> None:
    """What ``SFTConfig`` says beside numbers."""
    entries = draft.entries
    read_precision(draft)
    read_optimizer(draft, "optim")
    read_packing(draft, "packing")
    read_devices(draft, devices)
    of_completions = entries.take("completion_only_loss")
    draft.fields["loss_on"] = "all" if of_completions is False else "completion"
    if of_completions is None and not entries.switch("assistant_only_loss"):
        draft.to_check.append(
            "train.loss_on: SFTTrainer learns the answers of rows with a completion, but all of "
            "a conversation or a text; write all for these"
        )
    entries.take("packing_strategy")
    if (loss := entries.text("loss_type")) not in (None, "nll", "chunked_nll"):
        draft.not_carried.append(f"loss_type: {shown(loss)}")
    if entries.text("dataset_text_field") is not None:
        describe_rows(draft, "text")


def _first_of(draft: Draft, mixed: Any) -> str | None:
    """The file or the name of the first data set of a mixture."""
    sets = [each for each in mixed if isinstance(each, Mapping)] if isinstance(mixed, list) else []
    if not sets:
        draft.entries.problems.append(f"datasets: {shown(mixed)} is not a list of data sets")
        return None
    for place, each in enumerate(sets[1:], start=1):
        draft.not_carried.append(f"datasets[{place}]: {shown(each.get('path'))}; a study has one")
    read_split(draft, "datasets[0].split", sets[0].get("split"))
    files = sets[0].get("data_files")
    files = files[0] if isinstance(files, list) and files else files
    return str(files or sets[0].get("path"))


def _write_own(setup: TrainingSetup, folder: Path) -> dict[str, Any]:
    own: dict[str, Any] = {"use_peft": not setup.is_full}
    if not setup.is_full:
        own["lora_target_modules"] = targets_entry(setup)
        own |= bits_entries(setup)
    if rows := json_rows(setup):
        own["datasets"] = [rows]
    return own | sft_entries(setup)


def sft_entries(setup: TrainingSetup) -> dict[str, Any]:
    """What ``SFTConfig`` takes beside numbers."""
    own: dict[str, Any] = precision_entries(setup)
    if setup.loss_on == "all":
        own["completion_only_loss"] = False
    elif setup.rows == "messages":
        own["assistant_only_loss"] = True
    return own


TRL = Tool(
    name="trl",
    title="TRL",
    signs=(
        *("model_name_or_path", "use_peft", "dataset_name", "lora_target_modules", "lora_r"),
        *("per_device_train_batch_size", "num_train_epochs", "learning_rate"),
    ),
    keys=_KEYS,
    defaults=_DEFAULTS,
    read_own=_read_own,
    write_own=_write_own,
    file_name="trl.yaml",
    usage="trl sft --config trl.yaml --output_dir OUT",
)
