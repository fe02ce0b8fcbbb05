"""Which heads carry negative transfer: a set whose reversion restores other domains, and its proof.

Heads are chosen by half of the items and judged by the other half. What is written out is the
run's adapter without these heads' delta, and that folder is what is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rankwise.engine.models.frozen_adapters import FrozenAdapter
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import ConfigError
from rankwise.findings.stats.items import Floats
from rankwise.heads.answers import ItemOptions, ItemValues, continuations, item_values, questions
from rankwise.heads.effects import estimates
from rankwise.heads.interventions import Head, save_without_heads, without_heads
from rankwise.heads.layouts import HeadLayout, head_layouts
from rankwise.records import quantities
from rankwise.records.fingerprints import head_repair_fingerprint
from rankwise.records.heads import HeadEstimate, HeadRepair, RepairedTask, TaskHeadEffects
from rankwise.records.study import PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.planning.plan import metric_of
from rankwise.tasks.requests import PreparedTask

MOST_HEADS = 8
"""Of the set, and how many candidates there are: those that alone promise most."""

NUM_RANDOM_SETS = 4
"""Of as many heads, for comparison."""

_ADAPTER, _REPAIRED = "adapter", "repaired"


class _Asked(NamedTuple):
    """A task with what is scored of it."""

    task: PreparedTask
    items: list[ItemOptions]

    def half(self, first: bool) -> list[ItemOptions]:
        """The items that heads are chosen by, or those that they are judged by."""
        return self.items[0 if first else 1 :: 2]


def can_repair(run: PlannedRun, effects: Sequence[TaskHeadEffects]) -> bool:
    """Whether there are reversions in-domain and elsewhere, each on at least four items."""
    in_domain = [effect.relation == "in_domain" for effect in effects]
    enough = all(effect.mode == "revert" and effect.num_items >= 4 for effect in effects)
    return run.method == "lora" and enough and any(in_domain) and not all(in_domain)


class HeadRepairer:
    """Chooses heads, writes the repaired adapter, and scores it."""

    def __init__(self, context: StudyContext, run: PlannedRun) -> None:
        self._plan, self._folder, self._run = context.plan, context.folder, run
        self._models = context.models

    def repair(
        self, tasks: Sequence[PreparedTask], effects: Sequence[TaskHeadEffects]
    ) -> HeadRepair:
        """Find the set, write its adapter and its record, and say what it does.

        A head is added while the sum of mean effects on the answers' log-probability, other
        domains and in-domain each taken as one, grows: a nat lost in-domain has to buy more than
        one elsewhere.

        Args:
            tasks: in-domain and others, as in the effects.
            effects: of reversions, one record for each task.

        Raises:
            ConfigError: ``can_repair`` says no.
            StorageError: the folder cannot be written.
        """
        if not can_repair(self._run, effects):
            raise ConfigError("heads", ["a repair needs reversions in-domain and elsewhere"])
        wanted = head_repair_fingerprint(MOST_HEADS, [effect.fingerprint for effect in effects])
        earlier = self._folder.head_repair(self._run.name)
        if earlier is not None and earlier.fingerprint == wanted:
            return earlier
        base_model, adapter = self._models.adapted(self._run)
        assert adapter is not None
        search = _Search(self._scorer(), adapter, head_layouts(base_model), effects)
        asked = [_Asked(task, questions(task)) for task in tasks]
        chosen, gains = search.greedy(asked)
        self._folder.clear_repaired(self._run.name)
        record = HeadRepair(
            model=self._run.name,
            fingerprint=wanted,
            effects=tuple(effect.fingerprint for effect in effects),
            keys_and_values=effects[0].keys_and_values,
            in_domain=tuple(effect.task for effect in effects if effect.relation == "in_domain"),
            others=tuple(effect.task for effect in effects if effect.relation != "in_domain"),
            heads=tuple(chosen),
            selection_gain_nats=tuple(gains),
            num_selection_items=sum(len(one.half(first=True)) for one in asked),
            tasks=(),
            num_random_sets=0,
            folder=None,
            projection_error=None,
            statement="No head's reversion restores more elsewhere than it costs in-domain, "
            "on the items that heads were chosen by.",
        )
        if chosen:
            record = self._confirmed(record, search, asked, chosen)
        self._folder.write_repair(record)
        return record

    def _scorer(self) -> ResidentScorer:
        base, most = self._models.base(), self._plan.step_tokens
        return ResidentScorer(base, self._plan.tokenizer, max_batch_tokens=most)

    def _confirmed(
        self, record: HeadRepair, search: _Search, asked: Sequence[_Asked], chosen: list[Head]
    ) -> HeadRepair:
        """Write the adapter, read it back, and compare it on the items that are left."""
        source = self._folder.weights(self._run)
        target = self._folder.repaired_folder(self._run.name)
        save_without_heads(
            source, target, search.layouts, chosen, keys_and_values=record.keys_and_values
        )
        random = search.random_sets(chosen)
        search.scorer.put_on(_ADAPTER, source)
        search.scorer.put_on(_REPAIRED, target)
        tasks = tuple(self._judged(search, asked, record, random))
        for name in (_ADAPTER, _REPAIRED):
            search.scorer.take_off(name)
        return record.model_copy(
            update={
                "tasks": tasks,
                "num_random_sets": len(random),
                "folder": str(target.relative_to(self._folder.root)),
                "projection_error": 0.0,
                "statement": _statement(record, tasks),
            }
        )

    def _judged(
        self,
        search: _Search,
        asked: Sequence[_Asked],
        record: HeadRepair,
        random: Sequence[Sequence[Head]],
    ) -> Iterator[RepairedTask]:
        values = [self._values(search.scorer, one) for one in asked]
        confidence, count = self._plan.record.config.recommendation.confidence, len(asked)
        # one family over the tasks
        level = 1.0 - (1.0 - confidence) / count
        drawn = search.nats(random, asked, first=False)
        for number, one in enumerate(asked):
            base, adapted, repaired = values[number]
            kept = slice(1, None, 2)
            item_size = 100.0 if adapted.unit == "points" else 0.0
            scores = (repaired.values - adapted.values)[kept]
            nats = (repaired.answer_nats - adapted.answer_nats)[kept]
            lost = (adapted.answer_nats - base.answer_nats)[kept]
            intact = adapted.answer_nats[kept].mean()
            sides = [float(np.mean(one.values[kept])) for one in (base, adapted, repaired)]
            yield RepairedTask(
                task=one.task.name,
                relation="in_domain" if one.task.name in record.in_domain else None,
                unit=adapted.unit,
                num_items=len(nats),
                base_score=sides[0],
                adapted_score=sides[1],
                repaired_score=sides[2],
                effect=_estimate(scores, item_size, level),
                effect_nats=_estimate(nats, 0.0, level),
                lost_nats=_estimate(lost, 0.0, level),
                random_nats=float(np.mean([own[number] for own in drawn]) - intact)
                if drawn
                else None,
            )

    def _values(self, scorer: ResidentScorer, asked: _Asked) -> list[ItemValues]:
        """Of the base, the adapter and the repaired one."""
        models = [None, _ADAPTER, _REPAIRED]
        answers = scorer.log_likelihoods(models, continuations(asked.task))
        metric = metric_of(self._plan.record.config, asked.task.name)
        return [item_values(asked.task, asked.items, of_model, metric) for of_model in answers]


class _Search:
    """Sets of heads, tried on items."""

    def __init__(
        self,
        scorer: ResidentScorer,
        adapter: FrozenAdapter,
        layouts: Sequence[HeadLayout],
        effects: Sequence[TaskHeadEffects],
    ) -> None:
        self.scorer, self.layouts = scorer, layouts
        self._adapter, self._effects = adapter, effects
        self._is_in_domain = np.array([effect.relation == "in_domain" for effect in effects])

    def greedy(self, asked: Sequence[_Asked]) -> tuple[list[Head], list[float]]:
        """Heads in the order in which they were added, and what the set gained with each."""
        candidates = self._candidates()
        ((*intact,),) = self.nats([[]], asked, first=True)
        chosen: list[Head] = []
        gains: list[float] = []
        while candidates and len(chosen) < MOST_HEADS:
            tried = self.nats([[*chosen, head] for head in candidates], asked, first=True)
            worth = [self._worth(np.array(own) - np.array(intact)) for own in tried]
            best = int(np.argmax(worth))
            if worth[best] <= (gains[-1] if gains else 0.0):
                break
            chosen.append(candidates.pop(best))
            gains.append(worth[best])
        return chosen, gains

    def _candidates(self) -> list[Head]:
        """Heads by what they promise alone, the best first; only what all tasks know of."""
        promised: dict[Head, list[float]] = {}
        for effects in self._effects:
            for head, nats in _promises(effects):
                promised.setdefault(head, []).append(nats)
        worth = {
            head: self._worth(np.array(by_task))
            for head, by_task in promised.items()
            if len(by_task) == len(self._effects)
        }
        return sorted(worth, key=lambda head: -worth[head])[:MOST_HEADS]

    def _worth(self, by_task: Floats) -> float:
        return float(by_task[self._is_in_domain].mean() + by_task[~self._is_in_domain].mean())

    def random_sets(self, chosen: Sequence[Head]) -> list[list[Head]]:
        """Sets of as many other heads."""
        rng = np.random.default_rng(0)
        others = [
            Head(layout.layer, number)
            for layout in self.layouts
            for number in range(layout.num_heads)
            if Head(layout.layer, number) not in chosen
        ]
        if len(others) < len(chosen):
            return []
        draws = (rng.choice(len(others), len(chosen), False) for _ in range(NUM_RANDOM_SETS))
        return [[others[index] for index in draw] for draw in draws]

    def nats(
        self, sets: Sequence[Sequence[Head]], asked: Sequence[_Asked], *, first: bool
    ) -> list[list[float]]:
        """The answers' mean log-probability on half of each task's items, with a set reverted."""
        shared = self._effects[0].keys_and_values
        names = [f"set {number}" for number in range(len(sets))]
        for name, heads in zip(names, sets, strict=True):
            layers = without_heads(
                self._adapter.layers, self.layouts, heads, keys_and_values=shared
            )
            self.scorer.hold(name, FrozenAdapter(layers, is_zero_update=False))
        means: list[list[float]] = [[] for _ in sets]
        for one in asked:
            items, options = one.half(first), continuations(one.task)
            numbers = [index for item in items for index in item.options]
            answers = self.scorer.log_likelihoods(list(names), [options[n] for n in numbers])
            for of_set, into in zip(answers, means, strict=True):
                nats = [0.0] * len(options)
                for number, answer in zip(numbers, of_set, strict=True):
                    nats[number] = answer.nats
                into.append(float(np.mean([item.answer_nats(nats) for item in items])))
        for name in names:
            self.scorer.take_off(name)
        return means


def _promises(effects: TaskHeadEffects) -> Iterator[tuple[Head, float]]:
    """What reverting each head does on the items that heads are chosen by: found, or expected."""
    if effects.screen is not None:
        for head in effects.screen.heads:
            yield Head(head.layer, head.head), head.expected_nats
        return
    for effect, nats in zip(effects.answers, effects.first_half_nats, strict=True):
        yield Head(effect.layer, effect.head), nats


def _estimate(by_item: Floats, item_size: float, confidence: float) -> HeadEstimate:
    return estimates(by_item[None], item_size=item_size, confidence=confidence, family=1)[0]


def _statement(record: HeadRepair, tasks: Sequence[RepairedTask]) -> str:
    """What the items that were left say."""
    others = [task for task in tasks if task.task in record.others]
    own = [task for task in tasks if task.task in record.in_domain]
    raised = [task for task in others if task.effect_nats.lower > 0.0]
    restored = [task for task in raised if task.lost_nats.upper < 0.0]
    more = [task for task in raised if task.lost_nats.upper >= 0.0]
    harmed = [task for task in own if task.effect_nats.upper < 0.0]
    heads = quantities.counted(len(record.heads), "head")
    if raised:
        done = [f"restores {_amounts(restored)}"] if restored else []
        if more:
            done.append(f"raises {_amounts(more)}, where no loss to the base is shown")
        cost = f"it costs {_amounts(harmed)}" if harmed else f"no cost was found: {_amounts(own)}"
        return f"Reverting {heads} {' and '.join(done)}; in-domain {cost}."
    return (
        f"The remaining items do not confirm that reverting {heads} restores other domains: "
        f"{_amounts(others)}; in-domain {_amounts(own)}."
    )


def _amounts(tasks: Sequence[RepairedTask]) -> str:
    return ", ".join(
        f"{task.task} {quantities.change(task.effect_nats.estimate, 'nats')} nats "
        f"({quantities.change_interval(task.effect_nats.lower, task.effect_nats.upper, 'nats')})"
        for task in tasks
    )
