"""The weights on the page: how large updates are, where they are, and what they turn."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rankwise.findings.options import first_of_options
from rankwise.findings.trends import means_by_rank
from rankwise.findings.weights import (
    ALL_MODULES,
    RunWeights,
    TrainTaskWeights,
    audited_weights,
)
from rankwise.records import quantities
from rankwise.records.audits import AuditRecord
from rankwise.records.grouping import grouped
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.spectra import (
    EPSILONS,
    INTRUDER_EPSILON,
    INTRUDER_K,
    MatrixSpectrum,
    VectorChange,
    intruder_k,
    intruders_of,
    similarity,
)
from rankwise.report import cells
from rankwise.report.cells import Cell
from rankwise.report.charts.heatmap import MOST_PANELS, HeatScale, LayerMap, layer_maps, percent
from rankwise.report.charts.marks import MarkStyle
from rankwise.report.charts.plane import Plane, PlaneMark, plane_chart
from rankwise.report.charts.ranks import (
    RankCurve,
    RankLine,
    RankMark,
    RankPanel,
    curve_of,
    rank_chart,
)
from rankwise.report.parts import (
    LEAST_POINTS,
    Column,
    Figure,
    ReportSection,
    Shown,
    Table,
    TitledTable,
    shows,
    thinned,
)


@shows("weights")
def weight_section(found: Sequence[TrainTaskWeights], results: StudyResults) -> ReportSection:
    """What was found of each trained task in words, charts, maps, and every number.

    Args:
        found: at least one.
        results: of the study, for what single matrices say.
    """
    study = results.study
    about = [
        "Norms and ranks of an update are exact, from its factors. "
        f"{_compared_with(study.null_draws, 'analysis.null_draws: 0')} Exploratory: the "
        "recommendation does not rest on it.",
        *cells.of_one_seed(found[0].num_seeds),
    ]
    models = {model.name: model for model in results.runs}
    num_leading = min(INTRUDER_K, study.top_k)

    def shown(part: TrainTaskWeights) -> Iterator[Shown]:
        yield from (f"{run} was not analysed: {why}" for run, why in part.not_analysed.items())
        yield Table.in_files("weights", _matrices(models[run.run] for run in part.runs))
        yield "Updates of the runs", _run_table(part.runs, num_leading)
        yield "Norm against rank", _norm_table(part)
        yield from _norms(part)
        yield from _overlap(part)
        if sum(bool(run.forgetting) for run in part.runs) >= LEAST_POINTS:
            yield _forgetting_figure(part, num_leading)
        yield from _maps(part, models)
        associations = Table.of(
            "Over all runs, full fine-tuning among them; intervals at "
            f"{quantities.percent(part.confidence)}. Positive: the more of it, the more is "
            "forgotten.",
            [pair for pair in part.associations if pair.num_options >= LEAST_POINTS],
            Column("measure", "Measure"),
            Column("forgetting", "Forgetting"),
            Column("num_options", "Options"),
            Column(lambda row: cells.correlation(row.correlation, row.reason), "Spearman's ρ"),
        )
        yield "Weights and forgetting", associations

    return ReportSection.of("weights", "Weights", about, found, shown)


def audited_section(record: AuditRecord) -> ReportSection:
    """The same for one model that was audited, whose update is not zero."""
    weights, matrices = audited_weights(record), record.matrices
    remarks = [_compared_with(record.null_draws, "--null-draws 0")]
    if record.ranks and record.cut is not None and record.cut.rank < record.ranks[-1]:
        base, adapter = shlex.quote(record.base), shlex.quote(record.target)
        remarks.append(
            "Energy says what of the weights is kept, not what of the scores. To cut each matrix "
            f"and score the result: `rankwise repair {base} {adapter} --by energy=0.9 --tasks TASK "
            "--retention TASK --max-loss 1 --output repaired`, with your tasks."
        )
    label = weights.option.label
    figures = [*_norm_map({label: matrices}), *_maps_of(label, matrices)]
    table = TitledTable("The update", _run_table([weights], intruder_k(matrices)))
    return ReportSection("weights", "Weights", remarks, figures, [table])


_OF_MATRIX = {"module", "layer", "kind", "out_features", "in_features", "base_frobenius_norm",
              "base_spectral_norm"}  # fmt: skip


def _matrices(models: Iterable[ModelResults]) -> Iterator[tuple[Any, ...]]:
    """Every matrix of some runs, over all vectors that were compared, at the grid's one entry."""
    for model, spectra in ((model, model.spectra) for model in models if model.spectra):
        for matrix in spectra.matrices:
            overlap, most = matrix.full_overlap, matrix.leading[-1]
            turned: dict[str, dict[str, float | None]] = {
                name.lower(): {
                    "vectors": most,
                    "left_index": change and change.left.index_matched[-1],
                    "right_index": change and change.right.index_matched[-1],
                    "left_best": change and change.left.best_matched[-1],
                    "left_overlap": change and change.left.overlap[-1],
                    "value_shift": change and change.value_shift[-1],
                    "intruders": change and intruders_of(change, matrix.leading, spectra.epsilons),
                }
                for name, change in _changes(matrix).items()
            }
            shared = {"left": overlap and overlap.left, "right": overlap and overlap.right}
            own = {"run": model.name, **matrix.model_dump(include=_OF_MATRIX)}
            yield own, matrix.update, turned, {"full_overlap": shared}


