"""Weight matrices of a model folder by layer, as (out_features, in_features) for every kind."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.base import is_stored_quantised, load_model
from rankwise.engine.models.files import (
    DTYPES,
    tensor_headers,
    weights_files,
)
from rankwise.errors import ModelError


class ModelWeights(NamedTuple):
    """All parameters of a model folder, on the CPU and in the widest dtype of the files.

    Attributes:
        matrices: of linear layers, (out_features, in_features).
        others: every other parameter by its name: embeddings, norms, biases, the head.
    """

    matrices: dict[str, Tensor]
    others: dict[str, Tensor]


def weight_matrices(
    folder: Path, layers: Sequence[str]
) -> dict[str, Float[Tensor, "out_features in_features"]]:
    """The weights of these layers, on the CPU and in the widest dtype of the files.

    transformers loads the model, as it knows how each architecture's files name the layers;
    everything but these layers is then released.

    Args:
        folder: of a causal language model.
        layers: names of linear layers, as ``base.adaptable_shapes`` gives them.

    Raises:
        ModelError: the folder cannot be loaded, a layer is missing or no linear one, or a weight
            is NaN or infinite.
    """
    modules = dict(load_model(folder, _widest_dtype(folder)).named_modules())
    return {name: _weight(modules.get(name), name, folder) for name in layers}


def model_weights(folder: Path, layers: Sequence[str]) -> ModelWeights:
    """The weights of these layers, as in ``weight_matrices``, and every other parameter.

    Raises:
        ModelError: as ``weight_matrices``; other parameters that are not finite too.
    """
    model = load_model(folder, _widest_dtype(folder))
    modules = dict(model.named_modules())
    matrices = {name: _weight(modules.get(name), name, folder) for name in layers}
    of_layers = {f"{name}.weight" for name in layers}
    others = {
        name: parameter.detach()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in of_layers
    }
    for name, parameter in others.items():
        _check_finite(parameter, name, folder)
    return ModelWeights(matrices, others)


def _widest_dtype(folder: Path) -> torch.dtype:
    """The narrowest dtype that holds every number of the files; the config may name another."""
    if is_stored_quantised(folder):
        raise ModelError(
            f"{folder} holds a quantised model: its numbers are no weights. Name the model that it "
            "was made from."
        )
    stored: set[str] = set()
    for path in weights_files(folder):
        stored |= {header.dtype for header in tensor_headers(path).values()}
    dtypes = [DTYPES[name] for name in sorted(stored & DTYPES.keys())]
    # promote_types, not the largest: float16 and bfloat16 together need float32
    return functools.reduce(torch.promote_types, dtypes[1:], dtypes[0]) if dtypes else torch.float32


def _weight(module: Any, name: str, folder: Path) -> Tensor:
    if not isinstance(module, torch.nn.Linear | Conv1D):
        raise ModelError(
            f"{folder} has no linear layer {name}. Check that it is of the same architecture as "
            "the base model."
        )
    weight = module.weight.detach()
    _check_finite(weight, name, folder)
    # (out_features, in_features); GPT-2's Conv1D stores it transposed
    return weight.T if isinstance(module, Conv1D) else weight


def _check_finite(weight: Tensor, name: str, folder: Path) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise ModelError(f"{folder} holds NaN or infinite weights in {name}. Save it again.")
