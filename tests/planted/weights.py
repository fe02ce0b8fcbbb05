"""Spectra of planted runs: what the tests of findings and of the report start from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.spectra import (
    EPSILONS,
    FullOverlap,
    MatrixSpectrum,
    SideChange,
    SpectraRecord,
    UpdateSpectrum,
    VectorChange,
)
from rankwise.records.study import PlannedRun
from tests.planted.grid import grid_run, planted_grid, relations

KINDS = ("self_attn.q_proj", "mlp.up_proj")
NUM_LAYERS = 3
NUM_MATRICES = len(KINDS) * NUM_LAYERS
LEADING = (10, 50)
BASE_NORM = 50.0


def vector_change(similarity: float, intruders: float) -> VectorChange:
    """Left vectors are less similar than right ones by 0.1; more intruders at a higher ε."""
    left = SideChange(
        index_matched=(0.9, similarity - 0.05), best_matched=(0.95, 0.9), overlap=(0.97, 0.96)
    )
    right = left.model_copy(update={"index_matched": (0.9, similarity + 0.05)})
    grid = tuple(intruders if epsilon >= 0.5 else 0.0 for epsilon in EPSILONS)
    return VectorChange(
        left=left, right=right, value_shift=(0.02, 0.01), intruders=(grid, (9.0,) * len(EPSILONS))
    )


def matrix(
    kind: str,
    layer: int | None,
    *,
    rank: int | None,
    norm: float,
    intruders: float = 0.0,
    similarity: float = 0.8,
    nulls: bool = True,
    overlap: float | None = None,
) -> MatrixSpectrum:
    """One matrix of 64 x 48; its nulls have half the intruders, and are turned twice as far."""
    return MatrixSpectrum(
        module=kind if layer is None else f"model.layers.{layer}.{kind}",
        layer=layer,
        kind=kind,
        out_features=64,
        in_features=48,
        base_frobenius_norm=BASE_NORM,
        base_spectral_norm=9.0,
        update=UpdateSpectrum(
            rank=rank,
            frobenius_norm=norm,
            relative_norm=norm / BASE_NORM,
            spectral_norm=norm / 2,
            stable_rank=4.0,
            effective_rank=3.5 + (layer or 0),
            energy_rank_90=2,
            energy_rank_99=5,
        ),
        leading=LEADING,
        change=vector_change(similarity, intruders),
        gaussian_null=vector_change(2 * similarity - 1, intruders / 2) if nulls else None,
        haar_null=vector_change(2 * similarity - 1, intruders / 4) if nulls else None,
        full_overlap=None
        if overlap is None or rank is None
        else FullOverlap(
            rank=rank,
            left=overlap + 0.1,
            right=overlap - 0.1,
            left_expected=rank / 64,
            right_expected=rank / 48,
        ),
    )


def spectra(
    run: PlannedRun,
    norm: Callable[[str], float],
    *,
    intruders: float = 0.0,
    similarity: float = 0.8,
    overlap: float | None = None,
    nulls: bool = True,
) -> SpectraRecord:
    """Of one run: ``norm`` is of each matrix of a kind, ``intruders`` of every matrix."""
    matrices = tuple(
        matrix(
            kind,
            layer,
            rank=run.rank,
            norm=norm(kind),
            intruders=intruders,
            similarity=similarity,
            overlap=overlap,
            nulls=nulls,
        )
        for layer in range(NUM_LAYERS)
        for kind in KINDS
    )
    return record(run, matrices)


def record(
    run: PlannedRun, matrices: tuple[MatrixSpectrum, ...], not_analysed: str | None = None
) -> SpectraRecord:
    return SpectraRecord(
        model=run.name,
        fingerprint="e" * 64,
        epsilons=EPSILONS,
        null_draws=2,
        matrices=matrices,
        not_analysed=not_analysed,
        analysis_seconds=1.0,
    )


def with_spectra(
    results: StudyResults, of: Callable[[PlannedRun], SpectraRecord | None]
) -> StudyResults:
    """The same study with these records; None: the run was not looked into."""

    def looked(model: ModelResults) -> ModelResults:
        assert model.run is not None
        return model.model_copy(update={"spectra": of(model.run.planned)})

    return results.model_copy(update={"models": tuple(looked(model) for model in results.runs)})


RANKS = (4, 8, 16, 32, 64)


FORGET = {4: 0.90, 8: 0.88, 16: 0.85, 32: 0.82, 64: 0.80}


SAME = dict.fromkeys(RANKS, 0.7)


def logarithmic(run: PlannedRun) -> SpectraRecord:
    """Attention grows by 0.5 a doubling from 1 at rank 1, the MLP's matrices by a square root."""
    rank = run.rank or 1024
    norms = {KINDS[0]: 1.0 + 0.5 * math.log2(rank), KINDS[1]: 0.25 * rank**0.5}
    return spectra(run, lambda kind: norms[kind], intruders=math.log2(rank))


def two_tasks(ranks: Sequence[int] = RANKS) -> StudyResults:
    """On organs more rank forgets more, on sums less."""
    plans = [grid_run(train, rank) for train in ("sums", "organs") for rank in ranks]
    tasks = {
        "sums": relations(["sums"], ["organs"], ["facts"]),
        "organs": relations(["organs"], ["sums"], ["facts"]),
    }

    def score(plan: PlannedRun | None, task: str) -> float:
        if plan is None or task != "facts":
            return 0.7
        sign = 1 if plan.train_task == "sums" else -1
        return 0.7 + 0.03 * sign * math.log2(plan.rank or 1)

    return with_spectra(planted_grid(plans, tasks, score), logarithmic)
