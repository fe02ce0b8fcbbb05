"""Studies side by side: what each of them chooses, and how far the choices may be compared.

Scores are compared, paired item by item, only where both were made on one software stack, with the
same base model and on the same items. No number is made from two stacks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from rankwise.findings.card import more_or_less, verdict_card
from rankwise.findings.differing import (
    AlikeStudies,
    DifferingSetting,
    alike,
    differing,
    settings_of,
)
from rankwise.findings.options import DecidingTasks, Option, OptionGains, Runs, TaskMean
from rankwise.findings.pairs import pair_items
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.records import quantities
from rankwise.records.axes import SETTING
from rankwise.records.base import Record
from rankwise.records.grouping import grouped
from rankwise.records.judgement import Outcome
from rankwise.records.provenance import Stack, differences, stack_of
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.results import StudyResults, TaskItems
from rankwise.records.study import Unit

STACK_SHIFT = (
    "A software stack alone has been seen to move scores by 1 to 3 points: one configuration and "
    "seed on torch 2.7, 2.9 and 2.13 differed by 1.3 points (LoRA of rank 32) and 2.8 points (full "
    "fine-tuning) on GSM8K"
)
"""The size of a stack's effect; the source is in docs/methods/several-studies.md."""

ROUNDING: Mapping[Unit, float] = {"points": 0.01, "nats": 1e-4, "units": 1e-4}
"""Below this the base's score of an item is the same: batches of other models round otherwise."""

MOST_STATEMENTS = 6
"""More pairs than this have no sentences of their own."""

ComparisonKind = Literal["stacks", "paired", "apart"]
"""Several software stacks; one, with pairs that are compared; or one without any."""


class StudySource(NamedTuple):
    """A study as it was read back, under a name that no other study of a comparison has."""

    name: str
    results: StudyResults
    recommendation: StudyRecommendation


class NamedStack(Record):
    """Versions, device and precision that scores were made with, under a name: "stack 1"."""

    name: str
    parts: Stack


class ComparedStudy(Record):
    """A study as a whole.

    ``stacks`` are those of all its trainings and scorings. ``made_at`` is when the newest of them
    was written, an ISO 8601 date and time. ``left_out`` are runs and tasks that take no part, with
    the reason.
    """

    name: str
    fingerprint: str
    base_model: str
    base_model_fingerprint: str
    stacks: tuple[str, ...]
    made_at: str
    left_out: Mapping[str, str]

    @property
    def stack(self) -> str | None:
        """The stack that everything was made on; None where there are several."""
        return self.stacks[0] if len(self.stacks) == 1 else None

    @property
    def stack_words(self) -> str:
        """Its stack or stacks, in words."""
        return quantities.listed(self.stacks)


class ComparedChoice(Record):
    """The setting that a study recommends, or its best bet.

    ``scaling`` is the factor before B @ A, None for full fine-tuning. ``train_seconds`` are those
    of all its seeds; None where it was trained elsewhere.
    """

    label: str
    rank: int | None
    alpha: float | None
    scaling: float | None
    learning_rate: float | None
    target_modules: tuple[str, ...]
    epochs: int | None
    seeds: tuple[int, ...]
    num_parameters: int
    trainable_share: float
    train_seconds: float | None


class ComparedAnswer(Record):
    """What a study found for one trained task.

    ``choice`` is None where not to fine-tune is the best bet, or nothing could be judged
    (``has_bet``). ``probability`` is that of the best bet; None where the choice is recommended.
    ``gain`` and ``retention`` are the choice's changes from its own base, at the study's
    ``confidence``; positive is better.
    """

    name: str
    study: str
    train_task: str
    outcome: Outcome
    has_bet: bool
    choice: ComparedChoice | None
    probability: float | None
    gain: TaskMean | None
    retention: TaskMean | None
    confidence: float


