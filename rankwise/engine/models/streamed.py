"""Models whose weights stay in their files, and are read when they are computed with.

accelerate reads the weights of a layer before its forward pass and lets go of them behind it.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from rankwise.engine.models.base import load_model
from rankwise.engine.models.files import unusable

IN_FILES = "disk"
"""Where transformers and accelerate say that weights are that stay in their files."""


def load_in_files(
    folder: Path, dtype: torch.dtype, device_map: Mapping[str, torch.device | str]
) -> Any:
    """Load a causal language model, some of whose weights stay in its safetensors files.

    What the files lack is refused here, and what is wrong with a weight when it is read. Where an
    architecture holds weights in another layout than its files (most mixtures of experts),
    transformers writes those that stay in files into a temporary folder, which goes with the model.

    Args:
        folder: of the model.
        dtype: of its weights, also of those that are read later.
        device_map: where what is below each name is: a device, or ``IN_FILES``.

    Raises:
        ModelError: as ``load_model``.
    """
    # it warns that weights are on the meta device, which is what was asked for
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    converted = tempfile.mkdtemp(prefix="rankwise-weights-")
    try:
        model = load_model(folder, dtype, device_map=dict(device_map), offload_folder=converted)
    except BaseException:
        shutil.rmtree(converted, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, converted, ignore_errors=True)
    return model


def parameter_of(model: nn.Module, folder: Path, name: str) -> Tensor:
    """A parameter of a model that was loaded from a folder, read from its file if it is there.

    Raises:
        ModelError: it cannot be read, or has another shape there than the config asks for.
    """
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    what = f"{folder} holds a {name} that cannot be used"
    with unusable(what, "Save it again."), align_module_device(module):
        return getattr(module, own).detach()
