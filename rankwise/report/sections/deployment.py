"""Whether the runs that the verdict names survive being merged and quantised."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.findings.deployment import DeployedRun
from rankwise.records import quantities
from rankwise.records.deployment import FormVerdict
from rankwise.records.files import in_words
from rankwise.report import cells
from rankwise.report.parts import Column, ReportSection, Table, TitledTable
from rankwise.report.summaries import RELATION_NAMES

VERDICTS: dict[FormVerdict, str] = {
    "keeps": "keeps enough",
    "loses": "loses too much",
    "cannot_tell": "cannot tell",
}


def deployment_section(found: Sequence[DeployedRun]) -> ReportSection:
    """What is said of each form, and a table for each run."""
    return ReportSection(
        "deployment",
        "In the forms in which it is deployed",
        [
            "The adapter is merged into the base and rounded to each form, and answers the same "
            "items as the adapter as it was trained. A form keeps enough where the loss of each "
            "group of tasks is shown to be below its margin, and loses too much where one is shown "
            "to be above. Everything is scored in float32, so nothing but the rounding of the "
            "weights differs. The recommendation does not rest on this.",
            *(line for each in found for line in each.lines),
            *(f"{each.run}: {warning}" for each in found for warning in each.warnings),
        ],
        tables=[TitledTable(f"{each.run}, {each.named}", _table(each)) for each in found],
    )


def _table(found: DeployedRun) -> Table:
    def change(place: int) -> Column:
        first = found.forms[0].means[place]
        title = RELATION_NAMES[first.relation or "in_domain"].capitalize()
        margin = f"{first.unit}, {quantities.score(first.margin, first.unit)} may be lost"
        return Column(
            lambda row: cells.interval(row.means[place].difference, first.unit), title, margin
        )

    return Table.of(
        "Changes against the adapter as trained, paired item by item; positive is better; "
        f"{cells.intervals(found.confidence)}",
        found.forms,
        Column("form", "Form"),
        *(change(place) for place in range(len(found.forms[0].means))),
        Column("num_bytes", "On the disk", write=in_words),
        Column("delta.relative_error", "Rounding", "times delta", quantities.ratio),
        Column(
            lambda row: row.delta and quantities.share(max(row.delta.kept_share, 0.0)), "Delta kept"
        ),
        Column("verdict", "Verdict", write=VERDICTS),
    )
