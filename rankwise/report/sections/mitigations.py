"""What to do about forgetting: arms that train once more, repairs after training, variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.findings.mitigations import ArmKind, TrainTaskMitigations
from rankwise.findings.repairs import ranks_statement
from rankwise.findings.variants import TrainTaskVariants, VariantRow
from rankwise.records import quantities
from rankwise.records.grouping import grouped
from rankwise.records.repairs import AdapterRepair, RepairChoice, RepairPoint
from rankwise.report import cells
from rankwise.report.cells import Cell
from rankwise.report.charts.marks import SERIES, MarkStyle
from rankwise.report.charts.theme import INK
from rankwise.report.parts import Column, Figure, ReportSection, Shown, Table, TitledTable, shows
from rankwise.report.sections.overview import change_mark, plane_of

MOST_FIGURES = 6
"""More options than this are too many to draw."""

_LOOKS: dict[ArmKind, MarkStyle] = {
    "as trained": MarkStyle(INK, "circle"),
    "rate": MarkStyle(INK, "circle"),
    "kl": SERIES[0]._replace(shape="triangle-up"),
    "replay": SERIES[1],
    "other": SERIES[3]._replace(shape="cross"),
}


@shows("mitigations")
def mitigation_section(found: Sequence[TrainTaskMitigations], *_: object) -> ReportSection:
    """A plane for each option, and a table for each trained task."""
    about = (
        "Each arm trains the run once more with one thing changed. A lower learning rate forgets "
        "less and gains less, and costs nothing: it is what every other arm has to beat. An arm "
        "is better if it gains more and forgets less than the lower rate that is nearest in "
        "retention. The recommendation does not rest on this. Intervals are "
        f"{quantities.percent(found[0].confidence)}, one at a time; better and worse are corrected "
        "for the number of arms (Holm)."
    )

    title = "What to do about forgetting"
    return ReportSection.of("mitigations", title, about, found, _mitigations_shown, figures="arms")


def _mitigations_shown(found: TrainTaskMitigations) -> Iterator[Shown]:
    by_option = grouped((arm.option, arm) for arm in found.arms)
    for place, (option, arms) in enumerate([*by_option.items()][:MOST_FIGURES], start=1):
        drawn = [(arm, kept) for arm in arms if (kept := arm.retention) is not None]
        (first, first_kept), *_ = drawn
        marks = [
            change_mark(arm.label, _LOOKS[arm.changed], arm.label, arm.gain, kept)
            for arm, kept in drawn
        ]
        path = [*(place for place, arm in enumerate(arms) if arm.is_of_rates), None]
        yield Figure(
            str(place),
            f"Gain against retention, {option}",
            "The line joins the run as trained, its lower rates and the base; what a rate between "
            "them does is not known. Bars are of each change "
            "from the base; arms share their items, so the differences in the table vary less. "
            "The dashed line is ε, the largest loss that is accepted.",
            plane_of(marks, first.gain.unit, found.epsilon_points, path),
            f"{quantities.sample_size(first.gain, 'items')} in-domain, "
            f"{quantities.sample_size(first_kept, 'items')} of retention; bars are "
            f"{cells.intervals(found.confidence)}",
        )

    yield Table.of(
        cells.changes_caption(found.train_task, found.confidence),
        found.arms,
        Column("label", "Arm"),
        Column("gain", "Gain", found.unit, cells.sized),
        Column("kept_gain", "Kept", "of the gain as trained"),
        Column("retention", "Retention", "change, points", cells.sized),
        Column("regained", "Regained", "of the retention loss"),
        Column(lambda row: row.against if row.lead else None, "Nearest lower rate"),
        Column(
            lambda row: cells.mean(row.lead, note=row.dominance or ""), "Gain over it", found.unit
        ),
        Column("retention_lead", "Kept over it", "points"),
        Column("num_tokens", "Tokens", "of each seed"),
        Column("train_seconds", "Training", "all seeds", quantities.seconds),
        by=lambda row: (row.option, quantities.counted(row.num_seeds, "seed")),
        file="mitigations",
    )


@shows("repairs")
def repair_section(found: Sequence[AdapterRepair], *_: object) -> ReportSection:
    """The answer of each ``rankwise repair``, its curve, and the judged tasks."""
    tables: list[TitledTable] = []
    for each in found:
        title = f"What repairs would do to {each.model}"
        tables.append(TitledTable(title, repair_table(each.choice).behind(run=each.model)))
        if (repair := each.choice.repair) is not None:
            title = f"{each.model}, {repair.label}"
            place = "not written" if each.folder is None else f"written to {each.folder}"
            scores = Table.of(
                f"On all items; {place}.",
                each.choice.tasks,
                Column(lambda row: Cell(row.task, "", row.relation.replace("_", "-")), "Task"),
                Column("metric", "Metric"),
                Column("num_items", "Items"),
                Column(lambda row: quantities.score(row.base_score, row.unit), "Base"),
                Column(lambda row: quantities.score(row.adapted_score, row.unit), "As it is"),
                Column(lambda row: quantities.score(row.repaired_score, row.unit), "Repaired"),
            )
            tables.append(TitledTable(title, scores))
    about = (
        "Each repair changes a trained adapter without training it. Chosen is the one that gains "
        "most, of those that are shown to keep the loss of retention within the limit. The "
        "recommendation does not rest on this."
    )
    reverted = (
        (each.model, ", ".join(f"{layer}.{head}" for layer, head in each.reverted))
        for each in found
    )
    said = [
        *((each.model, each.choice.statement) for each in found),
        *((each.model, ranks_statement(each)) for each in found),
        *((model, heads and f"reverted heads, layer.head: {heads}.") for model, heads in reverted),
        *((each.model, warning) for each in found for warning in each.warnings),
    ]
    remarks = [about, *(f"{model}: {text}" for model, text in said if text)]
    return ReportSection("repairs", "Repairs after training", remarks, tables=tables)


def repair_table(choice: RepairChoice) -> Table:
    """Every repair, the chosen one marked; in the terminal too."""

    def name(row: RepairPoint) -> Cell:
        is_chosen = row.repair == choice.repair
        return Cell(row.repair.label, "", "chosen" if is_chosen else "", is_chosen)

    limit = quantities.amount(choice.max_loss_points, "points")
    return Table.of(
        f"Against the base, on {quantities.counted(choice.num_items, 'item')}; intervals of "
        f"{choice.together}. A repair keeps enough if its interval ends at {limit} of loss or "
        "less, and so do those of all stronger repairs of its kind.",
        choice.curve,
        Column(name, "Repair"),
        Column("gain", "Gain", choice.unit, cells.in_unit(choice.unit)),
        Column("retention", "Retention", "change, points", cells.in_unit("points")),
        Column("keeps_enough", "Keeps enough"),
        Column("repair.label", file="label"),
        file="repairs",
    )


@shows("variants")
def variant_section(found: Sequence[TrainTaskVariants], *_: object) -> ReportSection:
    """A table for each trained task, each variant beside LoRA."""
    alike = "the same rank" if found[0].match == "rank" else "about as many trained weights"
    about = [
        f"Each variant is trained by PEFT's own mathematics, beside LoRA of {alike}: on the same "
        "rows in the same order, with the same schedule and clipping. The difference is that from "
        "LoRA at the learning rate at which LoRA gains most. The recommendation is about LoRA's "
        f"ranks and knows no variant. Intervals are {quantities.percent(found[0].confidence)}, one "
        "at a time: exploratory.",
        *cells.of_one_seed(max((row.num_seeds for part in found for row in part.rows), default=1)),
    ]

    return ReportSection.of("variants", "Variants of LoRA", about, found, _variants_shown)


def _variants_shown(found: TrainTaskVariants) -> Iterator[Shown]:
    def rate(row: VariantRow) -> str:
        best = " (best)" if row.is_best_rate and row.num_rates > 1 else ""
        return f"{quantities.learning_rate(row.learning_rate)}{best}"

    lead = f"difference, {found.unit}"
    yield Table.of(
        cells.changes_caption(found.train_task, found.confidence),
        found.rows,
        Column("label", "Variant"),
        Column("num_parameters", "Trained weights", write=quantities.parameters),
        Column(rate, "Learning rate"),
        Column("gain", "Gain", found.unit, cells.sized),
        Column("lead", "Against LoRA", lead),
        Column("retention", "Retention", "change, points", cells.sized),
        Column("retention_lead", "Against LoRA", "difference, points"),
        Column("train_seconds", "Training", "all seeds", quantities.seconds),
        by=lambda row: f"Beside rank {row.beside_rank}",
        file="variants",
    )
