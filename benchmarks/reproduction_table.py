"""The tables of docs/studies/reproduction.md, from the numbers of its four studies.

    python -m benchmarks.reproduction_table [--keep OUTPUT]

The numbers are in docs/studies/reproduction; --keep writes them there from the study folders of
`python -m benchmarks.reproduction OUTPUT`. Points are of p(right), means over the seeds, but for
the matrix, which is of accuracy, as the paper's is. Intervals are 95 %, each by itself.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.claims import claims_of
from benchmarks.prediction.collected import data_set_of
from benchmarks.prediction.judge import mean_over_tasks
from benchmarks.prediction.pages import NAMES
from benchmarks.prediction.table import signed
from benchmarks.prediction.train import ROOT
from benchmarks.reproduction import ALPHA, MAIN, studies
from benchmarks.reproduction_records import (
    FIXED_ALPHA,
    START,
    OptionChange,
    ReproductionNumbers,
    main_numbers,
    side_numbers,
)
from rankwise.findings.model_card import markdown_table
from rankwise.findings.trends import TrendOf
from rankwise.records import quantities
from rankwise.records.axes import FULL_LABEL
from rankwise.records.files import read_record, write_record
from rankwise.records.folder import StudyFolder
from rankwise.records.quantities import NOT_MEASURED
from rankwise.records.study import Interval
from rankwise.study.conclusion import conclude

RECORDS = ROOT / "docs" / "studies" / "reproduction"

NAMES_OF_STUDIES = [*studies()]
METHODS = {"lora": "LoRA", "full": FULL_LABEL}

_Read = Callable[[OptionChange], float]

_CHANGES: dict[str, tuple[_Read, int]] = {
    "gain, points": (lambda change: change.gain, 1),
    "retention, points": (lambda change: change.kept, 1),
    "prose, nats": (lambda change: change.prose, 3),
}
_WEIGHTS = {
    "‖delta‖": ("frobenius_norm", ".2f"),
    "effective rank": ("effective_rank", ".1f"),
    "directions (99 % energy)": ("energy_rank_99", ".1f"),
    "intruders": ("intruders", ".1f"),
    "under a Gaussian update": ("intruders_gaussian", ".1f"),
    "similarity of vectors": ("similarity", ".4f"),
    "Gaussian": ("similarity_gaussian", ".4f"),
    "Haar": ("similarity_haar", ".4f"),
    "overlap with full": ("full_overlap", ".3f"),
    "by chance": ("full_overlap_expected", ".3f"),
}


def _name(task: str) -> str:
    data_set = data_set_of(task)
    return NAMES.get(data_set, data_set)


def _ranged(estimate: float, lower: float, upper: float, digits: int) -> str:
    return "{} ({} to {})".format(*(signed(each, digits) for each in (estimate, lower, upper)))


def _interval(of: Interval, digits: int = 1) -> str:
    return _ranged(of.estimate, of.lower, of.upper, digits)


def _plain(of: Interval) -> str:
    return f"{of.estimate:.2f} ({of.lower:.2f} to {of.upper:.2f})"


def _values(numbers: ReproductionNumbers, read: _Read) -> dict[str, dict[str, float]]:
    """By trained task, and by option in the study's order."""
    values: dict[str, dict[str, float]] = {}
    for change in numbers.changes:
        values.setdefault(change.train_task, {})[change.label] = read(change)
    return values


def _by_task(numbers: ReproductionNumbers, read: _Read, digits: int) -> Iterator[str]:
    """A trained task in each row, an option in each column, and their means."""
    values = _values(numbers, read)
    rows = [
        [_name(task), *(signed(row[label], digits) for label in numbers.labels)]
        for task, row in values.items()
    ]
    means = (statistics.fmean(row[label] for row in values.values()) for label in numbers.labels)
    rows.append(["mean", *(signed(mean, digits) for mean in means)])
    yield from markdown_table(["trained on", *numbers.labels], rows)


def _over_tasks(numbers: ReproductionNumbers) -> Iterator[str]:
    """What rank and full fine-tuning do: means over trained tasks, by Student's t over these."""
    *lora, full = numbers.labels
    rows: list[list[str]] = []
    for label, other in [(lora[-1], lora[0]), *((full, label) for label in lora)]:
        row = [f"{label} minus {other}"]
        for read, digits in _CHANGES.values():
            by_task = _values(numbers, read).values()
            row.append(_ranged(*mean_over_tasks([v[label] - v[other] for v in by_task]), digits))
        rows.append(row)
    yield from markdown_table(["mean over the trained tasks", *_CHANGES], rows)


def _matrix(numbers: ReproductionNumbers, label: str) -> Iterator[str]:
    """The change on every test task, in points of accuracy, each interval by itself."""
    cells = [cell for cell in numbers.transfer if cell.label == label]
    base = {cell.column: cell.base_score for cell in cells}
    rows = [["the base's score", *(f"{score:.1f}" for score in base.values())]]
    for task in dict.fromkeys(cell.train_task for cell in cells):
        changes = {cell.column: cell.change for cell in cells if cell.train_task == task}
        rows.append([_name(task), *(_interval(changes[column]) for column in base)])
    heads = [f"trained on, {label}", *(f"on {_name(column)}" for column in base)]
    yield from markdown_table(heads, rows)


