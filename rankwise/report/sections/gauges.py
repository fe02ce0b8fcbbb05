"""Gauges of forgetting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rankwise.findings.gauges import GaugedModel, ModelKind, TrainTaskGauges
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.charts.marks import MarkStyle
from rankwise.report.charts.plane import Plane, PlaneMark, plane_chart
from rankwise.report.parts import LEAST_POINTS, Column, Figure, ReportSection, Shown, Table, shows

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


@shows("gauges")
def gauge_section(found: Sequence[TrainTaskGauges], *_: object) -> ReportSection:
    """A chart and a table for each trained task."""
    about = (
        "A gauge needs no retention task. KL is KL(base || model) in nats per token, over the "
        "whole vocabulary: on the right answers of the trained task's own items, and on held-out "
        f"text. Intervals are {quantities.percent(found[0].confidence)}, one at a time. Models of "
        "one study share their data and their items, so a correlation over them is exploratory."
    )

    return ReportSection.of("gauges", "Gauges of forgetting", about, found, _gauges_shown)


def _gauges_shown(found: TrainTaskGauges) -> Iterator[Shown]:
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
                MarkStyle.of(model.rank or "full"),
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
    yield Table.of(
        f"Trained on {found.train_task}: what each gauge says, and what was forgotten, seeds "
        f"averaged, {cells.intervals(found.confidence)}. Above zero is worse.",
        found.models,
        Column("label", "Model"),
        Column("retention_loss", "Retention loss", unit),
        Column("kl_prompts", "KL, prompts", "nats per token", ".3g"),
        Column("kl_prose", "KL, held-out text", "nats per token", ".3g"),
        Column("prose_rise", "Rise of the loss", "same text, nats"),
        Column("update_norm", "Norm", "of the update", ".3g"),
        by=lambda row: _GROUPS[row.kind],
        file="gauges",
    )
