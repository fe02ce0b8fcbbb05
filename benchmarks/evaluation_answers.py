"""What the two sides of ``benchmarks.evaluation`` answered, and where they decide differently."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import evaluation_sides as sides
from benchmarks.margins import (
    Mismatch,
    Values,
    first_difference,
    mismatches,
    noise_of,
    per_character,
    spread,
    winner,
)
from rankwise.engine.models.loading import load_tokenizer
from rankwise.tasks.judgement import judge
from rankwise.tasks.requests import PreparedTask

GENERATION, BASE_ONLY, SINGLE_TOKENS = "gsm8k_generation", "mmlu_5shot_base_only", "mmlu_5shot"
SAID_CHARACTERS = 80  # of a number that a small model does not end


class Answers:
    """Both sides' answers in bfloat16, of the last repeat.

    Args:
        options: of the command line.
        items: of each workload.
        names: of the adapters.
        found: what each side answered, ours first, by workload.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        items: Mapping[str, int],
        names: Sequence[str],
        found: Mapping[str, tuple[Any, Any]],
    ) -> None:
        self.tokenizer: Any = load_tokenizer(Path(options.tokenizer))
        self.tasks: dict[str, PreparedTask] = {
            workload: sides.prepared(workload, self.tokenizer, sides.LONGEST, count)
            for workload, count in items.items()
        }
        self._found = found
        self.models: dict[str, list[str | None]] = {
            workload: [None] if workload == BASE_ONLY else list(names) for workload in found
        }

    def task(self, workload: str) -> PreparedTask:
        return self.tasks[SINGLE_TOKENS if workload == BASE_ONLY else workload]

    @property
    def workloads(self) -> list[str]:
        return list(self._found)

    @property
    def num_differing_texts(self) -> int:
        """Answers that are not the same text, whatever is found in them."""
        ours, peer = self._found[GENERATION]
        pairs = zip(
            itertools.chain(*ours["answers"]), itertools.chain(*peer["answers"]), strict=True
        )
        return sum(mine != theirs for mine, theirs in pairs)

    def num_mismatched(self, margins: Sequence[Mismatch]) -> dict[str, list[int]]:
        """Items times models that are decided differently by any rule, and how many there are."""
        different = {(each.workload, each.model, each.item) for each in margins}
        return {
            name: [
                sum(workload == name for workload, _, _ in different),
                self.task(name).num_items * len(self.models[name]),
            ]
            for name in self._found
        }

    def of(self, workload: str) -> Iterator[tuple[str | None, Any, Any]]:
        """Each model with both sides' answers."""
        ours, peer = self._found[workload]
        yield from zip(self.models[workload], ours["answers"], peer["answers"], strict=True)


def by_item(task: PreparedTask, answers: Sequence[Any]) -> list[list[float]]:
    """The options' log-likelihoods of each item."""
    values: dict[int, list[float]] = {}
    for instance, answer in zip(task.instances, answers, strict=True):
        values.setdefault(instance.doc_id, []).append(answer[0])
    return list(values.values())


def option_lengths(task: PreparedTask) -> list[list[int]]:
    """Characters of the options, without the space before them: as lm-eval counts them."""
    lengths: dict[int, list[int]] = {}
    for instance in task.instances:
        text: str = instance.args[1]
        lengths.setdefault(instance.doc_id, []).append(len(text.removeprefix(" ")))
    return list(lengths.values())


def extracted(task: PreparedTask, texts: Sequence[str]) -> list[tuple[str, ...]]:
    """What the task's filters find in each answer."""
    found: dict[int, list[str]] = {}
    for line in judge(task, [(text,) for text in texts], None).samples:
        found.setdefault(line["doc_id"], []).extend(map(str, line["filtered_resps"]))
    return [tuple(each) for each in found.values()]


def decided(task: PreparedTask, answers: Sequence[Any]) -> list[tuple[Any, ...]]:
    """One model's decisions: of each item the winning options, or what is found in the text."""
    if task.loaded.output_type == "generate_until":
        return extracted(task, answers)
    winners = [
        [winner(item) for item in values] for _, (values,) in _rules(task, [by_item(task, answers)])
    ]
    return list(zip(*winners, strict=True))


