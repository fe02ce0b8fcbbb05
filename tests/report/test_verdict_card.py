"""The verdict card: what it says of the choice, and sliders that judge as Python does."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rankwise.findings.stats.simultaneous import Bounds, StudyBounds, WorstTask

from rankwise.findings.card import VerdictCard, verdict_card
from rankwise.findings.decision import Margins, choose
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import StudyResults
from rankwise.report.sections.card import card_table, sliders
from rankwise.report.tables import decision_table
from tests.planted.items import written
from tests.planted.results import Key, planted_study, with_rslora
from tests.support.browser import Visit


def card_of(results: StudyResults) -> tuple[VerdictCard, Recommendation]:
    (source,), (part,) = option_gains(results), recommend(results).by_train_task
    card = verdict_card(source, part)
    assert card is not None
    return card, part


def test_the_card_names_the_choice_and_what_else_would_do() -> None:
    card, part = card_of(planted_study())
    assert (card.is_settled, card.choice, part.rank) == (True, "rank 16", 16)
    assert card.settings["Rank"] == "16"
    assert card.probability is None
    assert card.gain is not None
    assert card.gain.estimate == pytest.approx(30.0)
    by_label = {each.label: each for each in card.alternatives}
    assert list(by_label) == ["rank 4", "rank 64", "full fine-tuning"]
    # planted: 70 % of 300 against 80 %, and 81 %
    assert by_label["rank 4"].gain.estimate == pytest.approx(-10.0)
    assert not by_label["rank 4"].is_tied
    assert by_label["rank 64"].gain.estimate == pytest.approx(1.0)
    assert by_label["rank 64"].is_tied
    assert by_label["rank 64"].weights_ratio == pytest.approx(4.0)
    kept = by_label["full fine-tuning"].retention
    assert kept is not None
    assert kept.estimate == pytest.approx(-10.0)


def test_the_card_holds_what_people_are_told_against_the_study() -> None:
    card, _ = card_of(planted_study({4: 0.70, 8: 0.75, 16: 0.80, 64: 0.81}))
    told = {each.advice: each.here for each in card.advice}
    assert told["Unsloth's guide: rank 16 or 32"] == "that is the choice here"
    assert not any(advice.startswith("TRL's") for advice in told)  # rank 256 is not in the study
    assert told["PEFT's default: rank 8"].startswith("rank 8 gains 5.0 points less (−")
    assert told["Many recipes: alpha = 2r"] == "the choice has it"


@pytest.mark.parametrize(
    ("ranks", "here"),
    [
        ({8: 0.70, 32: 0.80, 64: 0.81}, "that is the choice here"),
        ({8: 0.80, 16: 0.70, 64: 0.81}, "rank 16 gains 10.0 points less (−"),
    ],
)
def test_advice_of_two_ranks_is_read_at_both(ranks: dict[Key, float], here: str) -> None:
    card, _ = card_of(planted_study(ranks))
    told = {each.advice: each.here for each in card.advice}
    assert told["Unsloth's guide: rank 16 or 32"].startswith(here)


def test_rslora_is_said_wherever_alpha_is() -> None:
    results = with_rslora(planted_study())
    card, part = card_of(results)
    assert card.settings["Alpha"] == "32 with rsLoRA"
    assert ", alpha 32 with rsLoRA, " in part.statement
    judged = decision_table(part)
    assert judged is not None
    assert [row[0].note for row in judged.groups[0].rows] == [
        "alpha 8 with rsLoRA",
        "alpha 32 with rsLoRA",
        "alpha 128 with rsLoRA",
    ]
    told = {each.advice: each.here for each in card.advice}
    assert "Many recipes: alpha = 2r" not in told


def test_an_unsettled_study_has_its_best_bet_on_the_card() -> None:
    narrow = RecommendationConfig(delta_points=0.5, epsilon_points=3.0)
    card, part = card_of(planted_study({4: 0.70, 16: 0.72, 64: 0.73}, recommendation=narrow))
    assert part.outcome == "cannot_tell"
    assert part.best_bet is not None
    assert not card.is_settled
    assert card.choice == part.best_bet.choice
    assert card.probability == part.best_bet.of(part.best_bet.choice or "").right
    (chosen,) = [
        row for row in card_table(card, part, planted_study()).groups[0].rows if row[0].is_marked
    ]
    assert (chosen[0].value, chosen[0].note) == (card.choice, "best bet")


def random_bounds(rng: np.random.Generator, count: int, *, has_loss: bool) -> StudyBounds:
    """Bounds of any order, some of them at the margins themselves."""

    def of(shape: tuple[int, ...]) -> Bounds:
        middle = np.round(rng.normal(0.0, 4.0, shape), 1)
        reach = np.round(rng.exponential(2.0, shape), 1)
        return Bounds(middle, middle - reach, middle + reach)

    lead = of((count, count))
    upper = np.triu(lead.estimate, 1), np.triu(lead.lower, 1), np.triu(lead.upper, 1)
    estimate = upper[0] - upper[0].T
    bounds = Bounds(estimate, upper[1] - upper[2].T, upper[2] - upper[1].T)
    loss, worst = (of((count,)) if has_loss else None for _ in range(2))
    of_task = None if worst is None else WorstTask(*worst[:3], np.zeros(count, dtype=np.intp))
    return StudyBounds(of((count,)), loss, bounds, of_task)


def as_rule(bounds: StudyBounds) -> dict[str, Any]:
    def ends(part: Bounds | WorstTask) -> Any:
        return np.stack([part.lower, part.upper], axis=-1).tolist()

    return {
        "labels": [str(place) for place in range(len(bounds.gain.estimate))],
        "gain": ends(bounds.gain),
        "loss": None if bounds.loss is None else ends(bounds.loss),
        "worst": None if bounds.worst is None else ends(bounds.worst),
        "lead": ends(bounds.lead),
    }


@pytest.fixture(scope="module")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("study"))


def test_the_page_judges_as_python_does(study_page: Path, visit: Visit) -> None:
    rng = np.random.default_rng(7)
    settings: list[dict[str, Any]] = []
    wanted: list[dict[str, Any]] = []
    for number in range(300):
        has_loss = number % 3 > 0
        bounds = random_bounds(rng, int(rng.integers(1, 6)), has_loss=has_loss)
        margins = [round(float(value), 1) for value in rng.uniform(0.1, 6.0, 3)]
        delta, epsilon, ceiling = margins
        choice = choose(bounds, Margins(delta, epsilon if has_loss else None, ceiling))
        settings.append({"rule": as_rule(bounds), "margins": margins})
        states = {"yes": 1, "undecided": 0, "no": -1}
        kept = choice.keeps_enough or ("yes",) * len(choice.better_than_base)
        wanted.append(
            {
                "outcome": choice.outcome,
                "option": choice.option,
                "better": [states[each] for each in choice.better_than_base],
                "keeps": [states[each] for each in kept],
                "near": [states[each] for each in choice.near_the_best],
            }
        )
    assert len({each["outcome"] for each in wanted}) == 4
    judged = visit(study_page).evaluate(
        "(settings) => settings.map((each) => judge(each.rule, ...each.margins))", settings
    )
    assert judged == wanted


def test_the_page_begins_with_the_study_s_own_verdict(study_page: Path, visit: Visit) -> None:
    page = visit(study_page)
    page.goto(f"{page.url}#margins")
    assert page.locator(".answer").inner_text() == "Recommended: rank 16."
    assert page.locator(".sliders").is_visible()


def test_sliders_judge_the_study_under_other_margins(study_page: Path, visit: Visit) -> None:
    page = visit(study_page)
    page.goto(f"{page.url}#margins")
    answers = {
        "cannot_tell": "Not settled under these margins.",
        "none_keeps_enough": "No rank keeps enough under these margins.",
    }
    outcomes: set[str] = set()
    cases = [*itertools.product((0.5, 4.0, 9.0, 14.0), (0.1, 2.0, 6.0), (15.0,)), (9.0, 6.0, 0.5)]
    for delta, epsilon, ceiling in cases:
        for label, value in (("δ", delta), ("ε", epsilon), ("any task", ceiling)):
            page.get_by_role("slider", name=label, exact=True).fill(str(value))
        margins = RecommendationConfig(
            delta_points=delta, epsilon_points=epsilon, worst_task_points=ceiling
        )
        _, part = card_of(planted_study(recommendation=margins))
        said = answers.get(part.outcome, f"Recommended: rank {part.rank}.")
        outcomes.add(said)
        assert page.locator(".answer").inner_text() == said, (delta, epsilon, ceiling)
        words = {"yes": "yes", "no": "no", "undecided": "cannot tell"}
        wanted = [
            [
                words[each.better_than_base],
                words[each.keeps_enough or ""],
                words[each.near_the_best],
            ]
            for each in part.verdicts
        ]
        rows = page.locator(".sliders tbody tr").all()
        assert [row.locator("td").all_inner_texts() for row in rows] == wanted, (
            delta,
            epsilon,
            ceiling,
        )
    assert len(outcomes) > 2


def test_without_retention_there_is_one_slider_and_no_loss() -> None:
    results = planted_study(retention_tasks=())
    _, part = card_of(results)
    assert part.epsilon_points is None
    rule = sliders(part).rule
    assert rule["loss"] is None
    assert np.shape(rule["lead"]) == (3, 3, 2)