class ComparedPair(Record):
    """The choices of two answers: the second's change from the base less the first's, paired.

    ``reason`` says why they are not compared; then there are no numbers. The means are over the
    tasks of which both scored the same items, at the larger confidence of both. Of
    ``num_base_items`` items of these tasks the base's score is another in ``num_base_moved``.
    """

    first: str
    second: str
    reason: str | None = None
    gain: TaskMean | None = None
    gain_tasks: tuple[str, ...] = ()
    retention: TaskMean | None = None
    retention_tasks: tuple[str, ...] = ()
    num_base_items: int = 0
    num_base_moved: int = 0
    confidence: float

    @property
    def statement(self) -> str:
        """In words, for a pair that is compared."""
        less = more_or_less(self.gain, self.retention)
        return f"The choice of {self.second} {less} than that of {self.first}."

    @property
    def base_note(self) -> str | None:
        """What the base says of the two studies being on one stack; None where it moved nothing."""
        if not self.num_base_moved:
            return None
        items = quantities.counted(self.num_base_items, "item")
        return (
            f"The base itself scored {quantities.count(self.num_base_moved)} of {items} otherwise "
            f"in {self.second} than in {self.first}, though their stacks are one by name."
        )


class StudyComparison(Record):
    """Several studies side by side. ``panels`` are answers that may stand on one plane."""

    kind: ComparisonKind
    statement: str
    stacks: tuple[NamedStack, ...]
    studies: tuple[ComparedStudy, ...]
    answers: tuple[ComparedAnswer, ...]
    differing: tuple[DifferingSetting, ...]
    alike: tuple[AlikeStudies, ...]
    pairs: tuple[ComparedPair, ...]
    panels: tuple[tuple[str, ...], ...]

    def of(self, answer: ComparedAnswer) -> ComparedStudy:
        """The study of an answer."""
        return next(study for study in self.studies if study.name == answer.study)

    @property
    def compared(self) -> tuple[ComparedPair, ...]:
        """The pairs with numbers."""
        return tuple(pair for pair in self.pairs if pair.reason is None)

    @property
    def points(self) -> tuple[str, ...]:
        """What differs in one axis alone, and a sentence for each of a few pairs."""
        pairs = [pair.statement for pair in self.compared]
        is_said = pairs == [self.statement] or len(pairs) > MOST_STATEMENTS
        return (*(each.statement for each in self.alike), *([] if is_said else pairs))

    @property
    def remarks(self) -> tuple[str, ...]:
        """Bases that scored otherwise; and for each reason, the pairs that it keeps apart."""
        by_reason = grouped(
            (pair.reason, f"{pair.first} and {pair.second}")
            for pair in self.pairs
            if pair.reason is not None
        )
        return (
            *filter(None, (pair.base_note for pair in self.compared)),
            *(f"Not compared: {'; '.join(who)}: {why}." for why, who in by_reason.items()),
        )


class _Part(NamedTuple):
    """An answer with what it was made from."""

    answer: ComparedAnswer
    study: ComparedStudy
    source: OptionGains
    tasks: DecidingTasks
    option: Option | None


def compare_studies(studies: Sequence[StudySource]) -> StudyComparison:
    """Put studies side by side, and pair the choices of those that may be paired.

    Args:
        studies: at least two, each under a name of its own.

    Raises:
        RecordError: scorings of equal fingerprints have other items.
    """
    stacks: list[Stack] = []
    described = [_described(study, stacks) for study in studies]
    parts = list(itertools.chain(*map(_parts, studies, described)))
    settings = [
        settings_of(study.results.study, of.stack_words)
        for study, of in zip(studies, described, strict=True)
    ]
    pairs = tuple(itertools.starmap(_pair, itertools.combinations(parts, 2)))
    kind, statement = _statement(described, stacks, pairs)
    return StudyComparison(
        kind=kind,
        statement=statement,
        stacks=tuple(
            NamedStack(name=f"stack {number}", parts=parts)
            for number, parts in enumerate(stacks, 1)
        ),
        studies=tuple(described),
        answers=tuple(part.answer for part in parts),
        differing=differing(settings),
        alike=alike([study.name for study in studies], settings),
        pairs=pairs,
        panels=tuple(_panels(parts)),
    )