def num_different(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Items that are decided differently."""
    return sum(a != b for a, b in zip(one, other, strict=True))


def mismatched(
    answers: Answers, exact: sides.Side
) -> tuple[list[Mismatch], dict[str, dict[str, int]]]:
    """Every decision that differs in bfloat16, with its margin; and each side's from float32's.

    Args:
        answers: of both sides.
        exact: our side in float32.
    """
    found: list[Mismatch] = []
    from_exact = {workload: {"ours": 0, "peer": 0} for workload in answers.workloads}
    token_noise = 0.0
    for workload in answers.workloads:
        task = answers.task(workload)
        true = _exact_answers(answers, workload, exact)
        for (model, ours, peer), right in zip(answers.of(workload), true, strict=True):
            decisions = decided(task, right)
            for side, given in (("ours", ours), ("peer", peer)):
                from_exact[workload][side] += num_different(decided(task, given), decisions)
            if workload == GENERATION:
                found += _of_texts(answers, model, ours, peer, exact, token_noise)
                continue
            sets = [by_item(task, each) for each in (ours, peer, right)]
            if workload == SINGLE_TOKENS:
                token_noise = max(token_noise, _noise(*sets))
            for rule, values in _rules(task, sets):
                found += mismatches(*values, workload=workload, model=model, rule=rule)
    return found, from_exact


def _exact_answers(answers: Answers, workload: str, exact: sides.Side) -> list[Any]:
    asked = SINGLE_TOKENS if workload == BASE_ONLY else workload
    count = answers.tasks[asked].num_items
    return exact.measure(asked, count, answers.models[workload], 0)["answers"]


def _noise(ours: Values, peer: Values, exact: Values) -> float:
    return noise_of(spread(ours, exact), spread(peer, exact))


def _rules(task: PreparedTask, sets: Sequence[Values]) -> Iterator[tuple[str, Sequence[Values]]]:
    """By what an option may win; letters are all equally long."""
    yield "nats", sets
    if "acc_norm" in task.loaded.task.aggregation():
        lengths = option_lengths(task)
        yield "nats per character", [per_character(values, lengths) for values in sets]


def _of_texts(
    answers: Answers,
    model: str | None,
    ours: Sequence[str],
    peer: Sequence[str],
    exact: sides.Side,
    noise: float,
) -> Iterator[Mismatch]:
    """Answers in which something else is found; the margin is that of the first other token."""
    task, encode = answers.tasks[GENERATION], answers.tokenizer.encode
    pairs = zip(extracted(task, ours), extracted(task, peer), strict=True)
    for item, (mine, theirs) in enumerate(pairs):
        if mine == theirs:
            continue
        tokens = [encode(text, add_special_tokens=False) for text in (ours[item], peer[item])]
        place = first_difference(*tokens)
        assert place is not None
        request = task.requests[item]
        assert request.settings is not None
        # a text that ends there has been ended by the end token, or by a stop string
        ends = [encode(stop, add_special_tokens=False)[:1] for stop in request.settings.stops]
        context = [*request.context, *tokens[0][:place]]
        chances: list[float] = []
        for each in tokens:
            following = [[each[place]]] if place < len(each) else ends
            scored = exact.ask("score", name=model, items=[[context, next_] for next_ in following])
            chances.append(max(scored["nats"]))
        margin = abs(chances[0] - chances[1])
        said = [" | ".join(each)[:SAID_CHARACTERS] for each in (mine, theirs)]
        yield Mismatch(GENERATION, model, item, "text", *said, margin, noise)


def float32_differences(
    pair: Any, answers: Answers, count: int, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Both sides on the first items in float32: decisions, texts and log-likelihoods that differ.

    Args:
        pair: of both sides in float32, ``benchmarks.evaluation.Pair``.
        answers: for the tasks and models.
        count: items of each workload.
        sizes: of the peer's batches.
    """
    decisions = compared = 0
    largest = 0.0
    for workload in answers.tasks:
        names = [None, *answers.models[workload]]
        task = sides.prepared(workload, answers.tokenizer, sides.LONGEST, count)
        ours, peer = pair.measure(workload, count, names, sizes[workload])
        compared += task.num_items * len(names)
        for mine, theirs in zip(ours["answers"], peer["answers"], strict=True):
            if workload == GENERATION:
                decisions += sum(a != b for a, b in zip(mine, theirs, strict=True))
                continue
            largest = max(largest, *(abs(a[0] - b[0]) for a, b in zip(mine, theirs, strict=True)))
            decisions += num_different(decided(task, mine), decided(task, theirs))
    return {
        "mismatched_decisions_float32": decisions,
        "items_compared_float32": compared,
        "max_difference_nats_float32": largest,
    }
