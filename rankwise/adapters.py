"""LoRA adapters on one frozen base, in PEFT's mathematics and PEFT's layout on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.errors import ModelError
from rankwise.store import writing


class LoraFactors(NamedTuple):
    """The two matrices of one adapted layer: delta = scaling * lora_B @ lora_A."""

    lora_A: Float[Tensor, "rank in_features"]
    lora_B: Float[Tensor, "out_features rank"]


def attach_lora(
    base_model: nn.Module,
    *,
    rank: int,
    alpha: float,
    target_modules: Sequence[str],
    dropout: float,
    use_rslora: bool,
    seed: int,
    base_model_name: str,
) -> peft.PeftModel:
    """Put a fresh adapter on the base: A from PEFT's own distribution, B zero.

    The initial weights depend on ``seed`` alone; the caller's random state is left as it was.
    The base's modules are wrapped in place: call :func:`detach` before the next adapter.
    """
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] (a float is allowed and saved)
        target_modules=list(target_modules),
        lora_dropout=dropout,
        use_rslora=use_rslora,
        bias="none",
    )
    with torch.random.fork_rng(_cuda_devices(base_model)):
        torch.manual_seed(seed)
        adapted: Any = peft.get_peft_model(base_model, config)  # pyright: ignore[reportArgumentType]
    adapted.peft_config["default"].base_model_name_or_path = base_model_name
    return adapted


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


def save_adapter(adapted_model: peft.PeftModel, folder: Path) -> int:
    """Write adapter_config.json and adapter_model.safetensors; returns the bytes of the weights.

    Raises:
        StorageError: the folder cannot be written.
    """
    with writing(folder):
        adapted_model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    return (folder / "adapter_model.safetensors").stat().st_size


def lora_factors(adapted_model: nn.Module) -> dict[str, LoraFactors]:
    """The factors of every adapted layer, by the layer's name."""
    factors: dict[str, LoraFactors] = {}
    for name, module in adapted_model.named_modules():
        lora_A = getattr(module, "lora_A", None)
        if isinstance(lora_A, nn.ModuleDict) and "default" in lora_A:
            lora_B: Any = module.lora_B
            a: Any = lora_A["default"]
            factors[name] = LoraFactors(a.weight, lora_B["default"].weight)
    return factors


def is_zero_update(adapted_model: nn.Module) -> bool:
    """Whether scaling * B @ A is exactly zero everywhere."""
    return all(
        not bool(a.any()) or not bool(b.any()) for a, b in lora_factors(adapted_model).values()
    )


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return [d for d in {p.device for p in model.parameters()} if d.type == "cuda"]
