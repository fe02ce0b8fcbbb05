"""Weight matrices of a model folder by layer, in one orientation, whatever kind of layer it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from rankwise.errors import ModelError


def weight_matrices(
    folder: Path, layers: Sequence[str]
) -> dict[str, Float[Tensor, "out_features in_features"]]:
    """The weights of these layers, on the CPU and in the dtype that the folder has.

    The model is loaded by transformers, which knows how its files name what; all but these layers
    is let go of again.

    Args:
        folder: of a causal language model.
        layers: names of linear layers, as ``models.adaptable_shapes`` gives them.

    Raises:
        ModelError: the folder cannot be loaded, a layer is missing or no linear one, or a weight
            is NaN or infinite.
    """
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype="auto", use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error
    modules = dict(model.named_modules())
    return {name: _weight(modules.get(name), name, folder) for name in layers}


def _weight(module: Any, name: str, folder: Path) -> Tensor:
    if not isinstance(module, torch.nn.Linear | Conv1D):
        raise ModelError(
            f"{folder} has no linear layer {name}. Check that it is of the same architecture as "
            "the base model."
        )
    weight = module.weight.detach()
    if not bool(torch.isfinite(weight).all()):
        raise ModelError(f"{folder} holds NaN or infinite weights in {name}. Save it again.")
    return weight.T if isinstance(module, Conv1D) else weight
