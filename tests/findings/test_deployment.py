"""Verdicts on forms, with planted items: kept, lost, and neither."""

from __future__ import annotations

import pytest

from rankwise.findings.deployment import (
    FormWeights,
    LossRule,
    check_report,
    field_changes,
    judged_form,
    judged_server,
    verdict_of,
)
from rankwise.records.deployment import (
    DeltaInForm,
    DeploymentCheck,
    JudgedForm,
    Served,
    ServedItems,
    worst,
)
from rankwise.records.results import ModelResults, TaskItems
from rankwise.records.study import Interval, MetricScore, TaskEvaluation, Unit
from tests.support.sentences import Sentences

RULE = LossRule(points=1.0, nats=0.02, confidence=0.95)


def results(name: str, **tasks: list[float]) -> ModelResults:
    """Of a model; tasks that begin with ``prose`` are in nats."""

    def unit(task: str) -> Unit:
        return "nats" if task.startswith("prose") else "points"

    items = {
        task: TaskItems(
            task=task,
            metric="acc",
            unit=unit(task),
            higher_is_better=unit(task) == "points",
            doc_ids=tuple(range(len(values))),
            values=tuple(values),
        )
        for task, values in tasks.items()
    }
    score = MetricScore(
        metric="acc", filter="none", value=0.0, stderr=None, num_examples=2, higher_is_better=True
    )
    evaluations = {
        task: TaskEvaluation(
            model=name,
            task=task,
            task_version="1",
            fingerprint=name,
            output_type="multiple_choice",
            domain=None,
            metrics=(score,),
            decision_metric="acc",
            decision_filter="none",
            num_examples=len(values),
            num_fewshot=0,
            chat_template=False,
            limit=None,
            chance=None,
            predicted_shares=None,
            num_unfinished=None,
            num_truncated=0,
            num_tokens=1,
            score_seconds=0.0,
        )
        for task, values in tasks.items()
    }
    return ModelResults(name=name, run=None, evaluations=evaluations, items=items)


def verdict(reference: list[float], form: list[float]) -> str:
    judged = judged_form(
        results("adapter", t=reference), results("form", t=form), FormWeights(1), RULE
    )
    return judged.verdict


RIGHT = [1.0] * 1000


def test_what_is_kept_lost_and_neither() -> None:
    assert verdict(RIGHT, RIGHT) == "keeps"
    assert verdict(RIGHT, [0.0] * 100 + RIGHT[100:]) == "loses"
    assert verdict(RIGHT, [0.0] * 10 + RIGHT[10:]) == "cannot_tell"  # one point, the margin itself
    assert verdict(RIGHT[:20], RIGHT[:20]) == "cannot_tell"  # too few to exclude one in a hundred
    assert verdict([0.0] * 1000, RIGHT) == "keeps"


def test_a_task_that_a_mean_hides_is_named(sentence: Sentences) -> None:
    """20 points are lost on one of two tasks, and gained on the other."""
    before = {"a": [0.0] * 400 + RIGHT[400:], "b": RIGHT}
    after = {"a": [0.0] * 200 + RIGHT[200:], "b": [0.0] * 200 + RIGHT[200:]}
    judged = judged_form(results("x", **before), results("y", **after), FormWeights(1), RULE)
    (mean,) = judged.means
    assert mean.difference.estimate == pytest.approx(0.0)
    said = judged.statement.partition(" By itself")[2]
    sentence(f"By itself{said}", names=("b, −20.0 points",))
    same = judged_form(results("x", **before), results("y", **before), FormWeights(1), RULE)
    assert "By itself" not in same.statement


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (-0.99, 0.5, "keeps"), (-1.0, 0.5, "cannot_tell"), (-3.0, -1.0, "cannot_tell"),
        (-3.0, -1.01, "loses"), (0.1, 0.2, "keeps"),
    ],
)  # fmt: skip
def test_the_margin_itself_is_neither(lower: float, upper: float, expected: str) -> None:
    assert verdict_of(Interval(estimate=lower, lower=lower, upper=upper), 1.0) == expected


