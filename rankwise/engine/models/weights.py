"""Weight matrices of a model folder by layer, as (out_features, in_features) for every kind.

They stay in their files until they are asked for, one by one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import align_module_device
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.files import DTYPES, tensor_headers, unusable, weights_files
from rankwise.engine.models.loading import is_stored_quantised, load_model
from rankwise.errors import ModelError


class StoredWeights(Mapping[str, Tensor]):
    """Finite parameters of a model folder: each is read from its file when it is asked for.

    Files are memory-mapped and one is read at a time: the model may be larger than the memory.
    """

    def __init__(self, model: nn.Module, folder: Path, parameters: Mapping[str, str]) -> None:
        """Take a model of ``load_in_files``, and parameters by the names they get here.

        Raises:
            ModelError: one of them cannot be read, or is NaN or infinite somewhere.
        """
        self._model, self._folder, self._parameters = model, folder, dict(parameters)
        for name in self:
            if not bool(torch.isfinite(self[name]).all()):
                raise ModelError(
                    f"{folder} holds NaN or infinite weights in {name}. Save it again."
                )

    def __getitem__(self, name: str) -> Tensor:
        """A parameter on the CPU; (out_features, in_features) for a linear layer.

        Raises:
            ModelError: its file cannot be read, or has another shape than the config asks for.
        """
        parameter = self._parameters[name]
        owner, _, own = parameter.rpartition(".")
        module = self._model.get_submodule(owner)
        what = f"{self._folder} holds a {parameter} that cannot be used"
        with unusable(what, "Save it again."), align_module_device(module):
            weight: Tensor = getattr(module, own).detach()
        # GPT-2's Conv1D stores it transposed
        return weight.T if own == "weight" and isinstance(module, Conv1D) else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


class ModelWeights(NamedTuple):
    """All parameters of a model folder, on the CPU and in the widest dtype of the files.

    Attributes:
        matrices: of linear layers, (out_features, in_features).
        others: every other parameter by its name: embeddings, norms, biases, the head.
        tied: those of ``others`` that are another one under a second name, with that one's name.
    """

    matrices: Mapping[str, Tensor]
    others: Mapping[str, Tensor]
    tied: Mapping[str, str]


def weight_matrices(
    folder: Path, layers: Sequence[str]
) -> Mapping[str, Float[Tensor, "out_features in_features"]]:
    """The weights of these layers, on the CPU and in the widest dtype of the files.

    transformers finds them, as it knows how each architecture's files name the layers.

    Args:
        folder: of a causal language model.
        layers: names of linear layers, as ``structure.adaptable_shapes`` gives them.

    Raises:
        ModelError: the folder cannot be loaded, a layer is missing or no linear one, or a weight
            is NaN or infinite.
    """
    model = load_in_files(folder, _widest_dtype(folder))
    return _matrices(model, folder, layers)


def model_weights(folder: Path, layers: Sequence[str]) -> ModelWeights:
    """The weights of these layers, as in ``weight_matrices``, and every other parameter.

    Raises:
        ModelError: as ``weight_matrices``; other parameters that are not finite too.
    """
    model = load_in_files(folder, _widest_dtype(folder))
    of_layers = {f"{name}.weight" for name in layers}
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in of_layers:
            others[name] = name
            if (other := first.setdefault(id(parameter), name)) != name:
                tied[name] = other
    matrices = _matrices(model, folder, layers)
    return ModelWeights(matrices, StoredWeights(model, folder, others), tied)


def load_in_files(folder: Path, dtype: torch.dtype) -> Any:
    """Load a causal language model whose weights stay in its safetensors files.

    What the files lack is refused here, and what is wrong with a weight when it is read. Where an
    architecture holds weights in another layout than its files (most mixtures of experts),
    transformers writes those that stay in files into a temporary folder, which goes with the model.

    Args:
        folder: of the model.
        dtype: of its weights when they are read.

    Raises:
        ModelError: as ``load_model``.
    """
    # it warns that weights are on the meta device, which is what was asked for
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    with contextlib.ExitStack() as made:
        temporary = tempfile.TemporaryDirectory("-rankwise", ignore_cleanup_errors=True)
        converted = made.enter_context(temporary)
        model = load_model(folder, dtype, device_map={"": "disk"}, offload_folder=converted)
        weakref.finalize(model, made.pop_all().close)
    return model


def _matrices(model: nn.Module, folder: Path, layers: Sequence[str]) -> StoredWeights:
    modules = dict(model.named_modules())
    for name in layers:
        if not isinstance(modules.get(name), nn.Linear | Conv1D):
            raise ModelError(
                f"{folder} has no linear layer {name}. Check that it is of the same architecture "
                "as the base model."
            )
    return StoredWeights(model, folder, {name: f"{name}.weight" for name in layers})


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
