"""How fast the stages of a study go, and how long what is left of it takes.

It is told what happens and when; it reads no clock.

The logarithm of a stage's seconds per unit of work is taken for a sum of terms: what the machine
takes, how this call differs from earlier ones, how the stage's kind differs from what was planned,
its task from others, and either for the models that it works on. Terms are estimated by least
squares, each held to zero as far as little is known of it. So a kind of work that was never seen
takes as long as planned, one that was seen takes as long as it did, and a task is known for the
adapters once the base was scored on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rankwise.findings.stats.items import Floats
from rankwise.study.observer import StageOutline

_MACHINE, _CALL, _OF_MODELS = "the machine", "this call", " of models: "
_MACHINE_SD, _CALL_SD, _WORK_SD, _MODELS_SD = 100.0, 0.5, 0.8, 0.3
"""How far terms are from zero, in logarithms. Of the machine nothing is known; what is done matters
more than to which models."""
_SLOWER = {"heads": 3.5, "behaviour": 2.3}
"""Kinds that took longer for the same work than scoring did, and how much: two studies of a model
of 135M weights on two cores. It is what is expected before a kind was seen."""
_STAGE_SD = 0.15
"""How far stages of which all is known differ from each other."""
_PIECE_SD = 0.5
"""How far pieces of a stage do."""
_TIMING_SECONDS = 0.5
"""A stage this short says little of its kind: it loads and writes for as long."""

_PIECE_SECONDS, _PIECE_SHARE = 0.5, 0.02
"""The shortest piece of a stage that is looked at: in seconds, and of the stage so far."""
_STALL = 4.0
"""A piece that takes so many times what others do was held up: by compiling, by another program,
or the machine slept."""


Labels = tuple[str, ...]
"""The names of a stage's terms."""


_MOST_STALLS, _STALL_SHARE = 2, 0.05
"""Where more pieces are slow than these, in number or of all, it is the work that is uneven: texts
that are written together end together."""


class _Piece(NamedTuple):
    seconds: float
    work: float


class _Seen(NamedTuple):
    """What stages of the same terms took, as sums over them.

    ``weight`` is of 1/variance; ``log_rate`` is of that times the logarithm of seconds per unit of
    work, less what is expected of the kind.
    """

    weight: float
    log_rate: float

    def joined(self, log_rate: float, variance: float) -> _Seen:
        """With one more."""
        return _Seen(self.weight + 1 / variance, self.log_rate + log_rate / variance)


_NOTHING = _Seen(0.0, 0.0)


class _Running:
    """A stage that is being done."""

    def __init__(self, stage: StageOutline, now: float) -> None:
        self.stage, self.started, self.last = stage, now, now
        self.done = self.skipped = 0.0
        self._pieces: list[_Piece] = []
        self._work, self._since = 0.0, now

    def advanced(self, work: float, now: float) -> None:
        self.done += work
        self._work, self.last = self._work + work, now
        least = max(_PIECE_SECONDS, _PIECE_SHARE * (now - self.started))
        if now - self._since >= least and self._work > 0:
            self._pieces.append(_Piece(now - self._since, self._work))
            self._work, self._since = 0.0, now

    @property
    def work_left(self) -> float:
        return max(self.stage.work - self.done - self.skipped, 0.0)

    @property
    def variance(self) -> float:
        """Of the logarithm of ``rate``; the first piece alone, with the beginning, says little."""
        num = len(self._pieces)
        return _PIECE_SD**2 * (1 / num + 3 / num**2)

    def rate(self, *, with_start: bool = False) -> float | None:
        """Seconds per unit of work, stalls left out; None before the first piece.

        ``with_start``: with what was loaded and compiled first, as it will be for another stage.
        """
        if not self._pieces:
            return None
        usual = _median(self._pieces)
        held_up = [piece.seconds > _STALL * usual * piece.work for piece in self._pieces]
        is_uneven = sum(held_up) > max(_MOST_STALLS, _STALL_SHARE * len(held_up))
        seconds = [
            usual * piece.work if is_held_up and not is_uneven else piece.seconds
            for piece, is_held_up in zip(self._pieces, held_up, strict=True)
        ]
        if with_start:
            seconds[0] = self._pieces[0].seconds
        return sum(seconds) / sum(piece.work for piece in self._pieces)

    def end(self, now: float) -> None:
        """What was done since the last piece is one more."""
        if now > self._since and self._work > 0:
            self._pieces.append(_Piece(now - self._since, self._work))