def _described(study: StudySource, stacks: list[Stack]) -> ComparedStudy:
    """A study with the names of its stacks; new ones are put behind the others."""
    results, record = study.results, study.results.study
    models = (results.base, *results.runs)
    scored = [each.provenance for model in models for each in model.evaluations.values()]
    made = [
        *(model.run.provenance for model in models if model.run is not None),
        *(each for each in scored if each is not None),
    ]
    places: set[int] = set()
    for provenance in made:
        stack = {**stack_of(provenance), "precision": record.precision}
        if stack not in stacks:
            stacks.append(stack)
        places.add(stacks.index(stack))
    return ComparedStudy(
        name=study.name,
        fingerprint=record.fingerprint,
        base_model=record.config.base_model.name,
        base_model_fingerprint=record.base_model_fingerprint,
        stacks=tuple(f"stack {place + 1}" for place in sorted(places)),
        made_at=max(provenance.created_at for provenance in made),
        left_out=results.left_out,
    )


def _parts(study: StudySource, of: ComparedStudy) -> Iterator[_Part]:
    has_several = len(study.recommendation.by_train_task) > 1
    for recommendation in study.recommendation.by_train_task:
        task = recommendation.train_task
        source = OptionGains(study.results.of(task))
        card = verdict_card(source, recommendation)
        label = None if card is None else card.choice
        option = next((each for each in source.options if each.label == label), None)
        choice: ComparedChoice | None = None
        if option is not None:
            seconds = sum(record.train_seconds for record in option.records)
            choice = ComparedChoice(
                label=option.label,
                **{name: getattr(option.plan, name) for name in SETTING},
                seeds=tuple(seed for seed in option.seeds if seed is not None),
                num_parameters=option.plan.num_trainable_parameters,
                trainable_share=option.plan.trainable_share,
                train_seconds=None if option.plan.role == "imported" else seconds,
            )
        answer = ComparedAnswer(
            name=f"{study.name}, {task}" if has_several else study.name,
            study=study.name,
            train_task=task,
            outcome=recommendation.outcome,
            has_bet=card is not None,
            choice=choice,
            probability=None if card is None else card.probability,
            gain=None if card is None else card.gain,
            retention=None if card is None else card.retention,
            confidence=source.confidence,
        )
        yield _Part(answer, of, source, source.deciding_tasks(recommendation.unit), option)


def _pair(first: _Part, second: _Part) -> ComparedPair:
    in_domain = _shared(first, second, first.tasks.in_domain, second.tasks.in_domain)
    retention = _shared(first, second, first.tasks.retention, second.tasks.retention)
    reason = _reason(first, second)
    if reason is None and not (in_domain or retention):
        reason = "no task was scored on the same items in both"
    confidence = max(first.answer.confidence, second.answer.confidence)
    pair = partial(
        ComparedPair, first=first.answer.name, second=second.answer.name, confidence=confidence
    )
    if reason is not None or first.option is None or second.option is None:
        return pair(reason=reason)
    runs = _same_seeds(first.option, second.option)
    one, other = first.source.results.base, second.source.results.base
    moved = [  # of each item, whether the base scored otherwise in the second study
        bool(moved)
        for task in (*in_domain, *retention)
        for moved in np.abs(pair_items(one, other, task).gain) > ROUNDING[one.items[task].unit]
    ]
    return pair(
        gain=_difference(first, second, runs, in_domain, confidence),
        gain_tasks=in_domain,
        retention=_difference(first, second, runs, retention, confidence),
        retention_tasks=retention,
        num_base_items=len(moved),
        num_base_moved=sum(moved),
    )


def _reason(first: _Part, second: _Part) -> str | None:
    """Why the choices cannot be compared; None where only the items can keep them apart."""
    one, other = first.study, second.study
    if one.stack is None or other.stack is None:
        return "a study that was made on several software stacks is compared with no other"
    if one.stack != other.stack:
        return "they used different software stacks"
    if one.base_model_fingerprint != other.base_model_fingerprint:
        return "the fingerprints of their base models differ"
    if first.option is None or second.option is None:
        return "one of them chooses no setting"
    return None


