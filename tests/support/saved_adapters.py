"""Adapters written to folders, as PEFT writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.engine.models.loading import load_frozen
from tests.support.tiny_models import tiny


def saved(folder: Path, family: str = "Llama", *, zero: bool = False, **options: Any) -> Any:
    """PEFT's model with an adapter whose B is not zero, written to the folder."""
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", **options}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = peft.get_peft_model(tiny(family), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name and not zero:
                nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return model.eval()


PATTERNS = {
    "rank_pattern": {"layers.0.*(q_proj|query_key_value|qkv_proj)": 7, "0.attn.c_attn": 2},
    "alpha_pattern": {"o_proj": 3, "layers.1.mlp.*": 5, "c_proj": 1},
}


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE)


def lora_factors(adapted: nn.Module) -> dict[str, tuple[Any, Any]]:
    """lora_A and lora_B of every layer that PEFT has adapted, by the layer's name."""
    layers = [(name, m) for name, m in adapted.named_modules() if isinstance(m, LoraLayer)]
    return {
        name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        for name, layer in layers
    }


def save_dora(folder: Path, model_folder: Path) -> None:
    settings = peft.LoraConfig(
        r=2, lora_alpha=8, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"
    )
    base: Any = load_frozen(model_folder, "float32", torch.device("cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted: Any = peft.get_peft_model(base, settings)
        for _, lora_B in lora_factors(adapted).values():
            lora_B.data.normal_(std=0.1)
    adapted.save_pretrained(str(folder))
