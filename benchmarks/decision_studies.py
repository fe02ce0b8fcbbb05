"""Studies with a known truth, drawn item by item: ranks, tasks, runs and items of a family."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from rankwise.findings.decision import Margins
from rankwise.findings.stats.items import POINTS, Clusters, Floats, Items, item_size
from rankwise.records.clusters import linked_clusters, ties_of

NUM_TASKS = 5
"""On retention."""

SMALLEST_TASK = 10
COLLAPSE_POINTS = 30.0
CURVES = ("smooth", "kinked", "saturating", "flat", "trade-off")
_MEDIAN_SD, _MEDIAN_FORGETTING, _LOG_SD = 1.8, 1.0, 0.8
"""Standard deviations across ranks, in points: of gains (as in published curves) and of losses."""

_SOFTNESS = 0.5
"""Of p(right), in standard deviations of the items' difficulty."""

_NATS_SD = 0.1

About = Literal["adapters", "rank"]
NatsLaw = Literal["normal", "t3", "3 % lose 2, shared", "2 % lose 3, own", "lognormal"]
Law = Literal["accuracy", "p(right)"] | NatsLaw


class Family(NamedTuple):
    """What studies of one kind have in common, besides the truth.

    Attributes:
        name: of the family.
        curves: of plausible truths, in turn.
        law: how one item varies in-domain; of retention tasks only p(right)'s counts.
        base: the base's score in-domain, a share.
        retained: its score on every retention task.
        agreement: correlation of two models' answers; at 0.8 two that are right on half of the
            items disagree on a fifth.
        run_sd: of runs around their rank in points, in-domain and on retention; an eighth at the
            smallest rank where ``grows``.
        grows: whether runs of larger ranks differ more.
        collapse: how often a run loses ``COLLAPSE_POINTS`` on every retention task.
        fails: how often a run gains ``COLLAPSE_POINTS`` less.
        in_domain: the sizes of the tasks, as shares of the number of items.
        retention: likewise.
        copies: items in a row that ask the same.
        shares_documents: whether the tasks of one kind are about the same documents.
        about: the verdicts that are judged at the edges; the others are as in another family.
    """

    name: str
    curves: tuple[str, ...] = CURVES
    law: Law = "accuracy"
    base: float = 0.5
    retained: float = 0.7
    agreement: float = 0.8
    run_sd: tuple[float, float] = (0.7, 0.5)
    grows: bool = False
    collapse: float = 0.0
    fails: float = 0.0
    in_domain: tuple[float, ...] = (1.0,)
    retention: tuple[float, ...] = (0.3,) * NUM_TASKS
    copies: int = 1
    shares_documents: bool = False
    about: tuple[About, ...] = ("adapters", "rank")

    def __str__(self) -> str:
        return self.name

    @property
    def is_nats(self) -> bool:
        """Whether gains are in nats."""
        return self.law not in ("accuracy", "p(right)")

    @property
    def point(self) -> float:
        """What a point counts in the unit of the gains."""
        return 0.01 if self.is_nats else 1.0


class Truth(NamedTuple):
    """Of each rank, smallest first: gains (K,) over the base, and losses (T, K) in points."""

    gain: Floats
    losses: Floats


class Study(NamedTuple):
    """Scores: gains and losses (m, K, n) of each task, and the clusters of its items.

    ``runs`` are the truths of the runs, one for each seed; ``point`` is what a point of retention
    counts in the unit of the gains.
    """

    gains: tuple[Items, ...]
    losses: tuple[Items, ...]
    runs: tuple[Truth, ...]
    point: float

    @property
    def adapters(self) -> Truth:
        """The mean over the runs."""
        return Truth(*(np.mean(parts, axis=0) for parts in zip(*self.runs, strict=True)))

    def first(self, num_items: int, num_seeds: int) -> Study:
        """The study as it was when it had so many in-domain items, and seeds."""
        most = sum(task.num_items for task in self.gains)

        def part(tasks: tuple[Items, ...]) -> tuple[Items, ...]:
            return tuple(_first(task, num_items / most, num_seeds) for task in tasks)

        return Study(part(self.gains), part(self.losses), self.runs[:num_seeds], self.point)


