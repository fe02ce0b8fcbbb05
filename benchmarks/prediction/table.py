"""The tables of docs/studies/collection.md, from the records of the collection.

    python -m benchmarks.prediction.table

Means over the seeds of a study: points for gain and retention, nats for prose.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from benchmarks.prediction.collected import Change, CollectedRun, CollectedStudy, data_set_of
from benchmarks.prediction.collection import SHIPPED, read_collection
from benchmarks.prediction.judge import mean_over_tasks
from benchmarks.prediction.pages import NAMES
from benchmarks.prediction.train import BRACKETED, FACTORS, RANKS, RULE
from rankwise.findings.model_card import markdown_table
from rankwise.records import quantities

_Wanted = Callable[[CollectedRun], bool]

_SMALL, _LARGE = RANKS[0], RANKS[-1]


def _at(rank: int, factor: float = 1.0) -> _Wanted:
    """Runs of a rank at its rate by the rule, times a factor."""
    rate = factor * RULE.rate_of(rank)
    return lambda run: run.rank == rank and run.learning_rate == rate


def _is_full(run: CollectedRun) -> bool:
    return run.method == "full"


def _mean(study: CollectedStudy, wanted: _Wanted, of: Callable[[CollectedRun], float]) -> float:
    return statistics.fmean(of(run) for run in study.runs if wanted(run))


def _change(name: str) -> Callable[[CollectedRun], float]:
    def read(run: CollectedRun) -> float:
        change = getattr(run, name)
        assert isinstance(change, Change)  # no run of the collection diverged
        return change.estimate

    return read


class Means(NamedTuple):
    """A quantity of a study.

    ``small`` and ``large`` are of the smallest and the largest rank at the rule's rate, ``slow``
    and ``fast`` of the bracketed rank at the lower and the higher rate.
    """

    small: float
    large: float
    slow: float
    fast: float
    full: float

    @classmethod
    def of(cls, study: CollectedStudy, read: Callable[[CollectedRun], float]) -> Means:
        """Over the seeds."""
        lora = [_at(_SMALL), _at(_LARGE), *(_at(BRACKETED, factor) for factor in FACTORS)]
        return cls(*(_mean(study, wanted, read) for wanted in (*lora, _is_full)))


def signed(value: float, digits: int = 1) -> str:
    """+1.5, −1.5 or 0.0."""
    return quantities.decimal(value, digits, signed=True)


def _gains(study: CollectedStudy) -> list[str]:
    """What rank does to the gain, and what the rate does."""
    of = Means.of(study, _change("gain"))
    return [
        f"{study.base_scores[study.task]:.1f}",
        f"{signed(of.small)}, {signed(of.large)}",
        signed(of.large - of.small),
        f"{signed(of.slow)}, {signed(of.fast)}",
        signed(of.fast - of.slow),
        signed(of.full),
    ]


def _losses(study: CollectedStudy) -> list[str]:
    """What is kept, and what the updates are."""
    kept, prose = (Means.of(study, _change(name)) for name in ("retention", "held_out_text"))
    norm = Means.of(study, lambda run: run.update_norm or 0.0)
    energy = Means.of(study, lambda run: run.energy_rank_90 or 0.0)
    return [
        f"{signed(kept.small)}, {signed(kept.large)}",
        f"{signed(kept.slow)}, {signed(kept.fast)}",
        signed(kept.full),
        ", ".join(signed(-nats, 2) for nats in (prose.small, prose.large, prose.full)),
        ", ".join(f"{each:.1f}" for each in (norm.small, norm.large, norm.full)),
        ", ".join(f"{each:.1f}" for each in (energy.small, energy.large, energy.full)),
    ]


def _over_tasks(studies: Sequence[CollectedStudy], name: str) -> str:
    """What rank and rate do to a change, a mean over data sets with its interval."""
    of_tasks = defaultdict[str, list[Means]](list)
    for study in studies:
        of_tasks[study.data_set].append(Means.of(study, _change(name)))

    def shown(less: Callable[[Means], float]) -> str:
        found = mean_over_tasks([statistics.fmean(map(less, its)) for its in of_tasks.values()])
        return f"{signed(found.value)} ({signed(found.lower)} to {signed(found.upper)})"

    rank, rate = shown(lambda of: of.large - of.small), shown(lambda of: of.fast - of.slow)
    full = shown(lambda of: of.full - of.large)
    return (
        f"Over the {len(of_tasks)} data sets, {name}: rank {_LARGE} minus rank {_SMALL} {rank}; "
        f"rank {BRACKETED} at four times the rate {rate}; "
        f"full fine-tuning minus rank {_LARGE} {full}."
    )


def tables() -> Iterator[str]:
    """The lines of both, a study in each row."""
    studies = sorted(
        read_collection(SHIPPED),
        key=lambda study: (study.training.num_rows, data_set_of(study.task)),
    )
    names = [
        f"{NAMES[data_set_of(study.task)]}, {study.training.num_rows} rows" for study in studies
    ]
    ends, bracket = f"rank {_SMALL}, {_LARGE}", f"rank {BRACKETED} at half, twice its rate"
    heads = ["study", "base", f"gain of {ends}", "rank", f"gain of {bracket}", "rate", "full"]
    yield from markdown_table(heads, [[n, *_gains(s)] for n, s in zip(names, studies, strict=True)])
    yield ""
    heads = ["study", f"retention of {ends}", bracket, "full", f"loss on prose, nats: {ends}, full"]
    heads += [f"norm of the update: {ends}, full", f"directions (90 % energy): {ends}, full"]
    rows = [[n, *_losses(s)] for n, s in zip(names, studies, strict=True)]
    yield from markdown_table(heads, rows)
    yield ""
    for name in ("gain", "retention"):
        yield _over_tasks(studies, name)


if __name__ == "__main__":
    print(*tables(), sep="\n")
