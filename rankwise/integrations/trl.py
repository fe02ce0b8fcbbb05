"""TRL's YAML for ``trl sft``, ``trl dpo`` and ``trl grpo``: https://huggingface.co/docs/trl/clis.

Its keys are the fields of ``SFTConfig``, ``DPOConfig``, ``GRPOConfig`` or ``SDFTConfig``, of
``ModelConfig``, of the command's arguments and of ``DatasetMixtureConfig``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankwise.integrations.drafts import Draft, TrainingSetup, shown
from rankwise.integrations.own_texts import (
    GRPO_LOSSES,
    GRPO_SIGNS,
    SDFT_SIGNS,
    grpo_entries,
    read_grpo,
    read_sdft,
    sdft_entries,
)
from rankwise.integrations.tools import LORA_KEYS, TRAINER_DEFAULTS, TRAINER_KEYS, Tool

SFT_DEFAULTS = {**TRAINER_DEFAULTS, "learning_rate": 2e-5}
"""The defaults of ``SFTConfig``."""
_RATES = {"sft": 2e-5, "dpo": 1e-6, "grpo": 1e-6, "sdft": 5e-5}
"""The learning rates that the configs have by default."""
_DPO_SIGNS = ("beta", "loss_weights", "rpo_alpha", "precompute_ref_log_probs", "f_divergence_type")
"""Keys that a config has for ``trl dpo`` alone; so has it a loss of ``_DPO_LOSSES``."""
_ALSO_DPO = (
    *("max_prompt_length", "reference_free", "label_smoothing", "precompute_ref_batch_size"),
    *("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
)
"""Others that ``trl sft`` has not; what they say is not carried."""
_DPO_LOSSES = ("sigmoid", "ipo")
_OTHER_TRAINERS = {
    "desirable_weight": "KTO", "undesirable_weight": "KTO", "cpo_alpha": "CPO", "simpo_gamma": "CPO"
}  # fmt: skip
"""Keys of configs whose losses are others, though they share keys with DPO."""


def _read_own(draft: Draft) -> None:
    entries = draft.entries
    draft.fields["is_full"] = not entries.switch("use_peft")
    draft.read_targets("lora_target_modules")
    old_length = entries.whole("max_seq_length")
    if draft.fields["max_length"] is None:
        draft.fields["max_length"] = old_length
    draft.read_bits()
    objective = _read_objective(draft)
    draft.fields["objective"] = objective or None
    read = read_trainer_settings if objective else read_sft_settings
    read(draft, "num_processes")
    if "grpo" in objective:
        objective["grpo"] = read_grpo(draft, texts=8)
    elif "sdft" in objective:
        objective["sdft"] = read_sdft(draft)
    draft.fields["data"] = entries.text("dataset_name")
    draft.read_sets("datasets")
    draft.read_split("dataset_train_split")


def _read_objective(draft: Draft) -> dict[str, Any]:
    """The objective by its name; its settings where they are DPO's; empty: the next token."""
    has, fields = draft.entries.has, draft.fields
    if any(map(has, SDFT_SIGNS)):
        fields["loss_on"] = "completion"
        return {"sdft": {}}
    if any(map(has, GRPO_SIGNS)) or draft.entries.take("loss_type") in GRPO_LOSSES:
        fields["loss_on"] = "completion"
        if draft.entries.switch("disable_dropout"):
            fields["dropout"] = 0.0
        return {"grpo": {}}
    dpo = _read_dpo(draft)
    return {} if dpo is None else {"dpo": dpo}


