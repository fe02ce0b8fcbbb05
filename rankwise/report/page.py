"""The report of a study, and the page of an audit: each is one self-contained HTML page."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from rankwise.findings.costs import StudyCost
from rankwise.findings.item_table import ItemTable
from rankwise.findings.models import seeded_labels, summarise
from rankwise.findings.statements import reasons_beside_verdicts, time_of_next
from rankwise.findings.study import FINDINGS, StudyFindings
from rankwise.records import quantities
from rankwise.records.audits import AuditRecord
from rankwise.records.axes import Kind
from rankwise.records.files import sealed
from rankwise.records.folder import StudyFolder
from rankwise.records.outputs import refuse_foreign, write_outputs
from rankwise.records.recommendation import Recommendation, StudyRecommendation
from rankwise.records.results import StudyResults, TrainTaskResults
from rankwise.records.study import RELATIONS, StudyRecord
from rankwise.report import cells
from rankwise.report.charts.losses import MOST_RUNS as MOST_LOSSES
from rankwise.report.charts.losses import Course, loss_chart
from rankwise.report.facts import (
    NOT_RECORDED,
    base_model_name,
    judgement_facts,
    software_facts,
    source_name,
    study_warnings,
    training_facts,
)
from rankwise.report.items import encoded_items
from rankwise.report.parts import (
    SECTIONS,
    Figure,
    ReportSection,
    Table,
    TitledTable,
    file_name,
    rows_of,
    thinned,
)
from rankwise.report.rendering import Page, Part, rendered
from rankwise.report.rows import Row
from rankwise.report.sections.card import alternative_section, card_table, margin_section
from rankwise.report.sections.methods import methods_section
from rankwise.report.sections.overview import TRADE_OFF, study_figures
from rankwise.report.sections.weights import audited_section
from rankwise.report.summaries import (
    OUTCOMES,
    RELATION_NAMES,
    Summaries,
    verdict_notes,
    verdict_table,
)
from rankwise.report.tables import (
    decision_table,
    format_table,
    measured_table,
    metrics_table,
    relation_table,
)

for _module in pkgutil.iter_modules(importlib.import_module("rankwise.report.sections").__path__):
    importlib.import_module(f"rankwise.report.sections.{_module.name}")  # it says what it shows

FILES, ITEMS_FILE = "report", "items.html"
AUDIT_RECORD, AUDIT_PAGE = "audit.json", "audit.html"
_COMMON_NAMES = ("adapter", "checkpoint", "final", "model")

ONLY_OF_TRAINING = ("Trainable parameters", "Training time", "Peak memory")
"""Columns that say nothing of models that were trained elsewhere."""

ALWAYS = ("signatures", "rates")
"""Findings of which it is said too that nothing was found, or how runs were chosen without them."""


def write_report(
    folder: Path,
    results: StudyResults,
    recommendation: StudyRecommendation,
    findings: StudyFindings,
    items: ItemTable | None = None,
    losses: Mapping[str, Course] = MappingProxyType({}),
    *,
    study: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``report.html`` and the folder ``report/`` into a study's folder.

    The page holds everything it shows; files of an earlier report that this one does not have are
    removed. Very many items are a page of their own beside it.

    Args:
        folder: of the study, or another.
        results: of the study.
        recommendation: made from them.
        findings: made from them.
        items: to look at one by one; None leaves them out.
        losses: of each run in training, by name.
        study: the study's folder, which the page's commands name; None: ``folder``.
        overwrite: replace files that rankwise did not write.

    Returns:
        The path of the page.

    Raises:
        ConfigError: there are such files in the way, and ``overwrite`` is not given.
        StorageError: the folder cannot be written.
    """
    path = StudyFolder(folder).report_file
    refuse_foreign(folder, [path.name], overwrite=overwrite)  # before anything is made
    made = study_page(results, recommendation, findings, losses, study or folder)
    encoded = None if items is None else encoded_items(items)
    written = _csv_files(made)
    if encoded is not None and encoded.is_large:
        link = Page("rankwise report", f"{made.title}, item by item", "", (), (), encoded)
        written[ITEMS_FILE] = rendered(link)
        said = f"{encoded.num_items:,} items are too many for this page; see {ITEMS_FILE}."
        sections = [*made.sections, ReportSection("items-beside", "Item by item", [said])]
        made = made._replace(sections=sections, items_beside=ITEMS_FILE)
    else:
        made = made._replace(items=encoded)
    written[path.name] = rendered(made)
    write_outputs(folder, written, overwrite=overwrite, replaces=(f"{FILES}/", ITEMS_FILE))
    return path


def refuse_report(
    folder: Path,
    results: StudyResults,
    recommendation: StudyRecommendation,
    findings: StudyFindings,
    *,
    overwrite: bool = False,
) -> None:
    """Refuse a report before the study that it is of is written; see ``write_report``.

    Raises:
        ConfigError: files that rankwise did not write are in the way.
        StorageError: the folder may not be read.
    """
    names = _csv_files(study_page(results, recommendation, findings))
    refuse_foreign(folder, [StudyFolder(folder).report_file.name, *names], overwrite=overwrite)