def _weights(numbers: ReproductionNumbers) -> Iterator[str]:
    """What the updates are, means over all runs of an option."""
    rows: list[list[str]] = []
    for label, of in numbers.weights.items():
        values = ((of[name], spec) for name, spec in _WEIGHTS.values())
        rows.append([label, *(NOT_MEASURED if v is None else f"{v:{spec}}" for v, spec in values)])
    yield from markdown_table(["option", *_WEIGHTS], rows)


def _side(numbers: ReproductionNumbers) -> Iterator[str]:
    """An option in each row, and what each axis does."""
    rows: list[list[str]] = []
    for change in numbers.changes:
        of = numbers.weights[change.label]
        changes = (signed(change.gain), signed(change.kept), signed(change.prose, 2))
        rows.append(
            [change.label, *changes, f"{of['frobenius_norm']:.2f}", f"{of['intruders']:.1f}"]
        )
    heads = ["option", "gain", "retention", "loss on prose, nats", "‖delta‖", "intruders"]
    yield from markdown_table(heads, rows)
    for effect in numbers.axes:
        judged = {"gain": effect.gain, "retention": effect.kept}
        said = [f"{name} {_interval(of)}" for name, of in judged.items() if of]
        yield ""
        which = f"{effect.axis} {effect.value} minus {effect.first}"
        yield f"- {which} ({METHODS[effect.method]}): {', '.join(said)}."


def _same_step(numbers: ReproductionNumbers) -> Iterator[str]:
    """Ranks under one alpha, whose updates have nearly one size."""
    pairs = {(pair.lower, pair.higher): pair for pair in numbers.matched}
    for lower, higher in itertools.combinations(FIXED_ALPHA, 2):
        pair = pairs[lower, higher]
        changes = f"gain {_interval(pair.gain)}, retention {_interval(pair.kept)}"
        yield ""
        yield f"- {higher} minus {lower}: {changes}."


def _by_ratio(numbers: ReproductionNumbers) -> Iterator[str]:
    """What alpha / rank does at one rank: the paper says that a lower one raises the rate."""
    for rank in (32, 128):
        at = {f"{16 / rank:g}": "alpha 16", "1": "alpha 1r", "2": "alpha 2r"}
        norms = {ratio: numbers.weights[f"rank {rank}, {label}"] for ratio, label in at.items()}
        told = (f"{ratio}: {of['frobenius_norm']:.2f}" for ratio, of in norms.items())
        yield ""
        yield f"- Norm of the update at rank {rank}, by alpha / rank: {', '.join(told)}."


def _inside(numbers: ReproductionNumbers) -> Iterator[str]:
    """From the smallest to the largest rank: the paper's mechanisms, and growth of the norm."""
    columns: dict[TrendOf, str] = {
        "train-test gap": "train-test gap, points",
        "same option": "same option as full, points",
        "same next token": "same next token, points",
        "KL": "KL(full, LoRA), nats",
    }
    rows = [
        [
            _name(trend.train_task),
            *(_interval(trend.changes[of], 2 if of == "KL" else 1) for of in columns),
            _plain(trend.exponent),
            "{:.3f}, {:.3f}".format(*trend.r_squared),
            quantities.correlation(trend.heads_moved),
        ]
        for trend in numbers.trends
    ]
    more = ["exponent of ‖delta‖", "R² of a logarithm, of a power law", "heads' change by rank, ρ"]
    yield from markdown_table(["trained on", *columns.values(), *more], rows)


def tables() -> Iterator[str]:
    """The lines of all, each study under its name."""
    for name in NAMES_OF_STUDIES:
        numbers = read_record(RECORDS / f"{name}.json", ReproductionNumbers)
        yield f"## {name}"
        yield ""
        if name == MAIN:
            yield from _main(numbers)
        else:
            yield from _side(numbers)
        if name == ALPHA:
            yield from _same_step(numbers)
            yield from _by_ratio(numbers)
        yield ""


def _claims(numbers: ReproductionNumbers) -> Iterator[str]:
    rows = [
        [claim.statement, claim.judgement, str(claim.num_comparisons)] for claim in numbers.claims
    ]
    yield from markdown_table(["claim", "verdict", "comparisons"], rows)


def _main(numbers: ReproductionNumbers) -> Iterator[str]:
    yield from _claims(numbers)
    for read, digits in _CHANGES.values():
        yield ""
        yield from _by_task(numbers, read, digits)
    yield ""
    yield from _over_tasks(numbers)
    for label in (START, FULL_LABEL):
        yield ""
        yield from _matrix(numbers, label)
    yield ""
    yield from _weights(numbers)
    yield ""
    yield from _inside(numbers)


def keep(output: Path) -> None:
    """Write the numbers of the studies in a folder into the records."""
    for name in NAMES_OF_STUDIES:
        folder = StudyFolder(output / name)
        findings = conclude(folder).findings
        numbers = (
            main_numbers(findings, claims_of(folder)) if name == MAIN else side_numbers(findings)
        )
        write_record(RECORDS / f"{name}.json", numbers)


def main() -> None:
    """Print the tables, of the records or of studies whose numbers become the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="OUTPUT")
    output = parser.parse_args().keep
    if output is not None:
        keep(output)
    print(*tables(), sep="\n")


if __name__ == "__main__":
    main()
