"""Every failure signature on a planted study that shows it, and on one that nearly does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from rankwise import write_report
from rankwise.cli.terminal import verdict_cards
from rankwise.engine.training.written import TextMetrics, summary
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend
from rankwise.findings.signatures.found import failure_signatures, not_looked_for
from rankwise.findings.signatures.scores import NEARLY_PERFECT_NATS
from rankwise.findings.signatures.signature import SIGNATURES, TITLES, Signature
from rankwise.findings.statements import headline, statement
from rankwise.findings.stats.estimates import seed_spread
from rankwise.findings.stats.items import Items
from rankwise.findings.study import study_findings
from rankwise.records.config.objectives import GrpoConfig, ObjectiveConfig
from rankwise.records.config.study import RecommendationConfig, StudyConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.study import MetricScore, PlannedRun
from rankwise.records.study_file import load_config
from rankwise.report.sections.signatures import signature_section
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from tests.planted.grid import grid_run, planted_grid, relations
from tests.planted.results import planted_evaluation, planted_items, planted_study
from tests.support.observers import Silent

MARGINS = RecommendationConfig(delta_points=5.0, epsilon_points=6.0)
Q300 = float(stats.t.ppf(0.975, 299))


def planted(scores: Mapping[Any, Any], **settings: Any) -> StudyResults:
    """Nothing is wrong but what the settings say: all tasks score as the base's."""
    common: dict[str, Any] = {
        "retention_accuracy": {},
        "out_of_domain_accuracy": {},
        "held_out_loss_nats": {},
        "recommendation": MARGINS,
        "noise": 0.0,
    }
    return planted_study(scores, **(common | settings))


def found(results: StudyResults, name: str) -> list[Signature]:
    return [signature for signature in signatures_of(results) if signature.name == name]


def signatures_of(results: StudyResults) -> tuple[Signature, ...]:
    parts = zip(option_gains(results), recommend(results).by_train_task, strict=True)
    return tuple(signature for part in parts for signature in failure_signatures(*part))


def paired_stderr(num_changed: int, num_items: int = 300) -> float:
    """Of a difference in points, where so many items change and all in one direction."""
    share = num_changed / num_items
    variance = share * (1 - share) * num_items / (num_items - 1) + 2 / num_items
    return 100 * math.sqrt(variance / num_items)


def changed(results: StudyResults, change: Any) -> StudyResults:
    """Every model of the study as ``change`` makes it."""
    return results.model_copy(
        update={"base": change(results.base), "models": tuple(map(change, results.runs))}
    )


def with_record(results: StudyResults, task: str, **values: Any) -> StudyResults:
    """Fields of the evaluations of one task: a value for base, and one for all or each of the runs.

    Values are given as (base, run) or (base, run, run, ...).
    """

    def change(model: ModelResults) -> ModelResults:
        place = 0 if model.run is None else 1 + list(results.runs).index(model)
        update = {name: each[min(place, len(each) - 1)] for name, each in values.items()}
        record = model.evaluations[task].model_copy(update=update)
        return model.model_copy(update={"evaluations": model.evaluations | {task: record}})

    return changed(results, change)


def accuracy(value: float, num_examples: int = 300) -> tuple[MetricScore, ...]:
    return (
        MetricScore(
            metric="acc",
            filter="none",
            value=value,
            stderr=None,
            num_examples=num_examples,
            higher_is_better=True,
        ),
    )


def with_scored(
    results: StudyResults,
    task: str,
    base: float,
    run: float,
    size: int,
    *,
    nats: bool = False,
    **study: Any,
) -> StudyResults:
    """One more scored task, and what the study's record says of it."""

    def change(model: ModelResults) -> ModelResults:
        score = base if model.run is None else run
        items = planted_items(task, model.name, score, size, nats, 0.0)
        record = planted_evaluation(model.name, items, model.run)
        return model.model_copy(
            update={
                "items": model.items | {task: items},
                "evaluations": model.evaluations | {task: record},
            }
        )

    record = results.study.model_copy(update=study)
    return changed(results.model_copy(update={"study": record}), change)


def test_a_sound_study_has_no_signature() -> None:
    results = planted({4: 0.6, 16: 0.8})
    assert signatures_of(results) == ()
    assert set(TITLES) == set(SIGNATURES)


