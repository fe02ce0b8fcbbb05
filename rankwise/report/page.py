"""The report: one self-contained HTML page, and its tables as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rankwise.findings.item_table import ItemTable
from rankwise.findings.models import seeded_labels, summarise
from rankwise.findings.signatures.found import not_looked_for
from rankwise.findings.study import FINDINGS, StudyFindings, finding_tables
from rankwise.findings.tables import task_tables
from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.records.folder import StudyFolder
from rankwise.records.grouping import grouped
from rankwise.records.outputs import refuse_foreign, write_outputs
from rankwise.records.recommendation import Recommendation, StudyRecommendation
from rankwise.records.results import StudyResults, TrainTaskResults
from rankwise.records.study import RELATIONS, StudyRecord
from rankwise.report import cells
from rankwise.report.charts.losses import MOST_RUNS as MOST_LOSSES
from rankwise.report.charts.losses import Course, loss_chart
from rankwise.report.facts import (
    base_model_name,
    judgement_facts,
    source_name,
    study_warnings,
    training_facts,
)
from rankwise.report.items import encoded_items
from rankwise.report.parts import (
    Dial,
    Figure,
    ReportSection,
    Table,
    TitledTable,
    file_name,
    thinned,
)
from rankwise.report.rendering import Page, Part, rendered
from rankwise.report.sections.by_rank import axis_section, checkpoint_section, truncation_section
from rankwise.report.sections.card import CARD_SECTION, card_section
from rankwise.report.sections.deployment import deployment_section
from rankwise.report.sections.doubling import doubling_section
from rankwise.report.sections.gauges import behaviour_section, gauge_section, lost_item_section
from rankwise.report.sections.heads import head_section
from rankwise.report.sections.mechanisms import mechanism_section
from rankwise.report.sections.methods import methods_section
from rankwise.report.sections.mitigations import mitigation_section, repair_section, variant_section
from rankwise.report.sections.overview import study_figures
from rankwise.report.sections.prompting import prompting_section
from rankwise.report.sections.retention import retention_section
from rankwise.report.sections.search import search_section
from rankwise.report.sections.signatures import claims_section, signature_section, watch_points
from rankwise.report.sections.slices import slice_section
from rankwise.report.sections.transfer import transfer_section
from rankwise.report.sections.weights import weight_section
from rankwise.report.summaries import (
    OUTCOMES,
    RELATION_NAMES,
    Summaries,
    verdict_notes,
    verdict_table,
)
from rankwise.report.tables import (
    decision_table,
    epsilon_table,
    format_table,
    measured_table,
    metrics_table,
    odds_table,
    prospect_table,
    relation_table,
)

FILES, ITEMS_FILE = "report", "items.html"

ONLY_OF_TRAINING = ("Trainable parameters", "Training time", "Peak memory")
"""Columns that say nothing of models that were trained elsewhere."""

ON_THE_CARD = "cards"
"""The finding that is shown with its trained task and has no section of the whole study."""

ALWAYS = ("signatures", "rates")
"""Of these it is said too that nothing was found, or how runs were chosen without them."""


def write_report(
    folder: Path,
    results: StudyResults,
    recommendation: StudyRecommendation,
    findings: StudyFindings,
    items: ItemTable | None = None,
    losses: Mapping[str, Course] = MappingProxyType({}),
    *,
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
        overwrite: replace files that rankwise did not write.

    Returns:
        The path of the page.

    Raises:
        ConfigError: there are such files in the way, and ``overwrite`` is not given.
        StorageError: the folder cannot be written.
    """
    path = StudyFolder(folder).report_file
    refuse_foreign(folder, [path.name], overwrite=overwrite)  # before anything is made
    config = results.study.config
    made = study_page(results, recommendation, findings, losses)
    encoded = None if items is None else encoded_items(items)
    written: dict[str, str | bytes] = {}
    if encoded is not None and encoded.is_large:
        link = Page("rankwise report", f"{config.name}, item by item", "", (), (), encoded)
        written[ITEMS_FILE] = rendered(link)
        said = f"{encoded.num_items:,} items are too many for this page; see {ITEMS_FILE}."
        sections = [*made.sections, ReportSection("items-beside", "Item by item", [said])]
        made = made._replace(sections=sections, items_beside=ITEMS_FILE)
    else:
        made = made._replace(items=encoded)
    files = csv_files(results, recommendation, findings)
    written |= {f"{FILES}/{name}": content for name, content in files.items()}
    written[path.name] = rendered(made)
    replaces = (f"{FILES}/", ITEMS_FILE)
    write_outputs(folder, written, overwrite=overwrite, replaces=replaces)
    return path