def _read_dpo(draft: Draft) -> dict[str, Any] | None:
    """The settings of DPO; None: the config is one of SFT."""
    entries = draft.entries
    losses = entries.names("loss_type")
    signs = [entries.take(sign) for sign in _DPO_SIGNS]
    for key in filter(entries.has, _OTHER_TRAINERS):
        entries.problems.append(
            f"{key}: the config is one of {_OTHER_TRAINERS[key]}, whose loss is not compared; "
            "write one of SFT, DPO, GRPO or SDFT"
        )
        return None
    is_dpo = any(sign is not None for sign in signs) or any(map(entries.has, _ALSO_DPO))
    if not {*_DPO_LOSSES} & {*losses} and not is_dpo:
        return None
    weights = entries.take("loss_weights") or [1.0] * len(losses)
    try:
        by_loss = dict(zip(losses, map(float, weights), strict=True)) or {"sigmoid": 1.0}
    except (TypeError, ValueError, OverflowError):
        entries.problems.append(f"loss_weights: {shown(weights)} are not a number for each loss")
        return None
    sft = by_loss.pop("sft", 0.0) or entries.number("rpo_alpha") or 0.0
    if any(weight <= 0 for weight in by_loss.values()):
        entries.problems.append(f"loss_weights: {shown(weights)} are not above 0; correct them")
    beta = entries.number("beta")
    dpo: dict[str, Any] = {"beta": 0.1 if beta is None else beta, "loss": "sigmoid"}
    if dpo["beta"] <= 0:
        entries.problems.append(f"beta: {dpo['beta']:g} is not above 0; correct it")
    if len(by_loss) == 1 and {*by_loss} <= {*_DPO_LOSSES}:
        dpo["loss"] = next(iter(by_loss))
    else:
        draft.not_carried.append(f"loss_type: {shown(', '.join(losses))}; sigmoid is used")
    dpo["sft_weight"] = sft / (by_loss.get(dpo["loss"]) or 1.0)
    if smoothing := entries.number("label_smoothing"):
        draft.not_carried.append(f"label_smoothing: {smoothing:g}; TRL 1.16's sigmoid takes none")
    for key, plain in (("f_divergence_type", "reverse_kl"), ("truncation_mode", "keep_end")):
        if (value := entries.take(key)) not in (None, plain):
            draft.not_carried.append(f"{key}: {shown(value)}; {plain} is used")
    if entries.take("disable_dropout") in (None, True):  # TRL's default
        draft.fields["dropout"] = 0.0
    for key in ("precompute_ref_log_probs", "precompute_ref_batch_size"):
        entries.take(key)
    draft.fields["loss_on"] = "completion"
    draft.to_check.append("train.data: rows have a prompt, a chosen and a rejected answer")
    return dpo


def read_trainer_settings(draft: Draft, devices: str | None = None) -> None:
    """What every trainer's config says beside numbers."""
    draft.read_precision()
    draft.read_optimizer("optim")
    draft.read_packing("packing")
    draft.read_devices(devices)


def read_sft_settings(draft: Draft, devices: str | None = None) -> None:
    """What ``SFTConfig`` says beside numbers."""
    entries = draft.entries
    read_trainer_settings(draft, devices)
    of_completions = entries.take("completion_only_loss")
    of_answers = entries.switch("assistant_only_loss")
    draft.fields["turns"] = "all" if of_answers else None
    is_all = of_completions is False and not of_answers
    draft.fields["loss_on"] = "all" if is_all else "completion"
    if of_completions is None and not of_answers:
        draft.to_check.append(
            "train.loss_on: SFTTrainer learns the answers of rows with a completion, but all of "
            "a conversation or a text; write all for these"
        )
    entries.take("packing_strategy")
    if (loss := entries.text("loss_type")) not in (None, "nll", "chunked_nll"):
        draft.not_carried.append(f"loss_type: {shown(loss)}")
    if entries.text("dataset_text_field") is not None:
        draft.describe_rows("text")


def _write_own(setup: TrainingSetup, folder: Path) -> dict[str, Any]:
    own: dict[str, Any] = {"use_peft": not setup.is_full}
    if not setup.is_full:
        own["lora_target_modules"] = setup.targets
        own |= setup.in_bits
    if rows := setup.json_rows:
        own["datasets"] = [rows]
    objective = setup.objective or {}
    if (grpo := objective.get("grpo")) is not None:
        return own | setup.in_bf16 | grpo_entries(grpo) | {"max_length": None}
    if (sdft := objective.get("sdft")) is not None:
        return own | setup.in_bf16 | sdft_entries(setup, sdft) | {"max_length": None}
    if (dpo := setup.dpo) is None:
        return own | sft_entries(setup)
    own |= {**setup.in_bf16, "beta": dpo["beta"], "loss_type": [dpo["loss"]]}
    if dpo["sft_weight"]:
        own |= {"loss_type": [dpo["loss"], "sft"], "loss_weights": [1.0, dpo["sft_weight"]]}
    return own | ({"disable_dropout": False} if setup.dropout else {})


def sft_entries(setup: TrainingSetup) -> dict[str, Any]:
    """What ``SFTConfig`` takes beside numbers."""
    own: dict[str, Any] = setup.in_bf16
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
    keys={
        "base_model": "model_name_or_path",
        "revision": "model_revision",
        "rank": "lora_r",
        **LORA_KEYS,
        "max_length": "max_length",
        **TRAINER_KEYS,
    },
    defaults={
        "rank": 16,
        "alpha": 32.0,
        "dropout": 0.05,
        "target_modules": ("q_proj", "v_proj"),
        **SFT_DEFAULTS,
        "max_length": 1024,
        "learning_rate": lambda fields: _RATES[next(iter(fields["objective"] or ()), "sft")],
    },
    read_own=_read_own,
    write_own=_write_own,
    without_effect=("dtype", "torch_dtype", "bnb_4bit_quant_type", "use_bnb_nested_quant"),
    file_name="trl.yaml",
    usage="trl {stage} --config trl.yaml --output_dir OUT",
    objectives=("dpo", "grpo", "sdft"),
    arranged=lambda entries: {k: v for k, v in entries.items() if v is not None},
)