def _shared(
    first: _Part, second: _Part, tasks: Sequence[str], others: Sequence[str]
) -> tuple[str, ...]:
    """The tasks of both whose items are the same, and are judged and grouped in the same way.

    The fingerprint of the base's scoring is that of its weights, the items, and how they are asked.
    """
    one, other = first.source.results.base, second.source.results.base
    return tuple(
        task
        for task in tasks
        if task in others
        and one.evaluations[task].fingerprint == other.evaluations[task].fingerprint
        and one.items[task].metric == other.items[task].metric
        and _grouping(one.items[task]) == _grouping(other.items[task])
    )


def _grouping(items: TaskItems) -> list[int]:
    """For each item the first of its cluster: cluster numbers depend on a study's other tasks."""
    first: dict[int, int] = {}
    clusters = range(len(items.doc_ids)) if items.clusters is None else items.clusters
    return [first.setdefault(number, place) for place, number in enumerate(clusters)]


def _same_seeds(one: Option, other: Option) -> tuple[Runs, Runs]:
    """The runs of the seeds that both have; without any, as many of each as both have."""
    common = {*one.seeds} & {*other.seeds}
    runs, others = (
        tuple(run for run, seed in zip(of.runs, of.seeds, strict=True) if seed in common)
        if common
        else of.runs
        for of in (one, other)
    )
    size = min(len(runs), len(others))
    return runs[:size], others[:size]


def _difference(
    first: _Part, second: _Part, runs: tuple[Runs, Runs], tasks: Sequence[str], confidence: float
) -> TaskMean | None:
    """The second's gain less the first's over these tasks, each counting the same."""
    if not tasks:
        return None
    own, other = first.source, second.source
    leads = [other.gains(runs[1], task) - own.gains(runs[0], task) for task in tasks]
    parts = [
        items._replace(
            item_size=max(items.item_size, other.item_size(task)),
            # of two parts of one random order, the smaller one is in the larger one
            scored=min((own, other), key=lambda each: each.num_scored(task)).scored(task),
        )
        for items, task in zip(own.items(leads, tasks), tasks, strict=True)
    ]
    estimate = mean_over_tasks(parts)
    unit = own.results.base.items[tasks[0]].unit
    return TaskMean.over(parts, unit, estimate.value, *estimate.interval(confidence))


def _panels(parts: Sequence[_Part]) -> Iterator[tuple[str, ...]]:
    """Answers with both coordinates, of one stack and base, with the same items throughout."""

    def scored(part: _Part) -> tuple[frozenset[tuple[str, str]], ...]:
        own = part.source.results.base.evaluations
        return tuple(
            frozenset((task, own[task].fingerprint) for task in tasks)
            for tasks in (part.tasks.in_domain, part.tasks.retention)
        )

    groups = grouped(
        ((part.study.stack, *scored(part)), part.answer.name)
        for part in parts
        if part.study.stack and part.answer.gain and part.answer.retention
    )
    return (tuple(names) for names in groups.values() if len(names) > 1)


def _statement(
    studies: Sequence[ComparedStudy], stacks: Sequence[Stack], pairs: Sequence[ComparedPair]
) -> tuple[ComparisonKind, str]:
    compared = [pair for pair in pairs if pair.reason is None]
    if any(study.stack is None for study in studies) or len(stacks) > 1:
        what = "These studies do not all say on which software stack they were made"
        if len(stacks) > 1:
            what = f"These studies were made on {len(stacks)} software stacks"
            what += f" ({differences(*stacks)})" if len(stacks) == 2 else ""
        rest = "; those on one stack are compared item by item" if compared else ""
        return "stacks", f"{what}. {STACK_SHIFT}. So scores of two stacks are never combined{rest}."
    if not compared:
        return ("apart", "No two of these studies can be compared item by item.")
    if len(pairs) == 1:
        return "paired", compared[0].statement
    number = f"{len(compared)} of {len(pairs)}" if len(compared) < len(pairs) else "All"
    return "paired", f"{number} pairs of these studies are compared item by item."
