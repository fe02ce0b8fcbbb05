"""The tables of docs/studies/collection.md, from the records of the collection.

    python -m benchmarks.collection_table

Means over the seeds of a study: points for gain and retention, nats for prose.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from benchmarks.collection import BRACKETED, FACTORS, RANKS, RULE
from benchmarks.collection_pages import NAMES
from rankwise.findings.model_card import markdown_table
from rankwise.prediction.collected import Change, CollectedRun, CollectedStudy
from rankwise.prediction.collection import SHIPPED, read_collection

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


def gains(study: CollectedStudy) -> list[str]:
    """What rank does to the gain, and what the rate does."""
    gain = _change("gain")
    small, large = (_mean(study, _at(rank), gain) for rank in (_SMALL, _LARGE))
    slow, fast = (_mean(study, _at(BRACKETED, factor), gain) for factor in FACTORS)
    return [
        f"{study.base_scores[study.task]:.1f}",
        f"{small:.1f}, {large:.1f}",
        f"{large - small:+.1f}",
        f"{slow:.1f}, {fast:.1f}",
        f"{fast - slow:+.1f}",
        f"{_mean(study, _is_full, gain):.1f}",
    ]


def losses(study: CollectedStudy) -> list[str]:
    """What is kept, and what the updates are."""
    kept, prose = _change("retention"), _change("held_out_text")
    ends = (_at(_SMALL), _at(_LARGE), _is_full)
    small, large, full = (_mean(study, wanted, kept) for wanted in ends)
    slow, fast = (_mean(study, _at(BRACKETED, factor), kept) for factor in FACTORS)
    nats = [-_mean(study, wanted, prose) for wanted in ends]
    norms = [_mean(study, wanted, lambda run: run.update_norm or 0.0) for wanted in ends]
    energy = [_mean(study, wanted, lambda run: run.energy_rank_90 or 0.0) for wanted in ends]
    return [
        f"{small:+.1f}, {large:+.1f}",
        f"{slow:+.1f}, {fast:+.1f}",
        f"{full:+.1f}",
        f"{nats[0]:+.2f}, {nats[1]:+.2f}",
        f"{nats[2]:+.2f}",
        ", ".join(f"{norm:.1f}" for norm in norms),
        ", ".join(f"{each:.1f}" for each in energy),
    ]


def tables() -> Iterator[str]:
    """The lines of both, a study in each row."""
    studies = sorted(
        read_collection(SHIPPED), key=lambda study: (study.training.num_rows, study.data_set)
    )
    names = [f"{NAMES[study.data_set]}, {study.training.num_rows} rows" for study in studies]
    ends, bracket = f"rank {_SMALL}, {_LARGE}", f"rank {BRACKETED} at half, twice its rate"
    heads = ["study", "base", f"gain of {ends}", "rank", f"gain of {bracket}", "rate", "full"]
    rows = [[name, *gains(study)] for name, study in zip(names, studies, strict=True)]
    yield from _table(heads, rows)
    yield ""
    heads = ["study", f"retention of {ends}", bracket, "full", f"loss on prose, nats: {ends}"]
    heads += ["full", f"norm of the update: {ends}, full"]
    heads += [f"directions (90 % energy): {ends}, full"]
    rows = [[name, *losses(study)] for name, study in zip(names, studies, strict=True)]
    yield from _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    signed = [[name, *(cell.replace("-", "−") for cell in cells)] for name, *cells in rows]
    yield from markdown_table(heads, signed)


if __name__ == "__main__":
    print(*tables(), sep="\n")
