"""An audit as one self-contained HTML page, and its record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rankwise.findings.audits import (
    ENOUGH,
    MatrixGroup,
    Range,
    intruders_of_all,
    matrix_group,
    norms,
    subject,
)
from rankwise.records import quantities
from rankwise.records.audits import AuditRecord, AuditScore, KeptEnergy, OtherChange
from rankwise.records.files import sealed
from rankwise.records.grouping import grouped
from rankwise.records.outputs import write_outputs
from rankwise.records.spectra import (
    EPSILONS,
    INTRUDER_EPSILON,
    MatrixSpectrum,
    VectorChange,
    intruder_k,
)
from rankwise.report import cells
from rankwise.report.charts.intervals import Bar, BarPanel, interval_chart
from rankwise.report.charts.ranks import RankMark, RankPanel, rank_chart
from rankwise.report.facts import NOT_RECORDED, Facts, software_facts
from rankwise.report.parts import Cell, Column, Figure, ReportSection, Table, TitledTable
from rankwise.report.rendering import Page, Part, rendered
from rankwise.report.sections.weights import intruder_map, intruders, norm_map, nulls, turned_map

RECORD_FILE, PAGE_FILE = "audit.json", "audit.html"
_COMMON_NAMES = ("adapter", "checkpoint", "final", "model")


def write_audit(folder: Path, record: AuditRecord, *, overwrite: bool = False) -> Path:
    """Write ``audit.json`` and ``audit.html``; the page holds everything that it shows.

    Returns:
        The path of the page.

    Raises:
        ConfigError: files that rankwise did not write are there, and ``overwrite`` is not given.
        StorageError: the folder cannot be written.
    """
    text = sealed(record.model_dump_json(indent=2))
    contents = {RECORD_FILE: text, PAGE_FILE: audit_page(record)}
    write_outputs(folder, contents, overwrite=overwrite)
    return folder / PAGE_FILE


def audit_page(record: AuditRecord) -> str:
    """The page as text."""
    first, *others = record.statements
    page = Page(
        "rankwise audit",
        target_name(Path(record.target)),
        f"What this {record.kind} changes in {Path(record.base).name}.",
        [Part("", "audit", "In words", first, others)],
        list(_sections(record)),
    )
    return rendered(page)


def target_name(target: Path) -> str:
    """The last part of the path, with its parent where many are called so."""
    is_common = target.name.partition("-")[0] in _COMMON_NAMES
    return "/".join(target.parts[-2:]) if is_common else target.name


def _sections(record: AuditRecord) -> Iterator[ReportSection]:
    norm, base = norms(record.matrices)
    cut = "nothing to cut"
    if record.cut is not None:
        cut = (
            f"rank {record.cut.rank} ({100 * record.cut.share:.2f} %; "
            f"{100 * record.cut.lowest:.1f} % of the matrix that loses most)"
        )
    numbers: Facts = {
        "Kind": "PEFT LoRA adapter" if record.kind == "adapter" else "full checkpoint",
        "Matrices": quantities.count(len(record.matrices)),
        "Rank of the factors": ", ".join(map(str, record.ranks)) or "not low-rank by construction",
        "‖delta‖_F": f"{norm:.4g}",
        "Relative to ‖W₀‖_F": quantities.share(norm / base) if base else "base is zero",
        f"Smallest customary rank that keeps {ENOUGH:.0%}": cut,
        "Intruder dimensions": f"{intruders_of_all(record.matrices, EPSILONS).observed:g}",
    }
    yield ReportSection("numbers", "In numbers", tables=[TitledTable("", numbers)])
    if record.warnings:
        yield ReportSection("warnings", "Warnings", points=record.warnings)
    if record.scores:
        yield _score_section(record)
    if record.cut is not None:
        yield _energy_section(record, record.cut)
    norms_of = () if record.is_zero else norm_map({_label(record): record.matrices})
    table = TitledTable("By kind of matrix", kind_table(record))
    yield ReportSection("size", "Where the update is", (), list(norms_of), (table,))
    if not record.is_zero:
        yield _direction_section(record)
    if record.other_changes:
        table = TitledTable("Largest changes", other_table(record.other_changes))
        remark = (
            "Norms, embeddings, biases and the head are no part of the matrices above, and of no "
            "adapter either."
        )
        yield ReportSection("others", "Other parameters", (remark,), tables=(table,))
    yield ReportSection("matrices", "Every matrix", tables=[TitledTable("", matrix_table(record))])
    said = f"Every number of this page, unrounded, is in {RECORD_FILE} next to it."
    facts = {
        "Base": record.base,
        "Base model fingerprint": record.base_fingerprint,
        "Audited": record.target,
        **({} if record.precision is None else {"Precision of the scores": record.precision}),
        **software_facts(record.provenance),
        "Device": record.provenance.device or NOT_RECORDED,
        "Made": record.provenance.created_at,
    }
    yield ReportSection("provenance", "Provenance", (said,), tables=(TitledTable("", facts),))


def _score_section(record: AuditRecord) -> ReportSection:
    remark = (
        "Both models answered the same items. A difference is shown where its interval has only "
        "one sign; one seed, one training: whether another would do the same is not known."
    )
    sized = ((s, f"{s.task}\n{quantities.size(s.num_examples)}") for s in record.scores)
    by_unit = grouped((s.unit, Bar(label, "", "full", s.interval)) for s, label in sized)
    panels = [
        BarPanel("", f"adapted {quantities.MINUS} base ({cells.unit_name(unit)})", unit, bars)
        for unit, bars in by_unit.items()
    ]
    figure = Figure(
        "scores",
        "Difference from the base",
        "Paired over the same items, each task by itself. Right of zero is better.",
        interval_chart(panels),
        f"bars are {cells.intervals(record.confidence)}",
    )
    table = TitledTable("Every task", score_table(record))
    return ReportSection("scores", "Scores", [remark], [figure], [table])


def _energy_section(record: AuditRecord, cut: KeptEnergy) -> ReportSection:
    remark = "Energy says what of the weights is kept, not what of the scores: score a cut one."
    if record.kind == "adapter":
        remark += (
            " A trained adapter that was cut is not what training at that rank would have found. "
            "To cut each matrix and score it: rankwise repair BASE ADAPTER --by energy=0.9 ..."
        )
    panel = RankPanel(
        "Energy kept (%)",
        [
            RankMark(kept.rank, 100 * kept.share, is_ringed=kept.rank == cut.rank)
            for kept in record.kept
            if kept.rank & (kept.rank - 1) == 0 or kept.rank == cut.rank
        ],
        curves={
            "all matrices": [(kept.rank, 100 * kept.share) for kept in record.kept],
            "the one that loses most": [(kept.rank, 100 * kept.lowest) for kept in record.kept],
        },
        write=lambda share: f"keeps {share:.1f} %",
    )
    figure = Figure(
        "energy",
        "Energy that is kept at a lower rank",
        "Energy is ‖delta‖_F², what is left after every matrix is cut to its closest of that rank. "
        f"A ring marks the smallest customary rank that keeps {ENOUGH:.0%}.",
        rank_chart([panel]),
    )
    return ReportSection("energy", "How much rank it uses", (remark,), (figure,))


def _direction_section(record: AuditRecord) -> ReportSection:
    draws = quantities.counted(record.null_draws, "draw")
    remarks = [
        "Singular vectors after training compared with the base's own, and with what random "
        f"updates of the same size do to them ({draws} of each kind: Gaussian, of the same norm; "
        "Haar, of the same singular values). Vectors of near-equal singular values turn freely, so "
        "a low similarity says something only where random updates have a higher one."
        if record.null_draws
        else "Singular vectors after training compared with the base's own. Vectors of near-equal "
        "singular values turn freely, so a low similarity by itself says little: no random "
        "updates were drawn to compare with."
    ]
    figures: list[Figure] = []
    if any(matrix.layer is not None for matrix in record.matrices):  # on a map
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
    return ReportSection("directions", "What it turns", remarks, figures)


def _label(record: AuditRecord) -> str:
    return subject(record.kind, record.ranks).removeprefix("this ")


MOST_OTHERS = 20
_SAME_INDEX = "mean |cos|, same index"

Measure = Callable[[VectorChange, MatrixSpectrum], float]
_SIMILARITIES: tuple[tuple[str, str, Measure], ...] = (
    ("Similarity left", _SAME_INDEX, lambda of, _: of.left.index_matched[-1]),
    ("Similarity right", _SAME_INDEX, lambda of, _: of.right.index_matched[-1]),
    ("Best match left", "mean |cos|", lambda of, _: of.left.best_matched[-1]),
    ("Overlap left", "of the leading spaces", lambda of, _: of.left.overlap[-1]),
)


def matrix_table(record: AuditRecord) -> Table:
    """One row for each weight matrix, by kind."""

    def compared(form: str, number: Measure) -> Callable[[MatrixSpectrum], Cell]:
        """The matrix's own number, and those of random updates."""
        return lambda matrix: cells.beside(
            form, number(matrix.change, matrix), [number(null, matrix) for null in nulls(matrix)]
        )

    most = max(matrix.leading[-1] for matrix in record.matrices)
    by_kind = grouped((matrix.kind, matrix) for matrix in record.matrices)
    return Table.grouped(
        f"Similarities and overlap are over the {most} leading singular vectors, or the matrix's "
        f"own number. {_small_numbers(record, '')}",
        [(kind, "", matrices) for kind, matrices in by_kind.items()],
        Column(
            "Matrix",
            lambda row: Cell(row.module, "", f"{row.out_features} × {row.in_features}"),
            "out × in",
        ),
        Column("Rank", lambda matrix: matrix.update.rank),
        Column("‖delta‖_F", lambda matrix: f"{matrix.update.frobenius_norm:.3g}"),
        Column("of ‖W₀‖_F", lambda matrix: _percent(matrix.update.relative_norm), "%"),
        Column("‖delta‖₂", lambda matrix: f"{matrix.update.spectral_norm:.3g}"),
        Column("Stable rank", lambda matrix: f"{matrix.update.stable_rank:.1f}"),
        Column("Effective rank", lambda matrix: f"{matrix.update.effective_rank:.1f}"),
        Column("Energy rank", lambda matrix: str(matrix.update.energy_rank_90), "90 %"),
        Column("Energy rank", lambda matrix: str(matrix.update.energy_rank_99), "99 %"),
        Column(
            "Intruders",
            compared("{:.3g}", intruders),
            f"k = {intruder_k(record.matrices)}, ε = {INTRUDER_EPSILON}",
        ),
        *(Column(title, compared("{:.3f}", of), detail) for title, detail, of in _SIMILARITIES),
    )


