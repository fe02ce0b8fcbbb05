"""Whether the runs that the verdict names survive being merged and quantised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rankwise.findings.deployment import DeployedRun
from rankwise.records import quantities
from rankwise.records.deployment import DeploymentCheck, FormScore, FormVerdict, JudgedForm
from rankwise.records.files import in_words
from rankwise.report import cells
from rankwise.report.cells import Cell, as_cell
from rankwise.report.parts import Column, ReportSection, Table, TitledTable, shows
from rankwise.report.summaries import RELATION_NAMES

VERDICTS: dict[FormVerdict, str] = {
    "keeps": "keeps enough",
    "loses": "loses too much",
    "cannot_tell": "cannot tell",
}


@shows("deployed")
def deployment_section(found: Sequence[DeployedRun], *_: object) -> ReportSection:
    """What is said of each form, and a table for each run."""
    return ReportSection(
        "deployment",
        "In the forms in which it is deployed",
        [
            "The adapter is merged into the base, which is then rounded to each form, or is put "
            "beside a rounded base (beside-4bit, beside-8bit). It answers the same items as the "
            "adapter as it was trained. A server (http://) answers as it is, in its own precision. "
            "A form keeps enough where the loss of each group of tasks is shown to be below its "
            "margin, and loses too much where one is shown to be above. All but servers are scored "
            "in float32, so nothing but the rounding of the weights differs. The recommendation "
            "does not rest on this.",
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
        Column(lambda form: form.num_bytes or None, "On the disk", write=in_words),
        Column("delta.relative_error", "Rounding", "times delta", quantities.ratio),
        Column("delta.kept_share", "Delta kept", write=_kept),
        Column("verdict", "Verdict", write=VERDICTS),
        file="deployment",
        records=[
            ({"run": found.run, "form": form.form, "verdict": form.verdict}, score)
            for form in found.forms
            for score in form.scores
        ],
    )


class _Line(NamedTuple):
    """A score on a task: of a form, or of what forms are compared with, which has no ``form``."""

    name: str
    num_bytes: int | None
    score: FormScore
    value: float
    form: JudgedForm | None = None

    @property
    def verdict(self) -> str:
        """That of the tasks whose first this is; of a server that of all its answers."""
        form = self.form
        if form is None:
            return ""
        means = (mean for mean in form.means if mean.tasks[0] == self.score.task)
        if (mean := next(means, None)) is None:
            return ""
        return (form if form.served else mean).verdict.replace("_", " ")


def check_table(record: DeploymentCheck) -> Table:
    """A row for each form and task, below the base's and the reference's; for the terminal."""
    merged, scores = record.reference == "adapter", record.forms[0].scores
    name, size = "as trained" if merged else "base", record.reference_bytes
    lines = [_Line("base", None, own, record.base_scores[own.task]) for own in scores if merged]
    lines += [_Line(name, size, own, own.reference_score) for own in scores]
    lines += [
        _Line(form.form, form.num_bytes or None, own, own.form_score, form)
        for form in record.forms
        for own in form.scores
    ]

    def difference(line: _Line) -> Cell | None:
        return line.form and cells.interval(line.score.difference, line.score.unit)

    def flipped(line: _Line) -> Cell | None:
        items = (line.score.gained, line.score.lost)
        gained, lost = (as_cell(None if own is None else len(own)).value for own in items)
        return line.form and Cell(gained, "", lost)

    return Table.of(
        f"against the {'adapter as trained' if merged else 'base'}, paired over the same items, "
        f"with intervals of {quantities.percent(record.confidence)}; positive is better; scored in "
        f"{record.precision}",
        lines,
        Column("name", "form"),
        Column("num_bytes", "on disk", write=in_words),
        Column("score.task", "task"),
        Column(lambda line: quantities.score(line.value, line.score.unit), "score"),
        Column(difference, "difference"),
        Column(flipped, "gained", "lost"),
        Column("form.delta.relative_error", "rounding", "/ delta", quantities.ratio),
        Column("form.delta.unchanged_share", "entries", "unchanged", quantities.share),
        Column("form.delta.kept_share", "delta", "kept", _kept),
        Column("verdict", "verdict"),
    )


def _kept(share: float) -> str:
    return quantities.share(max(share, 0.0))
