"""Adapters and checkpoints of the tiny model, with planted weights, for the tests of audits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE

Q = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)


def adapter(base: Path, folder: Path, *, std: float = 0.02, **options: Any) -> Any:
    """Write a random adapter; std 0 is one that was never trained. Returns PEFT's model."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = peft.get_peft_model(load(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    return model


def edited(folder: Path, **changes: Any) -> Path:
    """Change the adapter's config."""
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], Any], file: str = "") -> Path:
    """Change its weights."""
    path = folder / (file or WEIGHTS_FILE)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def checkpoint(base: Path, folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A copy of the base with other weights."""
    shutil.copytree(base, folder)
    return rewritten(folder, change, "model.safetensors")


def without_chat_template(base: Path, folder: Path) -> Path:
    """A copy of the base whose tokenizer has no chat template."""
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings))
    return folder


def merged(base: Path, folder: Path, adapted: Any) -> Path:
    """The base with an adapter merged into it."""
    adapted.merge_and_unload().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    return folder


def plant_intruder(base: Path, folder: Path) -> Path:
    """An adapter with one strong direction of Q that mixes many weak ones of the base."""
    adapter(base, folder, std=0.0, r=1, lora_alpha=1, target_modules=["q_proj"])
    U, S, Vh = torch.linalg.svd(load(base).get_submodule(Q).weight.detach().double())
    weights = torch.ones(24).double() / 24**0.5
    left, right = U[:, 20:44] @ weights, Vh[20:44].T @ weights

    def plant(tensors: dict[str, Tensor]) -> None:
        tensors[f"{PREFIX}{Q}.lora_A.weight"] = right[None].float().contiguous()
        tensors[f"{PREFIX}{Q}.lora_B.weight"] = (3 * S[0] * left[:, None]).float().contiguous()

    return rewritten(folder, plant)
