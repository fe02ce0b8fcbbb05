"""Records to one self-contained HTML page, and its figures and tables as files beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rankwise.errors import StorageError
from rankwise.records import RELATIONS, Outcome, Recommendation, StudyResults
from rankwise.report.chart_theme import Colour, page_colours
from rankwise.report.comparison_tables import relation_table
from rankwise.report.csv_tables import csv_tables
from rankwise.report.figures import Chart, Figure, study_figures
from rankwise.report.inline_svg import inline_svg
from rankwise.report.measures import summarise
from rankwise.report.study_facts import (
    base_model_name,
    judgement_facts,
    provenance_facts,
    source_name,
    study_warnings,
    training_facts,
)
from rankwise.report.summaries import (
    COLUMNS,
    RELATION_NAMES,
    verdict_headings,
    verdict_notes,
    verdict_table,
)
from rankwise.report.tables import Table, decision_table, measured_table, metrics_table
from rankwise.store import StudyFolder, write_atomically

__all__ = ["verdict_table", "write_report"]

FILES = "report"
PNG_SCALE = 2.5

OUTCOMES: dict[Outcome, str] = {
    "recommended": "Recommended",
    "no_evidence": "No evidence for fine-tuning",
    "none_keeps_enough": "No rank keeps enough",
    "cannot_tell": "Cannot tell",
}

# Columns of the verdict table that hold words or settings, not measurements.
_SETTING_COLUMNS = ("model", "seed", "alpha", "learning_rate", "parameters")
_SCORE_COLUMNS = (
    "in_domain",
    "gain",
    "out_of_domain",
    "retention",
    "worst_retention",
    "forgetting",
)


class _Drawn(NamedTuple):
    """A figure with its exports; ``svg`` is empty where there is nothing to draw."""

    figure: Figure
    number: int
    svg: str
    png: bytes

    @property
    def inline(self) -> Markup:
        """For the page: our own exporter's SVG, parsed and cleaned, so it needs no escaping."""
        name = self.figure.name
        text = inline_svg(self.svg, name, self.figure.title, self.figure.description)
        return Markup(text)  # noqa: S704


def write_report(folder: Path, results: StudyResults, recommendation: Recommendation) -> Path:
    """Write ``report.html`` and the folder ``report/`` into a study's folder.

    The page is written last and holds everything it shows; files of an earlier report that this
    one does not have are removed.

    Returns:
        The path of the page.

    Raises:
        StorageError: the folder cannot be written.
    """
    drawn = _draw(study_figures(results, recommendation))
    page = render_page(results, recommendation, drawn)
    for each in drawn:
        files = {".svg": each.svg, ".png": each.png}
        for suffix, content in files.items():
            path = folder / FILES / f"{each.figure.name}{suffix}"
            if content:
                write_atomically(path, content)
            else:
                _remove(path)
    for name, text in csv_tables(results, recommendation).items():
        write_atomically(folder / FILES / name, text)
    path = StudyFolder(folder).report_file
    write_atomically(path, page)
    return path


def render_page(
    results: StudyResults, recommendation: Recommendation, drawn: Sequence[_Drawn]
) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("rankwise.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    summaries = summarise(results, recommendation)
    rows = verdict_table(results, recommendation)
    columns = _columns(len(results.study.config.seeds) > 1)
    return environment.get_template("report.html").render(
        study=results.study,
        base_model=base_model_name(results.study.config),
        trained_on=source_name(results.study.config),
        recommendation=recommendation,
        outcome=OUTCOMES[recommendation.outcome],
        judgement=judgement_facts(recommendation),
        warnings=study_warnings(results),
        rows=rows,
        columns=columns,
        score_columns=_SCORE_COLUMNS,
        headings=verdict_headings(results, recommendation),
        notes=verdict_notes(results, recommendation),
        figures=drawn,
        decision=decision_table(recommendation),
        relations=_relations(results, recommendation),
        measured=measured_table(results),
        metrics=metrics_table(results, recommendation),
        training=training_facts(results),
        provenance=provenance_facts(results),
        dark=_dark_rules(page_colours(each.kind for each in summaries)),
        files=FILES,
    )


def _draw(figures: Sequence[Figure]) -> tuple[_Drawn, ...]:
    drawn: list[_Drawn] = []
    number = 0
    for figure in figures:
        if figure.chart is None:
            drawn.append(_Drawn(figure, 0, "", b""))
            continue
        number += 1
        drawn.append(_Drawn(figure, number, _svg(figure.chart), _png(figure.chart)))
    return tuple(drawn)


def _svg(chart: Chart) -> str:
    file = io.StringIO()
    chart.save(file, format="svg")
    return file.getvalue()


def _png(chart: Chart) -> bytes:
    file = io.BytesIO()
    chart.save(file, format="png", scale_factor=PNG_SCALE)
    return file.getvalue()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be removed: {error.strerror}") from error


def _columns(has_seeds: bool) -> tuple[str, ...]:
    """All columns; the seed is one only where there are several."""
    return tuple(name for name in COLUMNS if has_seeds or name != "seed")


def _relations(
    results: StudyResults, recommendation: Recommendation
) -> tuple[tuple[str, Table | str], ...]:
    """The title of every relation, and its table or why there is none."""
    found: list[tuple[str, Table | str]] = []
    for relation in RELATIONS:
        table = relation_table(results, recommendation, relation)
        if table is None:
            named = bool(results.study.tasks.get(relation))
            reason = "no run was scored" if named else "the study names no such task"
            table = f"Not measured: {reason}."
        found.append((RELATION_NAMES[relation].capitalize(), table))
    return tuple(found)


def _dark_rules(colours: Sequence[Colour]) -> Markup:
    """Style rules that put the dark partner in the place of every colour of a chart."""
    rules = [
        f'.chart [{name}="{colour.light}"] {{ {name}: {colour.dark}; }}'
        for colour in colours
        for name in ("fill", "stroke")
    ]
    return Markup("\n".join(rules))  # noqa: S704