def grid(
    scores: Mapping[tuple[int, str], float], train_tasks: Sequence[str] = ("kinship",)
) -> StudyResults:
    """Runs of these ranks and rates on every trained task, whose base has 0.5 of 2,000 items."""
    plans = [
        grid_run(task, rank, rate_labels=(rate,)) for task in train_tasks for rank, rate in scores
    ]

    def score(plan: PlannedRun | None, task: str) -> float:
        return 0.5 if plan is None else scores[plan.rank or 0, plan.rate_labels[0]]

    tasks = {task: relations(in_domain=(task,)) for task in train_tasks}
    return planted_grid(plans, tasks, score, sizes=2000, recommendation=MARGINS)


# --- against the base


def test_worse_than_the_base_with_the_hand_computed_bound() -> None:
    (signature,) = found(planted({4: 0.6, 16: 0.3}), "worse_than_base")
    assert (signature.label, signature.task, signature.unit) == ("rank 16", "kinship", "points")
    assert signature.estimate == pytest.approx(20.0)  # 60 of 300 items forgotten, none learned
    assert signature.lower == pytest.approx(20.0 - Q300 * paired_stderr(60))
    assert signature.num_items == 300
    assert signature.statement.startswith("Rank 16 is 20.0 points (")
    assert signature.statement.endswith(
        ") worse than the base on kinship, where the base has 50.0."
    )
    assert "lower learning rate" in signature.advice


def test_the_loss_of_right_answers_is_no_measure_of_what_rewards_teach() -> None:
    """They may be placeholders; texts that score worse are named."""
    loss = planted({4: 3.0}, in_domain_unit="nats", base={"kinship": 2.0})
    assert found(loss, "worse_than_base")
    rewarded = [texts(0.5, 20)] * 12
    assert not found(with_texts(loss, rewarded), "worse_than_base")
    assert found(with_texts(planted({4: 0.3}), rewarded), "worse_than_base")


def test_a_little_below_the_base_is_not_named() -> None:
    results = planted({4: 0.6, 16: 0.48}, noise=0.05)
    (row,) = [c for c in recommend(results).by_train_task[0].comparisons
              if "r016" in c.run and c.task == "kinship"]  # fmt: skip
    assert row.difference.estimate == pytest.approx(-2.0)
    assert found(results, "worse_than_base") == []


def test_a_loss_in_nats_is_worse_too() -> None:
    base = {"kinship": 2.0}
    results = planted({4: 1.8, 16: 2.2}, base=base, in_domain_unit="nats", noise=0.05)
    (signature,) = found(results, "worse_than_base")
    assert (signature.label, signature.unit) == ("rank 16", "nats")
    assert signature.estimate == pytest.approx(0.2)
    assert signature.lower is not None
    assert signature.lower > 0


def test_a_loss_of_format_is_advised_as_such() -> None:
    results = planted({16: 0.3})
    study = {"trained_formats": {"kinship": {"kinship": "kinship@letters"}}}
    same = with_scored(results, "kinship@letters", 0.5, 0.5, 300, **study)
    (signature,) = found(same, "worse_than_base")
    assert signature.advice.startswith("A part is a matter of format: compare with kinship@letters")


def test_negative_transfer_is_judged_by_the_lower_bound_of_the_drop() -> None:
    lost = planted({4: 0.6, "full": 0.6}, out_of_domain_accuracy={"full": 0.30})
    (signature,) = found(lost, "negative_transfer")
    least = 20.0 - Q300 * paired_stderr(60)
    assert (signature.label, signature.task) == ("full fine-tuning", "syllogism")
    assert signature.lower == pytest.approx(least)
    assert f"at least {2 * least:.0f} % of the base's 50.0" in signature.statement
    assert "rankwise repair" not in signature.advice  # which is of adapters
    # a drop of 12 % of the base's score, at least 6 %
    assert found(planted({4: 0.6}, out_of_domain_accuracy={4: 0.44}), "negative_transfer") == []


def test_forgetting_on_prose_is_a_rise_by_more_than_delta() -> None:
    settings = {"noise": 0.05}  # the difference of two runs has a standard error of 0.01
    lost = planted({4: 0.6}, held_out_loss_nats={4: 2.60}, **settings)
    (signature,) = found(lost, "forgetting_on_prose")
    assert signature.estimate == pytest.approx(0.1)
    assert signature.lower is not None
    assert 0.02 < signature.lower < 0.1
    assert signature.unit == "nats"
    slight = planted({4: 0.6}, held_out_loss_nats={4: 2.53}, **settings)
    (row,) = [c for c in recommend(slight).by_train_task[0].comparisons if c.unit == "nats"]
    assert row.difference.upper < 0  # a rise is shown, but not one that matters
    assert found(slight, "forgetting_on_prose") == []