def study_page(
    results: StudyResults,
    recommendation: StudyRecommendation,
    findings: StudyFindings,
    losses: Mapping[str, Course] = MappingProxyType({}),
    folder: Path | None = None,
) -> Page:
    """What stands on the page of a study, before it is drawn.

    ``folder`` is the study's, for the commands.
    """
    several = len(recommendation.by_train_task) > 1
    parts: list[Part] = []
    sections = list(_settings(results, recommendation, findings))
    cost = StudyCost.of(results)
    for judged in recommendation.by_train_task:
        own = results.of(judged.train_task)
        part, folded = _part(own, judged, findings, is_named=several)
        part = part._replace(takes=time_of_next(judged, cost))
        if several:
            part = part._replace(sections=[*part.sections, *folded])
        else:
            sections += folded
        parts.append(part)
    rest = study_sections(results, findings)
    if drawn := list(loss_figure(results.study, losses)):
        rest.append(ReportSection("training", "Training loss", figures=drawn))
    rest.append(methods_section(results, FILES))
    sections += [section._replace(is_folded=True) for section in rest]
    title, asked = results.study.config.name, question(results.study)
    return Page("rankwise report", title, asked, parts, sections, study_folder=folder)


def card_page(
    results: StudyResults,
    recommendation: StudyRecommendation,
    findings: StudyFindings,
    folder: Path,
) -> str:
    """The cards alone, as a page that holds everything it shows."""
    page = study_page(results, recommendation, findings, {}, folder)
    parts = [part._replace(sections=[]) for part in page.parts]
    return rendered(page._replace(parts=parts, sections=[]))


def write_audit(folder: Path, record: AuditRecord, *, overwrite: bool = False) -> Path:
    """Write ``audit.json`` and ``audit.html``; the page holds everything that it shows.

    Returns:
        The path of the page.

    Raises:
        ConfigError: files that rankwise did not write are there, and ``overwrite`` is not given.
        StorageError: the folder cannot be written.
    """
    text = sealed(record.model_dump_json(indent=2))
    contents = {AUDIT_RECORD: text, AUDIT_PAGE: rendered(audit_page(record))}
    write_outputs(folder, contents, overwrite=overwrite)
    return folder / AUDIT_PAGE


def audit_page(record: AuditRecord) -> Page:
    """What was found in words, and the section of weights for the one model."""
    first, *others = record.statements
    sections: list[ReportSection] = []
    if record.warnings:
        sections.append(ReportSection("warnings", "Warnings", points=record.warnings))
    if not record.is_zero:
        sections.append(audited_section(record))
    said = f"Every number, of every matrix and unrounded, is in {AUDIT_RECORD} next to this page."
    facts = {
        "Base": record.base,
        "Base model fingerprint": record.base_fingerprint,
        "Audited": record.target,
        **({} if record.precision is None else {"Precision of the scores": record.precision}),
        **software_facts(record.provenance),
        "Device": record.provenance.device or NOT_RECORDED,
        "Made": record.provenance.created_at,
    }
    sections.append(ReportSection("provenance", "Provenance", [said], [], [TitledTable("", facts)]))
    title, asked = target_name(Path(record.target)), f"changes in {Path(record.base).name}"
    part = Part("", "audit", "In words", first, others)
    return Page("rankwise audit", title, f"What this {record.kind} {asked}.", [part], sections)


def target_name(target: Path) -> str:
    """The last part of the path, with its parent where many are called so."""
    is_common = target.name.partition("-")[0] in _COMMON_NAMES
    return "/".join(target.parts[-2:]) if is_common else target.name


def question(study: StudyRecord) -> str:
    """What a study asks."""
    if study.scores is not None:
        has_rank = any(run.rank is not None for run in study.runs)
        what = "How much LoRA rank is enough" if has_rank else "Which model is best"
        return f"{what} on {quantities.listed([*study.tasks])}, by scores that were made elsewhere?"
    trained_on, base = source_name(study.config), base_model_name(study.config)
    return f"How much LoRA rank is enough for {trained_on} on {base}?"


