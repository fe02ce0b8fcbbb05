"""Gauges of forgetting on the page, and which lost items come back in the trained format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rankwise.findings.gauges import GaugedModel, ModelKind, TrainTaskGauges
from rankwise.findings.lost_items import LostItems, TrainTaskLostItems
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.charts.scatter import Scatter, scatters
from rankwise.report.parts import (
    EMPTY,
    Cell,
    Column,
    Figure,
    ReportSection,
    Table,
    TitledTable,
    TrainedTask,
    grouped_table,
    stated,
    table,
)

_GROUPS: dict[ModelKind, str] = {
    "run": "Runs",
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
    """A chart and a table for each trained task.

    Args:
        found: at least one.
    """
    tasks = TrainedTask.each(found)
    confidence = quantities.percent(found[0].confidence)
    remarks = [
        "A gauge needs no retention task. KL is KL(base || model) in nats per token, over the "
        "whole vocabulary: on the right answers of the trained task's own items, and on held-out "
        f"text. Intervals are {confidence}, one at a time. Models of one study share their data "
        "and their items, so a correlation over them is exploratory.",
        *stated(tasks),
        *(f"{task.before}{remark}" for part, task in tasks for remark in _without(part)),
    ]
    return ReportSection(
        name="gauges",
        title="Gauges of forgetting",
        remarks=remarks,
        figures=[
            figure for part, task in tasks for figure in task.figures("gauges", _figures(part))
        ],
        tables=[TitledTable(task.heading, _table(part)) for part, task in tasks],
        files={"gauges.csv": cells.csv_text(_rows(found))},
    )


def _without(part: TrainTaskGauges) -> Iterator[str]:
    """Which gauges have no correlation, in one sentence for each reason."""
    by_reason: dict[str, list[str]] = {}
    for order in part.orders:
        if order.reason is not None:
            by_reason.setdefault(order.reason, []).append(order.gauge)
    for reason, gauges in by_reason.items():
        yield f"No correlation of {quantities.listed(gauges)} with forgetting: {reason}."


def _figures(found: TrainTaskGauges) -> Iterator[Figure]:
    panels: list[Scatter] = []
    words: list[str] = []
    for title, kl_of in _KL.items():
        drawn = [
            (model, kl.estimate, model.retention_loss)
            for model in found.models
            if (kl := kl_of(model)) is not None and model.retention_loss is not None
        ]
        if len(drawn) < 2:
            continue
        unit = cells.unit_name(drawn[0][2].unit)
        panels.append(
            Scatter(
                f"{title} (nats per token)",
                f"Retention loss ({unit})",
                [(model.rank or "full", kl, loss.estimate) for model, kl, loss in drawn],
            )
        )
        words += [f"{model.label}: {title} {kl:.3g}" for model, kl, _ in drawn]
    if panels:
        yield Figure(
            "kl",
            "KL to the base and forgetting",
            "To the right is further from the base, up is more forgotten. A gauge is worth having "
            "where the points rise.",
            f"{'; '.join(words)}.",
            scatters(panels),
            "one point for each model, seeds averaged, at its rank",
            is_wide=True,
        )


def _table(found: TrainTaskGauges) -> Table:
    def norm(model: GaugedModel) -> Cell | str:
        return (
            EMPTY if model.update_norm is None else quantities.formatted(model.update_norm, ".3g")
        )

    losses = [model.retention_loss for model in found.models if model.retention_loss is not None]
    unit = cells.unit_name(losses[0].unit) if losses else "points"
    columns: list[Column[GaugedModel]] = [
        Column("Model", lambda row: row.label),
        Column("Retention loss", lambda row: cells.mean(row.retention_loss), unit),
        Column("KL, prompts", lambda row: _nats(row.kl_prompts), "nats per token"),
        Column("KL, held-out text", lambda row: _nats(row.kl_prose), "nats per token"),
        Column("Rise of the loss", lambda row: cells.mean(row.prose_rise), "same text, nats"),
        Column("Norm", norm, "of the update"),
    ]
    caption = (
        f"Trained on {found.train_task}: what each gauge says, and what was forgotten, seeds "
        f"averaged, {quantities.percent(found.confidence)} intervals. Above zero is worse."
    )
    groups = [
        (title, "", models)
        for kind, title in _GROUPS.items()
        if (models := [model for model in found.models if model.kind == kind])
    ]
    return grouped_table(caption, columns, groups)


def _nats(mean: TaskMean | None) -> Cell:
    return cells.formatted(mean, ".3g")


def _rows(found: Sequence[TrainTaskGauges]) -> Iterator[dict[str, Any]]:
    """One row for each model."""
    for part in found:
        for model in part.models:
            yield {
                "train_task": part.train_task,
                "model": model.label,
                "kind": model.kind,
                "rank": model.rank,
                "num_seeds": model.num_seeds,
                **cells.csv_row(model.retention_loss, "retention_loss", cells.SIZE_AND_UNIT),
                **cells.csv_row(model.kl_prompts, "kl_prompts_nats", cells.SIZE),
                **cells.csv_row(model.kl_prose, "kl_prose_nats", cells.SIZE),
                **cells.csv_row(model.prose_rise, "prose_rise_nats", cells.SIZE),
                "stderr_ratio": model.stderr_ratio,
                "update_norm": model.update_norm,
            }


def lost_item_section(found: Sequence[TrainTaskLostItems]) -> ReportSection:
    """A table for each trained task.

    Args:
        found: at least one.
    """
    tasks = TrainedTask.each(found)
    confidence = quantities.percent(found[0].confidence)
    remarks = [
        "An item is lost where the base is right and the run wrong, by the task's own metric. It "
        "comes back where the run is right when asked as in the training. Items that are lost by "
        f"little come back by chance too. Intervals are Wilson's, {confidence}: exploratory.",
        *stated(tasks),
    ]
    return ReportSection(
        name="lost-items",
        title="Forgotten, or only unformatted",
        remarks=remarks,
        tables=[TitledTable(task.heading, _lost_table(part)) for part, task in tasks],
        files={"lost-items.csv": cells.csv_text(_lost_rows(found))},
    )


def _lost_table(found: TrainTaskLostItems) -> Table:
    columns: list[Column[LostItems]] = [
        Column("Run", lambda row: row.label),
        Column("Task", lambda row: row.task, is_text=True),
        Column("Lost", lambda row: cells.count(row.num_lost), "items"),
        Column("Back", lambda row: cells.count(row.num_back), "in the trained format"),
        Column("Share", lambda row: cells.written(row.share_back, quantities.share), "of the lost"),
        Column("Kept", lambda row: _share(row.kept_share), "right there"),
        Column("Guessing", lambda row: _share(row.chance), "right there"),
    ]
    caption = (
        f"Trained on {found.train_task}: lost items of the retention tasks that are right in the "
        "trained format, beside the items that were kept."
    )
    return table(caption, columns, found.rows)


def _share(share: float | None) -> str | None:
    return None if share is None else quantities.share(share)


def _lost_rows(found: Sequence[TrainTaskLostItems]) -> Iterator[dict[str, Any]]:
    """One row for each run and task."""
    for part in found:
        for row in part.rows:
            yield {
                "train_task": part.train_task,
                "run": row.run,
                "label": row.label,
                "task": row.task,
                "scored_as": row.scored_as,
                "num_lost": row.num_lost,
                "num_back": row.num_back,
                **cells.csv_row(row.share_back, "share_back"),
                "num_kept": row.num_kept,
                "num_kept_right": row.num_kept_right,
                "chance": row.chance,
            }
