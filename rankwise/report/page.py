"""The report: one self-contained HTML page, and its figures and tables as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import StorageError
from rankwise.findings.models import ModelSummary, summarise
from rankwise.findings.signatures.found import not_looked_for
from rankwise.findings.study import StudyFindings
from rankwise.records.files import write_atomically
from rankwise.records.folder import StudyFolder
from rankwise.records.judgement import Outcome
from rankwise.records.recommendation import Recommendation, StudyRecommendation
from rankwise.records.results import StudyResults, TrainTaskResults
from rankwise.records.study import RELATIONS
from rankwise.report.charts.theme import page_colours
from rankwise.report.facts import (
    base_model_name,
    judgement_facts,
    provenance_facts,
    source_name,
    study_warnings,
    training_facts,
)
from rankwise.report.parts import ReportSection, Table, file_name
from rankwise.report.rendering import (
    DrawnFigure,
    DrawnSection,
    dark_rules,
    draw_figures,
    drawn_sections,
    render_template,
)
from rankwise.report.sections.axes import axis_section
from rankwise.report.sections.behaviour import behaviour_section
from rankwise.report.sections.checkpoints import checkpoint_section
from rankwise.report.sections.claims import claims_section
from rankwise.report.sections.gauges import gauge_section, lost_item_section
from rankwise.report.sections.heads import head_section
from rankwise.report.sections.mechanisms import mechanism_section
from rankwise.report.sections.mitigations import mitigation_section
from rankwise.report.sections.overview import study_figures
from rankwise.report.sections.repairs import repair_section
from rankwise.report.sections.retention import retention_section
from rankwise.report.sections.search import search_section
from rankwise.report.sections.signatures import signature_section
from rankwise.report.sections.transfer import transfer_section
from rankwise.report.sections.truncation import truncation_section
from rankwise.report.sections.variants import variant_section
from rankwise.report.sections.weights import weight_section
from rankwise.report.summaries import (
    COLUMNS,
    RELATION_NAMES,
    verdict_headings,
    verdict_notes,
    verdict_table,
)
from rankwise.report.tables.comparisons import format_table, relation_table
from rankwise.report.tables.csv import csv_tables
from rankwise.report.tables.decision import (
    decision_table,
    epsilon_table,
    measured_table,
    metrics_table,
    odds_table,
    prospect_table,
)

__all__ = ["verdict_table", "write_report"]

FILES = "report"

OUTCOMES: dict[Outcome, str] = {
    "recommended": "Recommended",
    "no_evidence": "No evidence for fine-tuning",
    "none_keeps_enough": "No rank keeps enough",
    "cannot_tell": "Not settled",
}

_SCORE_COLUMNS = (
    "in_domain",
    "gain",
    "out_of_domain",
    "retention",
    "worst_retention",
    "forgetting",
)


class _Part(NamedTuple):
    """What the page shows of one trained task; ``prefix`` begins the names of its files."""

    results: TrainTaskResults
    recommendation: Recommendation
    summaries: tuple[ModelSummary, ...]
    prefix: str
    figures: tuple[DrawnFigure, ...]


def write_report(
    folder: Path,
    results: StudyResults,
    recommendation: StudyRecommendation,
    findings: StudyFindings,
) -> Path:
    """Write ``report.html`` and the folder ``report/`` into a study's folder.

    The page is written last and holds everything it shows; files of an earlier report that this
    one does not have are removed.

    Returns:
        The path of the page.

    Raises:
        StorageError: the folder cannot be written.
    """
    parts = _parts(results, recommendation)
    number = max((drawn.number for part in parts for drawn in part.figures), default=0)
    sections = drawn_sections(study_sections(results, recommendation, findings), number)
    page = render_page(results, parts, sections)
    files: dict[str, str | bytes] = {}
    for drawn in (drawn for shown in (*parts, *sections) for drawn in shown.figures):
        if drawn.svg:
            files |= {f"{drawn.figure.name}.svg": drawn.svg, f"{drawn.figure.name}.png": drawn.png}
    for part in parts:
        tables = csv_tables(part.results, part.recommendation, part.summaries)
        files |= {f"{part.prefix}{name}": text for name, text in tables.items()}
    for section in sections:
        files |= section.section.files
    _replace_files(folder / FILES, files)
    path = StudyFolder(folder).report_file
    write_atomically(path, page)
    return path


def _parts(results: StudyResults, recommendation: StudyRecommendation) -> tuple[_Part, ...]:
    several = len(recommendation.by_train_task) > 1
    parts: list[_Part] = []
    number = 0
    for part in recommendation.by_train_task:
        prefix = f"{file_name(part.train_task)}-" if several else ""
        its_results = results.of(part.train_task)
        summaries = summarise(its_results, part)
        figures = [
            figure._replace(name=f"{prefix}{figure.name}")
            for figure in study_figures(its_results, part, summaries)
        ]
        drawn = draw_figures(figures, number)
        number = max([number, *(figure.number for figure in drawn)])
        parts.append(_Part(its_results, part, summaries, prefix, drawn))
    return tuple(parts)


def _replace_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write these files, and remove what an earlier report left there."""
    for name, content in files.items():
        write_atomically(folder / name, content)
    for path in folder.iterdir():
        if path.name not in files and path.suffix in (".svg", ".png", ".csv"):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"{path} cannot be removed: {error.strerror}") from error


