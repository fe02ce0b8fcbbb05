"""Gauges of forgetting, lost items that come back in the trained format, lengths of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rankwise.findings.answer_lengths import ModelLengths, TrainTaskLengths
from rankwise.findings.gauges import GaugedModel, ModelKind, TrainTaskGauges
from rankwise.findings.lost_items import TrainTaskLostItems
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.charts.marks import Look
from rankwise.report.charts.plane import Plane, PlaneMark, plane_chart
from rankwise.report.parts import LEAST_POINTS, Cell, Column, Figure, ReportSection, Shown, Table

_GROUPS: dict[ModelKind, str] = {
    "run": "Runs",
    "fewer_rows": "On fewer rows",
    "checkpoint": "Checkpoints",
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

    return ReportSection.of("gauges", "Gauges of forgetting", about, found, _gauges_shown)


def _gauges_shown(found: TrainTaskGauges) -> Iterator[Shown]:
    yield from found.statements
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
    losses = [model.retention_loss for model in found.models if model.retention_loss is not None]
    unit = cells.unit_name(losses[0].unit) if losses else "points"
    yield Table.grouped(
        f"Trained on {found.train_task}: what each gauge says, and what was forgotten, seeds "
        f"averaged, {cells.intervals(found.confidence)}. Above zero is worse.",
        [
            (title, "", [model for model in found.models if model.kind == kind])
            for kind, title in _GROUPS.items()
        ],
        Column("Model", lambda row: row.label),
        Column("Retention loss", lambda row: cells.mean(row.retention_loss), unit),
        Column("KL, prompts", lambda row: cells.digits(row.kl_prompts), "nats per token"),
        Column("KL, held-out text", lambda row: cells.digits(row.kl_prose), "nats per token"),
        Column("Rise of the loss", lambda row: cells.mean(row.prose_rise), "same text, nats"),
        Column("Norm", lambda row: cells.number(row.update_norm, ".3g"), "of the update"),
    )


def lost_item_section(found: Sequence[TrainTaskLostItems]) -> ReportSection:
    """A table for each trained task."""
    about = (
        "An item is lost where the base is right and the run wrong, by the task's own metric. It "
        "comes back where the run is right when asked as in the training. Items that are lost by "
        "little come back by chance too. Intervals are Wilson's, "
        f"{quantities.percent(found[0].confidence)}: exploratory."
    )
    title = "Forgotten, or only unformatted"
    return ReportSection.of("lost-items", title, about, found, _lost_items_shown)


def _lost_items_shown(found: TrainTaskLostItems) -> Iterator[Shown]:
    yield from found.statements
    yield Table.of(
        f"Trained on {found.train_task}: lost items of the retention tasks that are right in the "
        "trained format, beside the items that were kept.",
        found.rows,
        Column("Run", lambda row: row.label),
        Column.text("Task", lambda row: row.task),
        Column("Lost", lambda row: row.num_lost, "items"),
        Column("Back", lambda row: row.num_back, "in the trained format"),
        Column("Share", lambda row: cells.written(row.share_back, quantities.share), "of the lost"),
        Column("Kept", lambda row: cells.percentage(row.kept_share), "right there"),
        Column("Guessing", lambda row: cells.percentage(row.chance), "right there"),
    )


def answer_length_section(found: Sequence[TrainTaskLengths]) -> ReportSection:
    """A table for each trained task."""
    about = (
        "Every model answers the same short prompts, greedily, in at most 64 tokens. The lengths "
        "of its answers are compared with the base's, prompt by prompt. Intervals are "
        f"{quantities.percent(found[0].confidence)}, one at a time: exploratory."
    )
    return ReportSection.of(
        "answer-lengths", "Length of own answers", about, found, _answer_lengths_shown
    )


def _answer_lengths_shown(found: TrainTaskLengths) -> Iterator[Shown]:
    yield from found.statements

    def difference(model: ModelLengths) -> Cell:
        size = f"{quantities.size(model.num_prompts)} prompts"
        return cells.formatted(model.difference, "+.1f")._replace(note=size)

    yield Table.of(
        f"Trained on {found.train_task}: tokens of an answer, seeds averaged, and the difference, "
        f"{cells.intervals(found.confidence)}.",
        found.models,
        Column("Model", lambda row: row.label),
        Column("Base", lambda row: quantities.formatted(row.base, ".1f"), "tokens"),
        Column("Model", lambda row: quantities.formatted(row.adapted, ".1f"), "tokens"),
        Column("Difference", difference, "tokens"),
    )
