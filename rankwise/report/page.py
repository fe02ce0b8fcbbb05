"""The report: one self-contained HTML page, and its figures and tables as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from rankwise.findings.item_table import ItemTable
from rankwise.findings.models import seeded_labels, summarise
from rankwise.findings.signatures.found import not_looked_for
from rankwise.findings.study import StudyFindings
from rankwise.records.axes import Kind
from rankwise.records.folder import StudyFolder
from rankwise.records.outputs import refuse_foreign, write_outputs
from rankwise.records.recommendation import Recommendation, StudyRecommendation
from rankwise.records.results import StudyResults, TrainTaskResults
from rankwise.records.study import RELATIONS, StudyRecord
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
from rankwise.report.sections.by_rank import (
    axis_section,
    checkpoint_section,
    truncation_section,
)
from rankwise.report.sections.card import CARD_SECTION, card_section
from rankwise.report.sections.deployment import deployment_section
from rankwise.report.sections.gauges import behaviour_section, gauge_section, lost_item_section
from rankwise.report.sections.heads import head_section
from rankwise.report.sections.mechanisms import mechanism_section
from rankwise.report.sections.methods import methods_section
from rankwise.report.sections.mitigations import (
    mitigation_section,
    repair_section,
    variant_section,
)
from rankwise.report.sections.overview import study_figures
from rankwise.report.sections.retention import retention_section
from rankwise.report.sections.search import search_section
from rankwise.report.sections.signatures import (
    claims_section,
    signature_section,
    watch_points,
)
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
    csv_tables,
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
    refuse_foreign(folder, [path.name], overwrite=overwrite)  # before the figures are drawn
    config = results.study.config
    made = study_page(results, recommendation, findings, losses)
    encoded = None if items is None else encoded_items(items)
    written: dict[str, str | bytes] = {}
    if encoded is not None and encoded.is_large:
        link = Page("rankwise report", f"{config.name}, item by item", "", (), (), encoded)
        written[ITEMS_FILE] = rendered(link, ())[0]
        said = f"{encoded.num_items:,} items are too many for this page; see {ITEMS_FILE}."
        sections = [*made.sections, ReportSection("items-beside", "Item by item", [said])]
        made = made._replace(sections=sections, items_beside=ITEMS_FILE)
    else:
        made = made._replace(items=encoded)
    page, files = rendered(made, kinds_of(results.study))
    written |= {f"{FILES}/{name}": content for name, content in files.items()} | {path.name: page}
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
        [*study_sections(results, recommendation, findings), *_origin(results, losses)],
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
    return rendered(page._replace(parts=parts, sections=[]), (), with_images=False)[0]


def question(study: StudyRecord) -> str:
    """What a study asks."""
    trained_on, base = source_name(study.config), base_model_name(study.config)
    return (
        f"How much LoRA rank is enough for {trained_on} on {base}, and what does each choice make "
        "the model forget?"
    )


def kinds_of(study: StudyRecord) -> list[Kind]:
    """Whose colours the charts of a study have."""
    return ["full", "base", *(run.rank for run in study.models if run.rank is not None)]


def _part(
    results: TrainTaskResults,
    recommendation: Recommendation,
    findings: StudyFindings,
    *,
    is_named: bool,
) -> Part:
    """What the page shows of one trained task; of several, files have its name in front."""
    summaries = summarise(results, recommendation)
    prefix = f"{file_name(results.train_task)}-" if is_named else ""
    figures = [
        figure._replace(name=f"{prefix}{figure.name}")
        for figure in study_figures(results, recommendation, summaries)
    ]
    files = csv_tables(results, recommendation, summaries)
    rank = "" if recommendation.rank is None else f", rank {recommendation.rank}"
    comparison = [
        TitledTable("", verdict_table(results, recommendation, summaries, _same(results))),
        *(TitledTable("", note) for note in verdict_notes(recommendation, summaries)),
    ]
    sections = [
        *(
            card_section(card, recommendation, _seconds(summaries))
            for card in findings.cards
            if card.train_task == results.train_task
        ),
        ReportSection(
            "comparison",
            "The comparison",
            tables=comparison,
            files={f"{prefix}{name}": text for name, text in files.items()},
        ),
        ReportSection(
            "reasons",
            "Why",
            points=recommendation.reasons,
            tables=list(_reasons(recommendation)),
        ),
        ReportSection("figures", "Figures", figures=figures),
        ReportSection(
            "tasks", "Task by task", tables=list(_tasks(results, recommendation, summaries))
        ),
        ReportSection("measured", "What was measured", tables=list(_measured(results, summaries))),
    ]
    return Part(
        f"Trained on {results.train_task}" if is_named else "",
        recommendation.outcome,
        f"{OUTCOMES[recommendation.outcome]}{rank}",
        recommendation.statement,
        watch_points([s for s in findings.signatures if s.train_task == results.train_task]),
        sections,
    )


def _seconds(summaries: Summaries) -> dict[str, float]:
    """Of every option's training, all seeds together."""
    seconds: dict[str, float] = {}
    for summary in summaries:
        if summary.run is not None:
            seconds[summary.option] = seconds.get(summary.option, 0.0) + summary.run.train_seconds
    return seconds


def _same(results: TrainTaskResults) -> tuple[str, ...]:
    """The seed is a column only where there are several."""
    return () if len(results.study.config.seeds) > 1 else ("Seed",)


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


def _measured(results: TrainTaskResults, summaries: Summaries) -> Iterator[TitledTable]:
    yield TitledTable("", measured_table(results))
    metrics = metrics_table(results, summaries)
    if metrics is not None:
        yield TitledTable("Other metrics", metrics)


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
    yield ReportSection("training", "Training", figures=figures, tables=[facts])
    yield methods_section(results, FILES)


def study_sections(
    results: StudyResults, recommendation: StudyRecommendation, findings: StudyFindings
) -> tuple[ReportSection, ...]:
    """The sections of the page that are about the whole study, in their order."""
    confidence = results.study.config.recommendation.confidence
    found = findings
    shown: list[tuple[object, Callable[[], ReportSection | None]]] = [
        (True, lambda: signature_section(found.signatures, not_looked_for(results), confidence)),
        (True, lambda: search_section(results, found.rates)),
        (found.checkpoints, lambda: checkpoint_section(found.checkpoints)),
        (found.transfer, lambda: found.transfer and transfer_section(found.transfer)),
        (found.retention, lambda: retention_section(found.retention)),
        (found.lost_items, lambda: lost_item_section(found.lost_items)),
        (found.gauges, lambda: gauge_section(found.gauges)),
        (found.behaviour, lambda: behaviour_section(found.behaviour)),
        (found.axes, lambda: axis_section(found.axes)),
        (found.truncation, lambda: truncation_section(found.truncation)),
        (found.mitigations, lambda: mitigation_section(found.mitigations)),
        (found.repairs, lambda: repair_section(found.repairs)),
        (found.deployed, lambda: deployment_section(found.deployed)),
        (found.variants, lambda: variant_section(found.variants)),
        (found.mechanisms, lambda: mechanism_section(found.mechanisms)),
        (found.weights, lambda: weight_section(found.weights, results)),
        (found.heads, lambda: head_section(found.heads, results)),
        (True, lambda: claims_section(found.claims)),
    ]
    made = (section() for is_there, section in shown if is_there)
    return tuple(section for section in made if section is not None)