def _percent(share: float | None) -> str | None:
    return cells.known(share, lambda value: f"{100 * value:.2g}")


def _small_numbers(record: AuditRecord, where: str) -> str:
    if not record.null_draws:
        return "No random updates were drawn to compare with."
    return (
        f"Small numbers{where} are what random updates have: Gaussian (same norm), Haar (same "
        "singular values)."
    )


def kind_table(record: AuditRecord) -> Table:
    """One row for each kind of matrix, and one for all of them."""
    kinds = grouped((matrix.kind, matrix) for matrix in record.matrices)
    if len(kinds) > 1:
        kinds["all"] = list(record.matrices)
    rows = [(name, len(own), matrix_group(own, record.epsilons)) for name, own in kinds.items()]

    def span(ranks: Range) -> Cell:
        return Cell(f"{ranks.median:g}", f"{ranks.least} to {ranks.most}")

    def share(group: MatrixGroup) -> str | None:
        return _percent(group.norm / group.base_norm if group.base_norm else None)

    return Table.of(
        "All matrices of a kind as one. "
        f"{_small_numbers(record, ' under intruders and similarity')}",
        rows,
        Column("Kind", lambda row: row[0]),
        Column("Matrices", lambda row: row[1]),
        Column("‖delta‖_F", lambda row: f"{row[2].norm:.3g}"),
        Column("of ‖W₀‖_F", lambda row: share(row[2]), "%"),
        Column("Energy rank 90 %", lambda row: span(row[2].energy_rank_90), "median, range"),
        Column("Energy rank 99 %", lambda row: span(row[2].energy_rank_99), "median, range"),
        Column("Intruders", lambda row: cells.beside_nulls("{:.3g}", row[2].intruders), "in all"),
        Column(
            "Similarity", lambda row: cells.beside_nulls("{:.3f}", row[2].similarities), _SAME_INDEX
        ),
    )


