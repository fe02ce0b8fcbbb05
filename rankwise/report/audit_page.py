"""An audit as one self-contained HTML page, and its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import altair as alt

from rankwise.findings.audits import ENOUGH, intruder_total, norms, subject
from rankwise.records import quantities
from rankwise.records.audits import AuditRecord, AuditScore, KeptEnergy
from rankwise.records.files import write_atomically
from rankwise.records.study import Unit
from rankwise.records.whole_folder import whole_folder
from rankwise.report import cells
from rankwise.report.charts.energy import energy_chart
from rankwise.report.charts.intervals import IntervalMark, interval_chart
from rankwise.report.charts.theme import SERIES, page_colours
from rankwise.report.charts.weight_maps import (
    has_layers,
    intruder_map,
    intruders,
    norm_map,
    nulls,
    turned_map,
)
from rankwise.report.facts import NOT_RECORDED, Entry, software_facts
from rankwise.report.parts import Chart, Figure, ReportSection, TitledTable
from rankwise.report.rendering import dark_rules, drawn_sections, render_template
from rankwise.report.tables.audits import kind_table, matrix_table, other_table, score_table

RECORD_FILE, PAGE_FILE = "audit.json", "audit.html"
_LETTERS = (80, 80)
_COMMON_NAMES = ("adapter", "checkpoint", "final", "model")


def write_audit(folder: Path, record: AuditRecord) -> Path:
    """Write ``audit.json`` and ``audit.html``; the page holds everything that it shows.

    Returns:
        The path of the page.

    Raises:
        StorageError: the folder cannot be written.
    """
    with whole_folder(folder) as temporary:
        write_atomically(temporary / RECORD_FILE, record.model_dump_json(indent=2) + "\n")
        write_atomically(temporary / PAGE_FILE, audit_page(record))
    return folder / PAGE_FILE


def audit_page(record: AuditRecord) -> str:
    """The page as text."""
    first, *others = record.statements
    return render_template(
        "audit.html",
        name=target_name(Path(record.target)),
        base=Path(record.base).name,
        kind=record.kind,
        statement=first,
        statements=others,
        facts_shown=_facts(record),
        sections=drawn_sections(tuple(_sections(record)), 0),
        warnings=record.warnings,
        provenance=_provenance(record),
        dark=dark_rules(page_colours(())),
    )


def target_name(target: Path) -> str:
    """The last part of the path, with its parent where many are called so."""
    is_common = target.name.partition("-")[0] in _COMMON_NAMES
    return "/".join(target.parts[-2:]) if is_common else target.name


def _sections(record: AuditRecord) -> Iterator[ReportSection]:
    if record.scores:
        yield _score_section(record)
    if record.cut is not None:
        yield _energy_section(record, record.cut)
    yield _size_section(record)
    if not record.is_zero:
        yield _direction_section(record)
    if record.other_changes:
        table = TitledTable("Largest changes", other_table(record.other_changes))
        remark = (
            "Norms, embeddings, biases and the head are no part of the matrices above, and of no "
            "adapter either."
        )
        yield ReportSection("others", "Other parameters", (remark,), (), (table,))
    table = TitledTable("Weight matrices", matrix_table(record))
    yield ReportSection("matrices", "Every matrix", (), (), (table,))


def _score_section(record: AuditRecord) -> ReportSection:
    remarks = (
        "Both models answered the same items. A difference is shown where its interval has only "
        "one sign; one seed, one training: whether another would do the same is not known.",
    )
    words = [
        f"{score.task} {quantities.formatted(score.difference, '+.3g')} {score.unit}"
        for score in record.scores
    ]
    figure = Figure(
        "scores",
        "Difference from the base",
        "Paired over the same items, each task by itself. Right of zero is better.",
        f"{'; '.join(words)}.",
        _score_chart(record.scores),
        f"bars are {quantities.percent(record.confidence)} intervals",
        letters=_LETTERS,
    )
    tables = (TitledTable("Every task", score_table(record)),)
    return ReportSection("scores", "Scores", remarks, (figure,), tables)


def _score_chart(scores: Sequence[AuditScore]) -> Chart:
    """The difference from the base on every task, an axis for each unit."""
    by_unit: dict[Unit, list[IntervalMark]] = {}
    for score in scores:
        label = f"{score.task}, {quantities.size(score.num_examples)}"
        mark = IntervalMark(label, score.interval, SERIES[0].light)
        by_unit.setdefault(score.unit, []).append(mark)
    return alt.vconcat(
        *(
            interval_chart(
                marks,
                f"adapted {quantities.MINUS} base ({cells.unit_name(unit)}), right is better",
                width=400,
                step=max(24, 48 / len(marks)),
                label_limit=260,
            )
            for unit, marks in by_unit.items()
        )
    )


def _energy_section(record: AuditRecord, cut: KeptEnergy) -> ReportSection:
    shown = [kept for kept in record.kept if kept.rank & (kept.rank - 1) == 0]
    words = [f"rank {kept.rank} keeps {100 * kept.share:.1f} %" for kept in shown]
    remark = "Energy says what of the weights is kept, not what of the scores: score a cut one."
    if record.kind == "adapter":
        remark += (
            " A trained adapter that was cut is not what training at that rank would have found. "
            f"To cut: rankwise truncate ADAPTER --rank {cut.rank} --output DIR."
        )
    figure = Figure(
        "energy",
        "Energy that is kept at a lower rank",
        "Energy is ‖delta‖_F², what is left after every matrix is cut to its closest of that rank. "
        f"Marked is the smallest customary rank that keeps {ENOUGH:.0%}.",
        f"{'; '.join(words)}.",
        energy_chart(record.kept, cut, ENOUGH),
        "line: all matrices together; dashed: the one that loses most",
        letters=_LETTERS,
    )
    return ReportSection("energy", "How much rank it uses", (remark,), (figure,))


def _size_section(record: AuditRecord) -> ReportSection:
    figures: tuple[Figure, ...] = ()
    if has_layers(record.matrices) and not record.is_zero:
        figures = tuple(norm_map({_label(record): record.matrices}))
    table = TitledTable("By kind of matrix", kind_table(record))
    return ReportSection("size", "Where the update is", (), figures, (table,))


def _direction_section(record: AuditRecord) -> ReportSection:
    remarks = [_compared_with(record)]
    figures: list[Figure] = []
    if has_layers(record.matrices):
        figures += turned_map(_label(record), record.matrices)
        if any(
            intruders(change, matrix)
            for matrix in record.matrices
            if matrix.layer is not None
            for change in (matrix.change, *nulls(matrix))
        ):
            figures += intruder_map(_label(record), record.matrices)
        else:
            also = ", nor would one under random updates" if record.null_draws else ""
            remarks.append(f"No matrix has an intruder dimension{also}: there is no map of them.")
    return ReportSection("directions", "What it turns", tuple(remarks), tuple(figures))


def _compared_with(record: AuditRecord) -> str:
    if not record.null_draws:
        return (
            "Singular vectors after training compared with the base's own. Vectors of near-equal "
            "singular values turn freely, so a low similarity by itself says little: no random "
            "updates were drawn to compare with."
        )
    draws = quantities.counted(record.null_draws, "draw")
    return (
        "Singular vectors after training compared with the base's own, and with what random "
        f"updates of the same size do to them ({draws} of each kind: Gaussian, of the same norm; "
        "Haar, of the same singular values). Vectors of near-equal singular values turn freely, so "
        "a low similarity says something only where random updates have a higher one."
    )


def _label(record: AuditRecord) -> str:
    return subject(record.kind, record.ranks).removeprefix("this ")


def _facts(record: AuditRecord) -> tuple[Entry, ...]:
    norm, base = norms(record.matrices)
    what = "PEFT LoRA adapter" if record.kind == "adapter" else "full checkpoint"
    ranks = ", ".join(map(str, record.ranks)) or "not low-rank by construction"
    cut = "nothing to cut"
    if record.cut is not None:
        cut = (
            f"rank {record.cut.rank} ({100 * record.cut.share:.2f} %; "
            f"{100 * record.cut.lowest:.1f} % of the matrix that loses most)"
        )
    return (
        Entry("Kind", what),
        Entry("Matrices", quantities.count(len(record.matrices))),
        Entry("Rank of the factors", ranks),
        Entry("‖delta‖_F", f"{norm:.4g}"),
        Entry("Relative to ‖W₀‖_F", quantities.share(norm / base) if base else "base is zero"),
        Entry(f"Smallest customary rank that keeps {ENOUGH:.0%}", cut),
        Entry("Intruder dimensions", f"{intruder_total(record.matrices):g}"),
    )


def _provenance(record: AuditRecord) -> tuple[Entry, ...]:
    facts = [
        Entry("Base", record.base),
        Entry("Base model fingerprint", record.base_fingerprint),
        Entry("Audited", record.target),
        *software_facts(record.provenance),
        Entry("Device", record.provenance.device or NOT_RECORDED),
        Entry("Made", record.provenance.created_at),
    ]
    if record.precision is not None:
        facts.insert(3, Entry("Precision of the scores", record.precision))
    return tuple(facts)
