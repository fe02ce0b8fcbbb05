"""The tables of an audit: every matrix, every task, and what else a checkpoint changed."""

from __future__ import annotations

from rankwise.findings.audits import matrix_group
from rankwise.records import quantities
from rankwise.records.audits import AuditRecord, AuditScore, OtherChange
from rankwise.records.spectra import (
    INTRUDER_EPSILON,
    MatrixSpectrum,
    intruder_k,
    intruders_of,
)
from rankwise.report.parts import EMPTY, Cell, Heading, RowGroup, Table
from rankwise.report.tables.decision import metric_name

MOST_OTHERS = 20


def matrix_table(record: AuditRecord) -> Table:
    """One row for each weight matrix, by kind."""
    headings = (
        Heading("Matrix", "out × in"),
        Heading("Rank"),
        Heading("‖delta‖_F"),
        Heading("of ‖W₀‖_F", "%"),
        Heading("‖delta‖₂"),
        Heading("Stable rank"),
        Heading("Effective rank"),
        Heading("Energy rank", "90 %"),
        Heading("Energy rank", "99 %"),
        Heading("Intruders", f"k = {intruder_k(record.matrices)}, ε = {INTRUDER_EPSILON}"),
        Heading("Similarity left", "mean |cos|, same index"),
        Heading("Similarity right", "mean |cos|, same index"),
        Heading("Best match left", "mean |cos|"),
        Heading("Overlap left", "of the leading spaces"),
    )
    kinds = dict.fromkeys(matrix.kind for matrix in record.matrices)
    groups = tuple(
        RowGroup(
            kind,
            "",
            tuple(_matrix_cells(each, record) for each in record.matrices if each.kind == kind),
        )
        for kind in kinds
    )
    most = max(each.leading[-1] for each in record.matrices)
    caption = (
        f"Similarities and overlap are over the {most} leading singular vectors, or the matrix's "
        f"own number. {_small_numbers(record, '')}"
    )
    return Table(caption, headings, groups)


def _small_numbers(record: AuditRecord, where: str) -> str:
    if not record.null_draws:
        return "No random updates were drawn to compare with."
    return (
        f"Small numbers{where} are what random updates have: Gaussian (same norm), Haar (same "
        "singular values)."
    )


def _matrix_cells(matrix: MatrixSpectrum, record: AuditRecord) -> tuple[Cell, ...]:
    update, change = matrix.update, matrix.change
    relative = update.relative_norm
    nulls = [null for null in (matrix.gaussian_null, matrix.haar_null) if null is not None]

    def shown(form: str, own: float, random: list[float]) -> Cell:
        return Cell(form.format(own), ", ".join(form.format(each) for each in random))

    def intruders(of: MatrixSpectrum) -> Cell:
        counts = [intruders_of(each, of.leading, record.epsilons) for each in (change, *nulls)]
        return shown("{:.3g}", counts[0], counts[1:])

    return (
        Cell(matrix.module, "", f"{matrix.out_features} × {matrix.in_features}"),
        EMPTY if update.rank is None else Cell(str(update.rank)),
        Cell(f"{update.frobenius_norm:.3g}"),
        EMPTY if relative is None else Cell(f"{100 * relative:.2g}"),
        Cell(f"{update.spectral_norm:.3g}"),
        Cell(f"{update.stable_rank:.1f}"),
        Cell(f"{update.effective_rank:.1f}"),
        Cell(str(update.energy_rank_90)),
        Cell(str(update.energy_rank_99)),
        intruders(matrix),
        shown("{:.3f}", change.left.index_matched[-1], [n.left.index_matched[-1] for n in nulls]),
        shown("{:.3f}", change.right.index_matched[-1], [n.right.index_matched[-1] for n in nulls]),
        shown("{:.3f}", change.left.best_matched[-1], [n.left.best_matched[-1] for n in nulls]),
        shown("{:.3f}", change.left.overlap[-1], [n.left.overlap[-1] for n in nulls]),
    )


