"""The tables of docs/studies/reproduction.md, from the findings of its four studies.

    python -m benchmarks.reproduction_table [--keep OUTPUT]

The findings are in docs/studies/reproduction; --keep writes them there from the study folders of
`python -m benchmarks.reproduction OUTPUT`. Points are of p(right), means over the seeds, but for
the matrix, which is of accuracy, as the paper's is. Intervals are 95 %, each by itself.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.prediction.collected import data_set_of
from benchmarks.prediction.judge import mean_over_tasks
from benchmarks.prediction.pages import NAMES
from benchmarks.prediction.table import signed
from benchmarks.prediction.train import ROOT
from benchmarks.reproduction import ALPHA, MAIN, studies
from rankwise.findings.gauges import GaugedModel
from rankwise.findings.model_card import markdown_table
from rankwise.findings.study import StudyFindings
from rankwise.findings.trends import TrendOf
from rankwise.findings.weights import ALL_MODULES, RunWeights
from rankwise.records import quantities
from rankwise.records.axes import FULL_LABEL
from rankwise.records.files import read_record, write_record
from rankwise.records.folder import StudyFolder
from rankwise.records.quantities import NOT_MEASURED
from rankwise.records.study import Interval
from rankwise.study.conclusion import conclude

RECORDS = ROOT / "docs" / "studies" / "reproduction"

FIXED_ALPHA = ("rank 8, alpha 2r = 16", "rank 32, alpha 16", "rank 128, alpha 16")
START = "rank 32"  # the paper's advice

NAMES_OF_STUDIES = [*studies()]
METHODS = {"lora": "LoRA", "full": FULL_LABEL}

_Read = Callable[[StudyFindings, str, str], float]


def _name(task: str) -> str:
    data_set = data_set_of(task)
    return NAMES.get(data_set, data_set)


def _ranged(estimate: float, lower: float, upper: float, digits: int) -> str:
    return "{} ({} to {})".format(*(signed(each, digits) for each in (estimate, lower, upper)))


def _interval(of: Interval, digits: int = 1) -> str:
    return _ranged(of.estimate, of.lower, of.upper, digits)


def _trained(findings: StudyFindings) -> list[str]:
    return [part.train_task for part in findings.mechanisms]


def _labels(findings: StudyFindings) -> list[str]:
    """The options, in the order of the study."""
    return [gap.option.label for gap in findings.mechanisms[0].gaps]


def _gain(findings: StudyFindings, task: str, label: str) -> float:
    """In-domain, in points of p(right)."""
    (of_task,) = (part for part in findings.mechanisms if part.train_task == task)
    (gap,) = (gap for gap in of_task.gaps if gap.option.label == label)
    return gap.test.estimate


def _gauged(findings: StudyFindings, task: str, label: str) -> GaugedModel:
    (of_task,) = (part for part in findings.gauges if part.train_task == task)
    (model,) = (each for each in of_task.models if each.kind == "run" and each.label == label)
    return model


def _kept(findings: StudyFindings, task: str, label: str) -> float:
    """Adapted - base over the retention tasks, in points of p(right)."""
    loss = _gauged(findings, task, label).retention_loss
    assert loss is not None
    return -loss.estimate


def _prose(findings: StudyFindings, task: str, label: str) -> float:
    """The rise of the loss on prose, in nats per token."""
    rise = _gauged(findings, task, label).prose_rise
    assert rise is not None
    return rise.estimate


def _runs(findings: StudyFindings, label: str) -> list[RunWeights]:
    """Those of an option, over all trained tasks."""
    runs = (run for of_task in findings.weights for run in of_task.runs)
    return [run for run in runs if run.option.label == label]


def _by_task(findings: StudyFindings, read: _Read, digits: int) -> Iterator[str]:
    """A trained task in each row, an option in each column, and their means."""
    labels, tasks = _labels(findings), _trained(findings)
    values = [[read(findings, task, label) for label in labels] for task in tasks]
    rows = [
        [_name(task), *(signed(value, digits) for value in row)]
        for task, row in zip(tasks, values, strict=True)
    ]
    means = map(statistics.fmean, zip(*values, strict=True))
    rows.append(["mean", *(signed(mean, digits) for mean in means)])
    yield from markdown_table(["trained on", *labels], rows)


_MEASURES: dict[str, tuple[_Read, int]] = {
    "gain, points": (_gain, 1),
    "retention, points": (_kept, 1),
    "prose, nats": (_prose, 3),
}


def _over_tasks(findings: StudyFindings) -> Iterator[str]:
    """What rank and full fine-tuning do: means over trained tasks, by Student's t over these."""
    *lora, full = _labels(findings)
    rows: list[list[str]] = []
    for label, other in [(lora[-1], lora[0]), *((full, label) for label in lora)]:
        row = [f"{label} minus {other}"]
        for read, digits in _MEASURES.values():
            values = [
                read(findings, task, label) - read(findings, task, other)
                for task in _trained(findings)
            ]
            row.append(_ranged(*mean_over_tasks(values), digits))
        rows.append(row)
    yield from markdown_table(["mean over the trained tasks", *_MEASURES], rows)