def test_diverged_with_its_seed_and_reason() -> None:
    results = planted({4: 0.6, 16: 0.7}, seeds=(0, 1), diverged=((16, 1),))
    (signature,) = found(results, "diverged")
    assert signature.statement == (
        "Rank 16 with seed 1 diverged and is excluded: the loss was not a finite number at step 7."
    )
    assert (signature.label, signature.task, signature.estimate) == ("rank 16", None, None)
    assert found(planted({4: 0.6}), "diverged") == []


def test_a_reward_that_failed_is_not_told_as_a_divergence() -> None:
    results = planted({4: 0.6, 16: 0.7}, seeds=(0, 1), diverged=((16, 1),))
    said = "rewards: rewards.py:kinds on the text 'x' to 'Say 1.' gives 'good'."

    def change(model: ModelResults) -> ModelResults:
        if model.run is None or model.run.status == "trained":
            return model
        run = model.run.model_copy(update={"message": said})
        return model.model_copy(update={"run": run})

    failed = changed(results, change)
    (signature,) = found(failed, "diverged")
    assert signature.statement == f"Rank 16 with seed 1 ended early and is excluded: {said}"
    assert signature.advice.startswith("Correct the function")
    (answer,) = recommend(failed).by_train_task
    assert "Rank 16 was ended by a reward that failed with seed 1." in headline(answer)
    assert "diverged" not in " ".join((headline(answer), statement(answer)))
    assert answer.verdicts[1].reward_failed_seeds == answer.verdicts[1].diverged_seeds == (1,)


def test_scored_items_in_training_rows() -> None:
    results = planted({4: 0.6})
    overlaps = {"overlaps": {"kinship": {"kinship": 12, "syllogism": 0}}}
    (signature,) = found(
        results.model_copy(update={"study": results.study.model_copy(update=overlaps)}),
        "items_in_training",
    )
    assert (signature.task, signature.estimate, signature.num_items) == ("kinship", 4.0, 300)
    assert "12 of 300 scored items of kinship (4.0 %)" in signature.statement
    assert "train.drop_overlapping" in signature.advice


# --- how a model answers


def test_does_not_stop() -> None:
    results = with_record(planted({4: 0.6}), "kinship", num_unfinished=(10, 90))
    (signature,) = found(results, "does_not_stop")
    lower, upper = confint_proportions_2indep(90, 300, 10, 300, method="newcomb")
    assert signature.estimate == pytest.approx(100 * 80 / 300)
    assert (signature.lower, signature.upper) == pytest.approx((100 * lower, 100 * upper))
    assert "leaves 30.0 % of its 300 answers on kinship unfinished (at least 25.1 %)" in (
        signature.statement
    )


@pytest.mark.parametrize(
    ("own", "key"),
    [
        ({}, "max_gen_toks"),
        ({"kinship": "exact"}, "evaluation.own.kinship.max_new_tokens"),
        ({"kinship_texts": "exact"}, "max_gen_toks"),
    ],
)
def test_advice_names_the_key_that_the_task_has(own: dict[str, str], key: str) -> None:
    results = with_record(planted({4: 0.6}), "kinship", num_unfinished=(10, 90))
    config = results.study.config.model_dump(by_alias=True)
    config["evaluation"]["own"] = {
        name: {"data": "rows.jsonl", "judged_by": judge} for name, judge in own.items()
    }
    study = results.study.model_copy(update={"config": StudyConfig.model_validate(config)})
    (signature,) = found(results.model_copy(update={"study": study}), "does_not_stop")
    assert f"raise {key} if its answers are only long" in signature.advice


@pytest.mark.parametrize("counts", [(0, 36), (80, 95), (None, None)])
def test_stops_as_often_as_before_or_often_enough(counts: tuple[int | None, int | None]) -> None:
    results = with_record(planted({4: 0.6}), "kinship", num_unfinished=counts)
    assert found(results, "does_not_stop") == []


def test_several_draws_of_an_item_are_one_item() -> None:
    results = with_record(planted({4: 0.6}), "kinship", num_unfinished=(30, 270), num_draws=(3, 3))
    (signature,) = found(results, "does_not_stop")
    lower, upper = confint_proportions_2indep(90, 300, 10, 300, method="newcomb")
    assert (signature.lower, signature.upper) == pytest.approx((100 * lower, 100 * upper))