def _first(task: Items, share: float, num_seeds: int) -> Items:
    size = _size(share, task.num_items)
    values = task.values[:num_seeds, :, :size]
    of_item = task.item_size if task.item_size == POINTS else item_size(values, in_points=False)
    clusters = None if task.clusters is None else task.clusters[:size]
    return task._replace(values=values, item_size=of_item, clusters=clusters)


class Rate(NamedTuple):
    """How often something happened in independent studies."""

    number: int
    studies: int

    @property
    def share(self) -> float:
        """Of the studies; 0 of none."""
        return self.number / max(self.studies, 1)

    @property
    def upper(self) -> float:
        """The exact binomial upper 95 % bound (Clopper and Pearson 1934), one-sided."""
        if self.number == self.studies:
            return 1.0
        return float(stats.beta.ppf(0.95, self.number + 1, self.studies - self.number))

    def __str__(self) -> str:
        return f"{self.share:.3f}"


def generator(cell: object, seed: int) -> np.random.Generator:
    """Random numbers of a cell's own, the same whatever else is simulated."""
    return np.random.default_rng([seed, *repr(cell).encode()])


def draw_study(
    family: Family,
    truth: Truth,
    num_items: int,
    num_seeds: int,
    rng: np.random.Generator,
    alike: float = 0.0,
) -> Study:
    """A study whose runs lie around their ranks.

    An item's difficulty, common to all models, and every model's own luck are normal. A model is
    right where their sum is below what its true score asks for, so true scores are exact at any
    level. p(right) is soft in that sum. Copies of an item, and items about one document, share
    difficulty and nine tenths of the variance of the luck. ``alike`` is the share of the luck's
    variance that all trained runs have in common: what training does to an item.
    """
    runs = [_run(family, truth, rng) for _ in range(num_seeds)]
    gain = np.stack([run.gain for run in runs])
    losses = np.stack([run.losses for run in runs])
    if family.is_nats:
        gains = _nats(family, gain, num_items, rng)
    else:
        gains = _tasks(family, family.base, np.stack([gain] * len(family.in_domain)),
                       family.in_domain, num_items, rng, alike)  # fmt: skip
    changes = -losses.transpose(1, 0, 2)
    lost = _tasks(family, family.retained, changes, family.retention, num_items, rng, alike)
    negated = tuple(task._replace(values=-task.values) for task in lost)
    return Study(tuple(gains), negated, tuple(runs), family.point)


def _run(family: Family, truth: Truth, rng: np.random.Generator) -> Truth:
    """The truth of one run of every rank, a quarter of whose variance is shared by the ranks."""
    count = len(truth.gain)
    smallest = 0.125 if family.grows else 1.0
    own_sd = np.exp(np.linspace(np.log(smallest), 0.0, count))

    def effects(sd: float) -> Floats:
        return sd * own_sd * (rng.normal(0.0, 0.75**0.5, count) + rng.normal(0.0, 0.5))

    def events(often: float) -> Floats:
        """Of mean zero: the truth of a rank is that of its runs on average."""
        return COLLAPSE_POINTS * ((rng.random(count) < often).astype(np.float64) - often)

    gain = truth.gain + family.point * (effects(family.run_sd[0]) - events(family.fails))
    losses = truth.losses + effects(family.run_sd[1]) + events(family.collapse)
    if not family.is_nats:
        gain = np.clip(gain, *_reach(family.base))
    lowest, highest = _reach(family.retained)
    return Truth(gain, np.clip(losses, -highest, -lowest))


def _reach(base: float) -> tuple[float, float]:
    """The changes, in points, that leave a score in 0.2 to 99.8 %."""
    return 0.2 - POINTS * base, 99.8 - POINTS * base