def _matrix(findings: StudyFindings, label: str) -> Iterator[str]:
    """The change on every test task, in points of accuracy, each interval by itself."""
    found = findings.transfer
    assert found is not None
    columns = [column.tasks for column in found.columns]
    base = {cell.tasks: cell.base_score.estimate for cell in found.cells}
    rows = [["the base's score", *(f"{base[tasks]:.1f}" for tasks in columns)]]
    for row in found.rows:
        cells = {
            cell.tasks: cell.change
            for cell in found.cells
            if cell.train_task == row.name and cell.label == label
        }
        rows.append([_name(row.name), *(_interval(cells[tasks]) for tasks in columns)])
    heads = [f"trained on, {label}", *(f"on {_name(column.name)}" for column in found.columns)]
    yield from markdown_table(heads, rows)


def _weights(findings: StudyFindings) -> Iterator[str]:
    """What the updates are, means over all runs of an option."""

    def mean(label: str, read: Callable[[RunWeights], float | None]) -> float | None:
        values = [value for run in _runs(findings, label) if (value := read(run)) is not None]
        return statistics.fmean(values) if values else None

    columns: dict[str, tuple[Callable[[RunWeights], float | None], str]] = {
        "‖delta‖": (lambda run: run.frobenius_norm, ".2f"),
        "effective rank": (lambda run: run.effective_rank, ".1f"),
        "directions (99 % energy)": (lambda run: run.energy_rank_99, ".1f"),
        "intruders": (lambda run: run.intruders.observed, ".1f"),
        "under a Gaussian update": (lambda run: run.intruders.gaussian, ".1f"),
        "similarity of vectors": (lambda run: run.similarity.observed, ".4f"),
        "Gaussian": (lambda run: run.similarity.gaussian, ".4f"),
        "Haar": (lambda run: run.similarity.haar, ".4f"),
        "overlap with full": (lambda run: run.full_overlap, ".3f"),
        "by chance": (lambda run: run.full_overlap_expected, ".3f"),
    }
    rows: list[list[str]] = []
    for label in _labels(findings):
        values = ((mean(label, read), spec) for read, spec in columns.values())
        rows.append([label, *(NOT_MEASURED if v is None else f"{v:{spec}}" for v, spec in values)])
    yield from markdown_table(["option", *columns], rows)


def _side(findings: StudyFindings) -> Iterator[str]:
    """An option in each row, and what each axis does."""
    (task,) = _trained(findings)
    rows: list[list[str]] = []
    for label in _labels(findings):
        runs = _runs(findings, label)
        norm = statistics.fmean(run.frobenius_norm for run in runs)
        intruders = statistics.fmean(run.intruders.observed for run in runs)
        changes = (signed(read(findings, task, label)) for read in (_gain, _kept))
        prose = signed(_prose(findings, task, label), 2)
        rows.append([label, *changes, prose, f"{norm:.2f}", f"{intruders:.1f}"])
    heads = ["option", "gain", "retention", "loss on prose, nats", "‖delta‖", "intruders"]
    yield from markdown_table(heads, rows)
    for axis in itertools.chain.from_iterable(of_task.axes for of_task in findings.axes):
        for effect in axis.effects:
            judged = {"gain": effect.in_domain, "retention": effect.retention}
            said = [f"{name} {_interval(of.mean)}" for name, of in judged.items() if of]
            yield ""
            which = f"{axis.name} {effect.value} minus {axis.values[0]}"
            yield f"- {which} ({METHODS[axis.method]}): {', '.join(said)}."


