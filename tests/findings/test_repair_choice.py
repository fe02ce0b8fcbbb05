"""Which repair is chosen: planted curves, honest refusals, and no winner's curse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankwise.errors import RecordError
from rankwise.findings.model_card import model_card
from rankwise.findings.repairs import (
    RepairTasks,
    _choosing_items,
    choose_repair,
    choosing_items,
)
from rankwise.findings.stats.estimates import crossed_difference
from rankwise.findings.stats.items import item_size
from rankwise.records.repair_scores import RepairScores
from rankwise.records.repairs import AS_IT_IS, AdapterRepair, Repair, RepairChoice
from tests.planted.repairs import KEPT, OWN, SCALES, planted_divergences, planted_scores
from tests.planted.results import PROVENANCE

TASKS = RepairTasks((OWN,), (KEPT,))


def chosen(scores: list[RepairScores], limit: float = 1.0, tasks: RepairTasks = TASKS) -> Any:
    return choose_repair(scores, tasks, max_loss_points=limit, confidence=0.95)


def scale(factor: float) -> Repair:
    return Repair(family="scale", value=factor)


def curve(loss_at: Any, **settings: Any) -> list[RepairScores]:
    """A gain that grows with the scale, and a loss by scale, as shares."""
    gains = {each: 0.10 * (each.value or 0.0) for each in SCALES}
    losses = {each: -loss_at(each.value) for each in SCALES}
    return planted_scores({OWN: gains, KEPT: losses}, **settings)


def test_half_of_the_adapter_is_found_where_that_is_the_truth() -> None:
    """Up to 0.5 nothing is lost, beyond it 5 points: the most gain that keeps enough is at 0.5."""
    for seed in range(20):
        found = chosen(curve(lambda factor: 0.05 * (factor > 0.5), num_items=2000, seed=seed))
        assert found.repair == scale(0.5)
        assert found.judged.keeps_enough == "yes"
        assert found.judged.gain.estimate == pytest.approx(5.0, abs=0.5)
        assert found.judged.retention_difference.lower > 0
        assert found.judged.gain_difference.upper < 0
        assert [point.repair for point in found.curve if point.keeps_enough] == list(SCALES[5:])
    assert found.statement.startswith("Scaled by 0.5, the adapter gains +")
    assert "at most 1.0 points, which is shown." in found.statement
    assert "As it is, it gains" in found.statement


def test_none_does_where_all_lose_too_much() -> None:
    found = chosen(curve(lambda _: 0.05))
    assert (found.repair, found.judged) == (None, None)
    assert found.statement.startswith(
        "None does: on the choosing items, no repair that gains stays"
    )
    assert "The nearest is" in found.statement


def test_a_repair_that_gains_nothing_is_none() -> None:
    """The base loses nothing and gains nothing: it is no repair of the adapter."""
    flat = dict.fromkeys(SCALES, -0.05)
    found = chosen(planted_scores({OWN: flat, KEPT: dict.fromkeys(SCALES, 0.0)}))
    assert found.repair is None
    assert "None gains at all." in found.statement


def test_an_estimate_within_the_limit_is_not_enough_to_be_chosen() -> None:
    """Ten losses of 0.9 points on 200 items: some estimates are within 1 point by less than an
    error, and these are not chosen."""
    scores = curve(lambda _: 0.009, spread=0.05)
    close = 0
    for number, point in enumerate(chosen(scores).curve):
        kept, base = scores[1].repaired[number].items.values, scores[1].base.values
        loss = 100 * (np.array(base) - np.array(kept))[::2]
        error = crossed_difference(loss, item_size=item_size(loss, in_points=True)).stderr
        close += loss.mean() <= 1.0 < loss.mean() + error
        assert point.keeps_enough == (loss.mean() + error <= 1.0)
    assert close > 2


def test_what_the_judging_items_do_not_confirm_is_none() -> None:
    """The choosing items lose nothing, the others 10 points."""
    kept = dict.fromkeys(SCALES, 0.0)
    own, lost = planted_scores({OWN: dict.fromkeys(SCALES, 0.1), KEPT: kept}, spread=0.01)
    spoilt = tuple(
        each.model_copy(
            update={
                "items": each.items.model_copy(
                    update={
                        "values": tuple(
                            value - 0.1 * (place % 2)
                            for place, value in enumerate(each.items.values)
                        )
                    }
                )
            }
        )
        for each in lost.repaired
    )
    found = chosen([own, lost.model_copy(update={"repaired": spoilt})])
    assert found.judged is not None
    assert found.judged.keeps_enough == "no"
    assert found.repair is None
    assert "on the judging items" in found.statement
    assert "more than 1.0 points" in found.statement


def test_an_adapter_that_keeps_enough_needs_no_repair() -> None:
    found = chosen(curve(lambda _: 0.0))
    assert found.repair == AS_IT_IS
    assert "No repair that keeps enough gains more." in found.statement
    assert found.judged.gain == found.judged.adapter_gain


def test_figures_are_those_of_each_half_of_the_items() -> None:
    scores = curve(lambda factor: 0.05 * factor)
    found = chosen(scores, limit=4.4)
    repair = found.judged.repair
    own, kept = (next(each for each in of.repaired if each.repair == repair).items for of in scores)
    for number, (items, base) in enumerate(((own, scores[0].base), (kept, scores[1].base))):
        change = 100 * (np.array(items.values) - np.array(base.values)) * (1, -1)[number]
        (point,) = (each for each in found.curve if each.repair == repair)
        for half, (gain, loss) in enumerate(
            (each.gain, each.retention_loss) for each in (point, found.judged)
        ):
            bound = (gain, loss)[number]
            values = change[half::2]
            by_hand = crossed_difference(values, item_size=item_size(values, in_points=True))
            assert bound.estimate == pytest.approx(by_hand.value)
            assert (bound.lower, bound.upper) == pytest.approx(by_hand.interval(0.95))
    assert (found.num_choosing_items, found.num_judging_items) == (400, 400)
    task = found.judged.tasks[1]
    assert (task.task, task.relation, task.num_items) == (KEPT, "retention", 200)
    assert task.base_score == pytest.approx(100 * np.mean(scores[1].base.values[1::2]))
    assert task.repaired_score == pytest.approx(100 * np.mean(kept.values[1::2]))


def test_the_best_of_equal_repairs_is_judged_without_a_winners_curse() -> None:
    """Ten repairs that all gain 2 points: the choosing items flatter the winner, the others not."""
    chosen_by: list[float] = []
    judged: list[float] = []
    covered = 0
    equal = {OWN: dict.fromkeys(SCALES, 0.02), KEPT: dict.fromkeys(SCALES, 0.0)}
    for seed in range(300):
        found: RepairChoice = chosen(
            planted_scores(equal, num_items=100, spread=0.1, seed=seed), limit=10.0
        )
        assert found.judged is not None
        (point,) = (each for each in found.curve if each.repair == found.judged.repair)
        chosen_by.append(point.gain.estimate)
        judged.append(found.judged.gain.estimate)
        covered += found.judged.gain.lower <= 2.0 <= found.judged.gain.upper
    # standard error of the mean of 300 means of 50 items with spread 10: 10 / sqrt(50 * 300)
    error = 10.0 / (50 * 300) ** 0.5
    assert np.mean(judged) == pytest.approx(2.0, abs=3.5 * error)
    assert np.mean(chosen_by) > 2.0 + 10 * error
    assert covered / 300 >= 0.93


def test_a_cluster_is_on_one_side_of_the_split_in_every_task() -> None:
    clusters = {OWN: np.repeat(np.arange(40), 10), KEPT: np.repeat(np.arange(39, -1, -1), 10)}
    scores = curve(lambda _: 0.0, clusters={k: v.tolist() for k, v in clusters.items()})
    from rankwise.findings.repairs import _pairs

    pairs = {of.task: dict(_pairs(of))[AS_IT_IS] for of in scores}
    chooses = _choosing_items(pairs)
    sides = [{*clusters[task][chooses[task] == side]} for side in (True, False) for task in pairs]
    assert sides[0] == sides[1] == set(range(0, 40, 2))
    assert sides[2] == sides[3] == set(range(1, 40, 2))
    wide, narrow = chosen(scores).curve[0].gain, chosen(curve(lambda _: 0.0)).curve[0].gain
    assert wide.estimate == pytest.approx(narrow.estimate, abs=2.0)


def test_retention_in_nats_is_left_out_and_cannot_be_all() -> None:
    changes = {each: dict.fromkeys(SCALES, 0.05) for each in (OWN, KEPT, "prose")}
    scores = planted_scores(changes, unit={"prose": "nats"})
    found = chosen(scores, tasks=RepairTasks((OWN,), (KEPT, "prose")))
    assert (found.retention, found.left_out) == ((KEPT,), ("prose",))
    with pytest.raises(RecordError, match="scored in points"):
        chosen(scores, tasks=RepairTasks((OWN,), ("prose",)))
    with pytest.raises(RecordError, match="name one in-domain"):
        chosen(scores, tasks=RepairTasks((), (KEPT,)))


def test_a_loss_gained_in_nats_counts_downwards() -> None:
    """In-domain in nats, lower is better: the repair that lowers the loss gains."""
    changes = {OWN: {each: -0.2 * (each.value or 0) for each in SCALES},
               KEPT: dict.fromkeys(SCALES, 0.0)}  # fmt: skip
    found = chosen(planted_scores(changes, unit={OWN: "nats"}))
    assert (found.unit, found.repair) == ("nats", AS_IT_IS)
    assert found.judged.gain.estimate == pytest.approx(0.2, abs=0.03)


def test_too_few_items_are_refused() -> None:
    with pytest.raises(RecordError, match="has 3 items; half of them choose"):
        chosen(curve(lambda _: 0.0, num_items=3))
    one = {task: [0, 0, 1, 1, 2, 2] for task in (OWN, KEPT)}
    with pytest.raises(RecordError, match="has 3 clusters"):
        chosen(curve(lambda _: 0.0, num_items=6, clusters=one))


def with_kl(scores: list[RepairScores], kl: dict[Repair, float], **settings: Any) -> Any:
    found = planted_divergences(kl, doc_ids=range(0, 100, 2), **settings)
    return choose_repair(scores, TASKS, max_loss_points=1.0, confidence=0.95, divergences=found)


def test_kl_is_a_mean_over_tokens_and_orders_the_losses() -> None:
    """Losses and KL rise with the scale, but for one pair of neighbours."""
    scores = curve(lambda factor: 0.1 * factor, num_items=4000)
    kl = {each: 2.0 * (each.value or 0.0) for each in SCALES}
    kl[SCALES[0]], kl[SCALES[1]] = kl[SCALES[1]], kl[SCALES[0]]
    found = with_kl(scores, kl)
    for point in found.curve:  # every other answer has two tokens, at half the KL
        assert point.kl.estimate == pytest.approx(kl[point.repair] * (1.5 + 2 * 0.5) / 3)
        assert 0.0 < point.kl.lower < point.kl.estimate < point.kl.upper
    rho = 1 - 6 * 2 / (10 * 99)
    assert found.kl_correlation.estimate == pytest.approx(rho)
    assert found.kl_correlation.lower < rho < found.kl_correlation.upper
    assert found.kl_statement.startswith("Over 10 repairs, KL on the task's prompts orders forg")


def test_kl_chooses_nothing() -> None:
    scores = curve(lambda factor: 0.05 * (factor > 0.5), num_items=2000)
    without = chosen(scores)
    for kl in ({each: 1.0 - (each.value or 0.0) for each in SCALES}, dict.fromkeys(SCALES, 0.0)):
        found = with_kl(scores, kl)
        assert (found.repair, found.judged) == (without.repair, without.judged)
    assert "one of them is the same in all repairs" in found.kl_statement
    assert (without.kl_correlation, without.kl_statement) == (None, None)


def test_four_repairs_have_no_order() -> None:
    few = dict.fromkeys(SCALES[:4], 0.0)
    found = with_kl(planted_scores({OWN: few, KEPT: few}), few)
    assert found.kl_correlation is None
    assert "4 repairs, 5 are needed" in found.kl_statement


def test_answers_in_clusters_have_wider_intervals() -> None:
    def kl_of(clusters: dict[str, Any] | None) -> float:
        scores = curve(lambda _: 0.0, num_items=100, clusters=clusters)
        kl = with_kl(scores, dict.fromkeys(SCALES, 1.0), tokens=(1,)).curve[0].kl
        return kl.upper - kl.lower

    # answers with more than the mean in five clusters, the others in five other ones
    alike = [(doc_id // 2 % 2) * 10 + doc_id % 10 for doc_id in range(100)]
    assert kl_of({OWN: alike, KEPT: alike}) > 1.5 * kl_of(None)


def test_answers_of_one_cluster_have_no_kl() -> None:
    """The other items are in many: the choice has its halves."""
    alike = [0 if doc_id < 100 else doc_id for doc_id in range(200)]
    scores = curve(lambda _: 0.0, num_items=200, clusters={OWN: alike, KEPT: alike})
    found = with_kl(scores, dict.fromkeys(SCALES, 1.0))
    assert [point.kl for point in found.curve] == [None] * 10
    assert found.kl_statement is None


def test_the_choosing_items_are_those_that_the_choice_rests_on() -> None:
    scores = curve(lambda _: 0.0, num_items=10)
    assert choosing_items(scores, TASKS) == {OWN: {0, 2, 4, 6, 8}}
    clusters = {task: [0, 0, 1, 1, 2, 2, 3, 3, 3, 3] for task in (OWN, KEPT)}
    in_clusters = curve(lambda _: 0.0, num_items=10, clusters=clusters)
    assert choosing_items(in_clusters, TASKS) == {OWN: {0, 1, 4, 5}}


def test_a_record_is_what_was_written() -> None:
    found = chosen(curve(lambda factor: 0.05 * (factor > 0.5), num_items=2000))
    again = RepairChoice.model_validate_json(found.model_dump_json())
    assert again == found
    assert hash(again.curve[0].repair) == hash(AS_IT_IS)


def test_the_card_has_the_judged_figures() -> None:
    found = chosen(curve(lambda factor: 0.05 * (factor > 0.5), num_items=2000))
    record = AdapterRepair(
        fingerprint="f",
        model="mine",
        base_model="org/base: 1",
        averaged_with=(),
        choice=found,
        folder="out",
        provenance=PROVENANCE,
    )
    card = model_card(record)
    assert card.startswith('---\nbase_model: "org/base: 1"\nlibrary_name: peft\n')
    assert "# A LoRA adapter, scaled by 0.5" in card
    assert found.statement in card
    assert f"| {found.judged.tasks[1].base_score:.1f} |" in card
    with pytest.raises(ValueError, match="no repair to describe"):
        model_card(record.model_copy(update={"choice": found.model_copy(update={"repair": None})}))
