"""One adapter or checkpoint against its base, without a study: its weights, and its scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise import models
from rankwise.adapter_files import CONFIG_FILE, read_adapter_config, read_updates
from rankwise.analysis import NullDraws, delta_svd, matrix_spectrum
from rankwise.audit_records import AuditedKind, AuditRecord, AuditScore, KeptEnergy
from rankwise.audit_statements import audit_statements
from rankwise.config import BaseModelConfig
from rankwise.devices import choose_device, device_name
from rankwise.errors import ModelError
from rankwise.lowrank import LowRankUpdate
from rankwise.models import BaseModel, LinearShape
from rankwise.provenance import collect_provenance
from rankwise.spectra import Svd
from rankwise.spectra_records import EPSILONS, MatrixSpectrum
from rankwise.spectral_cache import SpectralCache
from rankwise.weight_matrices import weight_matrices

_SAME_ARCHITECTURE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


class Audited(NamedTuple):
    """What is audited, read and checked against its base.

    Attributes:
        base: the base model.
        target: an adapter's folder, or a checkpoint's.
        kind: which of them.
        updates: of an adapter, by layer; empty of a checkpoint.
        shapes: of the layers that are looked into, in the model's order.
        warnings: what could not be checked.
    """

    base: BaseModel
    target: Path
    kind: AuditedKind
    updates: Mapping[str, LowRankUpdate]
    shapes: Mapping[str, LinearShape]
    warnings: tuple[str, ...] = ()


class AuditSettings(NamedTuple):
    """How the weights are looked into; see the study's ``analysis`` section."""

    top_k: int = 500
    null_draws: int = 2


def find_audited(
    base: str,
    target: Path,
    *,
    any_base: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Audited:
    """Read what is audited, and refuse what does not belong to this base.

    Args:
        base: an embedded model, a folder or a hub repository.
        target: a PEFT LoRA folder, or a checkpoint of the base's architecture.
        any_base: let an adapter pass that records another base, if it fits this one.
        report: is told of downloads.

    Raises:
        ModelError: base or target cannot be read, the target is more than plain LoRA, or it was
            trained from another base.
    """
    found = models.find_base_model(BaseModelConfig(name=base), report)
    shapes = models.adaptable_shapes(models.model_skeleton(found.folder))
    if not target.is_dir():
        raise ModelError(f"{target} is not a folder. Check the path.")
    if (target / CONFIG_FILE).is_file():
        return _adapter(found, target, shapes, any_base)
    if (target / "config.json").is_file():
        return _checkpoint(found, target, shapes)
    raise ModelError(
        f"{target} holds neither {CONFIG_FILE} (a PEFT adapter) nor config.json (a checkpoint)."
    )


def _adapter(
    base: BaseModel, target: Path, shapes: Mapping[str, LinearShape], any_base: bool
) -> Audited:
    updates = read_updates(target)
    warnings = () if any_base else _recorded_base(base, target)
    for name, update in updates.items():
        shape = shapes.get(name)
        if shape is None:
            raise ModelError(
                f"{target} adapts {name}, which is no linear layer below the head of {base.name}. "
                "Name the base that it was trained from."
            )
        if update.shape != (shape.out_features, shape.in_features):
            raise ModelError(
                f"{target} does not fit {name} of {base.name}: its update is {update.shape} and "
                f"the layer {(shape.out_features, shape.in_features)}. Name the base that it was "
                "trained from."
            )
    adapted = {name: shape for name, shape in shapes.items() if name in updates}
    return Audited(base, target, "adapter", updates, adapted, warnings)


def _recorded_base(base: BaseModel, target: Path) -> tuple[str, ...]:
    """Refuse an adapter whose config names another base than the given one.

    A folder that is there is compared by its content. Otherwise only names are left, and of these
    the last part without case: a copy under another name needs ``--any-base``.
    """
    recorded = read_adapter_config(target).get("base_model_name_or_path")
    if not recorded:
        return (f"{CONFIG_FILE} does not say which base it was trained from.",)
    if recorded == base.name:
        return ()
    folder = Path(str(recorded)).expanduser()
    if folder.is_dir():
        other = models.find_base_model(BaseModelConfig(name=str(folder)))
        if other.fingerprint == base.fingerprint or base.folder.samefile(folder):
            return ()
    elif _last_part(str(recorded)) == _last_part(base.name):
        return ()
    raise ModelError(
        f"{target} records {recorded} as its base, not {base.name}. Name that one, or add "
        "--any-base if this is the same model under another name."
    )


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()


def _checkpoint(base: BaseModel, target: Path, shapes: Mapping[str, LinearShape]) -> Audited:
    models.find_base_model(BaseModelConfig(name=str(target)))  # has safetensors
    ours, theirs = (_model_config(folder) for folder in (base.folder, target))
    for name in _SAME_ARCHITECTURE:
        if name in ours and name in theirs and ours[name] != theirs[name]:
            raise ModelError(
                f"{target} has {name} {theirs[name]} and {base.name} {ours[name]}: it is no "
                "fine-tuning of this base. Name the base that it was trained from."
            )
    return Audited(base, target, "checkpoint", {}, shapes)


def _model_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}.") from error


