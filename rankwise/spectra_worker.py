"""Looks into the weights of a study's runs, matrix by matrix, and writes a record for each run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from rankwise import models
from rankwise.adapter_files import read_updates
from rankwise.analysis import NullDraws, delta_svd, matrix_spectrum
from rankwise.errors import ModelError
from rankwise.fingerprints import spectra_fingerprint
from rankwise.lowrank import LowRankUpdate
from rankwise.planning import StudyPlan
from rankwise.records import PlannedRun
from rankwise.spectra import Svd
from rankwise.spectra_records import EPSILONS, MatrixSpectrum, SpectraRecord
from rankwise.spectral_cache import SpectralCache
from rankwise.stages import Observer, Stage, is_analysed
from rankwise.store import StudyFolder
from rankwise.weight_matrices import weight_matrices

Matrices = Mapping[str, Tensor]


class _Subject(NamedTuple):
    """A run that is looked into: its update by layer, or its matrices if it is a full model."""

    run: PlannedRun
    updates: Mapping[str, LowRankUpdate]
    full: str | None
    not_analysed: str | None = None


def analyse(plan: StudyPlan, folder: StudyFolder, observer: Observer, stage: Stage) -> None:
    """Look into the runs of a stage that are not done yet, with the base's weights as they are.

    A matrix of the base is decomposed once for all of them, whatever precision it is trained in.

    Raises:
        ModelError: weights are not finite, or gone.
        StorageError: a record cannot be written.
    """
    left = [run for run in stage.runs if not is_analysed(plan, folder, run)]
    observer.advanced(stage.work * (1 - len(left) / len(stage.runs)))
    subjects = [_subject(plan, folder, run, observer) for run in left]
    names = _layers(plan, subjects)
    base = weight_matrices(models.fetch_weights(plan.base), names)
    full = _full_matrices(plan, folder, subjects, names)
    found: dict[str, list[MatrixSpectrum]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    cache = SpectralCache()
    for name, weight in base.items():
        weight = weight.to(plan.device)
        deltas = {run: _delta(run, name, weight, own[name]) for run, own in full.items()}
        decomposed = cache.svd(weight)
        for subject in subjects:
            started = time.perf_counter()
            spectrum = _spectrum(plan, subject, name, decomposed, deltas)
            found[subject.run.name] += [] if spectrum is None else [spectrum]
            seconds[subject.run.name] += time.perf_counter() - started
            observer.advanced(stage.work / len(stage.runs) / len(base))
    for subject in subjects:
        record = SpectraRecord(
            model=subject.run.name,
            fingerprint=spectra_fingerprint(plan.record, subject.run),
            epsilons=EPSILONS,
            null_draws=plan.record.config.analysis.null_draws,
            matrices=tuple(found[subject.run.name]),
            not_analysed=subject.not_analysed,
            analysis_seconds=seconds[subject.run.name],
        )
        folder.write(folder.spectra_file(subject.run.name), record)


def _full_matrices(
    plan: StudyPlan, folder: StudyFolder, subjects: Sequence[_Subject], layers: Sequence[str]
) -> dict[str, Matrices]:
    """The matrices of every full fine-tuning that is looked into or compared with, by its run."""
    by_name = {run.name: run for run in plan.record.runs}
    names = sorted({each.full for each in subjects if each.full is not None})
    return {name: weight_matrices(folder.weights_folder(by_name[name]), layers) for name in names}


def _delta(run: str, layer: str, base: Tensor, adapted: Tensor) -> Svd:
    try:
        return delta_svd(base, adapted.to(base.device))
    except ValueError as error:
        raise ModelError(f"{run}: {layer}: {error} Is it of this base model?") from error


def _spectrum(
    plan: StudyPlan, subject: _Subject, layer: str, base: Svd, deltas: Mapping[str, Svd]
) -> MatrixSpectrum | None:
    """What a run did to a layer; None where it did not adapt it."""
    settings = plan.record.config.analysis
    common: dict[str, Any] = {
        "top_k": settings.top_k,
        "nulls": NullDraws(settings.null_draws, seed=0),
    }
    if subject.run.method == "full":
        return matrix_spectrum(layer, base, deltas[subject.run.name], rank=None, **common)
    update = subject.updates.get(layer)
    if update is None:
        return None
    full = None if subject.full is None else deltas[subject.full]
    return matrix_spectrum(
        layer, base, update.factorization, rank=update.rank, full_update=full, **common
    )


def _subject(plan: StudyPlan, folder: StudyFolder, run: PlannedRun, observer: Observer) -> _Subject:
    """What is read of a run; an adapter that is more than LoRA is noted and has no matrices."""
    if run.method == "full":
        return _Subject(run, {}, run.name)
    reference = plan.record.full_run_of(run)
    record = None if reference is None else folder.finished_run(reference)
    full = reference.name if reference and record and record.status == "trained" else None
    try:
        return _Subject(run, read_updates(folder.weights_folder(run)), full)
    except ModelError as error:
        observer.noted(f"{run.name} is not looked into: {error}")
        return _Subject(run, {}, full, str(error))


def _layers(plan: StudyPlan, subjects: Sequence[_Subject]) -> list[str]:
    """Every layer that is looked into, in the model's order."""
    skeleton = models.model_skeleton(plan.base.folder)
    shapes = models.adaptable_shapes(skeleton)
    wanted = {name for subject in subjects for name in subject.updates}
    if any(subject.run.method == "full" for subject in subjects):
        modules = plan.record.adapted_modules
        wanted |= set(models.target_shapes(shapes, modules) if modules else shapes)
    return [name for name in shapes if name in wanted]