def kind_table(record: AuditRecord) -> Table:
    """One row for each kind of matrix, and one for all of them."""
    headings = (
        Heading("Kind"),
        Heading("Matrices"),
        Heading("‖delta‖_F"),
        Heading("of ‖W₀‖_F", "%"),
        Heading("Energy rank 90 %", "median, range"),
        Heading("Energy rank 99 %", "median, range"),
        Heading("Intruders", "in all"),
        Heading("Similarity", "mean |cos|, same index"),
    )
    kinds = list(dict.fromkeys(matrix.kind for matrix in record.matrices))
    rows = [
        _kind_cells(kind, [each for each in record.matrices if each.kind == kind], record)
        for kind in kinds
    ]
    if len(kinds) > 1:
        rows.append(_kind_cells("all", list(record.matrices), record))
    small = _small_numbers(record, " under intruders and similarity")
    caption = f"All matrices of a kind as one. {small}"
    return Table(caption, headings, (RowGroup("", "", tuple(rows)),))


def _kind_cells(kind: str, matrices: list[MatrixSpectrum], record: AuditRecord) -> tuple[Cell, ...]:
    group = matrix_group(matrices, record.epsilons)
    intruders = [f"{count:.3g}" for count in group.intruders]
    similarities = [f"{value:.3f}" for value in group.similarities]
    share = f"{100 * group.norm / group.base_norm:.2g}" if group.base_norm else ""
    return (
        Cell(kind),
        Cell(quantities.count(len(matrices))),
        Cell(f"{group.norm:.3g}"),
        Cell(share) if share else EMPTY,
        *(
            Cell(f"{ranks.median:g}", f"{ranks.least} to {ranks.most}")
            for ranks in (group.energy_rank_90, group.energy_rank_99)
        ),
        Cell(intruders[0], ", ".join(intruders[1:])),
        Cell(similarities[0], ", ".join(similarities[1:])),
    )


def score_table(record: AuditRecord) -> Table:
    """One row for each task: both scores, and the paired difference."""
    headings = (
        Heading("Task"),
        Heading("Metric"),
        Heading("n"),
        Heading("Base", "± standard error"),
        Heading("Adapted", "± standard error"),
        Heading("Difference", "positive is better"),
        Heading("Learned", "wrong → right"),
        Heading("Forgotten", "right → wrong"),
        Heading("p"),
    )
    rows = tuple(_score_cells(score) for score in record.scores)
    confidence = quantities.percent(record.confidence)
    caption = (
        f"Differences are paired over the same items; {confidence} intervals, each for one task by "
        "itself. p is McNemar's exact one where items are right or wrong, else of a paired t-test; "
        "neither is corrected for the number of tasks."
    )
    return Table(caption, headings, (RowGroup("", "", rows),), (0, 1))


def _score_cells(score: AuditScore) -> tuple[Cell, ...]:
    unit = score.unit
    prompt = "chat template" if score.chat_template else "no chat template"
    asked = f"{score.num_fewshot}-shot, {prompt}, version {score.task_version}"
    direction = "higher" if score.higher_is_better else "lower"
    counts = [
        EMPTY if number is None else Cell(quantities.count(number))
        for number in (score.num_learned, score.num_forgotten)
    ]
    return (
        Cell(score.task, "", asked),
        Cell(
            metric_name(score.metric, score.filter),
            "",
            f"{'points' if unit == 'points' else 'nats per token'}, {direction} is better",
        ),
        Cell(
            quantities.count(score.num_examples),
            "",
            "" if score.limit is None else f"the first {quantities.count(score.limit)}",
        ),
        Cell(quantities.score(score.base_score, unit), f"± {score.base_stderr:.2g}"),
        Cell(quantities.score(score.adapted_score, unit), f"± {score.adapted_stderr:.2g}"),
        Cell(
            quantities.change(score.difference, unit),
            quantities.change_interval(score.lower, score.upper, unit),
        ),
        *counts,
        Cell(quantities.p_value(score.p_value)),
    )


def other_table(changes: tuple[OtherChange, ...]) -> Table:
    """The largest changes of parameters that are no linear layers."""
    shown = changes[:MOST_OTHERS]
    rows = tuple((Cell(each.name), _other_cell(each)) for each in shown)
    more = len(changes) - len(rows)
    caption = "‖after − before‖ / ‖before‖, largest first." + (
        f" {quantities.count(more)} more are in audit.json." if more else ""
    )
    headings = (Heading("Parameter"), Heading("Relative change"))
    return Table(caption, headings, (RowGroup("", "", rows),))


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