def test_does_not_stop_averages_seeds() -> None:
    results = planted({4: 0.6}, seeds=(0, 1))
    (signature,) = found(
        with_record(results, "kinship", num_unfinished=(0, 60, 120)), "does_not_stop"
    )
    assert signature.estimate == pytest.approx(30.0)


@pytest.mark.parametrize(("ended", "is_named"), [(0.70, True), (0.85, False), (1.0, False)])
def test_has_not_learned_the_end_of_its_training_rows(ended: float, is_named: bool) -> None:
    results = with_scored(
        planted({4: 0.6}), "kinship@end", 0.1, ended, 100, ending_items={"kinship": "kinship@end"}
    )
    signatures = found(results, "does_not_stop")
    assert bool(signatures) is is_named
    if is_named:
        lower, upper = proportion_confint(30, 100, method="wilson")
        assert signatures[0].estimate == pytest.approx(30.0)
        assert (signatures[0].lower, signatures[0].upper) == pytest.approx(
            (100 * lower, 100 * upper)
        )
        assert "the base does so in 90.0 %" in signatures[0].statement


EVEN = (0.25, 0.25, 0.25, 0.25)


def test_answers_collapsed_to_one_letter() -> None:
    results = with_record(
        planted({4: 0.6}), "kinship", predicted_shares=(EVEN, (0.02, 0.95, 0.02, 0.01)),
        metrics=(accuracy(0.5), accuracy(0.3)),
    )  # fmt: skip
    (signature,) = found(results, "letters_collapsed")
    lower, upper = proportion_confint(285, 300, method="wilson")
    assert signature.estimate == pytest.approx(95.0)
    assert (signature.lower, signature.upper) == pytest.approx((100 * lower, 100 * upper))
    assert "chooses option B (2 of 4) on 95.0 % of 300 items of kinship" in signature.statement
    assert signature.statement.endswith("the base on 25.0 %.")


@pytest.mark.parametrize(
    ("shares", "right"),
    [
        ((EVEN, (0.11, 0.89, 0.0, 0.0)), 0.3),
        (((0.05, 0.92, 0.03, 0.0), (0.02, 0.95, 0.02, 0.01)), 0.3),  # the base did so too
        ((EVEN, (0.02, 0.02, 0.01, 0.95)), 0.94),  # the right answer stands there nearly always
        ((None, None), 0.3),
    ],
    ids=["not so often", "as before", "rightly", "no options"],
)
def test_answers_that_did_not_collapse(shares: tuple[Any, Any], right: float) -> None:
    results = with_record(
        planted({4: 0.6}), "kinship", predicted_shares=shares,
        metrics=(accuracy(0.5), accuracy(right)),
    )  # fmt: skip
    assert found(results, "letters_collapsed") == []


def test_few_items_show_no_collapse() -> None:
    few = planted({4: 0.6}, num_in_domain=20, num_retention=20)
    shares = (EVEN, (0.0, 0.95, 0.05, 0.0))  # 19 of 20: at least 76 %
    results = with_record(few, "kinship", predicted_shares=shares, metrics=(accuracy(0.3, 20),))
    assert found(results, "letters_collapsed") == []


def test_one_seed_that_collapsed_is_named() -> None:
    results = with_record(
        planted({4: 0.6}, seeds=(0, 1, 2)),
        "kinship",
        predicted_shares=(EVEN, EVEN, (1.0, 0.0, 0.0, 0.0), EVEN),
        metrics=(accuracy(0.3),),
    )
    (signature,) = found(results, "letters_collapsed")
    assert "option A (1 of 4) on 100.0 % of 300 items of kinship with 1 of 3 seeds" in (
        signature.statement
    )


# --- what a run wrote itself


def texts(reward: float | None, tokens: float, cut: float = 0.0) -> TextMetrics:
    return TextMetrics(num_texts=10, num_tokens=round(10 * tokens), cut_share=cut, reward=reward)


def with_texts(results: StudyResults, steps: Sequence[TextMetrics], **grpo: Any) -> StudyResults:
    """Every run wrote these texts and learned from them."""
    objective = ObjectiveConfig(grpo=GrpoConfig(rewards=("json",), **grpo))
    config = results.study.config
    train = config.train.model_copy(update={"objective": objective})
    study = {"config": config.model_copy(update={"train": train})}

    def change(model: ModelResults) -> ModelResults:
        if model.run is None:
            return model
        run = model.run.model_copy(update={"learned_texts": summary(steps)})
        return model.model_copy(update={"run": run})

    record = results.study.model_copy(update=study)
    return changed(results.model_copy(update={"study": record}), change)