def _part(
    results: TrainTaskResults,
    recommendation: Recommendation,
    findings: StudyFindings,
    *,
    is_named: bool,
) -> tuple[Part, list[ReportSection]]:
    """What the page shows of one trained task first, and what it folds.

    Of several, figures have the task's name in front, and all but the card is folded.
    """
    summaries = summarise(results, recommendation)
    prefix = f"{file_name(results.train_task)}-" if is_named else ""
    figures = {
        figure.name: figure._replace(name=f"{prefix}{figure.name}")
        for figure in study_figures(results, recommendation, summaries)
    }
    part = Part(
        f"Trained on {results.train_task}" if is_named else "",
        recommendation.outcome,
        OUTCOMES[recommendation.outcome],
        recommendation.statement,
    )
    said: list[str] = []
    folded: list[ReportSection | None] = []
    card = next((c for c in findings.cards if c.train_task == results.train_task), None)
    if card is not None:
        picture = figures.pop(TRADE_OFF, None)
        first = ReportSection(
            "card",
            card.headline,
            list(findings.card_lines(card)),
            [] if picture is None else [picture],
            [TitledTable("", card_table(card, recommendation, results, has_scores=False))],
        )
        part = part._replace(answer=card.headline, statement="", card=first, command=card.command)
        said = [recommendation.statement]
        folded.append(margin_section(recommendation, card.draws))
        folded.append(alternative_section(card, recommendation))
    reasons = decision_table(recommendation), *reasons_beside_verdicts(recommendation)
    tables = [TitledTable("", table) for table in reasons if table is not None]
    shown = [ReportSection("reasons", "Why", said, tables=tables, is_folded=is_named)]
    if figures:
        drawn = list(figures.values())
        shown.append(ReportSection("figures", "By rank", figures=drawn, is_folded=is_named))
    # the seed is a column only where there are several
    same: tuple[str, ...] = () if len(results.study.config.seeds) > 1 else ("Seed",)
    same += () if results.study.scores is None else ONLY_OF_TRAINING
    every = verdict_table(results, recommendation, summaries, same)
    said, judged = list(verdict_notes(recommendation, summaries)), [recommendation]
    tasks = _task_tables(results, recommendation, summaries)
    beside = (
        ReportSection.of("comparison", "Every run", said, judged, lambda _: [("", every)]),
        ReportSection.of("tasks", "Task by task", (), judged, lambda _: tasks.items()),
    )
    folded += (section._replace(is_folded=True) for section in beside)
    return part._replace(sections=shown), [each for each in folded if each is not None]


def _task_tables(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> dict[str, Table]:
    """The runs on the tasks of every relation, and how these tasks were asked."""
    by_relation = {
        RELATION_NAMES[relation].capitalize(): relation_table(
            results, recommendation, summaries, relation
        )
        for relation in RELATIONS
    }
    return by_relation | {
        "As the training asked": format_table(results, recommendation, summaries),
        "What was measured": measured_table(results),
        "Other metrics": metrics_table(results, summaries),
    }


def loss_figure(study: StudyRecord, losses: Mapping[str, Course]) -> Iterator[Figure]:
    """The courses of some runs, evenly from the smallest rank to full fine-tuning."""
    runs = [plan for plan in study.runs if losses.get(plan.name)]
    runs.sort(key=lambda plan: (plan.rank is None, plan.rank or 0))
    labels = seeded_labels(runs)
    drawn = thinned(runs, MOST_LOSSES)
    if not drawn:
        return
    courses: dict[str, tuple[Kind, Course]] = {
        labels[plan.name]: (plan.rank or "full", losses[plan.name]) for plan in drawn
    }
    caption = "Means of neighbouring steps, for losses of single batches jump."
    if len(drawn) < len(runs):
        caption += f" {len(drawn)} of {len(runs)} runs are drawn."
    yield Figure("loss", "Training loss", caption, loss_chart(courses), "on the trained rows")


def _settings(
    results: StudyResults, recommendation: StudyRecommendation, findings: StudyFindings
) -> Iterator[ReportSection]:
    """What went wrong, how the choice is set, and what every run and every verdict rests on."""
    warnings = study_warnings(results)
    if warnings:
        yield ReportSection("warnings", "Warnings", points=warnings)
    several = len(recommendation.by_train_task) > 1

    def of(train_task: str) -> str:
        return f", trained on {train_task}" if several else ""

    tables = {
        f"{card.choice}{of(card.train_task)}": card.settings
        for card in findings.cards
        if card.settings
    }
    title = "Training" if results.study.scores is None else "The scores"
    tables[title] = training_facts(results)
    for part in recommendation.by_train_task:
        tables[f"How it was judged{of(part.train_task)}"] = judgement_facts(part)
    facts = [TitledTable(title, its) for title, its in tables.items()]
    yield ReportSection("settings", "Settings", tables=facts)


def study_sections(results: StudyResults, findings: StudyFindings) -> list[ReportSection]:
    """The sections of the page that are about the whole study, in their order."""
    made = (
        SECTIONS[name](found, results)
        for name in FINDINGS
        if name in SECTIONS and ((found := getattr(findings, name)) or name in ALWAYS)
    )
    return [section for section in made if section is not None]


def study_tables(
    results: StudyResults, recommendation: StudyRecommendation, findings: StudyFindings
) -> dict[str, list[Row]]:
    """The rows of every table of the page that has any, unrounded, all trained tasks together.

    ``runs`` has one row for each model, ``differences`` one for each run and task, ``formats`` the
    same for tasks that were also scored in the format of the training, ``ranks`` what each rank was
    judged on, ``scores`` every metric of every model and task as lm-evaluation-harness defines it.
    """
    return rows_of(study_page(results, recommendation, findings).all_sections)


def _csv_files(page: Page) -> dict[str, str]:
    """The tables of a page as CSV, by path in the study's folder."""
    rows = rows_of(page.all_sections)
    return {f"{FILES}/{name}.csv": cells.csv_text(its) for name, its in rows.items()}
