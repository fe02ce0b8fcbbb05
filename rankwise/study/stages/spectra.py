"""Spectra: the weights of the runs of one trained task, matrix by matrix."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from rankwise.errors import BeyondLoraError, ModelError
from rankwise.records.fingerprints import fingerprint
from rankwise.records.spectra import EPSILONS, MatrixSpectrum, SpectraRecord
from rankwise.records.study import Decompositions, PlannedRun, StudyRecord
from rankwise.study.stages.stage import Graph, Model, OneRecord, Stage, is_usable
from rankwise.study.times import TRAINING_WORK, assumed_rate

if TYPE_CHECKING:
    from torch import Tensor

    from rankwise.engine.models.devices import Machine
    from rankwise.engine.models.structure import LinearShape
    from rankwise.study.context import StudyContext
    from rankwise.weights.decomposition import SpectralCache
    from rankwise.weights.lowrank import LowRankUpdate
    from rankwise.weights.spectra import Svd

SPECTRA_REVISION = 2
"""A revision, as those in ``records.fingerprints``."""

CORE_FLOPS = 50e9
"""Multiplications and additions in a second of one core in LAPACK's float32 decompositions: 40e9
and 54e9 were measured for 1,536 and 2,048 columns on an EPYC with AVX-512. Only the time left is
estimated from it, as from the next."""

CORES_SHARE = 1 / 4
"""The share of several cores that one decomposition uses; assumed, as half of it waits for memory.
"""

CARD_FLOPS = 1e12
"""The same of a card that multiplies float64 fast, in float64; assumed, not measured."""

DESCRIBED_CORES = 16
"""Cores that are assumed beside a card that is described and multiplies float64 slowly."""

FAST_FLOAT64_BYTES = 60 * 10**9
"""A card that is described multiplies float64 fast if it has this much memory: others than those
for data centres have less."""


@dataclass(frozen=True)
class AnalyseWeights(OneRecord):
    """Analyse the weights of the runs of one trained task, matrix by matrix.

    So each matrix of the base is decomposed once for all of them.
    """

    train_task: str
    decomposing_seconds: float
    cache_bytes: int
    """That it leaves in the cache folder, about."""

    kind = "spectra"
    record = SpectraRecord
    file = "spectra.json"
    field = "spectra"
    made_by = "analysing the weights of"
    took = "analysis_seconds"
    reads_tokens = False

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        study = graph.study
        if study.config.analysis.spectra:
            for number, (train_task, runs) in enumerate(graph.by_train_task().items()):
                flops = sum(_flops_of(study, run) for run in runs)
                flops += 0 if number else _flops_of_base(study)  # later ones find it on the disk
                seconds = flops / study.decompositions.flops
                work = max(seconds * study.decompositions.tokens_per_second, 1.0)
                cache = 0 if number else study.decompositions.kept_bytes
                yield cls.of(
                    graph, "weights", runs, work, train_task=train_task,
                    decomposing_seconds=seconds, cache_bytes=cache,
                )  # fmt: skip

    @property
    def seconds_by_arithmetic(self) -> float:
        return self.decomposing_seconds

    @classmethod
    def wanted(cls, study: StudyRecord, model: Model) -> str:
        assert model is not None
        full = study.full_run_of(model)
        return fingerprint(
            {
                "revision": SPECTRA_REVISION,
                "base_model": study.base_model_fingerprint,
                "run": model.fingerprint,
                "full": None if full is None else full.fingerprint,
                "modules": study.adapted_modules if model.method == "full" else None,
                "top_k": study.top_k,
                "null_draws": study.null_draws,
            }
        )

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        context.models.release(base=True)  # matrices are read one by one
        analyse_weights(context, self, [model for model in models if model is not None])


def decompositions(
    machine: Machine, shapes: Iterable[LinearShape], num_parameters: int
) -> Decompositions:
    """What is decomposed of a base whose matrices have these shapes, and where."""
    import torch

    from rankwise.engine.models.devices import float64_device
    from rankwise.weights.decomposition import MOST_BYTES, kept_bytes

    has_card, cores = machine.device.type == "cuda", torch.get_num_threads()
    if machine.is_elsewhere:
        is_fast, cores = machine.available_bytes() >= FAST_FLOAT64_BYTES, DESCRIBED_CORES
    else:
        is_fast = has_card and float64_device(machine.device).type == "cuda"
    cpu_flops = CORE_FLOPS * max(1.0, cores * CORES_SHARE)
    matrices = [(shape.out_features, shape.in_features) for shape in shapes]
    counted = Counter(matrices)
    tokens = cpu_flops / (2 * num_parameters)
    if has_card:
        tokens = assumed_rate(num_parameters) * TRAINING_WORK["lora"]
    return Decompositions(
        shapes=tuple((*shape, number) for shape, number in sorted(counted.items())),
        flops=CARD_FLOPS if is_fast else cpu_flops,
        tokens_per_second=tokens,
        kept_bytes=min(sum(itertools.starmap(kept_bytes, matrices)), MOST_BYTES),
    )


def _flops_of_base(study: StudyRecord) -> float:
    """Of one thin decomposition of each matrix: bidiagonal, and by divide and conquer.

    Golub and Van Loan, "Matrix Computations", 4th edition, figure 8.6.1, R-bidiagonalisation.
    """
    return sum(
        number * (6 * max(shape) * min(shape) ** 2 + 20 * min(shape) ** 3)
        for *shape, number in study.decompositions.shapes
    )


def _flops_of(study: StudyRecord, run: PlannedRun) -> float:
    """Of what one run did to each matrix, beside random updates: as measured, within twice."""
    num_sums = 1 + 2 * study.null_draws
    if run.rank is None:
        return _flops_of_base(study) * (1 + num_sums)
    flops = 0.0
    for *shape, number in study.decompositions.shapes:
        least = min(shape)
        flops += number * 20 * least * min(study.top_k + 8 * run.highest_rank, least) ** 2
    return flops * num_sums


# On a CPU matrices whose smaller side is up to this are analysed side by side, each by one thread.
# The parallel parts of their decompositions are too short for several: 576 columns by two took 0.7
# of the time of one.
_SMALL = 1024


class _Subject(NamedTuple):
    """A run that is looked into, and what is found.

    Attributes:
        run: which.
        updates: of an adapter, by layer; each is released once it is analysed.
        full: the full fine-tuning that it is compared with, or is itself.
        not_analysed: why there are no matrices.
        matrices: what was found.
    """

    run: PlannedRun
    updates: dict[str, LowRankUpdate]
    full: PlannedRun | None
    not_analysed: str | None
    matrices: list[MatrixSpectrum]


def analyse_weights(context: StudyContext, stage: Stage, runs: Sequence[PlannedRun]) -> None:
    """Analyse some runs of a stage, with the base's weights as they are stored.

    A matrix of the base is decomposed once for all of them, whatever precision it is trained in. Of
    models one matrix at a time is read from their files; in memory are the adapters. Where the base
    is stored quantised its weights are not known, and the records say so.

    Raises:
        ModelError: weights cannot be read, or are not finite.
        StorageError: a record cannot be written.
    """
    from rankwise.engine.models.start import fetch_weights
    from rankwise.engine.models.structure import adaptable_shapes, model_skeleton
    from rankwise.engine.models.weights import is_stored_quantised, weight_matrices
    from rankwise.weights.decomposition import SpectralCache

    plan, tell = context.plan, context.tell
    runs = (*runs, *_not_compared_yet(context, stage, runs))
    tell.skipped(stage.work * (1 - len(runs) / len(stage.runs)))
    skeleton = model_skeleton(plan.base.folder)
    shapes = adaptable_shapes(skeleton, beside_text=True)
    share = stage.work / len(stage.runs)
    if is_stored_quantised(plan.base.folder):
        reason = f"{plan.base.name} is stored quantised: its weights are not known"
        tell.noted(f"weights are not analysed: {reason}")
        for run in runs:
            _write(context, stage, _Subject(run, {}, None, reason, []), 0.0)
            tell.skipped(share)
        return
    subjects = [_subject(context, run, shapes) for run in runs]
    names = _layers(context, stage, subjects, shapes)
    base = weight_matrices(fetch_weights(plan.base), names)
    is_small = all(min(shapes[name]) <= _SMALL for name in names)
    cache = SpectralCache()
    for full in dict.fromkeys(subject.full for subject in subjects):
        group = [subject for subject in subjects if subject.full == full]
        seconds: dict[str, float] = defaultdict(float)
        for looks in _looks(context, group, base, cache, is_small, share):
            for subject, (spectrum, took) in zip(group, looks, strict=True):
                subject.matrices.extend([spectrum] if spectrum else [])
                seconds[subject.run.name] += took
        for subject in group:
            _write(context, stage, subject, seconds[subject.run.name])


def _not_compared_yet(
    context: StudyContext, stage: Stage, runs: Sequence[PlannedRun]
) -> Iterator[PlannedRun]:
    """Adapters that were analysed while the full fine-tuning among ``runs`` was not there.

    It may have failed then: their records stand, and say nothing of it.
    """
    for run in stage.runs:
        if run not in runs and context.study.full_run_of(run) in runs:
            path, current = stage.path_of(context.folder, run), stage.fingerprint_of(run)
            record = context.folder.finished(path, SpectraRecord, current)
            matrices = () if record is None else record.matrices
            if matrices and all(matrix.full_overlap is None for matrix in matrices):
                yield run


def _write(context: StudyContext, stage: Stage, subject: _Subject, seconds: float) -> None:
    record = SpectraRecord(
        model=subject.run.name,
        fingerprint=stage.fingerprint_of(subject.run),
        epsilons=EPSILONS,
        null_draws=context.study.null_draws,
        matrices=tuple(subject.matrices),
        not_analysed=subject.not_analysed,
        analysis_seconds=seconds,
    )
    context.folder.write(stage.path_of(context.folder, subject.run), record)


def _looks(
    context: StudyContext,
    group: Sequence[_Subject],
    base: Mapping[str, Tensor],
    cache: SpectralCache,
    is_small: bool,
    share: float,
) -> list[list[tuple[MatrixSpectrum | None, float]]]:
    """What each run of a group did to each layer of the base; they share a full run.

    None where a run did not adapt the layer; and the seconds that it took. ``share`` is the work of
    a run.
    """
    import torch

    from rankwise.engine.models.devices import float64_device
    from rankwise.engine.models.lanes import opened
    from rankwise.engine.models.weights import weight_matrices
    from rankwise.weights.matrix import delta_svd

    device, full = float64_device(context.plan.device), group[0].full
    adapted: Mapping[str, Tensor] | None = None
    if full is not None:
        adapted = weight_matrices(context.folder.weights(full), list(base))

    def of_layer(
        name: str, tell: Callable[[int], None]
    ) -> list[tuple[MatrixSpectrum | None, float]]:
        weight, delta = base[name].to(device), None
        if full is not None and adapted is not None:
            try:
                delta = delta_svd(weight, adapted[name].to(device))
            except ValueError as error:
                problem = f"{full.name}: {name}: {error} Is it of this base model?"
                raise ModelError(problem) from error
        decomposed = cache.svd(weight)
        looks: list[tuple[MatrixSpectrum | None, float]] = []
        for subject in group:
            started = time.perf_counter()
            spectrum = _spectrum(context.study, subject, name, decomposed, delta)
            looks.append((spectrum, time.perf_counter() - started))
        tell(1)
        return looks

    num_lanes = torch.get_num_threads() if device.type == "cpu" and is_small else 1
    with opened(num_lanes) as lanes:
        return lanes.map(
            of_layer,
            list(base),
            lambda num: context.tell.advanced(num * (share / len(base) * len(group))),
        )


def _spectrum(
    study: StudyRecord, subject: _Subject, layer: str, base: Svd, full_update: Svd | None
) -> MatrixSpectrum | None:
    """What a run did to a layer, if it adapted it."""
    from rankwise.weights.matrix import NullDraws, matrix_spectrum

    nulls = NullDraws(study.null_draws, seed=0)
    spectrum = partial(matrix_spectrum, layer, base, top_k=study.top_k, nulls=nulls)
    if subject.run.method == "full":
        assert full_update is not None
        return spectrum(full_update, rank=None)
    update = subject.updates.pop(layer, None)
    if update is None:
        return None
    return spectrum(update.factorization, rank=update.rank, full_update=full_update)


def _subject(context: StudyContext, run: PlannedRun, shapes: Mapping[str, LinearShape]) -> _Subject:
    """What is read of a run; an adapter that is more than LoRA is noted and has no matrices."""
    from rankwise.engine.models.adapter_folder import AdapterFolder
    from rankwise.weights.lowrank import read_updates

    if run.method == "full":
        return _Subject(run, {}, run, None, [])
    folder, tell = context.folder, context.tell
    reference = context.study.full_run_of(run)
    full = reference if reference is not None and is_usable(folder, reference) else None
    try:
        updates = read_updates(AdapterFolder(folder.weights(run)))
    except BeyondLoraError as error:
        tell.noted(f"{run.name} is not analysed: {error}")
        return _Subject(run, {}, full, str(error), [])
    beside = sorted(updates.keys() - shapes.keys())
    reason = None
    if beside:
        reason = f"it adapts {', '.join(beside)}, which is not a linear layer below the head"
        tell.noted(f"{run.name} is not analysed: {reason}")
        updates = {}
    return _Subject(run, updates, full, reason, [])


def _layers(
    context: StudyContext,
    stage: Stage,
    subjects: Sequence[_Subject],
    shapes: Mapping[str, LinearShape],
) -> list[str]:
    """Every layer that is looked into, in the model's order.

    Of full fine-tuning those that any adapter of the study has, also one that is done already.

    Raises:
        RecordError: the record of one that is done cannot be read.
    """
    from rankwise.engine.models.structure import target_shapes

    wanted = {name for subject in subjects for name in subject.updates}
    if any(subject.run.method == "full" for subject in subjects):
        modules = context.study.adapted_modules
        wanted |= set(target_shapes(shapes, modules) if modules else shapes)
        for run in stage.runs:
            path, current = stage.path_of(context.folder, run), stage.fingerprint_of(run)
            record = context.folder.finished(path, SpectraRecord, current)
            wanted |= set() if record is None else {matrix.module for matrix in record.matrices}
    return [name for name in shapes if name in wanted]
