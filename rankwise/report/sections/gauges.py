"""Gauges of forgetting, lost items that come back in the trained format, and behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rankwise.findings.behaviour import ModelBehaviour, TrainTaskBehaviour, TraitChange
from rankwise.findings.gauges import GaugedModel, ModelKind, TrainTaskGauges
from rankwise.findings.lost_items import LostItems, TrainTaskLostItems
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.grouping import grouped
from rankwise.report import cells
from rankwise.report.charts.marks import Look
from rankwise.report.charts.plane import Plane, PlaneMark, plane_chart
from rankwise.report.parts import (
    LEAST_POINTS,
    Cell,
    Column,
    Figure,
    ReportSection,
    Shown,
    Table,
    grouped_table,
    section,
    table,
)

_GROUPS: dict[ModelKind, str] = {
    "run": "Runs",
    "fewer_rows": "On fewer rows",
    "checkpoint": "Checkpoints",
    "truncated": "Truncated adapters",
    "mitigated": "With a repair",
    "variant": "Variants of LoRA",
}
_KL: dict[str, Callable[[GaugedModel], TaskMean | None]] = {
    "KL on the task's prompts": lambda model: model.kl_prompts,
    "KL on held-out text": lambda model: model.kl_prose,
}


def gauge_section(found: Sequence[TrainTaskGauges]) -> ReportSection:
    """A chart and a table for each trained task."""
    about = (
        "A gauge needs no retention task. KL is KL(base || model) in nats per token, over the "
        "whole vocabulary: on the right answers of the trained task's own items, and on held-out "
        f"text. Intervals are {quantities.percent(found[0].confidence)}, one at a time. Models of "
        "one study share their data and their items, so a correlation over them is exploratory."
    )

    def show(part: TrainTaskGauges) -> Shown:
        return Shown(part.statements, _figures(part), [("", _gauge_table(part))])

    return section("gauges", "Gauges of forgetting", about, found, show)


def _figures(found: TrainTaskGauges) -> Iterator[Figure]:
    planes: list[Plane] = []
    for title, kl_of in _KL.items():
        drawn = [
            (model, kl.estimate, model.retention_loss)
            for model in found.models
            if (kl := kl_of(model)) is not None and model.retention_loss is not None
        ]
        if len(drawn) < LEAST_POINTS:
            continue
        marks = [
            PlaneMark(
                model.label.removeprefix(f"rank {model.rank}, "),
                Look.of(model.rank or "full"),
                kl,
                loss.estimate,
                f"{model.label}: {title} {kl:.3g}",
            )
            for model, kl, loss in drawn
        ]
        unit = cells.unit_name(drawn[0][2].unit)
        planes.append(Plane(f"{title} (nats per token)", f"Retention loss ({unit})", marks))
    if planes:
        yield Figure(
            "kl",
            "KL to the base and forgetting",
            "To the right is further from the base, up is more forgotten. A gauge is worth having "
            "where the points rise.",
            plane_chart(planes),
            "one point for each model, seeds averaged, at its rank",
        )


def _gauge_table(found: TrainTaskGauges) -> Table:
    losses = [model.retention_loss for model in found.models if model.retention_loss is not None]
    unit = cells.unit_name(losses[0].unit) if losses else "points"
    columns: list[Column[GaugedModel]] = [
        Column("Model", lambda row: row.label),
        Column("Retention loss", lambda row: cells.mean(row.retention_loss), unit),
        Column("KL, prompts", lambda row: cells.formatted(row.kl_prompts, ".3g"), "nats per token"),
        Column(
            "KL, held-out text", lambda row: cells.formatted(row.kl_prose, ".3g"), "nats per token"
        ),
        Column("Rise of the loss", lambda row: cells.mean(row.prose_rise), "same text, nats"),
        Column("Norm", lambda row: cells.number(row.update_norm, ".3g"), "of the update"),
    ]
    caption = (
        f"Trained on {found.train_task}: what each gauge says, and what was forgotten, seeds "
        f"averaged, {cells.intervals(found.confidence)}. Above zero is worse."
    )
    groups = [
        (title, "", [model for model in found.models if model.kind == kind])
        for kind, title in _GROUPS.items()
    ]
    return grouped_table(caption, columns, groups)


def lost_item_section(found: Sequence[TrainTaskLostItems]) -> ReportSection:
    """A table for each trained task."""
    about = (
        "An item is lost where the base is right and the run wrong, by the task's own metric. It "
        "comes back where the run is right when asked as in the training. Items that are lost by "
        "little come back by chance too. Intervals are Wilson's, "
        f"{quantities.percent(found[0].confidence)}: exploratory."
    )
    return section(
        "lost-items",
        "Forgotten, or only unformatted",
        about,
        found,
        lambda part: Shown(part.statements, tables=[("", _lost_table(part))]),
    )


def _lost_table(found: TrainTaskLostItems) -> Table:
    columns: list[Column[LostItems]] = [
        Column("Run", lambda row: row.label),
        Column.text("Task", lambda row: row.task),
        Column("Lost", lambda row: row.num_lost, "items"),
        Column("Back", lambda row: row.num_back, "in the trained format"),
        Column("Share", lambda row: cells.written(row.share_back, quantities.share), "of the lost"),
        Column("Kept", lambda row: cells.percentage(row.kept_share), "right there"),
        Column("Guessing", lambda row: cells.percentage(row.chance), "right there"),
    ]
    caption = (
        f"Trained on {found.train_task}: lost items of the retention tasks that are right in the "
        "trained format, beside the items that were kept."
    )
    return table(caption, columns, found.rows)


Row = tuple[ModelBehaviour, TraitChange]

_SHARES = {
    "refuses": "% of all prompts",
    "keeps the format": "% of prompts that ask for one",
    "keeps the language": "% of prompts in words",
    "repeats itself": "% of the runs of four words",
}


def behaviour_section(found: Sequence[TrainTaskBehaviour]) -> ReportSection:
    """A table for each trained task."""
    about = (
        "Every model answers the same short prompts, greedily, in at most 64 tokens. What code can "
        "see in the answers is compared with the base, prompt by prompt: phrases of refusal, "
        "tokens, whether a format that was asked for is kept, the language, and repeated runs of "
        f"four words. Intervals are {quantities.percent(found[0].confidence)}, one at a time: "
        "exploratory."
    )
    return section(
        "behaviour",
        "Behaviour on short prompts",
        about,
        found,
        lambda part: Shown((*part.statements, *part.drift), tables=[("", _behaviour_table(part))]),
    )


def _behaviour_table(found: TrainTaskBehaviour) -> Table:
    def difference(row: Row) -> Cell:
        size = f"{quantities.size(row[1].num_prompts)} prompts"
        return cells.formatted(row[1].difference, "+.1f")._replace(note=size)

    columns: list[Column[Row]] = [
        Column("Model", lambda row: row[0].label),
        Column("Base", lambda row: quantities.formatted(row[1].base, ".1f")),
        Column("Model", lambda row: quantities.formatted(row[1].adapted, ".1f")),
        Column("Difference", difference),
    ]
    by_trait = grouped(
        (change.trait, (model, change)) for model in found.models for change in model.changes
    )
    groups = [
        (quantities.capital(trait), _SHARES.get(trait, "tokens"), rows)
        for trait, rows in by_trait.items()
    ]
    caption = (
        f"Trained on {found.train_task}: the base and each model, seeds averaged, and the "
        f"difference, {cells.intervals(found.confidence)}."
    )
    return grouped_table(caption, columns, groups)