FALLS = [0.8, 0.6, 0.7] + [0.5] * 6 + [0.2, 0.35, 0.2]
"""Rewards of twelve steps: a quarter is three."""


def test_a_reward_that_falls_is_named_with_welchs_bound() -> None:
    results = with_texts(planted({4: 0.6}), [texts(reward, 20) for reward in FALLS])
    (signature,) = found(results, "reward_falls")
    theirs = stats.ttest_ind(FALLS[-3:], FALLS[:3], equal_var=False).confidence_interval(0.95)
    assert signature.estimate == pytest.approx(0.25 - 0.7)
    assert (signature.lower, signature.upper) == pytest.approx((theirs.low, theirs.high))
    assert (signature.label, signature.unit) == ("rank 4", "units")
    assert signature.statement == (
        "Rank 4 wrote texts with a mean reward of 0.7 at first and of 0.25 in the end, at least "
        f"{-theirs.high:.2g} less."
    )
    assert signature.advice.endswith("hold it to the base by train.objective.grpo.beta "
                                     "(such as 0.04).")  # fmt: skip
    held = with_texts(planted({4: 0.6}), [texts(reward, 20) for reward in FALLS], beta=0.04)
    assert found(held, "reward_falls")[0].advice.endswith("a larger train.objective.grpo.beta.")


@pytest.mark.parametrize(
    "rewards",
    [
        [0.8, 0.2, 0.7] + [0.5] * 6 + [0.6, 0.1, 0.4],  # as much apart in a quarter as between them
        FALLS[::-1],
        FALLS[:2] + FALLS[-2:],  # too few steps
        [None] * 12,
    ],
)
def test_rewards_that_are_not_shown_to_fall(rewards: Sequence[float | None]) -> None:
    results = with_texts(planted({4: 0.6}), [texts(reward, 20) for reward in rewards])
    assert found(results, "reward_falls") == []


@pytest.mark.parametrize(
    ("ends", "cut", "is_named"),
    [
        ((48, 52, 50), 0.0, True),  # from 20: 30 more, at least 25
        ((38, 39, 37), 0.0, False),  # not twice as long
        ((38, 39, 37), 0.6, True),
        ((38, 39, 37), 0.5, False),
        ((20, 22, 18), 1.0, False),  # all cut, and none longer
    ],
)
def test_texts_that_run_away(ends: Sequence[float], cut: float, is_named: bool) -> None:
    lengths = [19, 20, 21, *[25] * 6]
    steps = [texts(0.5, tokens) for tokens in lengths] + [texts(0.5, end, cut) for end in ends]
    signatures = found(with_texts(planted({4: 0.6}, seeds=(0, 1)), steps), "texts_run_away")
    assert bool(signatures) is is_named
    if is_named:
        (signature,) = signatures
        theirs = stats.ttest_ind(ends, lengths[:3], equal_var=False).confidence_interval(0.95)
        assert (signature.lower, signature.unit) == (pytest.approx(theirs.low), "tokens")
        assert signature.statement.startswith("Rank 4 with 2 of 2 seeds wrote texts of 20.0 tokens")
        for remedy in ("learning rate", "falls with length", "max_completion_length"):
            assert remedy in signature.advice
        assert "dr_grpo" not in signature.advice  # the default already counts each token alike
        of_texts = with_texts(planted({4: 0.6}), steps, loss_type="grpo")
        assert "set loss_type: dr_grpo" in found(of_texts, "texts_run_away")[0].advice


def test_texts_of_several_steps_count_once() -> None:
    once = [texts(reward, 20) for reward in FALLS]
    twice = [step for step in once for _ in range(2)]
    learned = summary(twice, 2)
    assert learned is not None
    one = summary(once)
    assert one is not None
    assert (learned.reward_change, learned.tokens_change) == (one.reward_change, one.tokens_change)


# --- training rows

SEEN = {"trained_items": {"kinship": {"kinship": "kinship@train"}}}


def test_memorised_with_the_hand_computed_gap() -> None:
    results = with_scored(planted({4: 0.6}), "kinship@train", 0.5, 1.0, 100, **SEEN)
    (signature,) = found(results, "memorised")
    # 50 of 100 trained items learned, 30 of 300 test items
    stderr = math.hypot(paired_stderr(50, 100), paired_stderr(30))
    assert signature.estimate == pytest.approx(50.0 - 10.0)
    lower, upper = signature.lower, signature.upper
    assert lower is not None
    assert upper is not None
    assert (upper - lower) / (2 * stderr) == pytest.approx(1.98, abs=0.03)
    assert "gains +50.0 points on 100 training rows of kinship and +10.0 on its test items" in (
        signature.statement
    )
    least = 100 * proportion_confint(100, 100, method="wilson")[0]
    assert f"answers 100.0 % of these rows right, at least {least:.1f} %" in signature.statement
    assert signature.num_items == 400
    assert found(results, "train_test_gap") == []


