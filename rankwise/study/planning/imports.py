"""Models that were trained elsewhere, as runs of a study: PEFT adapters and whole checkpoints."""

from __future__ import annotations

import math
from typing import Any

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.structure import ARCHITECTURE, refuse_other_architecture
from rankwise.errors import ModelError
from rankwise.records.config.methods import ImportedConfig
from rankwise.records.config.study import BaseModelConfig
from rankwise.records.fingerprints import fingerprint
from rankwise.records.study import Imported, PlannedRun
from rankwise.study.planning.runs import Trainable, run_name

IMPORT_REVISION = 1
"""A revision, as those in ``records.fingerprints``."""

# Part of the name of the run's folder, which file systems limit to 255 bytes.
_LONGEST_NAME = 100


def imported_run(
    config: ImportedConfig, base: Trainable, train_task: str
) -> tuple[PlannedRun, tuple[str, ...]]:
    """Plan the import of one model; its files are read, its weights are not loaded.

    Args:
        config: where it is; exactly one of adapter and checkpoint.
        base: the base model of the study.
        train_task: among whose runs it is judged.

    Returns:
        The model as a run, and what could not be checked, one sentence each.

    Raises:
        ModelError: no such folder, not a LoRA adapter, another base, or it does not fit the base.
    """
    settings: dict[str, Any]
    warnings: tuple[str, ...] = ()
    if config.adapter is not None:
        folder = config.adapter
        weights, settings, warnings = _adapter(AdapterFolder(folder), base)
    else:
        assert config.checkpoint is not None
        folder = config.checkpoint
        if not folder.is_dir():
            raise ModelError(f"{folder} is not a folder; check the path.")
        weights = find_base_model(BaseModelConfig(name=str(folder))).fingerprint
        refuse_other_architecture(folder, base.model.skeleton.config, (*ARCHITECTURE, "vocab_size"))
        size = base.model.num_parameters
        settings = {"method": "full", "num_trainable_parameters": size}
    label = config.name or folder.name
    if not label.isprintable() or len(label.encode(errors="surrogateescape")) > _LONGEST_NAME:
        raise ModelError(
            f"{label[:_LONGEST_NAME]!r} cannot name a model in tables and folders. Give it a name "
            f"of at most {_LONGEST_NAME} letters with `name`."
        )
    base_model = base.model.base.fingerprint
    digest = fingerprint(
        {"import_revision": IMPORT_REVISION, "base_model": base_model, "weights": weights}
    )
    run = PlannedRun(
        name="unnamed",
        fingerprint=digest,
        train_task=train_task,
        role="imported",
        imported=Imported(label=label, folder=folder),
        num_steps=0,
        num_examples=0,
        num_tokens=0,
        trainable_share=settings["num_trainable_parameters"] / base.model.num_parameters,
        estimated_memory_bytes=0,
        **settings,
    )
    return run.model_copy(update={"name": run_name(run, digest)}), warnings


def _adapter(
    adapter: AdapterFolder, base: Trainable
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """A digest of its files, what it says of a run, and what could not be checked."""
    config = adapter.config
    if base.model.base.start is not None:
        raise ModelError(
            f"{adapter.path} is put on {base.model.base.name}, and this study's base has "
            "methods.lora.start in it. Leave one of them out."
        )
    remedy = f"write {base.model.base.name} as base_model_name_or_path into {CONFIG_FILE}"
    warnings = adapter.refuse_other_base(base.model.base, remedy=remedy)
    adapter.check_fit(base.model.skeleton)
    rank, alpha = config["r"], float(config["lora_alpha"])
    targets = config.get("target_modules") or ()
    settings = {
        "method": "lora",
        "rank": rank,
        "alpha": alpha,
        "scaling": alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        "target_modules": (targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        "num_trainable_parameters": adapter.num_weights,
    }
    return adapter.digest, settings, warnings