def score_table(record: AuditRecord) -> Table:
    """One row for each task: both scores, and the paired difference."""

    def asked(score: AuditScore) -> Cell:
        prompt = "chat template" if score.chat_template else "no chat template"
        how = f"{score.num_fewshot}-shot, {prompt}, version {score.task_version}"
        return Cell(score.task, "", how)

    def metric(score: AuditScore) -> Cell:
        direction = "higher" if score.higher_is_better else "lower"
        name = cells.metric_name(score.metric, score.filter)
        return Cell(name, "", f"{cells.unit_name(score.unit)}, {direction} is better")

    confidence = quantities.percent(record.confidence)
    return Table.of(
        f"Differences are paired over the same items; {confidence} intervals, each for one task by "
        "itself. p is McNemar's exact one where items are right or wrong, else of a paired t-test; "
        "neither is corrected for the number of tasks.",
        record.scores,
        Column("Task", asked),
        Column.text("Metric", metric),
        Column("n", lambda row: cells.items(row.num_examples, row.limit)),
        Column("Base", lambda row: _score(row, row.base_score, row.base_stderr), _ERROR),
        Column("Adapted", lambda row: _score(row, row.adapted_score, row.adapted_stderr), _ERROR),
        Column(
            "Difference", lambda row: cells.interval(row.interval, row.unit), "positive is better"
        ),
        Column("Learned", lambda row: row.num_learned, "wrong → right"),
        Column("Forgotten", lambda row: row.num_forgotten, "right → wrong"),
        Column("p", lambda row: quantities.p_value(row.p_value)),
    )


_ERROR = "± standard error"


def _score(score: AuditScore, value: float, error: float) -> Cell:
    return Cell(quantities.score(value, score.unit), f"± {error:.2g}")


def other_table(changes: tuple[OtherChange, ...]) -> Table:
    """The largest changes of parameters that are no linear layers."""
    more = len(changes) - MOST_OTHERS
    said = f" {quantities.count(more)} more are in audit.json." if more > 0 else ""
    return Table.of(
        f"‖after − before‖ / ‖before‖, largest first.{said}",
        changes[:MOST_OTHERS],
        Column("Parameter", lambda change: change.name),
        Column("Relative change", _other_cell),
    )


_OTHER = {"resized": "another size", "added": "not in the base", "removed": "not in the checkpoint"}


def _other_cell(change: OtherChange) -> Cell:
    match change.change:
        case "moved":
            return Cell(quantities.share(change.relative_norm or 0.0))
        case "from_zero":
            return Cell("was zero", f"norm {change.norm:.3g}")
        case other:
            return Cell(_OTHER[other])