def study_page(
    results: StudyResults,
    recommendation: StudyRecommendation,
    findings: StudyFindings,
    losses: Mapping[str, Course],
) -> Page:
    """What stands on the page of a study, before it is drawn."""
    several = len(recommendation.by_train_task) > 1
    return Page(
        "rankwise report",
        results.study.config.name,
        question(results.study),
        [
            _part(results.of(part.train_task), part, findings, is_named=several)
            for part in recommendation.by_train_task
        ],
        [*study_sections(results, findings), *_origin(results, losses)],
    )


def card_page(
    results: StudyResults, recommendation: StudyRecommendation, findings: StudyFindings
) -> str:
    """The verdicts with their cards alone, as a page that holds everything it shows."""
    page = study_page(results, recommendation, findings, {})
    parts = [
        part._replace(sections=[each for each in part.sections if each.name == CARD_SECTION])
        for part in page.parts
    ]
    return rendered(page._replace(parts=parts, sections=[]))


def question(study: StudyRecord) -> str:
    """What a study asks."""
    if study.scores is not None:
        has_rank = any(run.rank is not None for run in study.runs)
        what = "How much LoRA rank is enough" if has_rank else "Which model is best"
        return f"{what} on {quantities.listed([*study.tasks])}, by scores that were made elsewhere?"
    trained_on, base = source_name(study.config), base_model_name(study.config)
    return (
        f"How much LoRA rank is enough for {trained_on} on {base}, and what does each choice make "
        "the model forget?"
    )


def _part(
    results: TrainTaskResults,
    recommendation: Recommendation,
    findings: StudyFindings,
    *,
    is_named: bool,
) -> Part:
    """What the page shows of one trained task; of several, figures have its name in front."""
    summaries = summarise(results, recommendation)
    prefix = _prefix(results.train_task, is_named=is_named)
    figures = [
        figure._replace(name=f"{prefix}{figure.name}")
        for figure in study_figures(results, recommendation, summaries)
    ]
    rank = "" if recommendation.rank is None else f", rank {recommendation.rank}"
    trained = grouped((s.option, s.run.train_seconds) for s in summaries if s.run is not None)
    seconds = {option: sum(of_seeds) for option, of_seeds in trained.items()}
    # the seed is a column only where there are several
    same: tuple[str, ...] = () if len(results.study.config.seeds) > 1 else ("Seed",)
    same += () if results.study.scores is None else ONLY_OF_TRAINING
    comparison = [
        TitledTable("", verdict_table(results, recommendation, summaries, same)),
        *(TitledTable("", note) for note in verdict_notes(recommendation, summaries)),
    ]
    measured = [TitledTable("", measured_table(results))]
    metrics = metrics_table(results, summaries)
    measured += [] if metrics is None else [TitledTable("Other metrics", metrics)]
    sections = [
        *(
            card_section(card, recommendation, seconds)
            for card in findings.cards
            if card.train_task == results.train_task
        ),
        ReportSection("comparison", "The comparison", tables=comparison),
        ReportSection(
            "reasons", "Why", points=recommendation.reasons, tables=list(_reasons(recommendation))
        ),
        ReportSection("figures", "Figures", figures=figures),
        ReportSection(
            "tasks", "Task by task", tables=list(_tasks(results, recommendation, summaries))
        ),
        ReportSection("measured", "What was measured", tables=measured),
    ]
    return Part(
        f"Trained on {results.train_task}" if is_named else "",
        recommendation.outcome,
        f"{OUTCOMES[recommendation.outcome]}{rank}",
        recommendation.statement,
        watch_points([s for s in findings.signatures if s.train_task == results.train_task]),
        sections,
    )


