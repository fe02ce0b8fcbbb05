"""One adapter or checkpoint compared with its base, without a study: its weights, its scores."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.base_folder import BaseModel, find_base_model
from rankwise.engine.models.devices import (
    ResolvedPrecision,
    choose_device,
    float64_device,
    provenance_on,
)
from rankwise.engine.models.structure import (
    LinearShape,
    adaptable_shapes,
    model_skeleton,
    refuse_other_architecture,
)
from rankwise.engine.models.weights import ModelWeights, model_weights
from rankwise.errors import ModelError, UnchangedOutputsError
from rankwise.findings.audits import ENOUGH, SUSPICIOUS, audit_statements
from rankwise.records import quantities
from rankwise.records.audits import AuditedKind, AuditRecord, AuditScore, KeptEnergy, OtherChange
from rankwise.records.config.study import BaseModelConfig
from rankwise.records.spectra import EPSILONS, MatrixSpectrum
from rankwise.weights.decomposition import SpectralCache
from rankwise.weights.lowrank import LowRankUpdate, read_updates
from rankwise.weights.matrix import NullDraws, delta_svd, matrix_spectrum

# This many layers without factors are named, the others are counted.
_NAMED_LAYERS = 4
# Up to this rank the energy that is kept is recorded for every rank.
_SMALL_RANKS = 64


class Audited(NamedTuple):
    """An adapter or checkpoint, read and checked against its base.

    Attributes:
        base: the base model.
        target: an adapter's folder, or a checkpoint's.
        adapter: what was read of an adapter; None: the target is a checkpoint.
        updates: layer → update of an adapter; empty for a checkpoint.
        shapes: layer → shape of every analysed layer, in the model's order.
        warnings: what could not be checked.
    """

    base: BaseModel
    target: Path
    adapter: AdapterFolder | None
    updates: Mapping[str, LowRankUpdate]
    shapes: Mapping[str, LinearShape]
    warnings: tuple[str, ...] = ()

    @property
    def kind(self) -> AuditedKind:
        """Which of the two the target is."""
        return "checkpoint" if self.adapter is None else "adapter"

    @property
    def has_update(self) -> bool:
        """Whether an adapter's update is not zero."""
        return any(update.frobenius_norm for update in self.updates.values())


class AuditScores(NamedTuple):
    """Scores of base and adapted model; empty without tasks.

    Attributes:
        scores: one for each task.
        confidence: of their intervals.
        precision: in which the models were scored.
        warnings: about the tasks.
        answers_as_base: whether a checkpoint answers a few texts exactly as its base does.
    """

    scores: tuple[AuditScore, ...] = ()
    confidence: float = 0.95
    precision: ResolvedPrecision | None = None
    warnings: tuple[str, ...] = ()
    answers_as_base: bool = False