def labelled(results: StudyResults, shift: float) -> StudyResults:
    """A person has labelled 50 of kinship's items, and moved all of them by as much."""

    def change(model: ModelResults) -> ModelResults:
        items = model.items["kinship"]
        update = {"values": tuple(value + shift for value in items.values), "num_labelled": 50}
        own = {"kinship": items.model_copy(update=update)}
        return model.model_copy(update={"items": model.items | own})

    return changed(results, change)


def test_rows_that_nobody_labelled_are_not_held_against_items_that_were() -> None:
    results = with_scored(planted({4: 0.6}), "kinship@train", 0.5, 1.0, 100, **SEEN)
    of_labels = labelled(results, -0.3)
    assert found(of_labels, "memorised") == found(of_labels, "train_test_gap") == []


def test_other_labels_are_another_look() -> None:
    results = planted({4: 0.6})
    looks = [recommend(labelled(results, shift)).by_train_task[0].looks[-1] for shift in (0, -0.1)]
    plain = recommend(results).by_train_task[0].looks[-1]
    assert not plain.is_of(looks[0])
    assert not looks[0].is_of(looks[1])
    assert looks[0].is_of(recommend(labelled(results, 0)).by_train_task[0].looks[-1])


def test_a_gap_without_mastery_is_no_memory() -> None:
    results = with_scored(planted({4: 0.6}), "kinship@train", 0.5, 0.9, 100, **SEEN)
    (signature,) = found(results, "train_test_gap")
    assert signature.estimate == pytest.approx(30.0)
    assert found(results, "memorised") == []


@pytest.mark.parametrize("score", [0.62, 0.70])
def test_a_small_gap_is_not_named(score: float) -> None:
    # 0.70 is 10 points of gap, and at least 0
    results = with_scored(planted({4: 0.6}), "kinship@train", 0.5, score, 100, **SEEN)
    assert found(results, "train_test_gap") == []
    assert found(results, "memorised") == []


@pytest.mark.parametrize(("loss", "name"), [(0.05, "memorised"), (0.30, "train_test_gap")])
def test_rows_of_ones_own_are_memorised_by_loss(loss: float, name: str) -> None:
    results = planted({4: 1.8}, base={"kinship": 2.0}, in_domain_unit="nats")
    results = with_scored(results, "kinship@train", 2.0, loss, 5000, nats=True, **SEEN)
    (signature,) = found(results, name)
    # the base loses as much on both; what differs is a gain of 0.2 nats
    assert signature.estimate == pytest.approx((2.0 - loss) - 0.2)
    assert pytest.approx(0.105, abs=5e-4) == NEARLY_PERFECT_NATS


# --- over ranks and seeds


def test_ranks_alike_are_no_matter_of_rank() -> None:
    results = planted({4: 0.70, 16: 0.71, 64: 0.70}, num_in_domain=2000)
    (signature,) = found(results, "not_a_matter_of_rank")
    assert (signature.label, signature.task) == ("", None)
    assert signature.estimate == pytest.approx(1.0)
    assert signature.upper is not None
    assert signature.upper < 5.0
    assert "the largest difference is rank 16 over rank 4, 1.0 points" in signature.statement
    assert signature.statement.startswith("All 3 ranks are within δ = 5.0 points")
    assert found(results, "too_easy") == []


def test_an_undecided_study_is_not_called_alike() -> None:
    results = planted({4: 0.70, 16: 0.71, 64: 0.70}, num_in_domain=60, noise=0.3)
    assert recommend(results).by_train_task[0].outcome == "cannot_tell"
    for name in ("not_a_matter_of_rank", "too_easy"):
        assert found(results, name) == []


def test_one_rank_apart_is_not_alike() -> None:
    results = planted({4: 0.70, 16: 0.71, 64: 0.80}, num_in_domain=2000)
    assert found(results, "not_a_matter_of_rank") == []


