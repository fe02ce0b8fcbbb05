"""The weights on the page: how large updates are, where they are, and what they turn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from rankwise.findings.options import first_of_options
from rankwise.findings.trends import means_by_rank
from rankwise.findings.weights import ALL_MODULES, NormTrend, RunWeights, TrainTaskWeights
from rankwise.records import quantities
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.spectra import INTRUDER_EPSILON, INTRUDER_K
from rankwise.report.charts.layer_map import MOST_PANELS, thinned
from rankwise.report.charts.theme import theme
from rankwise.report.charts.weight_maps import (
    SpectrumMap,
    has_layers,
    intruder_map,
    intruders,
    norm_map,
    turned_map,
)
from rankwise.report.charts.weights import (
    RankCurve,
    RankPoint,
    Scatter,
    points_by_rank_chart,
    sampled,
    scatters,
)
from rankwise.report.parts import Chart, Figure, ReportSection, TitledTable, file_name
from rankwise.report.tables.csv import csv_text
from rankwise.report.tables.weights import association_table, norm_table, run_table, spectrum_rows


def weight_section(found: Sequence[TrainTaskWeights], results: StudyResults) -> ReportSection:
    """For each trained task what was found in words, charts, maps, and every number.

    Args:
        found: at least one.
        results: of the study, for what single matrices say.
    """
    several = len(found) > 1
    settings = results.study.config.analysis
    remarks = [
        "Norms and ranks of an update are exact, from its factors. Singular vectors after training "
        f"are compared with the base's own. {_nulls(settings.null_draws)} Exploratory: the "
        "recommendation does not rest on it.",
    ]
    for part in found:
        where = f"Trained on {part.train_task}: " if several else ""
        remarks += [f"{where}{sentence}" for sentence in part.statements]
        remarks += [
            f"{where}{run} was not analysed: {reason}" for run, reason in part.left_out.items()
        ]
    if found[0].num_seeds == 1:
        remarks.append("With one seed, all of this is conditional on that seed.")
    models = {model.name: model for model in results.runs}
    intruder_k = min(INTRUDER_K, settings.top_k)
    return ReportSection(
        name="weights",
        title="Weights",
        remarks=tuple(remarks),
        figures=tuple(f for each in found for f in _figures(each, models, intruder_k, several)),
        tables=tuple(t for each in found for t in _tables(each, intruder_k, several)),
        files={"weights.csv": csv_text(spectrum_rows(results))},
    )


def _nulls(num_draws: int) -> str:
    if not num_draws:
        return "No random updates were drawn to compare with (analysis.null_draws: 0)."
    return (
        "Random updates of the same rank are given for comparison "
        f"({quantities.counted(num_draws, 'draw')} of each kind: Gaussian, of the same norm; Haar, "
        "of the same singular values)."
    )


def _tables(found: TrainTaskWeights, intruder_k: int, several: bool) -> Iterator[TitledTable]:
    where = f", trained on {found.train_task}" if several else ""
    if found.runs:
        yield TitledTable(f"Updates of the runs{where}", run_table(found, intruder_k))
    if found.norm_trends:
        yield TitledTable(f"Norm against rank{where}", norm_table(found))
    if found.associations:
        yield TitledTable(f"Weights and forgetting{where}", association_table(found))


def _figures(
    found: TrainTaskWeights, models: dict[str, ModelResults], intruder_k: int, several: bool
) -> Iterator[Figure]:
    adapters = [run for run in found.runs if run.option.rank is not None]
    if adapters:
        yield _norm_figure(found, adapters, several)
    if any(run.full_overlap is not None for run in adapters):
        yield _overlap_figure(found, adapters, several)
    if any(run.forgetting for run in found.runs):
        yield _forgetting_figure(found, intruder_k, several)
    yield from weight_maps(found, models, several)


def _norm_figure(found: TrainTaskWeights, runs: Sequence[RunWeights], several: bool) -> Figure:
    trends = [trend for trend in found.norm_trends if trend.module == ALL_MODULES]
    full = means_by_rank((0, run.frobenius_norm) for run in found.runs if run.option.rank is None)
    curves = list(_laws(trends[0])) if len(trends) == 1 else []
    points = [RankPoint(run.option.rank or 1, run.frobenius_norm) for run in runs]
    title = "Norm of the update by rank"
    chart = points_by_rank_chart(
        points,
        curves,
        "Frobenius norm of the update",
        weight_title(title, "one point for each run", found, several),
        across=full.get(0),
    )
    caption = "The Frobenius norm of the whole update. "
    if curves:
        caption += "Lines are the two laws that were fitted; the table has them by module too."
    elif trends:
        caption += "Laws were fitted for each setting separately; they are in the table."
    else:
        caption += "To fit a law, three different ranks and norms above zero are needed."
    words = [f"{run.option.label} {run.frobenius_norm:.3g}" for run in found.runs]
    return weight_figure(found, "norm", title, caption, words, chart, several)


def _laws(trend: NormTrend) -> Iterator[RankCurve]:
    low, high = min(trend.ranks), max(trend.ranks)
    log, power = trend.logarithmic, trend.power_law

    def logarithm(rank: float) -> float:
        return log.intercept + log.slope.estimate * math.log2(rank)

    def power_law(rank: float) -> float:
        return math.exp(power.intercept) * rank**power.slope.estimate

    yield RankCurve(f"logarithm, R² {log.r_squared:.3f}", sampled(low, high, logarithm))
    yield RankCurve(f"power law, R² {power.r_squared:.3f}", sampled(low, high, power_law))


def _overlap_figure(found: TrainTaskWeights, runs: Sequence[RunWeights], several: bool) -> Figure:
    points = [
        RankPoint(run.option.rank or 1, run.full_overlap)
        for run in runs
        if run.full_overlap is not None
    ]
    expected = sorted(
        {
            (float(run.option.rank or 1), run.full_overlap_expected)
            for run in runs
            if run.full_overlap_expected is not None
        }
    )
    title = "Directions shared with full fine-tuning by rank"
    chart = points_by_rank_chart(
        points,
        [RankCurve("random directions", tuple(expected))],
        "Shared share of directions",
        weight_title(title, "mean over matrices, left and right", found, several),
    )
    caption = (
        "How much of the space of an update's directions lies in that of as many leading "
        "directions of full fine-tuning's update. The line is what random directions would share."
    )
    words = [f"rank {point.rank} {point.value:.3f}" for point in points]
    return weight_figure(found, "overlap", title, caption, words, chart, several)


def _forgetting_figure(found: TrainTaskWeights, intruder_k: int, several: bool) -> Figure:
    names = list(dict.fromkeys(name for run in found.runs for name in run.forgetting))
    units = {association.forgetting: association.unit for association in found.associations}
    panels = [
        Scatter(
            title="",
            x_title=x_title,
            y_title=f"{quantities.capital(name)} ({units[name]})",
            marks=tuple(
                (run.option.label, run.option.kind, value(run), run.forgetting[name])
                for run in found.runs
                if name in run.forgetting
            ),
        )
        for name in names
        for x_title, value in _against(found)
    ]
    title = "Weights and forgetting"
    chart = alt.vconcat(
        *(scatters(panels[at : at + 2], alt.TitleParams("")) for at in range(0, len(panels), 2))
    ).properties(title=weight_title(title, "one point for each run, at its rank", found, several))
    caption = (
        f"Intruder dimensions are among the {intruder_k} leading directions of every matrix "
        f"(ε = {INTRUDER_EPSILON}), all matrices together; where all runs have the same number, "
        "the share by which directions have turned is drawn instead."
    )
    words = [
        f"{run.option.label}: {run.intruders.observed:g} intruders, "
        + ", ".join(f"{name} {value:.3g}" for name, value in run.forgetting.items())
        for run in found.runs
    ]
    return weight_figure(found, "forgetting", title, caption, words, chart, several, is_wide=True)


def _against(found: TrainTaskWeights) -> list[tuple[str, Callable[[RunWeights], float]]]:
    """What forgetting is drawn against: intruders where runs differ in them."""
    measures: list[tuple[str, Callable[[RunWeights], float]]] = [
        ("Intruder dimensions", lambda run: run.intruders.observed),
        ("Turned directions (1 − mean |cos|)", lambda run: 1.0 - run.similarity.observed),
        ("Norm of the update", lambda run: run.frobenius_norm),
    ]
    if len({run.intruders.observed for run in found.runs}) == 1:
        return measures[1:]
    return [measures[0], measures[2]]


_SUBTITLE_WIDTH = 92


def weight_maps(
    found: TrainTaskWeights, models: Mapping[str, ModelResults], several: bool
) -> Iterator[Figure]:
    """The size of updates, turned directions and intruders, each where it was measured.

    Args:
        found: of one trained task.
        models: runs by name.
        several: whether the study trained several tasks.
    """
    shown = _shown_runs(found)
    matrices = {
        run.run: spectra.matrices
        for run in shown
        if (spectra := models[run.run].spectra) is not None
    }
    if not has_layers(each for own in matrices.values() for each in own):
        return
    maps = [norm_map({run.option.label: matrices[run.run] for run in shown})]
    adapters = [run for run in shown if run.option.rank is not None]
    for run in adapters[-1:] or shown[-1:]:
        label, own = run.option.label, matrices[run.run]
        maps.append(turned_map(label, own))
        if any(intruders(each.change, each) for each in own):
            maps.append(intruder_map(label, own))
    yield from (_drawn(each, found, several) for each in maps if each.panels)


def _shown_runs(found: TrainTaskWeights) -> list[RunWeights]:
    """The first run of the options: ranks from small to large, then full; evenly thinned out."""
    return thinned(first_of_options(found.runs), MOST_PANELS)


def _drawn(drawn: SpectrumMap, found: TrainTaskWeights, several: bool) -> Figure:
    chart = drawn.chart(weight_title(drawn.title, drawn.detail, found, several))
    return weight_figure(
        found,
        drawn.name,
        drawn.title,
        drawn.caption,
        drawn.in_words,
        chart,
        several,
        is_wide=True,
    )


def weight_title(
    title: str, detail: str, found: TrainTaskWeights, several: bool
) -> alt.TitleParams:
    """A title with what the numbers are below it; the trained task where there are several."""
    where = f", trained on {found.train_task}" if several else ""
    return alt.TitleParams(
        textwrap.wrap(f"{title}{where}", _SUBTITLE_WIDTH - 30),
        subtitle=textwrap.wrap(detail, _SUBTITLE_WIDTH),
    )


def weight_figure(
    found: TrainTaskWeights,
    name: str,
    title: str,
    caption: str,
    words: Sequence[str],
    chart: Chart,
    several: bool,
    **options: Any,
) -> Figure:
    """A figure of this section, by its short name and in words."""
    where = f", trained on {found.train_task}" if several else ""
    prefix = f"{file_name(found.train_task)}-" if several else ""
    return Figure(
        f"weights-{prefix}{name}",
        f"{title}{where}",
        caption,
        f"{'; '.join(words)}.",
        chart.configure(**theme()),
        **options,
    )
