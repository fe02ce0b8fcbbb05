"""Rank curves: what each rank of a study gained, in parts that can be split by lot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from rankwise.findings.stats.items import Floats
from rankwise.prediction.collected import CollectedItems, CollectedRun, CollectedStudy
from rankwise.records.study import Relation

Part = Literal["gain", "retention"]
Target = Literal["gain", "retention", "worth"]
"""What the best rank is best in; worth is gain plus retention, one point for one point."""
TARGETS: tuple[Target, ...] = get_args(Target)

FOLDS = 10
"""Parts into which items are dealt out: nine tenths choose the best rank, the last measures."""

_RELATIONS: dict[Part, Relation] = {"gain": "in_domain", "retention": "retention"}


class Question(NamedTuple):
    """What a predictor is told: features by name, and the ranks with their rates, if known."""

    features: Mapping[str, float]
    ranks: tuple[int, ...]
    rates: tuple[float, ...] = ()


class Trial(NamedTuple):
    """A rank at any rate, its seeds averaged."""

    rank: int
    rate: float
    values: Mapping[Part, float]

    def value(self, target: Target) -> float:
        """The sum of the target's parts."""
        return sum(self.values[part] for part in parts_of(target))


class RankCurve(NamedTuple):
    """The ranks of a study, and what they changed, positive where it is better.

    ``parts`` has for each part arrays (seeds, items, ranks) that count the same, one for each task;
    there is one item where only scores are known. Studies of one ``task`` are left out together.
    ``trials`` are the same runs and those at other rates.
    """

    name: str
    task: str
    question: Question
    parts: Mapping[Part, tuple[Floats, ...]]
    trials: tuple[Trial, ...] = ()

    @property
    def ranks(self) -> tuple[int, ...]:
        """From small to large."""
        return self.question.ranks

    def has(self, target: Target) -> bool:
        """Whether what the target is made of was measured."""
        return all(self.parts.get(part) for part in parts_of(target))

    def mean(self, target: Target) -> Floats:
        """(ranks,): over all seeds and items."""
        arrays, weights = self._arrays(target)
        return np.sum(
            [w * a.mean(axis=(0, 1)) for w, a in zip(weights, arrays, strict=True)], axis=0
        )

    def split(self, target: Target, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """(seeds, folds, ranks) twice: means over other seeds and items, and over these.

        The items of every task are dealt out to ``FOLDS`` folds by lot. Where there is one seed, or
        one item, both means have it.
        """
        arrays, weights = self._arrays(target)
        folds = min(FOLDS, *(array.shape[1] for array in arrays))
        others, these = 0.0, 0.0
        for weight, array in zip(weights, arrays, strict=True):
            fold = rng.permutation(array.shape[1]) % folds
            sums = np.stack([array[:, fold == each].sum(axis=1) for each in range(folds)], axis=1)
            counts = np.ones((len(array), 1, 1)) * np.bincount(fold)[None, :, None]
            others = others + weight * _without_own(sums) / _without_own(counts)
            these = these + weight * sums / counts
        return np.asarray(others), np.asarray(these)

    def _arrays(self, target: Target) -> tuple[list[Floats], list[float]]:
        """The target's arrays, and what each counts: a mean within its part, summed over parts."""
        parts = [self.parts[part] for part in parts_of(target)]
        return [a for part in parts for a in part], [1.0 / len(p) for p in parts for _ in p]


def _without_own(cells: Floats) -> Floats:
    """(seeds, folds, ...): of each cell, the sum over all other seeds and folds."""
    if len(cells) > 1:
        cells = cells.sum(axis=0, keepdims=True) - cells
    return cells.sum(axis=1, keepdims=True) - cells if cells.shape[1] > 1 else cells


def parts_of(target: Target) -> tuple[Part, ...]:
    """The parts whose sum a target is."""
    return ("gain", "retention") if target == "worth" else (target,)


def left_out_in_turn(
    curves: Sequence[RankCurve],
) -> Iterator[tuple[list[RankCurve], list[RankCurve]]]:
    """The curves of each task, and those of all others, where there are others."""
    for task in dict.fromkeys(curve.task for curve in curves):
        others = [curve for curve in curves if curve.task != task]
        if others:
            yield [curve for curve in curves if curve.task == task], others


def curve_of(study: CollectedStudy) -> RankCurve | None:
    """The curve of a study's LoRA ranks, each at the median of its rates.

    A rank takes part if its runs at that rate were trained with every seed of the study. None where
    the gain is in nats, which no other unit can be compared with, or fewer than two ranks are left.
    """
    gain = study.items_of("in_domain")
    if not gain or any(items.unit != "points" for items in gain):
        return None
    options = _options(study.runs)
    seeds = max((len(places) for places in options.values()), default=0)
    options = {key: places for key, places in options.items() if len(places) == seeds}
    rates: dict[int, list[float]] = defaultdict(list)
    for rank, rate in sorted(options):
        rates[rank].append(rate)
    if len(rates) < 2:
        return None
    line = [(rank, its[(len(its) - 1) // 2]) for rank, its in sorted(rates.items())]
    places = [options[key] for key in line]
    parts: dict[Part, tuple[Floats, ...]] = {
        part: tuple(
            np.stack([_gains(items, runs) for runs in places], axis=2)
            for items in study.items_of(relation)
            if items.unit == "points"
        )
        for part, relation in _RELATIONS.items()
    }
    return RankCurve(
        name=study.file_name.removesuffix(".json"),
        task=study.task,
        question=Question(study.features, *(tuple(column) for column in zip(*line, strict=True))),
        parts=parts,
        trials=tuple(_trial(study, rank, rate, its) for (rank, rate), its in options.items()),
    )


def _options(runs: Sequence[CollectedRun]) -> dict[tuple[int, float], list[int]]:
    """Rank and rate -> the places of the trained runs of LoRA."""
    found: dict[tuple[int, float], list[int]] = defaultdict(list)
    for place, run in enumerate(runs):
        if run.rank is not None and run.learning_rate is not None and run.status == "trained":
            found[run.rank, run.learning_rate].append(place)
    return found


def _gains(items: CollectedItems, runs: Sequence[int]) -> Floats:
    """(runs, items): points over the base, which is the first model."""
    return np.stack([items.gain_of(place + 1) for place in runs])


def _trial(study: CollectedStudy, rank: int, rate: float, runs: Sequence[int]) -> Trial:
    values: dict[Part, float] = {}
    for part, relation in _RELATIONS.items():
        tasks = [items for items in study.items_of(relation) if items.unit == "points"]
        if tasks:
            values[part] = float(np.mean([_gains(items, runs).mean() for items in tasks]))
    return Trial(rank, rate, values)