@pytest.mark.parametrize(
    ("scores", "base", "name"),
    [
        ({4: 0.97, 16: 0.98}, 0.5, "too_easy"),
        ({4: 0.91, 16: 0.92}, 0.5, "not_a_matter_of_rank"),  # 0.91 is at least 0.897
        ({4: 0.91, 16: 0.92}, 0.96, "too_easy"),  # the base can it already
    ],
)
def test_too_easy_is_shown_by_the_ranks_or_by_the_base(
    scores: dict[int, float], base: float, name: str
) -> None:
    results = planted(scores, base={"kinship": base}, num_in_domain=2000)
    others = {"too_easy", "not_a_matter_of_rank"} - {name}
    (signature,) = found(results, name)
    assert found(results, *others) == []
    if name == "too_easy":
        who = "the base alone" if base > 0.9 else "every rank"
        assert f", and {who} is right on at least 9" in signature.statement


def test_ranks_are_held_against_each_other_at_equal_settings() -> None:
    """Two rates, far apart; at the better one ranks are alike, and the other is not near it."""
    scores = {"1e-4": 0.6, "2e-4": 0.8}
    results = grid({(rank, rate): value for rank in (8, 32) for rate, value in scores.items()})
    signatures = found(results, "not_a_matter_of_rank")
    assert [each.label for each in signatures] == ["rate 2e-4"]
    assert signatures[0].statement.startswith("With rate 2e-4, both ranks")


def test_erratic_over_ranks() -> None:
    results = planted({4: 0.80, 16: 0.60, 64: 0.80}, num_in_domain=1000)
    (signature,) = found(results, "erratic_over_ranks")
    assert signature.estimate == pytest.approx(20.0)
    assert signature.lower is not None
    assert signature.lower > 5.0
    assert signature.statement.startswith("Rank 16 is 20.0 points (")
    assert "below rank 4 and 20.0 points (" in signature.statement
    assert "conditional on this seed" in signature.statement
    assert "--seeds" in signature.advice


@pytest.mark.parametrize(
    "scores",
    [
        {4: 0.60, 16: 0.80, 64: 0.60},  # a peak
        {4: 0.60, 16: 0.70, 64: 0.80},
        {4: 0.80, 16: 0.70, 64: 0.60},
        {4: 0.80, 16: 0.74, 64: 0.80},  # 6 points below, at least 4
        {4: 0.80, 16: 0.60},
    ],
)
def test_an_order_of_ranks_is_not_erratic(scores: dict[Any, float]) -> None:
    assert found(planted(scores, num_in_domain=1000), "erratic_over_ranks") == []


def test_seeds_explain_what_looks_erratic() -> None:
    scores = {4: (0.70, 0.85, 0.85), 16: (0.60, 0.75, 0.57), 64: (0.86, 0.70, 0.84)}
    results = planted(scores, seeds=(0, 1, 2), num_in_domain=1000)
    assert found(results, "erratic_over_ranks") == []


def test_unstable_over_seeds_with_the_hand_computed_bound() -> None:
    accuracies = (0.50, 0.80, 0.60, 0.90, 0.55)
    scores = {4: (0.80,) * 5, 16: accuracies}
    results = planted(scores, seeds=range(5), num_in_domain=1000, noise=0.02)
    (signature,) = found(results, "unstable_over_seeds")
    assert signature.label == "rank 16"
    values = 100 * np.array([m.items["kinship"].values for m in runs_of(results, 16)])
    seeds, items = values.mean(axis=1, keepdims=True), values.mean(axis=0)
    by_chance = ((values - seeds - items + values.mean()) ** 2).sum() / (4 * 999) / 1000
    between = seeds.var(ddof=1)
    assert signature.estimate == pytest.approx(math.sqrt(between - by_chance))
    bound = math.sqrt(between / stats.f.ppf(0.975, 4, 4 * 999) - by_chance)
    assert signature.lower == pytest.approx(bound)
    assert bound > 5.0
    assert "gains 0.0 to +40.0 points in-domain over 5 seeds" in signature.statement


@pytest.mark.parametrize("spread", [0.0, 0.06])
def test_runs_that_differ_little_are_stable(spread: float) -> None:
    # with 6 points of standard deviation over 3 seeds the bound is 3
    scores = {16: (0.7 - spread, 0.7, 0.7 + spread)}
    results = planted(scores, seeds=(0, 1, 2), num_in_domain=1000)
    assert found(results, "unstable_over_seeds") == []