def test_tasks_of_one_unit_are_judged_by_their_mean_and_units_apart() -> None:
    """3 points on one of three tasks is 1 of the mean; prose is lost by more than its margin."""
    good = {"a": RIGHT, "b": RIGHT, "c": RIGHT, "prose": [2.0] * 99 + [2.1]}
    bad = good | {"a": [0.0] * 150 + RIGHT[150:], "prose": [2.1] * 99 + [2.3]}
    judged = judged_form(results("x", **good), results("y", **bad), FormWeights(1), RULE)
    points, nats = judged.means
    assert points.tasks == ("a", "b", "c")
    assert points.difference.estimate == pytest.approx(-5.0)
    assert (points.margin, nats.margin) == (1.0, 0.02)
    assert nats.difference.estimate == pytest.approx(-0.101)
    assert (points.verdict, nats.verdict, judged.verdict) == ("loses", "loses", "loses")
    alone = judged_form(
        results("x", **good), results("y", **(good | {"prose": bad["prose"]})), FormWeights(1), RULE
    )
    assert [mean.verdict for mean in alone.means] == ["keeps", "loses"]
    assert alone.verdict == "loses"


def test_a_clause_is_judged_by_itself_and_by_its_own_margin(sentence: Sentences) -> None:
    """Three points of a thousand items: too much for one clause, and little for another."""
    good = {"a": RIGHT, "b": RIGHT, "strict": RIGHT, "lenient": RIGHT, "prose": [2.0] * 99 + [2.1]}
    bad = good | {name: [0.0] * 30 + RIGHT[30:] for name in ("strict", "lenient")}
    rule = RULE._replace(clauses={"strict": None, "lenient": 8.0, "prose": 0.5})
    judged = judged_form(results("x", **good), results("y", **bad), FormWeights(1), rule)
    assert [(mean.tasks, mean.margin, mean.verdict) for mean in judged.means] == [
        (("a", "b"), 1.0, "keeps"),
        (("strict",), 1.0, "loses"),
        (("lenient",), 8.0, "keeps"),
        (("prose",), 0.5, "keeps"),
    ]
    assert judged.verdict == "loses"
    sentence(judged.statement, names=("1.0",))


def test_flipped_items_are_named() -> None:
    judged = judged_form(
        results("x", t=[1, 1, 0, 0, 1]), results("y", t=[1, 0, 1, 0, 0]), FormWeights(1), RULE
    )
    (score,) = judged.scores
    assert (score.gained, score.lost) == ((2,), (1, 4))
    assert (score.reference_score, score.form_score) == (60.0, 40.0)
    assert score.difference.estimate == pytest.approx(-20.0)


def test_items_that_are_no_answers_have_no_flips() -> None:
    judged = judged_form(
        results("x", prose=[1.0, 2.0]), results("y", prose=[1.5, 2.0]), FormWeights(1), RULE
    )
    assert (judged.scores[0].gained, judged.scores[0].lost) == (None, None)
    assert judged.scores[0].difference.estimate == pytest.approx(-0.25)


def test_fields_are_compared_over_the_items_that_have_them() -> None:
    """Of four answers the form gets one date wrong; two items alone have a date, one a name."""

    def with_fields(name: str, dates: tuple[float, float]) -> ModelResults:
        plain = results(name, t=[1.0, 1.0, 0.0, dates[0]])
        fields = {"date": (None, *dates, None), "name": (1.0, None, None, None)}
        items = plain.items["t"].model_copy(update={"fields": fields})
        return plain.model_copy(update={"items": {"t": items}})

    base, adapter = with_fields("base", (1.0, 1.0)), with_fields("adapter", (0.0, 1.0))
    (change,) = field_changes(base, adapter, 0.95)
    assert (change.form, change.task, change.field) == ("adapter", "t", "date")
    assert (change.num_examples, change.reference_score, change.form_score) == (2, 100.0, 50.0)
    assert change.difference.estimate == -50.0


