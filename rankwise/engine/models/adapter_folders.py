"""LoRA adapters on disk in PEFT's layout, and on a base model for scoring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import peft
import safetensors.torch
from torch import nn

from rankwise.engine.models.adapter_files import (
    PREFIX,
    WEIGHTS_FILE,
)
from rankwise.engine.models.trained_adapters import Adapter, LoraFactors
from rankwise.errors import ModelError
from rankwise.records.folder import writing


def load_adapter(base_model: nn.Module, folder: Path) -> peft.PeftModel:
    """Put a saved adapter on the base, for scoring.

    Raises:
        ModelError: the folder is not a PEFT adapter, or it does not fit this base.
    """
    try:
        return peft.PeftModel.from_pretrained(base_model, str(folder))  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder} cannot be put on this base model: {error}") from error


def detach(adapted_model: peft.PeftModel) -> nn.Module:
    """Take the adapter off; returns the base, its weights as they were."""
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
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        base_model_name_or_path=base_model_name,
        inference_mode=True,
        r=adapter.rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] (a float is allowed and saved)
        target_modules=list(target_modules),
        lora_dropout=adapter.dropout,
        use_rslora=use_rslora,
        bias="none",
    )
    tensors = {
        f"{PREFIX}{layer}.{side}.weight": matrix.cpu().contiguous()
        for layer, factors in adapter.factors.items()
        for side, matrix in factors._asdict().items()
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return (folder / WEIGHTS_FILE).stat().st_size


def lora_factors(adapted_model: nn.Module) -> dict[str, LoraFactors]:
    """The factors of every layer that PEFT has adapted, by the layer's name."""
    factors: dict[str, LoraFactors] = {}
    for name, module in adapted_model.named_modules():
        lora_A = getattr(module, "lora_A", None)
        if isinstance(lora_A, nn.ModuleDict) and "default" in lora_A:
            lora_B: object = module.lora_B
            assert isinstance(lora_B, nn.ModuleDict)
            a, b = lora_A["default"].weight, lora_B["default"].weight
            factors[name] = LoraFactors(a, b)  # pyright: ignore[reportArgumentType]
    return factors
