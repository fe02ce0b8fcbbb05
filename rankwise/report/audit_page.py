"""An audit as one self-contained HTML page, and its record."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import altair as alt

from rankwise.findings.audits import ENOUGH, intruder_total, norms, subject
from rankwise.records import quantities
from rankwise.records.audits import AuditRecord
from rankwise.records.folder import write_atomically
from rankwise.records.study import Provenance
from rankwise.report.charts.audits import energy_chart, score_chart
from rankwise.report.charts.theme import page_colours, theme
from rankwise.report.charts.weight_maps import (
    SpectrumMap,
    has_layers,
    intruder_map,
    norm_map,
    turned_map,
)
from rankwise.report.facts import Entry
from rankwise.report.parts import Chart, Figure, ReportSection, TitledTable
from rankwise.report.rendering import dark_rules, drawn_sections, render_template
from rankwise.report.tables.audits import kind_table, matrix_table, other_table, score_table

RECORD_FILE, PAGE_FILE = "audit.json", "audit.html"
_TITLE_WIDTH = 80
_COMMON_NAMES = ("adapter", "checkpoint", "final", "model")


def write_audit(folder: Path, record: AuditRecord) -> Path:
    """Write ``audit.json`` and ``audit.html``; the page holds everything that it shows.

    Returns:
        The path of the page.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_atomically(folder / RECORD_FILE, record.model_dump_json(indent=2) + "\n")
    path = folder / PAGE_FILE
    write_atomically(path, audit_page(record))
    return path


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
        yield _energy_section(record)
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
    remarks = [
        "Both models answered the same items. A difference is shown where its interval has only "
        "one sign; one seed, one training: whether another would do the same is not known.",
    ]
    title = "Difference from the base"
    confidence = quantities.percent(record.confidence)
    chart = score_chart(record.scores, _title(title, f"bars are {confidence} intervals"))
    words = [
        f"{score.task} {quantities.formatted(score.difference, '+.3g')} {score.unit}"
        for score in record.scores
    ]
    caption = "Paired over the same items, each task by itself. Right of zero is better."
    figure = _figure("scores", title, caption, words, chart)
    tables = (TitledTable("Every task", score_table(record)),)
    return ReportSection("scores", "Scores", tuple(remarks), (figure,), tables)


def _energy_section(record: AuditRecord) -> ReportSection:
    assert record.cut is not None
    title = "Energy that is kept at a lower rank"
    detail = "line: all matrices together; dashed: the one that loses most"
    chart = energy_chart(record.kept, record.cut, ENOUGH, _title(title, detail))
    shown = [cut for cut in record.kept if cut.rank & (cut.rank - 1) == 0]
    words = [f"rank {each.rank} keeps {100 * each.share:.1f} %" for each in shown]
    caption = (
        "Energy is ‖delta‖_F², what is left after every matrix is cut to its closest of that rank. "
        f"Marked is the smallest customary rank that keeps {ENOUGH:.0%}."
    )
    remarks = ["Energy says what of the weights is kept, not what of the scores: score a cut one."]
    if record.kind == "adapter":
        remarks[0] += (
            " A trained adapter that was cut is not what training at that rank would have found. "
            f"To cut: rankwise truncate ADAPTER --rank {record.cut.rank} --output DIR."
        )
    figure = _figure("energy", title, caption, words, chart)
    return ReportSection("energy", "How much rank it uses", tuple(remarks), (figure,))


def _size_section(record: AuditRecord) -> ReportSection:
    figures: tuple[Figure, ...] = ()
    if has_layers(record.matrices) and not record.is_zero:
        figures = tuple(_maps([norm_map({_label(record): record.matrices})]))
    table = TitledTable("By kind of matrix", kind_table(record))
    return ReportSection("size", "Where the update is", (), figures, (table,))


def _direction_section(record: AuditRecord) -> ReportSection:
    remarks = [_compared_with(record)]
    found = list[SpectrumMap]()
    if has_layers(record.matrices):
        found.append(turned_map(_label(record), record.matrices))
        intruders = intruder_map(_label(record), record.matrices)
        if any(any(panel.values.values()) for panel in intruders.panels):
            found.append(intruders)
        else:
            also = ", nor would one under random updates" if record.null_draws else ""
            remarks.append(f"No matrix has an intruder dimension{also}: there is no map of them.")
    return ReportSection("directions", "What it turns", tuple(remarks), tuple(_maps(found)))


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


def _maps(found: list[SpectrumMap]) -> Iterator[Figure]:
    for each in found:
        if each.panels:
            chart = each.chart(_title(each.title, each.detail))
            yield _figure(each.name, each.title, each.caption, each.in_words, chart, is_wide=True)


def _figure(
    name: str, title: str, caption: str, words: list[str], chart: Chart, *, is_wide: bool = False
) -> Figure:
    described = f"{'; '.join(words)}."
    return Figure(name, title, caption, described, chart.configure(**theme()), is_wide)


def _title(title: str, detail: str) -> alt.TitleParams:
    return alt.TitleParams(
        textwrap.wrap(title, _TITLE_WIDTH), subtitle=textwrap.wrap(detail, _TITLE_WIDTH)
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
    made: Provenance = record.provenance
    packages = [f"{name} {version}" for name, version in sorted(made.package_versions.items())]
    facts = [
        Entry("Base", record.base),
        Entry("Base model fingerprint", record.base_fingerprint),
        Entry("Audited", record.target),
        Entry("rankwise", made.rankwise_version),
        Entry("Commit", made.git_commit or "not recorded"),
        Entry("Packages", ", ".join(packages) or "not recorded"),
        Entry("Device", made.device or "not recorded"),
        Entry("Made", made.created_at),
    ]
    if record.precision is not None:
        facts.insert(3, Entry("Precision of the scores", record.precision))
    return tuple(facts)
