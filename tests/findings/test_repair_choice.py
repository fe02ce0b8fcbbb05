"""Which repair is chosen: planted curves, honest refusals, and a bound that holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankwise.errors import RecordError
from rankwise.findings.model_card import model_card
from rankwise.findings.repairs import RepairTasks, choose_repair
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
        assert found.judged.gain.estimate == pytest.approx(5.0, abs=0.5)
        assert found.judged.retention_difference.lower > 0
        assert found.judged.gain_difference.upper < 0
        assert [point.repair for point in found.curve if point.keeps_enough] == list(SCALES[5:])
    assert found.statement.startswith("Scaled by 0.5, the adapter gains +")
    assert "of retention: at most 1.0 points. As it is, it gains" in found.statement


def test_none_does_where_all_lose_too_much() -> None:
    found = chosen(curve(lambda _: 0.05))
    assert (found.repair, found.judged) == (None, None)
    assert found.statement.startswith(
        "None does: no repair is shown to gain and to lose at most 1.0 points of retention."
    )
    assert "The nearest is" in found.statement


def test_a_repair_that_gains_nothing_is_none() -> None:
    """The base loses nothing and gains nothing: it is not a repair of the adapter."""
    flat = dict.fromkeys(SCALES, -0.05)
    found = chosen(planted_scores({OWN: flat, KEPT: dict.fromkeys(SCALES, 0.0)}))
    assert found.repair is None
    assert "None is shown to gain at all." in found.statement


def test_the_first_that_is_not_shown_ends_its_kind_and_no_other() -> None:
    """Scaled by 0.3 loses 5 points, weaker ones none: they are not tried. Truncations are."""
    truncated = {Repair(family="truncate", value=k): 0.0 for k in (8.0, 4.0)}
    losses = {each: 0.05 * (each.value == 0.3) for each in SCALES} | truncated
    gains = {each: 0.10 * (each.value or 0.0) for each in SCALES} | {
        Repair(family="truncate", value=8.0): 0.05,
        Repair(family="truncate", value=4.0): 0.04,
    }
    minus = {repair: -loss for repair, loss in losses.items()}
    found = chosen(planted_scores({OWN: gains, KEPT: minus}, num_items=1000))
    kept = [point.repair for point in found.curve if point.keeps_enough]
    assert kept == [scale(0.2), scale(0.1), *truncated]
    assert (found.num_kinds, found.repair) == (2, Repair(family="truncate", value=8.0))


def test_candidates_that_all_lose_too_much_are_seldom_said_to_do() -> None:
    """18 repairs of two kinds, just beyond the limit, nearly the same model."""
    truncated = [Repair(family="truncate", value=float(k)) for k in range(8, 0, -1)]
    repairs, does = [*SCALES, *truncated], 0
    gains = dict.fromkeys(repairs, 0.05)
    losses = dict.fromkeys(repairs, -0.0101)
    for seed in range(300):
        own, lost = planted_scores({OWN: gains, KEPT: losses}, num_items=200, seed=seed)
        shared = np.random.default_rng(seed + 1000).normal(0.0, 0.06, 200)
        noisy = tuple(
            each.model_copy(
                update={
                    "items": each.items.model_copy(
                        update={"values": tuple(np.array(each.items.values) + shared)}
                    )
                }
            )
            for each in lost.repaired
        )
        does += chosen([own, lost.model_copy(update={"repaired": noisy})]).repair is not None
    assert does <= 15  # 5 % of 300; where half of the items chose and half judged: 65


def test_an_adapter_that_keeps_enough_needs_no_repair() -> None:
    found = chosen(curve(lambda _: 0.0))
    assert found.repair == AS_IT_IS
    assert "No repair that keeps enough gains more." in found.statement
    assert found.judged.gain == found.judged.adapter_gain


def test_figures_are_those_of_all_items_at_the_level_of_a_kind() -> None:
    scores = curve(lambda factor: 0.05 * factor)
    more = [
        of.model_copy(
            update={
                "repaired": (
                    *of.repaired,
                    of.repaired[0].model_copy(update={"repair": Repair(family="lines", value=0.0)}),
                )
            }
        )
        for of in scores
    ]
    found = chosen(more, limit=4.4)
    repair = found.judged.repair
    own, kept = (next(each for each in of.repaired if each.repair == repair).items for of in scores)
    for number, (items, base) in enumerate(((own, scores[0].base), (kept, scores[1].base))):
        change = 100 * (np.array(items.values) - np.array(base.values)) * (1, -1)[number]
        bound = (found.judged.gain, found.judged.retention_loss)[number]
        by_hand = crossed_difference(change, item_size=item_size(change, in_points=True))
        assert bound.estimate == pytest.approx(by_hand.value)
        assert (bound.lower, bound.upper) == pytest.approx(by_hand.interval(1 - 0.05 / 2))
    assert (found.num_items, found.num_kinds) == (800, 2)
    assert found.together == "95\u00a0%, one repair of each of 2 kinds together"
    task = found.judged.tasks[1]
    assert (task.task, task.relation, task.num_items) == (KEPT, "retention", 400)
    assert task.base_score == pytest.approx(100 * np.mean(scores[1].base.values))
    assert task.repaired_score == pytest.approx(100 * np.mean(kept.values))


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


def test_one_cluster_is_refused() -> None:
    one = {task: [0] * 6 for task in (OWN, KEPT)}
    with pytest.raises(RecordError, match="all 6 items of task 'kinship' are in one cluster"):
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
    """The other items are in many."""
    alike = [0 if doc_id < 100 else doc_id for doc_id in range(200)]
    scores = curve(lambda _: 0.0, num_items=200, clusters={OWN: alike, KEPT: alike})
    found = with_kl(scores, dict.fromkeys(SCALES, 1.0))
    assert [point.kl for point in found.curve] == [None] * 10
    assert found.kl_statement is None


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
        model_card(record.model_copy(update={"choice": found.model_copy(update={"judged": None})}))
