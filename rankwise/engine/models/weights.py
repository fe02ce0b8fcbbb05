"""Weight matrices of a model folder by layer, as (out_features, in_features) for every kind."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from rankwise.errors import ModelError

# safetensors' names of the dtypes that weights are stored in
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


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
    modules = dict(_load(folder).named_modules())
    return {name: _weight(modules.get(name), name, folder) for name in layers}


def model_weights(folder: Path, layers: Sequence[str]) -> ModelWeights:
    """The weights of these layers, as in ``weight_matrices``, and every other parameter.

    Raises:
        ModelError: as ``weight_matrices``; other parameters that are not finite too.
    """
    model = _load(folder)
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


def _load(folder: Path) -> Any:
    """Load the model; refuse missing weights, which transformers would draw at random."""
    dtype = _widest_dtype(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of its model's weights, such as {missing[0]}. Save it "
            "again."
        )
    return model


def is_stored_quantised(folder: Path) -> bool:
    """Whether a model's config says that it is stored quantised: its numbers are no weights then.

    Raises:
        ModelError: the config cannot be read.
    """
    path = folder / "config.json"
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("quantization_config"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error


def _widest_dtype(folder: Path) -> torch.dtype:
    """The narrowest dtype that holds every number of the files; the config may name another."""
    if is_stored_quantised(folder):
        raise ModelError(
            f"{folder} holds a quantised model: its numbers are no weights. Name the model that it "
            "was made from."
        )
    try:
        stored = {dtype for path in folder.glob("*.safetensors") for dtype in _dtypes(path)}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error
    dtypes = [_DTYPES[name] for name in sorted(stored & _DTYPES.keys())]
    # promote_types, not the largest: float16 and bfloat16 together need float32
    return functools.reduce(torch.promote_types, dtypes[1:], dtypes[0]) if dtypes else torch.float32


def _dtypes(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


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