def render_page(
    results: StudyResults, parts: Sequence[_Part], sections: Sequence[DrawnSection]
) -> str:
    """The page as text."""
    return render_template(
        "report.html",
        study=results.study,
        base_model=base_model_name(results.study.config),
        trained_on=source_name(results.study.config),
        # one outcome, or how many trained tasks there are
        headline=_answer(parts[0]) if len(parts) == 1 else f"{len(parts)} trained tasks",
        warnings=study_warnings(results),
        # the seed is a column only where there are several
        columns=[name for name in COLUMNS if name != "seed" or len(results.study.config.seeds) > 1],
        score_columns=_SCORE_COLUMNS,
        parts=[_shown(part) for part in parts],
        sections=sections,
        training=training_facts(results),
        provenance=provenance_facts(results),
        dark=dark_rules(page_colours(model.kind for part in parts for model in part.summaries)),
        files=FILES,
    )


def _answer(part: _Part) -> str:
    """Recommended, rank 16."""
    chosen = part.recommendation
    rank = "" if chosen.rank is None else f", rank {chosen.rank}"
    return f"{OUTCOMES[chosen.outcome]}{rank}"


def _shown(part: _Part) -> dict[str, Any]:
    """What the template needs of one trained task."""
    results, recommendation, summaries, *_ = part
    return {
        "name": results.train_task,
        "prefix": part.prefix,
        "recommendation": recommendation,
        "outcome": OUTCOMES[recommendation.outcome],
        "answer": _answer(part),
        "judgement": judgement_facts(recommendation),
        "rows": verdict_table(summaries),
        "headings": verdict_headings(results, recommendation, summaries),
        "notes": verdict_notes(recommendation, summaries),
        "figures": part.figures,
        "decision": decision_table(recommendation),
        "odds": odds_table(recommendation),
        "by_epsilon": epsilon_table(recommendation),
        "prospects": prospect_table(recommendation),
        "relations": _relations(part),
        "formats": format_table(results, recommendation, summaries),
        "measured": measured_table(results),
        "metrics": metrics_table(results, summaries),
    }


def _relations(part: _Part) -> tuple[tuple[str, Table | str], ...]:
    """The title of every relation, and its table or why there is none."""
    titled: list[tuple[str, Table | str]] = []
    for relation in RELATIONS:
        table = relation_table(part.results, part.recommendation, part.summaries, relation)
        if table is None:
            named = bool(part.results.tasks.get(relation))
            reason = "no run was scored" if named else "the study names no such task"
            table = f"Not measured: {reason}."
        titled.append((RELATION_NAMES[relation].capitalize(), table))
    return tuple(titled)


def study_sections(
    results: StudyResults, recommendation: StudyRecommendation, findings: StudyFindings
) -> tuple[ReportSection, ...]:
    """The sections of the page that are about the whole study, in their order."""
    confidence = results.study.config.recommendation.confidence
    sections = [signature_section(findings.signatures, not_looked_for(results), confidence)]
    searched = search_section(results, findings.rates)
    if searched is not None:
        sections.append(searched)
    if findings.checkpoints:
        sections.append(checkpoint_section(findings.checkpoints))
    if findings.transfer is not None:
        sections.append(transfer_section(findings.transfer))
    if findings.retention:
        sections.append(retention_section(findings.retention))
    if findings.lost_items:
        sections.append(lost_item_section(findings.lost_items))
    if findings.gauges:
        sections.append(gauge_section(findings.gauges))
    if findings.behaviour:
        sections.append(behaviour_section(findings.behaviour))
    if findings.axes:
        sections.append(axis_section(findings.axes))
    if findings.truncation:
        sections.append(truncation_section(findings.truncation))
    if findings.mitigations:
        sections.append(mitigation_section(findings.mitigations))
    if findings.repairs:
        sections.append(repair_section(findings.repairs))
    if findings.variants:
        sections.append(variant_section(findings.variants))
    if findings.mechanisms:
        sections.append(mechanism_section(findings.mechanisms))
    if findings.weights:
        sections.append(weight_section(findings.weights, results))
    if findings.heads:
        sections.append(head_section(findings.heads, results))
    return (*sections, claims_section(findings.claims))
