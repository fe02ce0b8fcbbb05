"""Models that were trained elsewhere, as runs of a study: PEFT adapters and whole checkpoints."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rankwise.engine.models.adapter_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_weights,
    has_update,
    read_adapter_config,
)
from rankwise.engine.models.base import ARCHITECTURE, find_base_model, refuse_other_architecture
from rankwise.errors import ModelError
from rankwise.records.config import BaseModelConfig, ImportedConfig
from rankwise.records.files import writing
from rankwise.records.fingerprints import import_fingerprint
from rankwise.records.study import PlannedRun
from rankwise.study.planning.runs import Trainable, run_name


def imported_run(config: ImportedConfig, base: Trainable, train_task: str) -> PlannedRun:
    """Plan the import of one model; its files are read, its weights are not loaded.

    Args:
        config: where it is; exactly one of adapter and checkpoint.
        base: the base model of the study.
        train_task: among whose runs it is judged.

    Raises:
        ModelError: no such folder, not a LoRA adapter, or it does not fit the base.
    """
    if config.adapter is not None:
        return _adapter_run(config, config.adapter, base, train_task)
    assert config.checkpoint is not None
    return _checkpoint_run(config, config.checkpoint, base, train_task)


def import_adapter(source: Path, folder: Path) -> tuple[int, bool]:
    """Copy an adapter's two files into ``folder``.

    Returns:
        The bytes of the weights, and whether the update is zero.

    Raises:
        ModelError: the adapter is gone or cannot be read.
        StorageError: the folder cannot be written.
    """
    read_adapter_config(source)
    adapter_weights(source)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(source / name, folder / name)
    weights = folder / WEIGHTS_FILE
    return weights.stat().st_size, not has_update(weights)


def weights_bytes(folder: Path) -> int:
    """The size of a checkpoint's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def not_finite(folder: Path) -> str | None:
    """The name of a weight in the folder that holds NaN or infinity; None where all are finite.

    Raises:
        ModelError: weights cannot be read.
    """
    import torch

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if not bool(torch.isfinite(file.get_tensor(name)).all()):
                        return name
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read: {error}. Save it again.") from error
    return None


def _adapter_run(
    config: ImportedConfig, folder: Path, base: Trainable, train_task: str
) -> PlannedRun:
    settings, weights = read_adapter_config(folder), adapter_weights(folder)
    shapes = _shapes(weights)
    _check_fit(folder, shapes, base)
    rank, alpha = settings["r"], float(settings["lora_alpha"])
    uses_rslora = bool(settings.get("use_rslora"))
    digest = hashlib.sha256((folder / CONFIG_FILE).read_bytes())
    with weights.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    targets = settings.get("target_modules") or ()
    modules = (targets,) if isinstance(targets, str) else tuple(sorted(targets))
    return _planned(
        config,
        base,
        train_task,
        digest.hexdigest(),
        method="lora",
        rank=rank,
        alpha=alpha,
        scaling=alpha / (math.sqrt(rank) if uses_rslora else rank),
        target_modules=modules,
        imported_from=folder,
        num_trainable_parameters=sum(math.prod(shape) for shape in shapes.values()),
    )


def _checkpoint_run(
    config: ImportedConfig, folder: Path, base: Trainable, train_task: str
) -> PlannedRun:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder. Check the path.")
    checkpoint = find_base_model(BaseModelConfig(name=str(folder)))
    refuse_other_architecture(folder, base.model.skeleton.config, (*ARCHITECTURE, "vocab_size"))
    return _planned(
        config,
        base,
        train_task,
        checkpoint.fingerprint,
        method="full",
        imported_from=folder,
        num_trainable_parameters=base.model.num_parameters,
    )


def _planned(
    config: ImportedConfig,
    base: Trainable,
    train_task: str,
    digest: str,
    *,
    num_trainable_parameters: int,
    **settings: Any,
) -> PlannedRun:
    content = import_fingerprint(base.model.base.fingerprint, digest)
    label = config.name or settings["imported_from"].name
    run = PlannedRun(
        name="",
        fingerprint=content,
        train_task=train_task,
        imported_as=label,
        num_steps=0,
        num_examples=0,
        num_tokens=0,
        num_trainable_parameters=num_trainable_parameters,
        trainable_share=num_trainable_parameters / base.model.num_parameters,
        estimated_memory_bytes=0,
        **settings,
    )
    return run.model_copy(update={"name": run_name(run, content)})


def _shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(str(weights), framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{weights} cannot be read: {error}. Save it again.") from error


def _check_fit(folder: Path, shapes: Mapping[str, tuple[int, ...]], base: Trainable) -> None:
    """Every factor must stand for a layer of the base, with its sizes."""
    layers: dict[str, tuple[int, ...]] = {
        name.removesuffix(".weight"): tuple(parameter.shape)
        for name, parameter in base.model.skeleton.named_parameters()
    }
    for name, shape in shapes.items():
        layer, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        side = {"A": 1, "B": 0}.get(factor[:1])
        if side is None:
            continue
        size = layers.get(layer)
        if size is None:
            raise ModelError(
                f"{folder} adapts {layer}, which the base model does not have. Choose the base "
                "that it was trained from."
            )
        if len(size) == 2 and shape[side] not in size:
            raise ModelError(
                f"{folder} does not fit {layer}: its factor is {shape} and the layer {size}. "
                "Choose the base that it was trained from."
            )