def _tasks(
    family: Family,
    base: float,
    changes: Floats,
    sizes: tuple[float, ...],
    num_items: int,
    rng: np.random.Generator,
    alike: float,
) -> list[Items]:
    """Tasks whose scores change (T, m, K) points from the base's."""
    numbers = tuple(_size(share, num_items) for share in sizes)
    shape = changes.shape[1:]
    common = _Luck(shape, max(numbers), rng) if family.shares_documents else None
    clusters = _clusters(family.copies, family.shares_documents, numbers)
    found: list[Items] = []
    for change, size, its in zip(changes, numbers, clusters, strict=True):
        documents, labels = common, np.arange(size) // family.copies
        if family.copies > 1:
            documents = _Luck(shape, labels[-1] + 1, rng)
        own = _Luck(shape, size, rng)
        if documents is not None:
            own = own.about(documents, labels)
        if alike:
            shared = rng.standard_normal(size, dtype=np.float32)
            own.runs = np.float32(alike**0.5) * shared + np.float32((1 - alike) ** 0.5) * own.runs
        values = _answers(family, base, change, own)
        found.append(Items(values, _item_size(family.law, values), clusters=its))
    return found


@functools.cache
def _clusters(
    copies: int, shares_documents: bool, sizes: tuple[int, ...]
) -> tuple[Clusters | None, ...]:
    """The clusters that the product finds in the lines of such tasks.

    Copies differ in case, quotes and marks; items about one document repeat its text.
    """
    if copies == 1 and not shares_documents:
        return (None,) * len(sizes)

    def line(task: int, place: int) -> dict[str, Any]:
        number = place // copies
        text = f"Document {number} " + "tells a long story about a river and a town. " * 3
        question = f"What does {'it' if shares_documents else task} say of {number} in {task}"
        spoken = (question, question.upper(), f'"{question}"', f"{question}?", f"{question}  ")
        ask = spoken[place % copies]
        doc = {"question": ask, "passage": text if shares_documents else ""}
        return {"doc_id": place, "doc": doc, "arguments": [[ask, " yes"], [ask, " no"]]}

    ties = {
        str(task): ties_of([line(task, place) for place in range(size)])
        for task, size in enumerate(sizes)
    }
    found = linked_clusters(ties, {})
    return tuple(None if its is None else np.asarray(its, dtype=np.int64) for its in found.values())


def _size(share: float, num_items: int) -> int:
    return max(round(share * num_items), SMALLEST_TASK)


def _item_size(law: Law, values: Floats) -> float:
    return POINTS if law == "accuracy" else item_size(values, in_points=law == "p(right)")


class _Luck:
    """Difficulty (n,) of items, and luck of the base (n,) and of runs (m, K, n)."""

    def __init__(self, shape: tuple[int, ...], number: int, rng: np.random.Generator) -> None:
        self.difficulty = rng.standard_normal(number, dtype=np.float32)
        self.base = rng.standard_normal(number, dtype=np.float32)
        self.runs: NDArray[np.floating] = rng.standard_normal((*shape, number), dtype=np.float32)

    def about(self, documents: _Luck, labels: Clusters) -> _Luck:
        """The same of items about some documents."""
        most, rest = np.float32(0.9**0.5), np.float32(0.1**0.5)
        self.difficulty = documents.difficulty[labels]
        self.base = most * documents.base[labels] + rest * self.base
        self.runs = most * documents.runs[..., labels] + rest * self.runs
        return self


def _answers(family: Family, base: float, change: Floats, luck: _Luck) -> Floats:
    """(m, K, n) the runs' answers less the base's, in points."""
    shared, own = np.float32(family.agreement**0.5), np.float32((1.0 - family.agreement) ** 0.5)
    soft = _SOFTNESS if family.law == "p(right)" else 0.0
    scores = np.clip(base + change / POINTS, 0.001, 0.999)
    widening = np.sqrt(1.0 + soft**2)
    at = (special.ndtri(scores) * widening)[..., None].astype(np.float32)
    base_at = np.float32(special.ndtri(base) * widening)
    runs = at - (shared * luck.difficulty + own * luck.runs)
    of_base = base_at - (shared * luck.difficulty + own * luck.base)
    if soft:
        return POINTS * (special.ndtr(runs / soft) - special.ndtr(of_base / soft)).astype(float)
    return POINTS * np.subtract(runs > 0, of_base > 0, dtype=np.float64)


