"""How long work takes: what there is to do, and a rate for each kind of it.

Work is counted in scored tokens. ``Rates`` says how many seconds a unit of it takes: as it is
given, as finished stages took by their records, and as the stages go that are being done.

The logarithm of a stage's seconds per unit of work is taken for a sum of terms: what the machine
takes, how this call differs from earlier ones, how the stage's kind differs from what was planned,
its task from others, and either for the models that it works on; while it is done, also how it
differs from others alike. Terms are estimated by least squares, each held to zero as far as little
is known of it. So a kind of work that was never seen takes as long as planned, one that was seen
takes as long as it did, and a task is known for the adapters once the base was scored on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rankwise.findings.stats.items import Floats
from rankwise.records.study import PlannedRun
from rankwise.study.observer import StageOutline

TRAINING_WORK = {"lora": 2.5, "full": 4.0}
"""Work of a trained token, in scored tokens: a backward pass, and for full fine-tuning the
gradients of all weights. Only times are estimated from it, and work is shared out by it."""

CARD_FLOPS = 989e12
"""Multiplications and additions of an H100 SXM in a second, dense bfloat16, by its data sheet."""

CARD_SHARE = 1 / 3
"""Of that, what LoRA training is assumed to reach; not measured. Large products reach two thirds
and more, and what is no product takes about as long."""

_MACHINE, _CALL, _OF_MODELS = "the machine", "this call", " of models: "
_MACHINE_SD, _CALL_SD, _WORK_SD, _MODELS_SD = 100.0, 0.5, 0.8, 0.3
"""How far terms are from zero, in logarithms. Of the machine nothing is known; what is done matters
more than to which models."""
_GIVEN_SD = 1e-4
"""How far the machine is from a rate that is given."""
_STAGE, _STAGE_SD = "stage ", 0.15
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
_MOST_STALLS, _STALL_SHARE = 2, 0.05
"""Where more pieces are slow than these, in number or of all, it is the work that is uneven: texts
that are written together end together."""

Labels = tuple[str, ...]
"""The names of a stage's terms."""