def _same_step(findings: StudyFindings) -> Iterator[str]:
    """Ranks under one alpha, whose updates have nearly one size."""
    (of_task,) = findings.mechanisms
    assert of_task.matched is not None
    pairs = {(each.option.label, each.other.label): each for each in of_task.matched.pairs}
    for lower, higher in itertools.combinations(FIXED_ALPHA, 2):
        pair = pairs[lower, higher]
        gain, kept = pair.gain.negated(), pair.kept.negated()
        yield ""
        yield f"- {higher} minus {lower}: gain {_interval(gain)}, retention {_interval(kept)}."


def _inside(findings: StudyFindings) -> Iterator[str]:
    """From the smallest to the largest rank: the paper's mechanisms, and growth of the norm."""
    columns: dict[TrendOf, str] = {
        "train-test gap": "train-test gap, points",
        "same option": "same option as full, points",
        "same next token": "same next token, points",
        "KL": "KL(full, LoRA), nats",
    }
    rows: list[list[str]] = []
    parts = zip(findings.mechanisms, findings.weights, findings.heads, strict=True)
    for mechanisms, weights, heads in parts:
        trends = {trend.of: trend.change for trend in mechanisms.trends}
        (norm,) = (trend for trend in weights.norm_trends if trend.module == ALL_MODULES)
        exponent = norm.power_law.slope
        (moved,) = (trend for trend in heads.against_rank if trend.measure == "output")
        assert moved.correlation is not None
        rows.append(
            [
                _name(mechanisms.train_task),
                *(_interval(trends[of], 2 if of == "KL" else 1) for of in columns),
                f"{exponent.estimate:.2f} ({exponent.lower:.2f} to {exponent.upper:.2f})",
                f"{norm.logarithmic.r_squared:.3f}, {norm.power_law.r_squared:.3f}",
                quantities.correlation(moved.correlation),
            ]
        )
    more = ["exponent of ‖delta‖", "R² of a logarithm, of a power law", "heads' change by rank, ρ"]
    yield from markdown_table(["trained on", *columns.values(), *more], rows)


def tables() -> Iterator[str]:
    """The lines of all, each study under its name."""
    for name in NAMES_OF_STUDIES:
        findings = read_record(RECORDS / f"{name}.json", StudyFindings)
        yield f"## {name}"
        yield ""
        if name == MAIN:
            yield from _main(findings)
        else:
            yield from _side(findings)
        if name == ALPHA:
            yield from _same_step(findings)
        yield ""


def _claims(findings: StudyFindings) -> Iterator[str]:
    rows = [
        [claim.statement, claim.judgement, str(len(claim.evidence))] for claim in findings.claims
    ]
    yield from markdown_table(["claim", "verdict", "comparisons"], rows)


def _main(findings: StudyFindings) -> Iterator[str]:
    yield from _claims(findings)
    for read, digits in _MEASURES.values():
        yield ""
        yield from _by_task(findings, read, digits)
    yield ""
    yield from _over_tasks(findings)
    for label in (START, FULL_LABEL):
        yield ""
        yield from _matrix(findings, label)
    yield ""
    yield from _weights(findings)
    yield ""
    yield from _inside(findings)


def main() -> None:
    """Print the tables, of the records or of studies whose findings become the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="OUTPUT")
    output = parser.parse_args().keep
    for name in () if output is None else NAMES_OF_STUDIES:
        write_record(RECORDS / f"{name}.json", conclude(StudyFolder(output / name)).findings)
    print(*tables(), sep="\n")


if __name__ == "__main__":
    main()
