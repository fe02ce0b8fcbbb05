"""Rank curves: what each rank of a study gained, in parts that can be split by lot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from benchmarks.prediction.collected import CollectedItems, CollectedStudy
from rankwise.findings.stats.items import Floats
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

    def with_features(self, names: Container[str]) -> Question:
        """The same with the features of these names alone."""
        return self._replace(features={n: x for n, x in self.features.items() if n in names})


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
        return self._replace(question=self.question.with_features(names))

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


def middle_rates(options: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Rank -> the median of its rates, the lower one of two, from small to large rank."""
    rates: dict[int, list[float]] = defaultdict(list)
    for rank, rate in sorted(set(options)):
        rates[rank].append(rate)
    return {rank: its[(len(its) - 1) // 2] for rank, its in rates.items()}


class Line(NamedTuple):
    """The LoRA runs of a study that can be compared: places among its runs, by rank and rate.

    All have the same seeds, in the same order. ``ranks`` are those at the median of the rates that
    they were to have; ``others`` are at other rates.
    """

    ranks: Mapping[tuple[int, float], tuple[int, ...]]
    others: Mapping[tuple[int, float], tuple[int, ...]]

    @property
    def num_seeds(self) -> int:
        """Of each rank; 0 without any."""
        return len(next(iter(self.ranks.values()), ()))


def line_of(study: CollectedStudy) -> Line:
    """The seeds are those that more than half of the ranks were to have.

    A rank that was not to have one of them, or of which one diverged, is left out.
    """
    planned: dict[tuple[int, float], dict[int | None, int]] = defaultdict(dict)
    for place, run in enumerate(study.runs):
        if run.rank is not None and run.learning_rate is not None:
            planned[run.rank, run.learning_rate][run.seed] = place
    middle = set(middle_rates(planned).items())
    number = Counter(seed for key in middle for seed in planned[key])
    seeds = sorted((seed for seed in number if 2 * number[seed] > len(middle)), key=str)
    trained = {
        key: tuple(by_seed[seed] for seed in seeds)
        for key, by_seed in sorted(planned.items())
        if all(seed in by_seed and study.runs[by_seed[seed]].status == "trained" for seed in seeds)
    }
    return Line(
        {key: its for key, its in trained.items() if key in middle},
        {key: its for key, its in trained.items() if key not in middle},
    )


def curve_of(study: CollectedStudy) -> RankCurve | None:
    """The curve of a study's LoRA ranks, each at its median rate; see ``line_of``.

    None where the gain is in nats, which no other unit can be compared with, where the ranks share
    fewer than two seeds, as one cannot choose a best rank for another, or where fewer than two
    ranks are left.
    """
    gain, line = study.items_of("in_domain"), line_of(study)
    if not gain or any(items.unit != "points" for items in gain):
        return None
    if len(line.ranks) < 2 or line.num_seeds < 2:
        return None
    tasks: dict[Part, list[CollectedItems]] = {
        part: [items for items in study.items_of(relation) if items.unit == "points"]
        for part, relation in _RELATIONS.items()
    }
    parts: dict[Part, tuple[Floats, ...]] = {
        part: tuple(
            np.stack([_gains(items, runs) for runs in line.ranks.values()], axis=2) for items in its
        )
        for part, its in tasks.items()
    }
    return RankCurve(
        name=study.file_name.removesuffix(".json"),
        task=study.data_set,
        question=Question(study.features, *zip(*line.ranks, strict=True)),
        parts=parts,
        trials=tuple(
            _trial(tasks, key, runs) for key, runs in {**line.ranks, **line.others}.items()
        ),
    )


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