def _nats(family: Family, gain: Floats, number: int, rng: np.random.Generator) -> list[Items]:
    """Gains (m, K, n) in nats of some true means (m, K); half of the variance is common."""
    shape = (*gain.shape, number)
    common, own = (
        rng.standard_t(3, of) if family.law == "t3" else rng.standard_normal(of)
        for of in (number, shape)
    )
    together = (common + own) / np.sqrt(2.0)
    values = _NATS_SD * together
    if family.law == "lognormal":
        values = _NATS_SD * (np.exp(0.5) - np.exp(together))
    elif family.law == "3 % lose 2, shared":
        values += 0.06 - 2.0 * (rng.random(number) < 0.03)
    elif family.law == "2 % lose 3, own":
        values += 0.06 - 3.0 * (rng.random(shape) < 0.02)
    values += gain[..., None]
    return [Items(values, item_size(values, in_points=False))]


def rank_curve(curve: str, num_ranks: int, rng: np.random.Generator) -> Truth:
    """A truth over ranks that are even in their logarithm, of one of ``CURVES``, or another.

    How far the ranks are apart varies from study to study: lognormal, with the median of
    published rank curves. "rough" has no order in it; "wild" is far outside of the odds' prior.
    Every retention task has a loss of its own around the mean.
    """
    place = np.linspace(0.0, 1.0, num_ranks)
    level, least_loss = rng.uniform(0.0, 25.0), rng.normal(1.0, 2.0)
    spread = _MEDIAN_SD * np.exp(rng.normal(0.0, _LOG_SD))
    forgetting = _MEDIAN_FORGETTING * np.exp(rng.normal(0.0, _LOG_SD))
    if curve == "smooth":
        distance = (place[:, None] - place) / 0.4
        covariance = np.exp(-0.5 * distance**2) + 1e-9 * np.eye(num_ranks)
        gain, loss = rng.multivariate_normal(np.zeros(num_ranks), covariance, 2)
        gain, loss = gain * spread / gain.std(), loss * forgetting / loss.std()
        gain, loss = level + gain - gain.mean(), least_loss + loss - loss.mean()
    elif curve in ("rough", "wild"):
        gain, loss = rng.standard_normal((2, num_ranks))
        if curve == "wild":
            level, spread, forgetting = 40.0, 4.0 * spread, 4.0 * forgetting
        gain, loss = level + spread * gain, least_loss + forgetting * loss
    elif curve == "kinked":
        kink = rng.uniform(0.1, 0.9)
        gain = level - 4.0 * spread * np.maximum(kink - place, 0.0)
        loss = least_loss + 6.0 * forgetting * np.maximum(place - kink, 0.0)
    else:
        shape = place
        if curve == "saturating":
            shape = 1.0 - np.exp(-rng.uniform(2.0, 8.0) * place)
        elif curve == "trade-off":
            forgetting = spread * rng.uniform(0.3, 1.2)
        if curve == "flat":
            spread = forgetting = 0.0
        gain = level + (shape - shape[-1]) * spread / shape.std()
        loss = least_loss + place * forgetting / place.std()
    # where accuracy stays between 0 and 1
    gain, loss = np.clip(gain, -15.0, 45.0), np.clip(loss, -5.0, 28.0)
    of_tasks = rng.normal(0.0, 1.0, (NUM_TASKS, 1))
    return Truth(gain, loss + of_tasks - of_tasks.mean())


def right_answers(truth: Truth, margins: Margins) -> NDArray[np.bool_]:
    """Which ranks may be recommended."""
    kept = truth.losses.mean(axis=0) <= margins.epsilon_points
    admissible = kept & (truth.losses.max(axis=0) <= margins.ceiling)
    best = truth.gain[admissible].max() if admissible.any() else -np.inf
    return admissible & (truth.gain > 0) & (truth.gain >= best - margins.delta)
