"""The weights in numbers: updates of runs, fitted laws, and correlations with forgetting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rankwise.findings.weights import Association, NormTrend, NullPair, RunWeights, TrainTaskWeights
from rankwise.records import quantities
from rankwise.records.results import StudyResults
from rankwise.records.spectra import INTRUDER_EPSILON, VectorChange, intruders_of
from rankwise.records.study import Bound
from rankwise.report.parts import EMPTY, Cell, Heading, RowGroup, Table
from rankwise.report.summaries import correlation_cell


def run_table(found: TrainTaskWeights, intruder_k: int) -> Table:
    """One row for each run; intruders are counted among ``intruder_k`` leading directions."""
    headings = (
        Heading("Model"),
        Heading("‖delta‖_F"),
        Heading("of ‖W₀‖_F", "%"),
        Heading("Effective rank", "median"),
        Heading("Energy rank 99 %", "median"),
        Heading("Intruders", f"k = {intruder_k}, ε = {INTRUDER_EPSILON}"),
        Heading("Similarity", "mean |cos|, same index"),
        Heading("Shared with full", "random directions"),
    )
    rows = tuple(_run_cells(run) for run in found.runs)
    caption = "All adapted matrices of a run together. Medians are over matrices."
    if any(run.similarity.haar is not None for run in found.runs):
        caption += " Small numbers are what random updates have: Gaussian, Haar."
    return Table(caption, headings, (RowGroup("", "", rows),))


def _run_cells(run: RunWeights) -> tuple[Cell, ...]:
    shared = EMPTY
    if run.full_overlap is not None and run.full_overlap_expected is not None:
        shared = Cell(f"{run.full_overlap:.3f}", f"{run.full_overlap_expected:.3f}")
    return (
        Cell(run.option.label),
        Cell(f"{run.frobenius_norm:.3g}"),
        Cell(f"{100 * run.relative_norm:.2g}"),
        Cell(f"{run.effective_rank:.1f}"),
        Cell(f"{run.energy_rank_99:g}"),
        _null_cell(run.intruders, "{:.3g}"),
        _null_cell(run.similarity, "{:.3f}"),
        shared,
    )


def _null_cell(pair: NullPair, form: str) -> Cell:
    nulls = [form.format(null) for null in (pair.gaussian, pair.haar) if null is not None]
    return Cell(form.format(pair.observed), ", ".join(nulls))


def norm_table(found: TrainTaskWeights) -> Table:
    """Both laws for all modules together and for each kind."""
    headings = (
        Heading("Modules"),
        Heading("Logarithm", "norm per doubling of the rank"),
        Heading("R²"),
        Heading("Power law", "exponent of the rank"),
        Heading("R²"),
        Heading("Better"),
    )
    rows = tuple(_norm_cells(trend) for trend in found.norm_trends)
    caption = (
        f"Slopes with {quantities.percent(found.confidence)} intervals by t. One law is better by "
        "more than 2 of Akaike's criterion; with fewer than four ranks that is undecided."
    )
    return Table(caption, headings, (RowGroup("", "", rows),), (0, 5))


def _norm_cells(trend: NormTrend) -> tuple[Cell, ...]:
    log, power = trend.logarithmic, trend.power_law
    return (
        Cell(trend.module, trend.setting),
        _bound_cell(log.slope),
        Cell(f"{log.r_squared:.3f}"),
        _bound_cell(power.slope),
        Cell(f"{power.r_squared:.3f}"),
        Cell(trend.better),
    )


def association_table(found: TrainTaskWeights) -> Table:
    """Every measure of the weights against every kind of forgetting."""
    headings = (
        Heading("Measure"),
        Heading("Forgetting"),
        Heading("Runs"),
        Heading("Spearman's ρ"),
    )
    rows = tuple(_association_cells(association) for association in found.associations)
    caption = (
        f"Over all runs, full fine-tuning among them; intervals at "
        f"{quantities.percent(found.confidence)}. Positive: the more of it, the more is forgotten."
    )
    return Table(caption, headings, (RowGroup("", "", rows),), (0, 1))


def _association_cells(found: Association) -> tuple[Cell, ...]:
    return (
        Cell(found.measure),
        Cell(found.forgetting),
        Cell(quantities.count(found.num_options)),
        correlation_cell(found.correlation, found.reason),
    )


def _bound_cell(bound: Bound) -> Cell:
    estimate, lower, upper = (
        quantities.formatted(value, ".3g") for value in (bound.estimate, bound.lower, bound.upper)
    )
    return Cell(estimate, f"{lower} to {upper}")


def spectrum_rows(results: StudyResults) -> Iterator[dict[str, Any]]:
    """One row for each run and matrix, for the CSV."""
    for model in results.runs:
        if model.spectra is None:
            continue
        epsilons = model.spectra.epsilons
        for matrix in model.spectra.matrices:
            row: dict[str, Any] = {
                "run": model.name,
                "module": matrix.module,
                "layer": matrix.layer,
                "kind": matrix.kind,
                "out_features": matrix.out_features,
                "in_features": matrix.in_features,
                "base_frobenius_norm": matrix.base_frobenius_norm,
                "base_spectral_norm": matrix.base_spectral_norm,
                **matrix.update.model_dump(),
            }
            for name, change in (
                ("trained", matrix.change),
                ("gaussian", matrix.gaussian_null),
                ("haar", matrix.haar_null),
            ):
                row |= _change_row(name, change, matrix.leading, epsilons)
            overlap = matrix.full_overlap
            row["full_overlap_left"] = None if overlap is None else overlap.left
            row["full_overlap_right"] = None if overlap is None else overlap.right
            yield row


def _change_row(
    name: str,
    change: VectorChange | None,
    leading: tuple[int, ...],
    epsilons: tuple[float, ...],
) -> dict[str, float | None]:
    """Over all that were compared, and the intruders at the one entry of the grid."""
    most = leading[-1]
    return {
        f"{name}_vectors": most,
        f"{name}_left_index": None if change is None else change.left.index_matched[-1],
        f"{name}_right_index": None if change is None else change.right.index_matched[-1],
        f"{name}_left_best": None if change is None else change.left.best_matched[-1],
        f"{name}_left_overlap": None if change is None else change.left.overlap[-1],
        f"{name}_value_shift": None if change is None else change.value_shift[-1],
        f"{name}_intruders": None if change is None else intruders_of(change, leading, epsilons),
    }
