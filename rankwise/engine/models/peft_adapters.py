"""What PEFT itself does: the config of a trained adapter, and adapters that only PEFT can apply."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import peft
from torch import nn

from rankwise.engine.models.adapter_folder import CONFIG_FILE, write_factors
from rankwise.engine.models.files import unusable
from rankwise.engine.models.trained_adapters import Adapter
from rankwise.records.files import write_atomically, writing


def load_adapter(base_model: nn.Module, folder: Path) -> peft.PeftModel:
    """Attach a saved adapter to the base, for scoring.

    Raises:
        ModelError: the folder is not a PEFT adapter, or it does not fit this base.
    """
    what = f"{folder} cannot be attached to this base model"
    with unusable(what, "Save the adapter again."), warnings.catch_warnings():
        # what is missing in the file PEFT draws at random
        warnings.filterwarnings("error", ".*missing adapter keys", UserWarning)
        # AdaLoRA names ranks by weights, and PEFT looks for layers of these names
        warnings.filterwarnings("ignore", ".*rank_pattern keys", RuntimeWarning)
        return peft.PeftModel.from_pretrained(base_model, str(folder))  # pyright: ignore[reportArgumentType]


def detach(adapted_model: peft.PeftModel) -> nn.Module:
    """Detach the adapter; returns the base with its weights unchanged."""
    return adapted_model.unload()  # pyright: ignore[reportReturnType, reportCallIssue]


def save_adapter(
    adapter: Adapter,
    folder: Path,
    *,
    alpha: float,
    use_rslora: bool,
    target_modules: Sequence[str],
    base_model_name: str,
) -> int:
    """Write adapter_config.json and adapter_model.safetensors; returns the bytes of the weights.

    What is saved is what the adapter adds to the base. Where that is of a higher rank than what is
    trained, alpha is that of the same scaling.

    Args:
        adapter: its float32 weights.
        folder: is created.
        alpha: numerator of the scaling.
        use_rslora: whether it is divided by sqrt(rank) rather than rank.
        target_modules: of the base, as PEFT takes them.
        base_model_name: is written into the config.

    Raises:
        StorageError: the folder cannot be written.
    """
    update = adapter.update
    rank = max(len(lora_A) for lora_A, _ in update.values())
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        base_model_name_or_path=base_model_name,
        inference_mode=True,
        r=rank,
        lora_alpha=alpha * (rank / adapter.rank) ** (0.5 if use_rslora else 1.0),  # pyright: ignore[reportArgumentType] (a float is allowed and saved)
        target_modules=list(target_modules),
        lora_dropout=adapter.dropout,
        use_rslora=use_rslora,
        bias="none",
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        path = folder / CONFIG_FILE
        content = json.loads(path.read_text(encoding="utf-8"))
        # PEFT holds them as a set, whose order is another one in every process
        content["target_modules"] = sorted(target_modules)
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True))
    return write_factors(folder, update)