def find_audited(
    base: str,
    target: Path,
    *,
    any_base: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Audited:
    """Read an adapter or a checkpoint, and refuse one that does not belong to this base.

    Args:
        base: an embedded model, a folder or a hub repository.
        target: a PEFT LoRA folder, or a checkpoint of the base's architecture.
        any_base: accept an adapter that records another base, if it fits this one.
        report: receives a message for every download.

    Raises:
        ModelError: base or target cannot be read, the target is more than plain LoRA, or it was
            trained from another base.
    """
    if not base:
        raise ModelError("BASE is empty. Name an embedded model, a folder or a hub repository.")
    base_model = find_base_model(BaseModelConfig(name=base), report)
    skeleton: Any = model_skeleton(base_model.folder)
    shapes = adaptable_shapes(skeleton, beside_text=True)
    if not target.is_dir():
        raise ModelError(f"{target} is not a folder; check the path.")
    if os.path.lexists(target / CONFIG_FILE):  # a broken one is refused as what it is
        adapter = AdapterFolder(target)
        other = () if any_base else adapter.refuse_other_base(base_model, remedy="add --any-base")
        adapter.check_fit(skeleton)
        updates = read_updates(adapter)
        if beside := sorted(updates.keys() - shapes.keys()):
            raise ModelError(
                f"{target} adapts {beside[0]}, which is not a linear layer below the head of "
                f"{base_model.name}. Name the base that it was trained from."
            )
        adapted = {name: shape for name, shape in shapes.items() if name in updates}
        warnings = (*other, *_missing(adapter.layers_without_factors(shapes)))
        return Audited(base_model, target, adapter, updates, adapted, warnings)
    if (target / "config.json").is_file():
        find_base_model(BaseModelConfig(name=str(target)))  # has safetensors
        refuse_other_architecture(target, skeleton.config)
        return Audited(base_model, target, None, {}, shapes)
    raise ModelError(
        f"{target} holds neither {CONFIG_FILE} (a PEFT adapter) nor config.json (a checkpoint). "
        "Check the path."
    )


def _missing(layers: Sequence[str]) -> tuple[str, ...]:
    """That the config targets layers without factors, if there are any."""
    if not layers:
        return ()
    more = len(layers) - _NAMED_LAYERS
    names = [*layers[:_NAMED_LAYERS], *([f"{quantities.count(more)} more"] if more > 0 else [])]
    return (
        f"{CONFIG_FILE} targets {quantities.counted(len(layers), 'layer')} that the adapter has no "
        f"factors for: {quantities.listed(names)}. They are treated as not adapted; check that the "
        "file is complete.",
    )


def find_adapter(
    base: str,
    target: Path,
    use: str,
    *,
    any_base: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Audited:
    """Read an adapter as ``find_audited`` does, and refuse a checkpoint.

    Args:
        base: likewise.
        target: a PEFT LoRA folder.
        use: what is done with an adapter's update, such as "repaired".
        any_base: likewise.
        report: likewise.

    Raises:
        ModelError: likewise, or the target is a checkpoint.
    """
    found = find_audited(base, target, any_base=any_base, report=report)
    if found.kind != "adapter":
        raise ModelError(
            f"{target} is a checkpoint, and only an adapter's update can be {use}. Give a PEFT "
            f"LoRA folder, or score it beside its base: rankwise audit BASE {target} --tasks TASK"
        )
    return found


def check_weights(audited: Audited) -> None:
    """Read every weight once: errors in them should not come after the scoring.

    Raises:
        ModelError: as ``audit``.
    """
    model_weights(audited.base.folder, list(audited.shapes))
    if audited.kind == "checkpoint":
        _checkpoint_weights(audited)


def _checkpoint_weights(audited: Audited) -> ModelWeights:
    """A checkpoint's weights; every matrix has its base's shape."""
    weights = model_weights(audited.target, list(audited.shapes))
    for name, shape in audited.shapes.items():
        ours, theirs = (shape.out_features, shape.in_features), tuple(weights.matrices[name].shape)
        if ours != theirs:
            raise ModelError(
                f"{audited.target} is no fine-tuning of {audited.base.name}: {name}: matrices of "
                f"shape {ours} and {theirs}. Name the base that it was trained from."
            )
    return weights


def audit(
    audited: Audited,
    top_k: int,
    null_draws: int,
    *,
    scored: AuditScores | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> AuditRecord:
    """Analyse every matrix, and state the findings in words.

    Args:
        audited: from ``find_audited``.
        top_k: see the study's ``analysis`` section, as for the next.
        null_draws: random updates of each kind to compare with.
        scored: scores of base and adapted model, if tasks were named.
        advance: receives the number of finished matrices and the number of all.

    Raises:
        ModelError: weights cannot be loaded, are not finite, or differ in shape.
        UnchangedOutputsError: a checkpoint with other weights than the base answers as it does.
    """
    scored = AuditScores() if scored is None else scored
    device, cache = float64_device(choose_device()), SpectralCache()
    names = list(audited.shapes)
    base = model_weights(audited.base.folder, names)
    adapted = _checkpoint_weights(audited) if audited.kind == "checkpoint" else None
    matrices, nulls = list[MatrixSpectrum](), NullDraws(null_draws, seed=0)
    values: list[Tensor] = []
    for number, name in enumerate(names, start=1):
        weight = base.matrices[name].to(device)
        if adapted is None:
            update, rank = audited.updates[name].factorization, audited.updates[name].rank
        else:
            update, rank = delta_svd(weight, adapted.matrices[name].to(device)), None
        base_svd = cache.svd(weight)
        matrices.append(
            matrix_spectrum(name, base_svd, update, rank=rank, top_k=top_k, nulls=nulls)
        )
        values.append(update.S)
        advance(number, len(names))
    ranks = tuple(sorted({update.rank for update in audited.updates.values()}))
    kept = _kept(values)
    cut = _smallest_enough(kept)
    others = () if adapted is None else _other_changes(base, adapted)
    if scored.answers_as_base and (cut is not None or others):
        raise UnchangedOutputsError(
            f"{audited.target} has other weights than {audited.base.name} and gives the same "
            f"log-likelihoods in {scored.precision}: the base was scored in its place, or the "
            "change is lost in this precision. Score in float32, and report this if it happens "
            "again."
        )
    warnings = (*audited.warnings, *_implausible(matrices, audited))
    return AuditRecord(
        base=audited.base.name,
        base_fingerprint=audited.base.fingerprint,
        target=str(audited.target),
        kind=audited.kind,
        ranks=ranks,
        epsilons=EPSILONS,
        null_draws=null_draws,
        matrices=tuple(matrices),
        kept=kept,
        cut=cut,
        other_changes=others,
        confidence=scored.confidence,
        precision=scored.precision,
        scores=scored.scores,
        warnings=(*warnings, *scored.warnings),
        statements=audit_statements(audited.kind, ranks, matrices, cut, others, scored.scores),
        provenance=provenance_on(choose_device()),
    )


def _kept(values: Sequence[Tensor]) -> tuple[KeptEnergy, ...]:
    """The energy kept at small ranks, customary ones and the largest; empty for a zero update."""
    squares = [of_matrix.double().cpu().square() for of_matrix in values]
    total = sum(float(of_matrix.sum()) for of_matrix in squares)
    longest = max(map(len, squares))
    ranks = {*range(1, min(_SMALL_RANKS, longest) + 1), *_customary(longest), longest}
    changed = [of_matrix for of_matrix in squares if bool(of_matrix.any())]
    return tuple(
        KeptEnergy(
            rank=rank,
            share=sum(float(of_matrix[:rank].sum()) for of_matrix in changed) / total,
            lowest=min(float(of_matrix[:rank].sum() / of_matrix.sum()) for of_matrix in changed),
        )
        for rank in sorted(ranks)
        if changed
    )


def _customary(longest: int) -> set[int]:
    """1, 2, 4, 8, 12, 16, 24, 32, 48 ... below the largest."""
    powers = {2**exponent for exponent in range(longest.bit_length())}
    between = {3 * power for power in powers if power >= 4}
    return {rank for rank in powers | between if rank < longest}


def _smallest_enough(kept: Sequence[KeptEnergy]) -> KeptEnergy | None:
    """The smallest customary rank that keeps enough, or the largest rank; None without update."""
    if not kept:
        return None
    customary = _customary(kept[-1].rank)
    enough = (at for at in kept if at.share >= ENOUGH and at.rank in customary)
    return next(enough, kept[-1])


def _other_changes(base: ModelWeights, adapted: ModelWeights) -> tuple[OtherChange, ...]:
    """Changes outside the linear layers; a tensor that has two names in both (tied) counts once."""
    changes: list[OtherChange] = []
    for name in dict.fromkeys((*base.others, *adapted.others)):
        first = base.tied.get(name)
        if first is not None and first == adapted.tied.get(name):
            continue
        before, after = base.others.get(name), adapted.others.get(name)
        if before is None or after is None:
            change = "added" if before is None else "removed"
            changes.append(OtherChange(name=name, change=change))
        elif before.shape != after.shape:
            changes.append(OtherChange(name=name, change="resized"))
        elif norm := float((after.double() - before.double()).norm()):
            size = float(before.double().norm())
            relative = norm / size if size else None
            change = "moved" if size else "from_zero"
            changes.append(OtherChange(name=name, change=change, norm=norm, relative_norm=relative))
    # changed shapes, then by relative norm, then former zeros by their norm
    changes.sort(
        key=lambda each: (
            each.norm is not None,
            each.relative_norm is None,
            -(each.relative_norm or each.norm or 0.0),
        )
    )
    return tuple(changes)


def _implausible(matrices: Sequence[MatrixSpectrum], audited: Audited) -> tuple[str, ...]:
    """A warning if the update is as large as the difference between two models."""
    norm = math.hypot(*(matrix.update.frobenius_norm for matrix in matrices))
    size = math.hypot(*(matrix.base_frobenius_norm for matrix in matrices))
    if not size or norm <= SUSPICIOUS * size:
        return ()
    return (
        f"The update's norm is {quantities.share(norm / size)} of the weights' own: no fine-tuning "
        f"is that large. Is {audited.base.name} the base that it was trained from?",
    )
