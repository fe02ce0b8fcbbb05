"""Adapters of heads, and heads switched off by plain hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import AdapterFolder, write_factors
from rankwise.engine.models.frozen_adapters import FrozenAdapter, load_frozen_adapter
from rankwise.heads.interventions import Head, without_heads
from rankwise.heads.layouts import HeadLayout, head_layouts
from tests.support.saved_adapters import saved
from tests.support.tiny_models import tiny

PROJECTIONS = {
    "Llama": ["q_proj", "k_proj", "o_proj"],
    "Gemma4": ["q_proj", "k_proj", "o_proj"],
    "GPTNeoX": ["query_key_value", "attention.dense"],
    "Phi3": ["qkv_proj", "o_proj", "down_proj"],
    "GPT2": ["c_attn", "attn.c_proj"],
}


quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The following:RuntimeWarning")


@contextmanager
def hooked(model: Any, head: Head, value: Tensor | None = None) -> Iterator[Any]:
    """Set a head's slice of the output projection's input, as a plain script does it."""
    layout = head_layouts(model)[head.layer]

    def change(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        hidden = inputs[0].clone()
        hidden[..., layout.columns(head.head).span] = 0.0 if value is None else value
        return (hidden,)

    handle = model.get_submodule(layout.output).register_forward_pre_hook(change)
    yield model
    handle.remove()


def adapter_of(family: str, folder: Path) -> tuple[Any, FrozenAdapter]:
    """A model, and an adapter for it on its heads."""
    saved(folder, family, target_modules=PROJECTIONS[family])
    model = tiny(family)
    return model, load_frozen_adapter(model, AdapterFolder(folder), torch.float32)


def save_without_heads(
    source: Path, target: Path, layouts: Sequence[HeadLayout], heads: Iterable[Head]
) -> None:
    """Write an adapter without the delta of some heads, in PEFT's format."""
    changed = without_heads(AdapterFolder(source).factors, layouts, heads)
    pairs = {name: (lora_A, lora_B) for name, (lora_A, lora_B, _) in changed.items()}
    write_factors(target, pairs, (source / CONFIG_FILE).read_text(encoding="utf-8"))
