"""Which kinds of item got better or worse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.findings.slices import TrainTaskSlices
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.parts import Column, ReportSection, Shown, Table, shows
from rankwise.report.summaries import RELATION_NAMES


@shows("slices")
def slice_section(found: Sequence[TrainTaskSlices], *_: object) -> ReportSection:
    """A table for each trained task."""
    about = (
        "Changes from the base on the items of each kind. Intervals are those at which Holm's "
        "procedure holds each change against zero, so that all of them together are wrong with "
        f"probability {quantities.percent(round(1 - found[0].confidence, 6))} at most."
    )
    return ReportSection.of("slices", "Which kinds of item changed", about, found, _shown)


def _shown(found: TrainTaskSlices) -> Iterator[Shown]:
    yield Table.of(
        f"Trained on {found.train_task}: changes by kind of item, seeds averaged.",
        found.rows,
        Column("option.label", "Option"),
        Column(lambda row: f"{row.task} ({RELATION_NAMES[row.relation]})", "Task", is_text=True),
        Column(lambda row: f"{row.by}: {row.kind}", "Kind", is_text=True),
        Column("num_examples", "Items"),
        Column(lambda row: quantities.amount(row.base, row.unit), "Base"),
        Column(lambda row: cells.interval(row.change, row.unit), "Change"),
        Column("holm_p_value", "p, Holm", write=quantities.p_value),
        Column(lambda row: row.verdict.replace("_", " "), "Shown?", is_text=True),
        file="slices",
    )