def audit(
    audited: Audited,
    settings: AuditSettings,
    *,
    scores: tuple[AuditScore, ...] = (),
    confidence: float = 0.95,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> AuditRecord:
    """Look into every matrix of what is audited, and say in words what is there.

    Args:
        audited: from ``find_audited``.
        settings: how.
        scores: of base and adapted, where tasks were asked for.
        confidence: of their intervals.
        advance: is told how many matrices are done, of how many.

    Raises:
        ModelError: weights cannot be loaded, are not finite, or differ in shape.
    """
    device, cache = choose_device(), SpectralCache()
    names = list(audited.shapes)
    base = weight_matrices(audited.base.folder, names)
    adapted = weight_matrices(audited.target, names) if audited.kind == "checkpoint" else {}
    matrices: list[MatrixSpectrum] = []
    values: list[Tensor] = []
    for number, name in enumerate(names, start=1):
        weight = base[name].to(device)
        update = _update(audited, name, weight, adapted)
        matrices.append(
            matrix_spectrum(
                name,
                cache.svd(weight),
                update,
                rank=audited.updates[name].rank if audited.kind == "adapter" else None,
                top_k=settings.top_k,
                nulls=NullDraws(settings.null_draws, seed=0),
            )
        )
        values.append(update.S)
        advance(number, len(names))
    kept = _kept(values)
    ranks = [update.rank for update in audited.updates.values()]
    rank = max(ranks) if ranks else None
    return AuditRecord(
        base=audited.base.name,
        target=str(audited.target),
        kind=audited.kind,
        rank=rank,
        epsilons=EPSILONS,
        null_draws=settings.null_draws,
        matrices=tuple(matrices),
        kept=kept,
        confidence=confidence,
        scores=scores,
        warnings=audited.warnings,
        statements=audit_statements(audited.kind, rank, matrices, kept, scores),
        provenance=collect_provenance(device_name(device)),
    )


def _update(audited: Audited, name: str, weight: Tensor, adapted: Mapping[str, Tensor]) -> Svd:
    if audited.kind == "adapter":
        return audited.updates[name].factorization
    try:
        return delta_svd(weight, adapted[name].to(weight.device))
    except ValueError as error:
        raise ModelError(f"{audited.target}: {name}: {error}") from error


def _kept(values: list[Tensor]) -> tuple[KeptEnergy, ...]:
    """At powers of two below the longest list of singular values, and at its length."""
    squares = [each.double().cpu().square() for each in values]
    total = float(torch.stack([each.sum() for each in squares]).sum())
    longest = max(len(each) for each in squares)
    ranks = [2**power for power in range(longest.bit_length()) if 2**power < longest]
    return tuple(
        KeptEnergy(
            rank=rank,
            share=sum(float(each[:rank].sum()) for each in squares) / total if total else 1.0,
        )
        for rank in (*ranks, longest)
    )
