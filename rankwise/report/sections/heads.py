"""The attention heads on the page: what changed in them, what they do, and what was repaired."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import altair as alt

from rankwise.findings.heads import TrainTaskHeads, mode_name
from rankwise.records import quantities
from rankwise.records.results import ModelResults, StudyResults
from rankwise.report.charts.head_maps import HeadFigure, head_figures
from rankwise.report.charts.theme import theme
from rankwise.report.parts import Figure, ReportSection, TitledTable, file_name
from rankwise.report.tables.csv import csv_text
from rankwise.report.tables.heads import (
    change_rows,
    change_table,
    effect_rows,
    effect_table,
    matter_table,
    repair_table,
)

_TITLE_WIDTH, _SUBTITLE_WIDTH = 62, 92


def head_section(found: Sequence[TrainTaskHeads], results: StudyResults) -> ReportSection:
    """For each trained task what was found in words, maps and every number.

    Args:
        found: at least one.
        results: of the study, for what single heads say.
    """
    several = len(found) > 1
    remarks = [
        "Heads are compared with the base's on the same in-domain prompts. What a head matters is "
        "found by taking it off or its delta out, one head at a time (rankwise heads). "
        "Exploratory: the recommendation does not rest on it.",
    ]
    for part in found:
        where = f"Trained on {part.train_task}: " if several else ""
        remarks += [f"{where}{sentence}" for sentence in part.statements]
        remarks += [f"{where}{run}: {reason}" for run, reason in part.left_out.items()]
    if any(model.head_effects or model.head_repair for model in results.runs):
        remarks.append(
            "What heads do and what a repair restores is of one run and conditional on its seed: "
            "with another seed other heads may do it."
        )
    if found[0].num_seeds == 1:
        remarks.append("With one seed, all of this is conditional on that seed.")
    files: dict[str, str] = {}
    if any(model.head_changes and model.head_changes.changes for model in results.runs):
        files["heads.csv"] = csv_text(change_rows(results))
    if any(model.head_effects for model in results.runs):
        files["head-effects.csv"] = csv_text(effect_rows(results))
    return ReportSection(
        name="heads",
        title="Attention heads",
        remarks=tuple(remarks),
        figures=tuple(f for each in found for f in _figures(each, results, several)),
        tables=tuple(table for each in found for table in _tables(each, results, several)),
        files=files,
    )


def _models(found: TrainTaskHeads, results: StudyResults) -> dict[str, ModelResults]:
    return {model.name: model for model in results.of(found.train_task).runs}


def _figures(found: TrainTaskHeads, results: StudyResults, several: bool) -> Iterator[Figure]:
    for each in head_figures(found, _models(found, results)):
        yield _figure(each, found, several)


def _figure(drawn: HeadFigure, found: TrainTaskHeads, several: bool) -> Figure:
    where = f", trained on {found.train_task}" if several else ""
    prefix = f"{file_name(found.train_task)}-" if several else ""
    title = alt.TitleParams(
        textwrap.wrap(f"{drawn.title}{where}", _TITLE_WIDTH),
        subtitle=textwrap.wrap(drawn.detail, _SUBTITLE_WIDTH),
    )
    return Figure(
        f"heads-{prefix}{file_name(drawn.name)}",
        f"{drawn.title}{where}",
        drawn.caption,
        f"{'; '.join(drawn.in_words)}.",
        drawn.chart(title).configure(**theme()),
        is_wide=True,
    )


def _tables(found: TrainTaskHeads, results: StudyResults, several: bool) -> Iterator[TitledTable]:
    where = f", trained on {found.train_task}" if several else ""
    if found.runs:
        yield TitledTable(f"Change of the heads{where}", change_table(found))
    if found.matters:
        yield TitledTable(f"Change and effect{where}", matter_table(found.matters))
    for model in _models(found, results).values():
        for effects in model.head_effects:
            done = mode_name(effects.mode, keys_and_values=effects.keys_and_values)
            title = f"Heads {done}, {found.labels[model.name]} on {effects.task}{where}"
            yield TitledTable(title, effect_table(effects))
    for repair in found.repairs:
        if repair.tasks:
            count = quantities.counted(len(repair.heads), "head")
            yield TitledTable(f"Repair of {repair.model}: {count}{where}", repair_table(repair))
