"""Which repair is chosen: planted curves, honest refusals, and a bound that holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankwise.errors import RecordError
from rankwise.findings.model_card import model_card
from rankwise.findings.repairs import RepairTasks, choose_repair, ranks_statement
from rankwise.findings.stats.estimates import crossed_difference
from rankwise.findings.stats.items import item_size
from rankwise.records.repair_scores import RepairScores
from rankwise.records.repairs import AS_IT_IS, AdapterRepair, Repair, RepairChoice
from tests.planted.repairs import KEPT, OWN, SCALES, planted_scores
from tests.planted.results import PROVENANCE
from tests.support.sentences import Sentences

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


def test_half_of_the_adapter_is_found_where_that_is_the_truth(sentence: Sentences) -> None:
    """Up to 0.5 nothing is lost, beyond it 5 points: the most gain that keeps enough is at 0.5."""
    for seed in range(20):
        found = chosen(curve(lambda factor: 0.05 * (factor > 0.5), num_items=2000, seed=seed))
        assert found.repair == scale(0.5)
        assert found.chosen.gain.estimate == pytest.approx(5.0, abs=0.5)
        assert found.chosen.retention_lead.lower > 0
        assert found.chosen.lead.upper < 0
        assert [point.repair for point in found.curve if point.keeps_enough] == list(SCALES[5:])
    sentence(found.statement, names=("0.5", "1.0"))


def test_none_does_where_all_lose_too_much(sentence: Sentences) -> None:
    found = chosen(curve(lambda _: 0.05))
    assert (found.repair, found.chosen, found.tasks) == (None, None, ())
    sentence(found.statement, names=("1.0",))
    assert "The nearest is" in found.statement


def test_an_adapter_that_needs_no_repair_is_not_called_the_nearest(sentence: Sentences) -> None:
    """It gains, and its retention rises; what was asked for does not gain."""
    gains = {each: 0.10 if each == AS_IT_IS else 0.0 for each in SCALES}
    scores = planted_scores({OWN: gains, KEPT: dict.fromkeys(SCALES, 0.03)})
    found = choose_repair(scores, TASKS, max_loss_points=1.0, confidence=0.95, asked=[scale(0.5)])
    assert found.repair is None
    sentence(found.statement, names=("+3.1", "none is needed"))


def test_a_repair_that_gains_nothing_is_none(sentence: Sentences) -> None:
    """The base loses nothing and gains nothing: it is not a repair of the adapter."""
    flat = dict.fromkeys(SCALES, -0.05)
    found = chosen(planted_scores({OWN: flat, KEPT: dict.fromkeys(SCALES, 0.0)}))
    assert found.repair is None
    sentence(found.statement)


def test_the_first_that_is_not_shown_ends_its_kind_and_no_other() -> None:
    """Scaled by 0.3 loses 5 points, weaker ones none: they are not tried. Cuts are."""
    cuts = {Repair(family="energy", value=share): 0.0 for share in (0.9, 0.5)}
    losses = {each: 0.05 * (each.value == 0.3) for each in SCALES} | cuts
    gains = {each: 0.10 * (each.value or 0.0) for each in SCALES} | {
        Repair(family="energy", value=0.9): 0.05,
        Repair(family="energy", value=0.5): 0.04,
    }
    minus = {repair: -loss for repair, loss in losses.items()}
    found = chosen(planted_scores({OWN: gains, KEPT: minus}, num_items=1000))
    kept = [point.repair for point in found.curve if point.keeps_enough]
    assert kept == [scale(0.2), scale(0.1), *cuts]
    assert (found.num_kinds, found.repair) == (2, Repair(family="energy", value=0.9))


def test_candidates_that_all_lose_too_much_are_seldom_said_to_do() -> None:
    """18 repairs of two kinds, just beyond the limit, nearly the same model."""
    cuts = [Repair(family="energy", value=tenths / 10) for tenths in range(8, 0, -1)]
    repairs, does = [*SCALES, *cuts], 0
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


def test_an_adapter_that_keeps_enough_needs_no_repair(sentence: Sentences) -> None:
    found = chosen(curve(lambda _: 0.0))
    assert found.repair == AS_IT_IS
    sentence(found.statement)
    assert found.chosen == found.as_it_is
    assert (found.chosen.lead, found.chosen.retention_lead) == (None, None)


def test_figures_are_those_of_all_items_at_the_level_of_a_kind(sentence: Sentences) -> None:
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
    repair = found.repair
    own, kept = (next(each for each in of.repaired if each.repair == repair).items for of in scores)
    for number, (items, base) in enumerate(((own, scores[0].base), (kept, scores[1].base))):
        change = 100 * (np.array(items.values) - np.array(base.values))
        bound = (found.chosen.gain, found.chosen.retention)[number]
        by_hand = crossed_difference(change, item_size=item_size(change, in_points=True))
        assert bound.estimate == pytest.approx(by_hand.value)
        assert (bound.lower, bound.upper) == pytest.approx(by_hand.interval(1 - 0.05 / 2))
    assert (found.num_items, found.num_kinds) == (800, 2)
    sentence(found.together, names=("95",))
    task = found.tasks[1]
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
    assert found.chosen.gain.estimate == pytest.approx(0.2, abs=0.03)


def test_one_cluster_is_refused(sentence: Sentences) -> None:
    one = {task: [0] * 6 for task in (OWN, KEPT)}
    with pytest.raises(RecordError) as caught:
        chosen(curve(lambda _: 0.0, num_items=6, clusters=one))
    sentence(caught.value, names=("kinship",))


def test_one_threshold_for_all_layers_is_a_kind_of_its_own(sentence: Sentences) -> None:
    """A cut of each layer that loses too much ends no sequence but its own."""
    repairs = [
        AS_IT_IS,
        Repair(family="energy", value=0.5),
        Repair(family="energy", value=0.9, how="global"),
    ]
    gains = dict(zip(repairs, (0.2, 0.1, 0.1), strict=True))
    losses = dict(zip(repairs, (-0.2, -0.2, 0.0), strict=True))
    found = chosen(planted_scores({OWN: gains, KEPT: losses}))
    assert (found.num_kinds, found.repair) == (3, repairs[2])
    sentence(found.statement, names=("0.9",))


def test_what_is_asked_for_by_its_value_is_chosen_and_not_the_adapter_as_it_is() -> None:
    cut = Repair(family="energy", value=0.9)
    scores = planted_scores({OWN: {AS_IT_IS: 0.2, cut: 0.1}, KEPT: {AS_IT_IS: 0.0, cut: 0.0}})
    settings: dict[str, Any] = {"max_loss_points": 1.0, "confidence": 0.95}
    assert choose_repair(scores, TASKS, **settings).repair == AS_IT_IS
    found = choose_repair(scores, TASKS, **settings, asked=[cut])
    assert found.repair == cut
    assert [point.keeps_enough for point in found.curve] == [True, True]


def test_of_one_kind_the_weakest_that_is_asked_for_is_chosen() -> None:
    scores = curve(lambda _: 0.0)
    settings: dict[str, Any] = {"max_loss_points": 1.0, "confidence": 0.95}
    found = choose_repair(scores, TASKS, **settings, asked=[scale(0.3), scale(0.6)])
    assert found.repair == scale(0.6)


def test_the_ranks_of_a_cut_are_said() -> None:
    found = chosen(curve(lambda _: 0.0))
    record = AdapterRepair.model_construct(choice=found, ranks={"a": 1, "b": 4, "c": 1})
    said = ranks_statement(record)
    assert said is not None
    assert "3 layers" in said
    assert "1 to 4, 2.0 on average" in said
    assert ranks_statement(AdapterRepair.model_construct(choice=found, ranks={})) is None


def test_a_record_is_what_was_written() -> None:
    found = chosen(curve(lambda factor: 0.05 * (factor > 0.5), num_items=2000))
    again = RepairChoice.model_validate_json(found.model_dump_json())
    assert again == found
    assert hash(again.curve[0].repair) == hash(AS_IT_IS)


def test_the_card_has_the_judged_figures(sentence: Sentences) -> None:
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
    sentence(card, names=("0.5",), part=True)
    assert found.statement in card
    assert f"| {found.tasks[1].base_score:.1f} |" in card
    with pytest.raises(ValueError, match="no repair to describe"):
        model_card(record.model_copy(update={"choice": found.model_copy(update={"repair": None})}))
