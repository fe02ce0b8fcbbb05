"""An adapter merged into a base: what the runs of a study start from and are compared with.

The merged model is a folder in the user's cache, as an embedded model is. Whatever loads a base
loads it as any other folder.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.base_folder import SMALL_FILES, BaseModel, own_weights, trained_folder
from rankwise.engine.models.embedded import made_once
from rankwise.engine.models.loading import is_stored_quantised, load_model
from rankwise.engine.models.structure import adaptable_shapes
from rankwise.errors import ModelError
from rankwise.records.files import merged_base_folder, require_room, writing


def with_start(base: BaseModel, name: str, adapter: AdapterFolder) -> BaseModel:
    """A base that an adapter is merged into once its weights are fetched.

    Args:
        base: without it.
        name: of the adapter: a folder, or org/name on the hub.
        adapter: where it is here.

    Raises:
        ModelError: it is no adapter.
    """
    fingerprint = f"{base.fingerprint}+start:{adapter.digest}"
    return base._replace(fingerprint=fingerprint, start=name)


def check_start(base: BaseModel, adapter: AdapterFolder, skeleton: Any) -> tuple[str, ...]:
    """Refuse a start that cannot be merged into its base; no weights are read.

    Args:
        base: of ``with_start``.
        adapter: likewise.
        skeleton: the base on the meta device.

    Returns:
        What could not be checked, one sentence each.

    Raises:
        ModelError: it is of another base, more than plain LoRA, or cannot be read.
    """
    remedy = f"write {base.name} as base_model_name_or_path into {CONFIG_FILE}"
    warnings = adapter.refuse_other_base(base, remedy=remedy)
    adapter.check_fit(skeleton)
    adapter.refuse_beyond_lora()
    if beside := adapter.shapes.keys() - adaptable_shapes(skeleton).keys():
        raise ModelError(
            f"{adapter.path} adapts {min(beside)}, which is not a linear layer below the head of "
            f"{base.name}. Merge it into a full model and take that as base_model."
        )
    if is_stored_quantised(base.folder):
        raise ModelError(
            f"{base.name} is stored quantised, and nothing can be merged into its numbers. Name "
            "the model that it was made from."
        )
    return warnings


def fetch_weights(base: BaseModel) -> Path:
    """The folder of a planned base model with its weights; of a hub model, the exact commit.

    Raises:
        ModelError: the weights cannot be fetched, are no safetensors, or its start is another now.
    """
    folder = own_weights(base)
    return folder if base.start is None else merged(base, folder)


def merged(base: BaseModel, folder: Path) -> Path:
    """The folder of a base with its start in it, made once.

    Args:
        base: of ``with_start``.
        folder: of the base's own weights.

    Raises:
        ModelError: the adapter is gone, or was changed since the study was planned.
        StorageError: the cache has no room.
    """
    assert base.start is not None
    place = merged_base_folder(base.fingerprint)
    adapter = AdapterFolder(trained_folder(base.start))
    if not base.fingerprint.endswith(adapter.digest):
        raise ModelError(f"{adapter.path} was changed since the study was planned. Run it again.")
    with writing(place):
        return made_once(place, functools.partial(_merge, folder, adapter))


@torch.no_grad()
def _merge(folder: Path, adapter: AdapterFolder, _parts: Path, target: Path) -> None:
    model = load_model(folder, torch.float32)
    require_room(target, 4 * model.num_parameters())
    for name, (lora_A, lora_B, scaling) in adapter.factors.items():
        layer = model.get_submodule(name)
        delta = (lora_B.float() @ lora_A.float()) * scaling
        layer.weight += delta.T if isinstance(layer, Conv1D) else delta
    model.save_pretrained(str(target))
    for file in (path for kind in SMALL_FILES for path in folder.glob(kind)):
        # the config and the index are those of the weights as they are stored now
        if file.name != "config.json" and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