def furthest(models: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """Of runs and checkpoints, the last one of each training: the others are passed on its way."""
    by_steps = sorted(models, key=lambda model: model.num_steps)
    return tuple({model.training.name: model for model in by_steps}.values())


def training_work(models: Sequence[PlannedRun]) -> float:
    """Work of training some runs and checkpoints; those of one training are trained once."""
    return sum(model.num_tokens * TRAINING_WORK[model.method] for model in furthest(models))


def assumed_rate(num_parameters: int) -> float:
    """Tokens of LoRA training in a second on one H100, by ``CARD_SHARE``.

    A token takes 4 FLOP for each of the base's weights: 2 forward, 2 for the gradients of what its
    layers read. The adapters' own are few. A model of less than a billion weights is slower than
    that: starting its small kernels takes longer than computing them.
    """
    return CARD_FLOPS * CARD_SHARE / (4 * num_parameters)


def seconds_left(
    stages: Sequence[StageOutline], scored_per_second: float | None = None, later_work: float = 0.0
) -> Mapping[str, float]:
    """Of each stage that is left, by its id, in their order; empty where nothing is known.

    Args:
        stages: of a study, as they are in its folder.
        scored_per_second: tokens; what reads no tokens is left out. None: it takes as long as what
            is finished did.
        later_work: scored tokens, of what is planned once there is a verdict.
    """
    if scored_per_second is not None:
        stages = [each._replace(seconds=None) for each in stages if each.num_tokens is not None]
    name, tokens = "after the verdict", round(later_work)
    later = StageOutline(name, "form", name, name, later_work, tokens, "lora", later_work)
    rates = Rates(scored_per_second)
    rates.planned([*stages, *([later] if later_work else [])])
    return rates.seconds_left()


class Rates:
    """Learns from the stages of a study how long those that are left take.

    Times are seconds of any clock that only goes forward; it reads none.

    Args:
        scored_per_second: tokens, of a machine whose speed is given or was measured; None: it is
            what stages that are finished, and those that are being done, say.
    """

    def __init__(self, scored_per_second: float | None = None) -> None:
        self._left: dict[str, StageOutline] = {}
        self._seen: dict[Labels, _Seen] = {}
        self._known = set[str]()
        self._running: dict[str, _Running] = {}
        if scored_per_second is not None:
            given = _NOTHING.joined(-math.log(scored_per_second), _GIVEN_SD**2)
            self._seen[_MACHINE,] = given

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

    def seconds_left(self, now: float = 0.0) -> Mapping[str, float]:
        """Of each stage by its id, in their order; empty before anything is known."""
        seen = dict(self._seen)
        for running in self._running.values():
            if (rate := running.rate()) is not None:
                log_rate = math.log(rate / running.stage.slowness)
                seen[_own(running.stage)] = _NOTHING.joined(log_rate, running.variance)
        if not seen:
            return {}
        means = _terms(seen)
        left: dict[str, float] = {}
        for stage in self._left.values():
            mean = sum(means.get(label, 0.0) for label in _own(stage)) + math.log(stage.slowness)
            running = self._running.get(stage.id)
            if running is None:
                left[stage.id] = stage.work_left * math.exp(mean)
            else:
                work_left = max(running.stage.work - running.done - running.skipped, 0.0)
                seconds = work_left * math.exp(mean)
                left[stage.id] = max(seconds - (now - running.last), seconds / 2)
        return left

    def _learn(self, stage: StageOutline, rate: float, seconds: float, *, is_now: bool) -> None:
        if rate > 0 and seconds > 0:
            labels = _labels(stage, is_now=is_now)
            log_rate = math.log(rate / stage.slowness)
            variance = _STAGE_SD**2 + (_TIMING_SECONDS / seconds) ** 2
            self._seen[labels] = self._seen.get(labels, _NOTHING).joined(log_rate, variance)
            self._known.add(stage.id)


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
        self._pieces: list[tuple[float, float]] = []  # seconds, and work
        self._work, self._since = 0.0, now

    def advanced(self, work: float, now: float) -> None:
        self.done += work
        self._work, self.last = self._work + work, now
        least = max(_PIECE_SECONDS, _PIECE_SHARE * (now - self.started))
        if now - self._since >= least:
            self.end(now)

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
        held_up = [seconds > _STALL * usual * work for seconds, work in self._pieces]
        is_uneven = sum(held_up) > max(_MOST_STALLS, _STALL_SHARE * len(held_up))
        seconds = [
            usual * work if is_held_up and not is_uneven else seconds
            for (seconds, work), is_held_up in zip(self._pieces, held_up, strict=True)
        ]
        if with_start:
            seconds[0] = self._pieces[0][0]
        return sum(seconds) / sum(work for _, work in self._pieces)

    def end(self, now: float) -> None:
        """What was done since the last piece is one more."""
        if now > self._since and self._work > 0:
            self._pieces.append((now - self._since, self._work))
            self._work, self._since = 0.0, now


def _median(pieces: Sequence[tuple[float, float]]) -> float:
    """Of seconds per unit of work: half of the work took less."""
    rates = sorted((seconds / work, work) for seconds, work in pieces)
    half, passed = sum(work for _, work in pieces) / 2, 0.0
    for rate, work in rates:
        passed += work
        if passed >= half:
            return rate
    return rates[-1][0]


def _terms(seen: Mapping[Labels, _Seen]) -> dict[str, float]:
    """The terms that the stages which were seen suggest, by their labels.

    The normal equations are sparse: a task's terms meet those of the machine and of the kinds
    alone. So a study of hundreds of tasks costs milliseconds.
    """
    from scipy import sparse  # slow to load
    from scipy.sparse.linalg import splu

    labels = list(dict.fromkeys(label for each in seen for label in each))
    places = {label: place for place, label in enumerate(labels)}
    rows, columns = np.array([(r, places[x]) for r, each in enumerate(seen) for x in each]).T
    shape = len(seen), len(labels)
    design: Any = sparse.csc_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    weights, log_rates = np.array(list(seen.values())).T
    prior = sparse.diags_array([_sd(label) ** -2.0 for label in labels])
    information = design.T @ (design * weights[:, None]) + prior
    means: Floats = splu(information.tocsc()).solve(design.T @ log_rates)
    return dict(zip(labels, means.tolist(), strict=True))


def _labels(stage: StageOutline, *, is_now: bool) -> Labels:
    what = dict.fromkeys((stage.kind, stage.name))
    of_models = (f"{each}{_OF_MODELS}{stage.models}" for each in what)
    return (_MACHINE, *([_CALL] if is_now else []), *what, *of_models)


def _own(stage: StageOutline) -> Labels:
    return (*_labels(stage, is_now=True), _STAGE + stage.id)


def _sd(label: str) -> float:
    if label.startswith(_STAGE):
        return _STAGE_SD
    own = {_MACHINE: _MACHINE_SD, _CALL: _CALL_SD}
    return own.get(label, _MODELS_SD if _OF_MODELS in label else _WORK_SD)