def _changes(matrix: MatrixSpectrum) -> dict[str, VectorChange | None]:
    """What training has turned, and what random updates do."""
    return {"trained": matrix.change, "Gaussian": matrix.gaussian_null, "Haar": matrix.haar_null}


def _compared_with(null_draws: int, setting: str) -> str:
    """What singular vectors are compared with; ``setting`` is that of no random updates."""
    compared = "Singular vectors after training are compared with the base's own."
    if not null_draws:
        return f"{compared} No random updates were drawn to compare with ({setting})."
    return (
        f"{compared} Random updates of the same rank are given for comparison "
        f"({quantities.counted(null_draws, 'draw')} of each kind: Gaussian, of the same norm; "
        "Haar, of the same singular values)."
    )


def _run_table(runs: Sequence[RunWeights], num_leading: int) -> Table:
    def shared(run: RunWeights) -> Cell | None:
        if run.full_overlap is None or run.full_overlap_expected is None:
            return None
        return cells.beside("{:.3f}", run.full_overlap, [run.full_overlap_expected])

    caption = "All adapted matrices together. Medians are over matrices."
    if any(run.similarity.haar is not None for run in runs):
        caption += " Small numbers are what random updates have: Gaussian, Haar."
    return Table.of(
        caption,
        runs,
        Column("option.label", "Model"),
        Column("frobenius_norm", "‖delta‖_F", write=".3g"),
        Column(lambda run: f"{100 * run.relative_norm:.2g}", "of ‖W₀‖_F", "%"),
        Column("effective_rank", "Effective rank", "median", ".1f"),
        Column("energy_rank_99", "Energy rank 99 %", "median", "g"),
        Column(
            lambda run: cells.beside_nulls("{:.3g}", run.intruders),
            "Intruders",
            f"k = {num_leading}, ε = {INTRUDER_EPSILON}",
        ),
        Column(
            lambda run: cells.beside_nulls("{:.3f}", run.similarity),
            "Similarity",
            "mean |cos|, same index",
        ),
        Column(shared, "Shared with full", "random directions"),
    )


def _norm_table(found: TrainTaskWeights) -> Table:
    """Both laws for all modules together and for each kind."""
    return Table.of(
        f"Slopes with {quantities.percent(found.confidence)} intervals by t; R² of the norms "
        "themselves.",
        found.norm_trends,
        Column(lambda row: Cell(row.module, row.setting), "Modules"),
        Column("logarithmic.slope", "Logarithm", "norm per doubling of the rank", ".3g"),
        Column("logarithmic.r_squared", "R²", write=".3f"),
        Column("power_law.slope", "Power law", "exponent of the rank", ".3g"),
        Column("power_law.r_squared", "R²", write=".3f"),
    )


