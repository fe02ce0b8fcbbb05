"""Tasks that were trained one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.findings.sequences import TrainTaskSequence
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.parts import Column, ReportSection, Shown, Table, shows
from rankwise.report.tables import STATES


@shows("sequences")
def sequence_section(found: Sequence[TrainTaskSequence], *_: object) -> ReportSection:
    """A table for each task that was trained after another."""
    about = [
        "Each run is compared with the run on the earlier task that it comes from, on that task's "
        "items, one by one. The share is of what that run had gained over the base. Enough is "
        "kept where the loss is shown to be at most ε, or δ where there is no ε. Intervals are "
        f"{quantities.percent(found[0].confidence)}, one at a time: exploratory.",
        *cells.of_one_seed(max(row.num_seeds for part in found for row in part.rows)),
    ]
    return ReportSection.of(
        "sequences", "What a later task leaves of an earlier one", about, found, _shown
    )


def _shown(found: TrainTaskSequence) -> Iterator[Shown]:
    yield Table.of(
        f"The items of the earlier task, after {found.train_task}; changes are from the run on "
        "that task, item by item.",
        found.rows,
        Column("label", "Run"),
        Column("gain", "Gain left", "over the base", cells.sized),
        Column("lead", "Change", "since then"),
        Column("kept", "Kept", "of the gain before"),
        Column("keeps_enough", "Keeps enough?", write=STATES),
        by=lambda row: (row.earlier, quantities.counted(row.num_seeds, "seed")),
        file="sequences",
    )