def test_a_field_is_compared_over_clusters_of_items() -> None:
    """One cluster of four loses it in all its items: of four numbers that shows nothing."""

    def with_clusters(name: str, rights: list[float], *, known: bool) -> ModelResults:
        plain = results(name, t=[1.0] * 40)
        changed = {"fields": {"date": tuple(rights)}}
        clusters = {"clusters": tuple(place // 10 for place in range(40))} if known else {}
        items = plain.items["t"].model_copy(update=changed | clusters)
        return plain.model_copy(update={"items": {"t": items}})

    lost = [0.0] * 10 + [1.0] * 30
    plain, clustered = (
        next(
            field_changes(
                with_clusters("base", [1.0] * 40, known=known),
                with_clusters("adapter", lost, known=known),
                0.95,
            )
        ).difference
        for known in (False, True)
    )
    assert plain.estimate == clustered.estimate == -25.0
    assert plain.upper < 0.0 < clustered.upper


def test_the_statement_has_the_reason_in_the_weights(sentence: Sentences) -> None:
    delta = DeltaInForm(
        module="all", delta_norm=1.0, relative_error=0.98, unchanged_share=0.97, kept_share=0.03
    )
    judged = judged_form(
        results("x", t=RIGHT), results("merged-bf16", t=[0.0] * 1000), FormWeights(1, delta), RULE
    )
    sentence(judged.statement, names=("100.0", "0.98", "97"))


def served(values: list[float], nats: float, *, ignores: bool = False) -> JudgedForm:
    """A server against an adapter with six right answers."""
    ours, its = results("adapter", t=[1.0] * 6), results("http://x/v1", t=values)
    tasks = (ServedItems(task="t", num_examples=6, differ=(), largest_nats=nats),)
    found = Served(tasks=tasks, adapter_share=0.0 if ignores else 1.0, ignores_adapter=ignores)
    return judged_server(judged_form(ours, its, FormWeights(0), RULE), found)


@pytest.mark.parametrize(
    ("values", "nats", "ignores", "verdict", "differ"),
    [
        ([1.0] * 6, 0.001, False, "keeps", ()),
        ([1.0] * 6, 0.001, True, "loses", ()),
        ([0.7] * 6, 3.0, False, "loses", ()),  # p(right) falls, no answer changes
        ([1.0, 1.0, 0.0, 1.0, 1.0, 1.0], 3.0, False, "cannot_tell", (2,)),  # an answer of acc_norm
    ],
    ids=["equals", "ignores", "less-sure", "one-differs"],
)
def test_a_servers_result_is_the_same_everywhere(
    values: list[float],
    nats: float,
    ignores: bool,
    verdict: str,
    differ: tuple[int, ...],
    sentence: Sentences,
) -> None:
    judged = served(values, nats, ignores=ignores)
    assert judged.served is not None
    assert (judged.verdict, judged.served.tasks[0].differ) == (verdict, differ)
    sentence(judged.statement)
    check = DeploymentCheck.model_construct(
        adapter="a", base="b", reference="adapter", confidence=0.95, forms=(judged,), fields=(),
        changed=(), verdict=judged.verdict,
    )  # fmt: skip
    result, said = {"keeps": ("Pass", "pass"), "loses": ("Fail", "fail")}.get(
        verdict, ("Not settled", "not settled")
    )
    report = check_report(check)
    assert report.startswith(f"# {result}:")
    assert f"| {said} |" in report
    assert report.count(f"| {said} |") == len(judged.means)
    assert "Served" in report or "same answers" in report or "base does" in report


def test_the_worst_decides() -> None:
    assert worst(["keeps", "keeps"]) == "keeps"
    assert worst(["keeps", "cannot_tell"]) == "cannot_tell"
    assert worst(["cannot_tell", "loses", "keeps"]) == "loses"
