"""How long work takes: what there is to do, and seconds per unit of it.

Work is counted in scored tokens. Each kind of stage takes so many seconds per unit of work: as it
took in this study, else as it took in the last study of this base on this machine, else by
arithmetic from what it computes (decompositions of weights), else as much longer than the kinds
that are known as ``slowness`` says. A rate that is given, assumed for a card, or measured
beforehand takes the place of all of these but the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rankwise.records.folder import BASE
from rankwise.records.study import PlannedRun
from rankwise.study.observer import StageOutline

TRAINING_WORK = {"lora": 2.5, "full": 4.0}
"""Work of a trained token, in scored tokens: a backward pass, and for full fine-tuning the
gradients of all weights. Only times are estimated from it, and work is shared out by it."""

WRITING_WORK = 1.5
"""Work of a token that is written to be learned from, in scored tokens; assumed, not measured: a
step of the decoder has fewer rows than one of scoring."""

CARD_FLOPS = 989e12
"""Multiplications and additions of an H100 SXM in a second, dense bfloat16, by its data sheet."""

CARD_SHARE = 1 / 3
"""The share of that which LoRA training is assumed to reach; not measured. Large products reach two
thirds and more, and what is no product takes about as long."""

EXPECTED_SHARE = 0.1
"""Work of a kind, as a share of a study's, for which counts what is expected beside what is
measured: the first pieces load, compile, or are several texts that end together."""


def furthest(models: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """The last model of each training: its earlier checkpoints are passed on its way."""
    by_steps = sorted(models, key=lambda model: model.num_steps)
    return tuple({model.training.name: model for model in by_steps}.values())


def training_work(models: Sequence[PlannedRun]) -> float:
    """Work of training some runs and checkpoints; those of one training are trained once.

    With what they write to learn from, and what the base or a teacher reads of that.
    """
    return sum(
        model.num_read_tokens * TRAINING_WORK[model.method]
        + model.num_written_tokens * WRITING_WORK
        + model.num_beside_tokens
        for model in furthest(models)
    )


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
    """Seconds of each stage that is left, by its id, in their order; empty where nothing is known.

    Args:
        stages: of a study, as they are in its folder.
        scored_per_second: tokens; of stages that read none, only those count that are known by
            arithmetic. None: as what is finished took, or the last study of this base here.
        later_work: scored tokens of what is planned once there is a verdict.
    """
    if later_work:
        name, tokens = "after the verdict", round(later_work)
        stages = [*stages, StageOutline(name, "form", name, name, later_work, tokens, later_work)]
    if scored_per_second is None:
        rates = Rates()
        rates.planned(stages)
        return rates.seconds_left({}, 0.0)
    left: dict[str, float] = {}
    for stage in (each for each in stages if not each.is_finished):
        if stage.by_arithmetic is not None:
            left[stage.id] = stage.by_arithmetic * stage.work_left / stage.work
        elif stage.num_tokens is not None:
            left[stage.id] = stage.work_left * stage.slowness / scored_per_second
    return left


class Spent(NamedTuple):
    """Seconds that work took, and the work."""

    seconds: float
    work: float


class Doing:
    """A stage that is being done, and how far it is; times are of any clock that goes forward."""

    def __init__(self, outline: StageOutline, now: float) -> None:
        self.outline, self.started, self.last = outline, now, now
        self.done = self.skipped = 0.0
        self.peak_memory_bytes = 0

    def advanced(self, work: float, now: float) -> None:
        """Some of its work is done."""
        self.done, self.last = self.done + work, now

    @property
    def spent(self) -> Spent:
        """Until work was last told of."""
        return Spent(self.last - self.started, self.done)

    @property
    def label(self) -> str:
        """Its model and name, as the user sees them."""
        model = "base model" if self.outline.model == BASE else self.outline.model
        return f"{model}: {self.outline.name}"

    @property
    def share_done(self) -> float:
        """The done share of its work, with what an earlier call did."""
        work = self.outline.work
        return min((self.done + self.skipped) / work, 1.0) if work else 1.0

    @property
    def tokens_per_second(self) -> float | None:
        """None where it reads none, or nothing is known yet."""
        num_tokens, spent = self.outline.num_tokens, self.spent
        if not num_tokens or not self.outline.work or not spent.seconds:
            return None
        return num_tokens / self.outline.work * spent.work / spent.seconds


class Rates:
    """Seconds per unit of work of each kind of stage, and the time left by them.

    Attributes:
        spent_now: by kind of stage, on what this process has seen from beginning to end.
    """

    def __init__(self) -> None:
        self.spent_now: dict[str, Spent] = {}
        self._left: dict[str, StageOutline] = {}
        self._of_kind: dict[str, StageOutline] = {}  # one of each, for what its kind is known by
        self._work: dict[str, float] = {}
        self._spent: dict[str, Spent] = {}
        self._counted = set[str]()

    def planned(self, stages: Sequence[StageOutline]) -> None:
        """All stages of a study, in their order; a search plans more, and says all again."""
        self._left = {stage.id: stage for stage in stages if not stage.is_finished}
        self._of_kind |= {stage.kind: stage for stage in stages}
        self._work = dict.fromkeys(self._of_kind, 0.0)
        for stage in stages:
            self._work[stage.kind] += stage.work
            seconds = stage.seconds or 0.0
            if seconds > 0 and stage.work and stage.id not in self._counted:
                _add(self._spent, stage.kind, Spent(seconds, stage.work))
                self._counted.add(stage.id)

    def finished(self, stage: Doing, now: float) -> None:
        """It is done."""
        if stage.done and now > stage.started:
            for spent in (self._spent, self.spent_now):
                _add(spent, stage.outline.kind, Spent(now - stage.started, stage.done))
            self._counted.add(stage.outline.id)

    def dropped(self, stage: str) -> None:
        """A stage, by its id, is not to be waited for: it is done, it or what it needs failed."""
        self._left.pop(stage, None)

    def seconds_left(self, doing: Mapping[str, Doing], now: float) -> dict[str, float]:
        """Seconds of each stage by its id, in their order; empty before anything is known."""
        spent = dict(self._spent)
        for running in (each for each in doing.values() if each.spent.seconds):
            _add(spent, running.outline.kind, running.spent)
        rates = {kind: self._rate(kind, spent) for kind in self._of_kind}
        left: dict[str, float] = {}
        for stage in self._left.values():
            rate, running = rates[stage.kind], doing.get(stage.id)
            if rate is None:
                return {}
            left[stage.id] = rate * stage.work_left
            if running is not None:
                seconds = rate * (1 - running.share_done) * stage.work
                left[stage.id] = max(seconds - (now - running.last), seconds / 2)
        return left

    def _rate(self, kind: str, spent: Mapping[str, Spent]) -> float | None:
        """Seconds per unit of work of a kind; None where no kind is known."""
        seconds, work = spent.get(kind, Spent(0.0, 0.0))
        if (expected := self._expected(kind, spent)) is not None:
            before = EXPECTED_SHARE * self._work[kind]
            seconds, work = seconds + expected * before, work + before
        return seconds / work if work else expected

    def _expected(self, kind: str, spent: Mapping[str, Spent]) -> float | None:
        """The same before the kind was seen: as remembered, or as its slowness has it."""
        stage = self._of_kind[kind]
        if stage.remembered is not None:
            return stage.remembered
        if stage.by_arithmetic is not None:
            return stage.by_arithmetic / stage.work
        others = {k: s for k, s in spent.items() if k != kind} or {
            k: Spent(each.remembered, 1.0)
            for k, each in self._of_kind.items()
            if each.remembered is not None
        }
        work = sum(each.work * self._of_kind[other].slowness for other, each in others.items())
        return stage.slowness * sum(s.seconds for s in others.values()) / work if work else None


def _add(spent: dict[str, Spent], kind: str, more: Spent) -> None:
    before = spent.get(kind, Spent(0.0, 0.0))
    spent[kind] = Spent(before.seconds + more.seconds, before.work + more.work)