class Pace:
    """Learns from the stages of a study how long those that are left take.

    Times are seconds of any clock that only goes forward.
    """

    def __init__(self) -> None:
        self._left: dict[str, StageOutline] = {}
        self._seen: dict[Labels, _Seen] = {}
        self._known = set[str]()
        self._running: dict[str, _Running] = {}

    def planned(self, stages: Sequence[StageOutline]) -> None:
        """All stages of a study, in their order; a search plans more, and says all again."""
        self._left = {stage.id: stage for stage in stages if not stage.is_finished}
        for stage in stages:
            if stage.is_finished and stage.seconds and stage.id not in self._known:
                rate = stage.seconds / stage.work if stage.work else 0.0
                self._learn(stage, rate, stage.seconds, is_now=False)

    def started(self, stage: StageOutline, now: float) -> None:
        """A stage begins; others may be going on."""
        self._running[stage.id] = _Running(stage, now)

    def advanced(self, stage: str, work: float, now: float) -> None:
        """Some work of a stage that has begun, by its id, is done."""
        self._running[stage].advanced(work, now)

    def skipped(self, stage: str, work: float) -> None:
        """Some of its work was done by an earlier call."""
        self._running[stage].skipped += work

    def finished(self, stage: str, now: float) -> None:
        """It is done."""
        running = self._running[stage]
        running.end(now)
        rate = running.rate(with_start=True)
        if rate is not None:
            self._learn(running.stage, rate, rate * running.done, is_now=True)
        self.dropped(stage)

    def dropped(self, stage: str) -> None:
        """A stage is not to be waited for: it is done, it failed, or what it needs did."""
        self._left.pop(stage, None)
        self._running.pop(stage, None)

    def tokens_per_second(self, stage: str) -> float | None:
        """Of a stage that has begun; None where it reads none, or nothing is known yet."""
        running = self._running[stage]
        rate, outline = running.rate(), running.stage
        if not rate or not outline.num_tokens or not outline.work:
            return None
        return outline.num_tokens / outline.work / rate

    def seconds_left(self, now: float) -> float | None:
        """Of all stages, if as many go on at once as now; None before anything is known."""
        of_stages = self.stages_left(now)
        return sum(of_stages.values()) / max(1, len(self._running)) if of_stages else None

    def stages_left(self, now: float) -> Mapping[str, float]:
        """Seconds left of each stage by its id, in their order; empty before anything is known."""
        seen = dict(self._seen)
        rates = {id_: running.rate() for id_, running in self._running.items()}
        own = {id_: rate for id_, rate in rates.items() if rate is not None}
        for id_, rate in own.items():
            running = self._running[id_]
            labels = _labels(running.stage, is_now=True)
            log_rate = math.log(rate) - _expected(running.stage)
            variance = _STAGE_SD**2 + running.variance
            seen[labels] = seen.get(labels, _NOTHING).joined(log_rate, variance)
        if not seen:
            return {}
        terms = _Terms(seen)
        left: dict[str, float] = {}
        for stage in self._left.values():
            labels = _labels(stage, is_now=True)
            mean = terms.mean(labels) + _expected(stage)
            running = self._running.get(stage.id)
            if running is None:
                left[stage.id] = stage.work_left * math.exp(mean)
                continue
            if stage.id in own:
                of_own = 1.0 / running.variance
                of_others = 1.0 / (terms.variance(labels) + _STAGE_SD**2)
                mean = (of_own * math.log(own[stage.id]) + of_others * mean) / (of_own + of_others)
            seconds = running.work_left * math.exp(mean)
            left[stage.id] = max(seconds - (now - running.last), seconds / 2)
        return left

    def _learn(self, stage: StageOutline, rate: float, seconds: float, *, is_now: bool) -> None:
        if rate > 0 and seconds > 0:
            labels = _labels(stage, is_now=is_now)
            log_rate = math.log(rate) - _expected(stage)
            variance = _STAGE_SD**2 + (_TIMING_SECONDS / seconds) ** 2
            self._seen[labels] = self._seen.get(labels, _NOTHING).joined(log_rate, variance)
            self._known.add(stage.id)


class _Terms:
    """The terms that the stages which were seen suggest.

    The normal equations are sparse: a task's terms meet those of the machine and of the kinds
    alone. So a study of hundreds of tasks costs milliseconds.
    """

    def __init__(self, seen: Mapping[Labels, _Seen]) -> None:
        from scipy import sparse  # slow to load
        from scipy.sparse.linalg import splu

        names = dict.fromkeys(label for labels in seen for label in labels)
        self._places = {label: place for place, label in enumerate(names)}
        entries = [(row, self._places[x]) for row, labels in enumerate(seen) for x in labels]
        rows, columns = np.array(entries).T
        shape = len(seen), len(names)
        design: Any = sparse.csc_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        weights = np.array([each.weight for each in seen.values()])
        information = design.T @ (design * weights[:, None])
        prior = sparse.diags_array([_sd(label) ** -2.0 for label in names])
        self._factor: Any = splu((information + prior).tocsc())
        self._means: Floats = self._factor.solve(
            design.T @ np.array([each.log_rate for each in seen.values()])
        )

    def mean(self, labels: Labels) -> float:
        """Of the logarithm of a stage's seconds per unit of work."""
        return sum(float(self._means[self._places[x]]) for x in labels if x in self._places)

    def variance(self, labels: Labels) -> float:
        """Of the same."""
        row = np.zeros(len(self._places))
        row[[self._places[label] for label in labels if label in self._places]] = 1.0
        new = sum(_sd(label) ** 2 for label in labels if label not in self._places)
        return float(row @ self._factor.solve(row)) + new


def _expected(stage: StageOutline) -> float:
    return math.log(_SLOWER.get(stage.kind, 1.0))


def _labels(stage: StageOutline, *, is_now: bool) -> Labels:
    what = dict.fromkeys((stage.kind, stage.name))
    of_models = (f"{each}{_OF_MODELS}{stage.models}" for each in what)
    return (_MACHINE, *([_CALL] if is_now else []), *what, *of_models)


def _sd(label: str) -> float:
    own = {_MACHINE: _MACHINE_SD, _CALL: _CALL_SD}
    return own.get(label, _MODELS_SD if _OF_MODELS in label else _WORK_SD)


def _median(pieces: Sequence[_Piece]) -> float:
    """Of seconds per unit of work: half of the work took less."""
    rates = sorted((piece.seconds / piece.work, piece.work) for piece in pieces)
    half, passed = sum(piece.work for piece in pieces) / 2, 0.0
    for rate, work in rates:
        passed += work
        if passed >= half:
            return rate
    return rates[-1][0]
