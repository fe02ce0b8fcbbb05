"""Studies side by side: what is paired, what is kept apart, and in what they differ."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from rankwise.findings.comparison import StudyComparison, StudySource, compare_studies
from rankwise.findings.stats.estimates import crossed_difference
from rankwise.records.axes import FULL_LABEL
from rankwise.records.config.methods import AlphaConfig
from rankwise.records.config.training import LearningRateConfig
from rankwise.records.results import StudyResults
from tests.planted.compared import compared, compared_results, judged, on_torch

OTHER = "c" * 64


def of(*studies: StudySource) -> StudyComparison:
    return compare_studies(studies)


def numbers(comparison: StudyComparison) -> list[Any]:
    """Everything that was made from two studies."""
    means = [mean for pair in comparison.pairs for mean in (pair.gain, pair.retention) if mean]
    return [*means, *comparison.panels]


def reasons(comparison: StudyComparison) -> list[str | None]:
    return [pair.reason for pair in comparison.pairs]


def test_on_one_stack_the_choices_are_paired_item_by_item() -> None:
    # of 300 items 240 and 255 are right, nested; of 2 x 200 it is 180 and 176 of each task
    comparison = of(compared("first", 0.80, 0.90), compared("second", 0.85, 0.88))
    (pair,) = comparison.pairs
    assert comparison.kind == "paired"
    assert (pair.first, pair.second, pair.reason) == ("first", "second", None)
    assert pair.gain is not None
    assert pair.retention is not None
    assert pair.gain.estimate == pytest.approx(5.0)
    assert pair.retention.estimate == pytest.approx(-2.0)
    assert (pair.gain.num_examples, pair.retention.num_examples) == (300, 400)
    assert (pair.gain_tasks, pair.retention_tasks) == (("kinship",), ("capitals", "elements"))
    items = np.repeat([100.0, 0.0], [15, 285])
    alone = crossed_difference(items, item_size=100.0)
    assert alone.stderr == pytest.approx(100 * math.sqrt((0.05 * 0.95 * 300 / 299 + 2 / 300) / 300))
    assert (pair.gain.lower, pair.gain.upper) == pytest.approx(alone.interval(0.95))
    assert (pair.num_base_items, pair.num_base_moved, pair.base_note) == (700, 0, None)
    assert comparison.statement == pair.statement
    assert pair.statement.startswith("The choice of second gains 5.0 points more (+")
    assert " and keeps 2.0 points less (−" in pair.statement
    assert comparison.panels == (("first", "second"),)


def test_each_study_says_what_it_chooses_and_what_that_costs() -> None:
    (answer, _) = of(compared("first"), compared("second", torch="2.9.0")).answers
    assert answer.choice is not None
    assert answer.gain is not None
    assert answer.retention is not None
    assert (answer.outcome, answer.probability, answer.has_bet) == ("recommended", None, True)
    assert (answer.choice.label, answer.choice.rank, answer.choice.alpha) == ("rank 16", 16, 32.0)
    assert (answer.choice.num_parameters, answer.choice.train_seconds) == (115_200 * 16, 30.0)
    assert answer.gain.estimate == pytest.approx(30.0)
    assert answer.retention.estimate == pytest.approx(0.0)


def test_no_number_is_made_from_two_stacks() -> None:
    comparison = of(compared("first"), compared("second", 0.85, torch="2.9.0"))
    assert comparison.kind == "stacks"
    assert numbers(comparison) == []
    assert reasons(comparison) == ["they used different software stacks"]
    assert "made on 2 software stacks (torch 2.13.0 -> 2.9.0). A" in comparison.statement
    assert "by 1 to 3 points" in comparison.statement
    assert [stack.parts["torch"] for stack in comparison.stacks] == ["2.13.0", "2.9.0"]
    assert [study.stack for study in comparison.studies] == ["stack 1", "stack 2"]


def test_another_precision_is_another_stack() -> None:
    comparison = of(compared("first"), compared("second", precision="bfloat16"))
    assert numbers(comparison) == []
    assert [stack.parts["precision"] for stack in comparison.stacks] == ["float32", "bfloat16"]


def test_those_on_one_stack_are_paired_beside_others() -> None:
    studies = [compared("a"), compared("b", torch="2.9.0"), compared("c", 0.85)]
    comparison = of(*studies)
    assert comparison.kind == "stacks"
    assert [(pair.first, pair.second) for pair in comparison.compared] == [("a", "c")]
    assert comparison.statement.endswith(
        "never combined; those on one stack are compared item by item."
    )
    apart = "Not compared: a and b; b and c: they used different software stacks."
    assert comparison.remarks == (apart,)
    assert comparison.points[-1].startswith("The choice of c gains 5.0 points more (")
    assert comparison.panels == (("a", "c"),)


def test_a_study_of_several_stacks_is_compared_with_no_other() -> None:
    """The first run was scored on another torch."""

    def mixed(name: str) -> StudyResults:
        results = compared_results(name)
        first, *others = results.runs
        scored = {
            task: each.model_copy(update={"provenance": on_torch("2.9.0")})
            for task, each in first.evaluations.items()
        }
        changed = first.model_copy(update={"evaluations": scored})
        return results.model_copy(update={"models": (changed, *others)})

    comparison = of(judged(mixed("first")), judged(mixed("second")))
    assert comparison.kind == "stacks"
    assert numbers(comparison) == []
    assert reasons(comparison) == [
        "a study that was made on several software stacks is compared with no other"
    ]
    assert comparison.studies[0].stack is None


def test_other_base_models_stand_side_by_side() -> None:
    comparison = of(compared("first"), compared("second", weights=OTHER))
    assert comparison.kind == "apart"
    assert numbers(comparison) == []
    assert reasons(comparison) == ["the fingerprints of their base models differ"]
    assert [each.axis for each in comparison.alike] == ["the base model"]


def test_only_tasks_of_the_same_items_are_paired() -> None:
    other = {"kinship": OTHER, "capitals": OTHER}
    comparison = of(compared("first", 0.8, 0.9), compared("second", 0.8, 0.88, items=other))
    (pair,) = comparison.pairs
    assert (pair.gain, pair.gain_tasks, pair.retention_tasks) == (None, (), ("elements",))
    assert pair.retention is not None
    assert pair.retention.estimate == pytest.approx(-2.0)
    assert comparison.panels == ()  # their items are not the same throughout
    assert [each.axis for each in comparison.alike] == ["the scored items"]
    every = dict.fromkeys(("kinship", "capitals", "elements"), OTHER)
    apart = of(compared("first"), compared("second", items=every))
    assert reasons(apart) == ["no task was scored on the same items in both"]


def test_items_that_are_grouped_otherwise_are_not_paired() -> None:
    second = compared_results("second")
    items = {**second.base.items}
    items["kinship"] = items["kinship"].model_copy(update={"clusters": tuple(range(150)) * 2})
    base = second.base.model_copy(update={"items": items})
    (pair,) = of(compared("first"), judged(second.model_copy(update={"base": base}))).pairs
    assert (pair.gain_tasks, pair.retention_tasks) == ((), ("capitals", "elements"))


def test_a_base_that_scores_otherwise_on_one_stack_is_named() -> None:
    second = compared_results("second")
    items = {**second.base.items}
    values = list(items["kinship"].values)
    values[:3] = [1.0 - value for value in values[:3]]
    items["kinship"] = items["kinship"].model_copy(update={"values": tuple(values)})
    base = second.base.model_copy(update={"items": items})
    comparison = of(compared("first"), judged(second.model_copy(update={"base": base})))
    (pair,) = comparison.pairs
    assert (pair.num_base_items, pair.num_base_moved) == (700, 3)
    assert comparison.remarks[0].startswith("The base itself scored 3 of 700 items otherwise in ")


@pytest.mark.parametrize(
    ("first", "second", "num_seeds", "difference"),
    [
        ((0, 1), (1, 2), 1, 10.0),  # seed 1 of both: 75 % and 85 %
        ((0,), (1,), 1, 5.0),  # no seed in common: 80 % and 85 %
        ((0, 1, 2), (0, 1, 2), 3, 10.0),  # the mean of 5, 10 and 15
    ],
)
def test_runs_of_one_seed_are_paired(
    first: tuple[int, ...], second: tuple[int, ...], num_seeds: int, difference: float
) -> None:
    falling = {16: (0.80, 0.75, 0.70)[: len(first)]}
    one = compared("first", seeds=first, in_domain_accuracy=falling)
    (pair,) = of(one, compared("second", 0.85, seeds=second)).pairs
    assert pair.gain is not None
    assert pair.gain.num_seeds == num_seeds
    assert pair.gain.estimate == pytest.approx(difference)


def test_a_study_that_advises_against_fine_tuning_has_no_choice() -> None:
    comparison = of(compared("first"), compared("second", 0.30))
    assert reasons(comparison) == ["one of them chooses no setting"]
    answer = comparison.answers[1]
    assert (answer.choice, answer.gain, answer.has_bet) == (None, None, True)


def test_nothing_to_judge() -> None:
    comparison = of(compared("first"), compared("second", in_domain_accuracy={"full": 0.8}))
    answer = comparison.answers[1]
    assert (answer.has_bet, answer.choice) == (False, None)
    assert FULL_LABEL not in comparison.model_dump_json()


RATE = {"train": {"learning_rate": LearningRateConfig(lora=(1e-3,))}}
EPOCHS = {"train": {"epochs": (1,)}}


def test_studies_that_differ_in_one_axis_alone() -> None:
    studies = [compared("a"), compared("b", settings=RATE), compared("c", settings=EPOCHS)]
    comparison = of(*studies)
    assert [(each.studies, each.axis) for each in comparison.alike] == [
        (("a", "c"), "the epochs"),
        (("a", "b"), "the learning rate"),
    ]
    assert [(row.name, row.values) for row in comparison.differing] == [
        ("train.epochs", ("3", "3", "1")),
        ("train.learning_rate.lora", ("0.0002", "0.001", "0.0002")),
    ]


def test_three_values_of_one_axis_are_one_sentence() -> None:
    other = {"train": {"learning_rate": LearningRateConfig(lora=(5e-4,), full=(1e-5,))}}
    studies = [compared("a"), compared("b", settings=RATE), compared("c", settings=other)]
    (each,) = of(*studies).alike
    assert each.statement == "a, b and c have the same settings but for the learning rate."


def test_repeats_are_named() -> None:
    (each,) = of(compared("a"), compared("b")).alike
    assert each.axis is None
    assert "they are repeats" in each.statement


def test_another_stack_is_an_axis_too() -> None:
    by_stack = of(compared("a"), compared("b", torch="2.9.0")).alike
    assert [each.axis for each in by_stack] == ["the software stack"]
    # the rate cannot be told from the stack
    assert of(compared("a"), compared("b", torch="2.9.0", settings=RATE)).alike == ()


def test_the_number_of_items_moves_their_fingerprints_by_itself() -> None:
    items = dict.fromkeys(("kinship", "capitals", "elements"), OTHER)
    few = compared("b", items=items, settings={"evaluation": {"limit": 100}})
    assert [each.axis for each in of(compared("a"), few).alike] == ["the number of scored items"]


def test_items_that_moved_without_the_axis_are_no_part_of_it() -> None:
    items = dict.fromkeys(("kinship", "capitals", "elements"), OTHER)
    studies = [compared("a"), compared("b", items=items), compared("c", weights=OTHER)]
    assert [(each.studies, each.axis) for each in of(*studies).alike] == [
        (("a", "b"), "the scored items")
    ]


def test_where_files_lie_is_no_setting() -> None:
    results = compared_results("b")
    config = results.study.config
    moved = config.model_copy(
        update={
            "base_model": config.base_model.model_copy(update={"name": "/elsewhere/smollm2"}),
            "tasks_path": ("/elsewhere/tasks",),
        }
    )
    study = results.study.model_copy(update={"config": moved})
    assert of(compared("a"), judged(results.model_copy(update={"study": study}))).differing == ()


def test_lists_are_written_as_in_a_study_file() -> None:
    lora = compared_results("a").study.config.methods.lora
    assert lora is not None
    alpha = (AlphaConfig(policy="fixed", alpha=16), AlphaConfig(ratio=2))
    changed = lora.model_copy(update={"alpha": alpha})
    comparison = of(compared("a"), compared("b", settings={"methods": {"lora": changed}}))
    (row,) = comparison.differing
    assert (row.name, row.axis) == ("methods.lora.alpha", "alpha")
    assert row.values == (
        "{policy: proportional}",
        "{policy: fixed, alpha: 16}, {policy: proportional, ratio: 2}",
    )


def test_every_pair_is_there_once() -> None:
    comparison = of(*(compared(name) for name in "abcd"))
    pairs = [(pair.first, pair.second) for pair in comparison.pairs]
    assert pairs == list(itertools.combinations("abcd", 2))
    assert comparison.statement == "All pairs of these studies are compared item by item."
    assert len(comparison.points) == 1 + 6
    assert len(of(*(compared(name) for name in "abcde")).points) == 1  # ten pairs