def _norms(found: TrainTaskWeights) -> Iterator[Figure]:
    marks = [
        RankMark(run.option.rank, run.frobenius_norm, name=run.option.label)
        for run in found.runs
        if run.option.rank is not None
    ]
    if not marks:
        return
    trends = [trend for trend in found.norm_trends if trend.module == ALL_MODULES]
    full = means_by_rank((0, run.frobenius_norm) for run in found.runs if run.option.rank is None)
    curves: dict[str, RankCurve] = {}
    if len(trends) == 1:
        log, power, ranks = trends[0].logarithmic, trends[0].power_law, trends[0].ranks
        slope, exponent = log.slope.estimate, power.slope.estimate
        laws: dict[str, Callable[[float], float]] = {
            f"logarithm, R² {log.r_squared:.3f}": lambda rank: (
                log.intercept + slope * math.log2(rank)
            ),
            f"power law, R² {power.r_squared:.3f}": lambda rank: (
                math.exp(power.intercept) * rank**exponent
            ),
        }
        curves = {name: curve_of(law, ranks) for name, law in laws.items()}
    caption = "The Frobenius norm of the whole update. "
    if curves:
        caption += "Lines are the two laws that were fitted; the table has them by module too."
    elif trends:
        caption += "Laws were fitted for each setting separately; they are in the table."
    else:
        caption += "To fit a law, three different ranks and norms above zero are needed."
    panel = RankPanel(
        "Frobenius norm of the update",
        marks,
        [RankLine("full", "full", norm) for norm in full.values()],
        curves,
    )
    title, detail = "Norm of the update by rank", "one point for each run"
    yield Figure("norm", title, caption, rank_chart([panel]), detail)


def _overlap(found: TrainTaskWeights) -> Iterator[Figure]:
    marks: list[RankMark] = []
    expected: set[tuple[float, float]] = set()
    for run in found.runs:
        overlap, of_random, rank = run.full_overlap, run.full_overlap_expected, run.option.rank
        if rank is not None and overlap is not None and of_random is not None:
            marks.append(RankMark(rank, overlap, name=run.option.label))
            expected.add((float(rank), of_random))
    if not marks:
        return
    panel = RankPanel(
        "Shared share of directions",
        marks,
        curves={"random directions": sorted(expected)},
        write=lambda value: f"{value:.3f}",
    )
    yield Figure(
        "overlap",
        "Directions shared with full fine-tuning by rank",
        "How much of the space of an update's directions lies in that of as many leading "
        "directions of full fine-tuning's update. The line is what random directions would share.",
        rank_chart([panel]),
        "mean over matrices, left and right",
    )


def _forgetting_figure(found: TrainTaskWeights, num_leading: int) -> Figure:
    names = dict.fromkeys(name for run in found.runs for name in run.forgetting)
    units = {association.forgetting: association.unit for association in found.associations}
    against: list[tuple[str, Callable[[RunWeights], float]]] = [
        ("Intruder dimensions", lambda run: run.intruders.observed),
        ("Norm of the update", lambda run: run.frobenius_norm),
    ]
    if len({run.intruders.observed for run in found.runs}) == 1:  # runs do not differ in them
        against[0] = "Turned directions (1 − mean |cos|)", lambda run: 1.0 - run.similarity.observed
    planes = [
        Plane(
            x_title,
            f"{quantities.capital(name)} ({units[name]})",
            [
                PlaneMark(
                    str(run.option.kind),
                    MarkStyle.of(run.option.kind),
                    value(run),
                    run.forgetting[name],
                    f"{run.option.label}: {run.intruders.observed:g} intruders, {name} "
                    f"{run.forgetting[name]:.3g}",
                )
                for run in found.runs
                if name in run.forgetting
            ],
        )
        for name in names
        for x_title, value in against
    ]
    return Figure(
        "forgetting",
        "Weights and forgetting",
        f"Intruder dimensions are among the {num_leading} leading directions of every matrix "
        f"(ε = {INTRUDER_EPSILON}), all matrices together; where all runs have the same number, "
        "the share by which directions have turned is drawn instead.",
        plane_chart(planes),
        "one point for each run, at its rank",
    )


def _maps(found: TrainTaskWeights, models: Mapping[str, ModelResults]) -> Iterator[Figure]:
    """The size of updates, turned directions and intruders, each where it was measured.

    Drawn are the first runs of the options, from small ranks to full, evenly thinned out.
    """
    shown = thinned(first_of_options(found.runs), MOST_PANELS)
    matrices = {
        run.run: spectra.matrices
        for run in shown
        if (spectra := models[run.run].spectra) is not None
    }
    yield from _norm_map({run.option.label: matrices[run.run] for run in shown})
    adapters = [run for run in shown if run.option.rank is not None]
    for run in adapters[-1:] or shown[-1:]:
        yield from _maps_of(run.option.label, matrices[run.run])


