"""The tables of an audit: every matrix, every task, and what else a checkpoint changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rankwise.findings.audits import MatrixGroup, Range, matrix_group
from rankwise.records import quantities
from rankwise.records.audits import AuditRecord, AuditScore, OtherChange
from rankwise.records.spectra import (
    INTRUDER_EPSILON,
    MatrixSpectrum,
    VectorChange,
    intruder_k,
    intruders_of,
)
from rankwise.report import cells
from rankwise.report.charts.weight_maps import nulls
from rankwise.report.parts import Cell, Column, Table, grouped_table, table

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

    def intruders(change: VectorChange, matrix: MatrixSpectrum) -> float:
        return intruders_of(change, matrix.leading, record.epsilons)

    def share(matrix: MatrixSpectrum) -> str | None:
        relative = matrix.update.relative_norm
        return None if relative is None else f"{100 * relative:.2g}"

    def rank(matrix: MatrixSpectrum) -> str | None:
        return None if matrix.update.rank is None else str(matrix.update.rank)

    columns: list[Column[MatrixSpectrum]] = [
        Column("Matrix", _matrix_name, "out × in"),
        Column("Rank", rank),
        Column("‖delta‖_F", lambda matrix: f"{matrix.update.frobenius_norm:.3g}"),
        Column("of ‖W₀‖_F", share, "%"),
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
    ]
    most = max(matrix.leading[-1] for matrix in record.matrices)
    caption = (
        f"Similarities and overlap are over the {most} leading singular vectors, or the matrix's "
        f"own number. {_small_numbers(record, '')}"
    )
    groups = [(kind, "", matrices) for kind, matrices in _by_kind(record).items()]
    return grouped_table(caption, columns, groups)


def _matrix_name(matrix: MatrixSpectrum) -> Cell:
    return Cell(matrix.module, "", f"{matrix.out_features} × {matrix.in_features}")


def _by_kind(record: AuditRecord) -> dict[str, list[MatrixSpectrum]]:
    kinds: dict[str, list[MatrixSpectrum]] = {}
    for matrix in record.matrices:
        kinds.setdefault(matrix.kind, []).append(matrix)
    return kinds


def _small_numbers(record: AuditRecord, where: str) -> str:
    if not record.null_draws:
        return "No random updates were drawn to compare with."
    return (
        f"Small numbers{where} are what random updates have: Gaussian (same norm), Haar (same "
        "singular values)."
    )


class _Kind(NamedTuple):
    name: str
    num_matrices: int
    group: MatrixGroup


def kind_table(record: AuditRecord) -> Table:
    """One row for each kind of matrix, and one for all of them."""
    kinds = _by_kind(record)
    if len(kinds) > 1:
        kinds["all"] = list(record.matrices)
    rows = [
        _Kind(name, len(own), matrix_group(own, record.epsilons)) for name, own in kinds.items()
    ]

    def share(kind: _Kind) -> str | None:
        group = kind.group
        return f"{100 * group.norm / group.base_norm:.2g}" if group.base_norm else None

    def first(form: str, numbers: Sequence[float]) -> Cell:
        return cells.beside(form, numbers[0], numbers[1:])

    def span(ranks: Range) -> Cell:
        return Cell(f"{ranks.median:g}", f"{ranks.least} to {ranks.most}")

    columns: list[Column[_Kind]] = [
        Column("Kind", lambda kind: kind.name),
        Column("Matrices", lambda kind: cells.count(kind.num_matrices)),
        Column("‖delta‖_F", lambda kind: f"{kind.group.norm:.3g}"),
        Column("of ‖W₀‖_F", share, "%"),
        Column("Energy rank 90 %", lambda kind: span(kind.group.energy_rank_90), "median, range"),
        Column("Energy rank 99 %", lambda kind: span(kind.group.energy_rank_99), "median, range"),
        Column("Intruders", lambda kind: first("{:.3g}", kind.group.intruders), "in all"),
        Column("Similarity", lambda kind: first("{:.3f}", kind.group.similarities), _SAME_INDEX),
    ]
    small = _small_numbers(record, " under intruders and similarity")
    return table(f"All matrices of a kind as one. {small}", columns, rows)


def score_table(record: AuditRecord) -> Table:
    """One row for each task: both scores, and the paired difference."""
    columns: list[Column[AuditScore]] = [
        Column("Task", _asked),
        Column("Metric", _metric, is_text=True),
        Column("n", lambda row: cells.items(row.num_examples, row.limit)),
        Column("Base", lambda row: _score(row, row.base_score, row.base_stderr), _ERROR),
        Column("Adapted", lambda row: _score(row, row.adapted_score, row.adapted_stderr), _ERROR),
        Column(
            "Difference", lambda row: cells.interval(row.interval, row.unit), "positive is better"
        ),
        Column("Learned", lambda row: cells.count(row.num_learned), "wrong → right"),
        Column("Forgotten", lambda row: cells.count(row.num_forgotten), "right → wrong"),
        Column("p", lambda row: quantities.p_value(row.p_value)),
    ]
    confidence = quantities.percent(record.confidence)
    caption = (
        f"Differences are paired over the same items; {confidence} intervals, each for one task by "
        "itself. p is McNemar's exact one where items are right or wrong, else of a paired t-test; "
        "neither is corrected for the number of tasks."
    )
    return table(caption, columns, record.scores)


_ERROR = "± standard error"


def _asked(score: AuditScore) -> Cell:
    prompt = "chat template" if score.chat_template else "no chat template"
    return Cell(score.task, "", f"{score.num_fewshot}-shot, {prompt}, version {score.task_version}")


def _metric(score: AuditScore) -> Cell:
    direction = "higher" if score.higher_is_better else "lower"
    name = cells.metric_name(score.metric, score.filter)
    return Cell(name, "", f"{cells.unit_name(score.unit)}, {direction} is better")


def _score(score: AuditScore, value: float, error: float) -> Cell:
    return Cell(quantities.score(value, score.unit), f"± {error:.2g}")


def other_table(changes: tuple[OtherChange, ...]) -> Table:
    """The largest changes of parameters that are no linear layers."""
    columns: list[Column[OtherChange]] = [
        Column("Parameter", lambda change: change.name),
        Column("Relative change", _other_cell),
    ]
    more = len(changes) - MOST_OTHERS
    caption = "‖after − before‖ / ‖before‖, largest first." + (
        f" {quantities.count(more)} more are in audit.json." if more > 0 else ""
    )
    return table(caption, columns, changes[:MOST_OTHERS])


def _other_cell(change: OtherChange) -> Cell:
    match change.change:
        case "moved":
            return Cell(quantities.share(change.relative_norm or 0.0))
        case "from_zero":
            return Cell("was zero", f"norm {change.norm:.3g}")
        case "resized":
            return Cell("another size")
        case "added":
            return Cell("not in the base")
        case "removed":
            return Cell("not in the checkpoint")