def _reasons(recommendation: Recommendation) -> Iterator[TitledTable]:
    bet = recommendation.best_bet
    dial = None if bet is None else Dial(bet, recommendation.epsilon_points)
    tables = {
        "What each rank was judged on": decision_table(recommendation),
        "The best bet": odds_table(recommendation),
        "How much may be forgotten?": epsilon_table(recommendation),
        "What would settle it": prospect_table(recommendation),
    }
    for title, table in tables.items():
        if table is not None:
            yield TitledTable(title, table, dial if title.startswith("How much") else None)
    yield TitledTable("Margins", judgement_facts(recommendation))


def _tasks(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> Iterator[TitledTable]:
    """Every relation, with its table or why there is none."""
    for relation in RELATIONS:
        table: Table | str | None = relation_table(results, recommendation, summaries, relation)
        if table is None:
            named = bool(results.tasks.get(relation))
            reason = "no run was scored" if named else "the study names no such task"
            table = f"Not measured: {reason}."
        yield TitledTable(RELATION_NAMES[relation].capitalize(), table)
    formats = format_table(results, recommendation, summaries)
    if formats is not None:
        yield TitledTable("As the training asked", formats)


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


def _origin(results: StudyResults, losses: Mapping[str, Course]) -> Iterator[ReportSection]:
    warnings = study_warnings(results)
    if warnings:
        yield ReportSection("warnings", "Warnings", points=warnings)
    facts = TitledTable("", training_facts(results))
    figures = list(loss_figure(results.study, losses))
    title = "Training" if results.study.scores is None else "The scores"
    yield ReportSection("training", title, figures=figures, tables=[facts])
    yield methods_section(results, FILES)


def study_sections(results: StudyResults, findings: StudyFindings) -> list[ReportSection]:
    """The sections of the page that are about the whole study, in their order."""
    confidence = results.study.config.recommendation.confidence
    builders: dict[str, Callable[[Any], ReportSection | None]] = {
        "signatures": lambda found: signature_section(found, not_looked_for(results), confidence),
        "rates": lambda found: search_section(results, found),
        "doubling": doubling_section,
        "prompting": prompting_section,
        "checkpoints": checkpoint_section,
        "transfer": transfer_section,
        "retention": retention_section,
        "slices": slice_section,
        "lost_items": lost_item_section,
        "gauges": gauge_section,
        "behaviour": behaviour_section,
        "axes": axis_section,
        "truncation": truncation_section,
        "mitigations": mitigation_section,
        "repairs": repair_section,
        "deployed": deployment_section,
        "variants": variant_section,
        "mechanisms": mechanism_section,
        "weights": lambda found: weight_section(found, results),
        "heads": lambda found: head_section(found, results),
        "claims": claims_section,
    }
    assert {*builders, ON_THE_CARD} == {*FINDINGS}
    found = {name: getattr(findings, name) for name in builders}
    made = (build(found[name]) for name, build in builders.items() if found[name] or name in ALWAYS)
    return [section for section in made if section is not None]


def csv_files(
    results: StudyResults, recommendation: StudyRecommendation, findings: StudyFindings
) -> dict[str, str]:
    """Every table without rounding, as CSV by file name."""
    several = len(recommendation.by_train_task) > 1
    tables = finding_tables(findings, results)
    for part in recommendation.by_train_task:
        own, prefix = results.of(part.train_task), _prefix(part.train_task, is_named=several)
        rows = task_tables(own, part, summarise(own, part))
        tables |= {f"{prefix}{name}": its for name, its in rows.items()}
    return {f"{name}.csv": cells.csv_text(rows) for name, rows in tables.items()}


def _prefix(train_task: str, *, is_named: bool) -> str:
    """What names of files begin with where there are several trained tasks."""
    return f"{file_name(train_task)}-" if is_named else ""
