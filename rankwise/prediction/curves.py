"""Rank curves: what each rank of a study gained, in parts that can be split by lot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
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
    there is one item where only scores are known. Studies of one ``task`` are left out together;
    it names the data set where a study's task does.
    ``trials`` are the same runs and those at other rates.
    """

    name: str
    task: str
    question: Question
    parts: Mapping[Part, tuple[Floats, ...]]
    trials: tuple[Trial, ...] = ()

    def with_features(self, names: Container[str]) -> RankCurve:
        """The same with the features of these names alone."""
        kept = {name: x for name, x in self.question.features.items() if name in names}
        return self._replace(question=self.question._replace(features=kept))

    def at(self, ranks: Sequence[int]) -> RankCurve | None:
        """The same with these ranks alone, from small to large; None where one is missing."""
        if not set(ranks) <= set(self.ranks):
            return None
        places = [self.ranks.index(rank) for rank in ranks]
        rates = tuple(self.question.rates[place] for place in places if self.question.rates)
        return self._replace(
            question=self.question._replace(ranks=tuple(ranks), rates=rates),
            parts={part: tuple(a[..., places] for a in its) for part, its in self.parts.items()},
            trials=tuple(trial for trial in self.trials if trial.rank in ranks),
        )

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
    """The curve of a study's LoRA ranks, each at the median of the rates that it was to have.

    A rank takes part if its runs at that rate were trained with every seed of the study. None where
    the gain is in nats, which no other unit can be compared with, where there is one seed, which
    cannot choose a best rank for another one, or where fewer than two ranks are left.
    """
    gain = study.items_of("in_domain")
    if not gain or any(items.unit != "points" for items in gain):
        return None
    planned = _options(study.runs)
    seeds = {study.runs[place].seed for places in planned.values() for place in places}
    rates: dict[int, list[float]] = defaultdict(list)
    for rank, rate in sorted(planned):
        rates[rank].append(rate)
    complete = {
        key: places
        for key, places in planned.items()
        if [study.runs[place].status for place in places] == ["trained"] * len(seeds)
    }
    medians = ((rank, its[(len(its) - 1) // 2]) for rank, its in rates.items())
    line = [key for key in medians if key in complete]
    if len(line) < 2 or len(seeds) < 2:
        return None
    tasks: dict[Part, list[CollectedItems]] = {
        part: [items for items in study.items_of(relation) if items.unit == "points"]
        for part, relation in _RELATIONS.items()
    }
    parts: dict[Part, tuple[Floats, ...]] = {
        part: tuple(
            np.stack([_gains(items, complete[key]) for key in line], axis=2) for items in its
        )
        for part, its in tasks.items()
    }
    return RankCurve(
        name=study.file_name.removesuffix(".json"),
        task=study.data_set,
        question=Question(study.features, *(tuple(column) for column in zip(*line, strict=True))),
        parts=parts,
        trials=tuple(_trial(tasks, key, places) for key, places in complete.items()),
    )


def _options(runs: Sequence[CollectedRun]) -> dict[tuple[int, float], list[int]]:
    """Rank and rate -> the places of the runs of LoRA, whether they were trained or diverged."""
    found: dict[tuple[int, float], list[int]] = defaultdict(list)
    for place, run in enumerate(runs):
        if run.rank is not None and run.learning_rate is not None:
            found[run.rank, run.learning_rate].append(place)
    return found


def _gains(items: CollectedItems, runs: Sequence[int]) -> Floats:
    """(runs, items): points over the base, which is the first model."""
    return np.stack([items.gain_of(place + 1) for place in runs])


def _trial(
    tasks: Mapping[Part, Sequence[CollectedItems]], key: tuple[int, float], runs: Sequence[int]
) -> Trial:
    values: dict[Part, float] = {
        part: float(np.mean([_gains(items, runs).mean() for items in its]))
        for part, its in tasks.items()
        if its
    }
    return Trial(*key, values)