def test_the_bound_of_the_seed_spread_holds() -> None:
    """Its lower bound is above the truth in 2.5 % of the studies, whatever the items do."""
    rng = np.random.default_rng(0)
    missed = {2.0: 0, 0.0: 0}
    for truth in missed:
        for _ in range(2000):
            skill = rng.normal(70.0, truth, 4)[:, None]
            runs = skill + rng.normal(0.0, 30.0, 200) + rng.normal(0.0, 30.0, (4, 200))
            missed[truth] += seed_spread([Items(runs, 0.0)], 0.95).lower > truth
    for count in missed.values():
        assert count / 2000 < 0.036
    assert missed[2.0] / 2000 > 0.015


# --- what is looked for, and where it is shown


def test_what_cannot_be_looked_for_is_said() -> None:
    everything = not_looked_for(planted({4: 0.6, 16: 0.7, 64: 0.8}, seeds=(0, 1)))
    assert set(everything) == {
        "metrics_disagree", "does_not_stop", "memorised", "train_test_gap", "reward_falls",
        "texts_run_away",
    }  # fmt: skip
    assert everything["texts_run_away"] == "no run learned from texts of its own"
    short = not_looked_for(with_texts(planted({4: 0.6}), [texts(0.5, 20)] * 4))
    assert short["reward_falls"] == short["texts_run_away"] == "too few steps"
    taught = not_looked_for(with_texts(planted({4: 0.6}), [texts(None, 20)] * 12))
    assert taught["reward_falls"] == "no text was rewarded"
    assert "texts_run_away" not in taught
    little = not_looked_for(planted({4: 0.6}, out_of_domain_tasks=(), held_out_tasks=()))
    assert {"negative_transfer", "forgetting_on_prose", "too_easy", "unstable_over_seeds"} <= set(
        little
    )
    assert little["erratic_over_ranks"] == "fewer than three ranks"


def test_each_trained_task_has_its_own() -> None:
    results = grid({(8, "2e-4"): 0.3}, train_tasks=("kinship", "other"))
    assert [s.train_task for s in found(results, "worse_than_base")] == ["kinship", "other"]


def test_the_report_names_what_was_found_and_what_was_not(tmp_path: Path) -> None:
    results = planted({4: 0.6, 16: 0.3})
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    page = write_report(tmp_path, results, recommendation, findings).read_text()
    assert "Failure signatures" in page
    assert "worse than the base on kinship" in page
    assert "Looked for and not found: diverged; negative transfer" in page
    assert (
        "Not checked, because the data is missing: p(right) and accuracy disagree (p(right)" in page
    )
    assert "; does not stop (" in page
    rows = (tmp_path / "report" / "signatures.csv").read_text().splitlines()
    assert len(rows) == 1 + len(findings.signatures) == 2
    assert rows[0].startswith("name,train_task,label,task,statement,advice,estimate,lower")
    lines = list(findings.lines("kinship"))
    assert any(line.startswith("Worse than the base: Rank 16 is") for line in lines)
    card = [str(line) for line in verdict_cards(results, recommendation, findings, tmp_path)]
    assert "To check: Worse than the base (1)." in card


def test_a_section_without_any_says_what_was_looked_for() -> None:
    section = signature_section((), planted_study())
    assert not section.tables
    assert section.remarks[0].startswith("Looked for and not found: diverged")
    assert (
        "does not stop (no generation task, and no training rows are scored)" in section.remarks[1]
    )


def test_a_study_that_generates_counts_what_does_not_end(study_file: Path, tmp_path: Path) -> None:
    overrides = [
        "train.task=sums",
        "evaluation.out_of_domain=[colours]",
        "methods.lora=null",
        "train.learning_rate.full=3e-3",
        "train.epochs=40",
    ]
    outcome = run_study(
        plan_study(load_config(study_file, overrides)), StudyFolder(tmp_path / "study"), Silent()
    )
    base, run = outcome.results.base, outcome.results.runs[0]
    assert base.evaluations["sums"].num_unfinished == 8  # a random model never stops in 6 tokens
    assert run.evaluations["sums"].num_unfinished == 0  # it was trained to
    assert base.evaluations["colours"].num_unfinished is None
    ended = [_accuracy(model, "sums@end") for model in (base, run)]
    assert ended == [0.0, 1.0]
    assert run.evaluations["sums@end"].num_examples == 16
    assert not any(s.name == "does_not_stop" for s in outcome.findings.signatures)


def _accuracy(model: ModelResults, task: str) -> float:
    return next(m.value for m in model.evaluations[task].metrics if m.metric == "acc")


def runs_of(results: StudyResults, rank: int) -> Sequence[ModelResults]:
    return [m for m in results.runs if m.run is not None and m.run.planned.rank == rank]