def _maps_of(label: str, matrices: Sequence[MatrixSpectrum]) -> Iterator[Figure]:
    """What one model has turned, and its intruders where there are any."""
    yield from _turned_map(label, matrices)
    if any(_intruders(matrix.change, matrix) for matrix in matrices):
        yield from _intruder_map(label, matrices)


def _norm_map(matrices: Mapping[str, Sequence[MatrixSpectrum]]) -> Iterator[Figure]:
    """The size of the updates of some models, by what they are called."""
    panels = {
        label: [(matrix, matrix.update.relative_norm) for matrix in own]
        for label, own in matrices.items()
    }
    return _map_figure(
        "map-norm",
        "Size of the update by layer and module",
        "% of the base's norm; rows are layers",
        "‖delta‖_F of each matrix relative to the base's own norm, in percent.",
        panels,
        percent,
    )


def _turned_map(label: str, matrices: Sequence[MatrixSpectrum]) -> Iterator[Figure]:
    """How far singular vectors of one model have turned, compared with random updates."""
    most = max(matrix.leading[-1] for matrix in matrices)
    caption = (
        f"1 − |cos| of singular vectors of one index before and after, in percent, mean of left "
        f"and right over the leading {most} (or the matrix's own number)."
    )
    if _are_drawn(matrices):
        caption += (
            " Beside it the same under random updates: what is no larger than there is a matter of "
            "size alone."
        )
    return _map_figure(
        "map-turned",
        f"Turned singular vectors, {label}",
        "1 − |cos| in %; rows are layers",
        caption,
        _with_nulls(matrices, lambda change, _: 1.0 - similarity(change)),
        percent,
    )


def _intruder_map(label: str, matrices: Sequence[MatrixSpectrum]) -> Iterator[Figure]:
    """Where intruder dimensions of one model are, compared with random updates."""
    k = intruder_k(matrices)
    beside = "; next to it the means under random updates" if _are_drawn(matrices) else ""
    return _map_figure(
        "map-intruders",
        f"Intruder dimensions, {label}",
        f"of {k} leading vectors; rows are layers",
        f"How many of the {k} leading left singular vectors after training have no |cos| of "
        f"{INTRUDER_EPSILON} or more with any of the base's{beside}.",
        _with_nulls(matrices, _intruders),
        lambda value: f"{value:.2g}",
    )


def _intruders(change: VectorChange, matrix: MatrixSpectrum) -> float:
    """The count at the standard k and ε."""
    return intruders_of(change, matrix.leading, EPSILONS)


_Panels = Mapping[str, Sequence[tuple[MatrixSpectrum, float | None]]]
"""The panels by title: matrices with their numbers, None where nothing was measured."""


def _map_figure(
    name: str, title: str, detail: str, caption: str, panels: _Panels, words: Callable[[float], str]
) -> Iterator[Figure]:
    """The figure of the panels that have values, with one scale; nothing where none has."""
    kinds = {matrix.kind for own in panels.values() for matrix, _ in own}
    ends = Counter(kind.rpartition(".")[2] for kind in kinds)

    def short(kind: str) -> str:
        """The last part of a kind's name, or all of it where others end alike."""
        end = kind.rpartition(".")[2]
        return end if ends[end] == 1 else kind

    values = {
        title: {
            (matrix.layer, short(matrix.kind)): value
            for matrix, value in own
            if matrix.layer is not None and value is not None
        }
        for title, own in panels.items()
    }
    scale = HeatScale.of([value for own in values.values() for value in own.values()], words)
    maps = [LayerMap(label, own, scale) for label, own in values.items() if own]
    if maps:
        yield Figure(name, title, caption, layer_maps(maps), detail)


def _are_drawn(matrices: Iterable[MatrixSpectrum]) -> bool:
    return any(matrix.haar_null is not None for matrix in matrices)


def _with_nulls(
    matrices: Sequence[MatrixSpectrum], value: Callable[[VectorChange, MatrixSpectrum], float]
) -> _Panels:
    changes = (
        (title, matrix, change) for matrix in matrices for title, change in _changes(matrix).items()
    )
    return grouped((title, (m, change and value(change, m))) for title, m, change in changes)
