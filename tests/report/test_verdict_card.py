"""The verdict card: what it says of the choice, and sliders that judge as Python does."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwise.findings.card import MOST_DRAWN, VerdictCard, verdict_card
from rankwise.findings.decision import Margins, choose, odds, states
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.truths import Truths
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import StudyResults
from rankwise.report.sections.card import card_table
from rankwise.report.tables import decision_table
from tests.planted.items import written
from tests.planted.results import Key, planted_study, with_rslora
from tests.support.browser import Visit
from tests.support.sentences import Sentences


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
    rows = {row.label: row for row in card.rows}
    assert list(rows) == ["base", "rank 4", "rank 16", "rank 64", "full fine-tuning"]
    assert [row.label for row in rows.values() if row.is_choice] == ["rank 16"]
    assert rows["rank 16"].gain.estimate == pytest.approx(30.0)
    assert (rows["base"].gain.lower, rows["base"].gain.upper) == (0.0, 0.0)
    # planted: 70 % of 300 against 80 %, and 81 %
    leads = {row.label: row.lead.estimate for row in card.alternatives if row.lead}
    assert leads == pytest.approx(
        {
            "rank 4": -10.0,
            "rank 64": 1.0,
            "full fine-tuning": rows["full fine-tuning"].gain.estimate - 30.0,
        }
    )
    kept = rows["full fine-tuning"].retention_lead
    assert kept is not None
    assert kept.estimate == pytest.approx(-10.0)


def test_the_card_holds_what_people_are_told_against_the_study(sentence: Sentences) -> None:
    card, _ = card_of(planted_study({4: 0.70, 8: 0.75, 16: 0.80, 64: 0.81}))
    assert not any("256" in each.advice for each in card.advice)  # is not in the study
    sentence([f"{each.advice}: {each.here}" for each in card.advice], names=("rank 8", "5.0 "))


@pytest.mark.parametrize(
    ("ranks", "rank", "difference"),
    [({8: 0.70, 32: 0.80, 64: 0.81}, "32", ""), ({8: 0.80, 16: 0.70, 64: 0.81}, "16", "10.0 ")],
    ids=["32", "16"],
)
def test_advice_of_two_ranks_is_read_at_both(
    ranks: dict[Key, float], rank: str, difference: str, sentence: Sentences
) -> None:
    card, _ = card_of(planted_study(ranks))
    (here,) = [each.here for each in card.advice if "16 or 32" in each.advice]
    sentence(here, names=(difference,))
    assert (card.choice == f"rank {rank}") is (not difference)


def test_rslora_is_said_wherever_alpha_is() -> None:
    results = with_rslora(planted_study())
    card, part = card_of(results)
    assert card.settings["Alpha"] == "32 with rsLoRA"
    assert "(alpha 32 with rsLoRA, " in part.statement
    judged = decision_table(part)
    assert judged is not None
    assert [row[0].note for row in judged.groups[0].rows] == [
        "alpha 8 with rsLoRA",
        "alpha 32 with rsLoRA",
        "alpha 128 with rsLoRA",
    ]
    assert not any("alpha = 2r" in each.advice for each in card.advice)


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


STEP = 0.01
"""A hundredth of a point, in which draws are kept."""


def random_truths(rng: np.random.Generator, count: int, *, has_loss: bool) -> Truths:
    """Draws in hundredths, around a few whole points, so that many are at the margins."""

    def draws() -> Floats:
        middle = rng.integers(-2, 6, count)
        return np.round(rng.normal(middle, rng.uniform(0.05, 2.0), (199, count)), 2)

    gains = draws()
    if not has_loss:
        return Truths(gains)
    losses = draws()
    return Truths(gains, losses, losses + np.round(rng.exponential(1.0, losses.shape), 2))


def as_rule(truths: Truths, settings: dict[str, Any], num_bytes: int) -> dict[str, Any]:
    """As the page has it: whole numbers in base64."""

    def packed(draws: Floats | None) -> str | None:
        if draws is None:
            return None
        whole = np.round(draws / STEP).astype(f"<i{num_bytes}")
        return base64.b64encode(whole.tobytes()).decode("ascii")

    gains, losses, worst = map(packed, truths)
    labels = [str(place) for place in range(truths.gains.shape[1])]
    return settings | {
        "labels": labels, "step": STEP, "num_bytes": num_bytes,
        "gains": gains, "losses": losses, "worst": worst,
    }  # fmt: skip


@pytest.fixture(scope="module")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("study"))


LOSING: dict[Key, float] = {4: 0.87, 16: 0.84, 64: 0.84}
"""Rank 4 loses 3 points, the others 6."""


@pytest.fixture(scope="module")
def losing_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = planted_study(retention_accuracy=LOSING, num_in_domain=1000, num_retention=1000)
    return written(tmp_path_factory.mktemp("losing"), results=results)


def test_the_page_judges_as_python_does(study_page: Path, visit: Visit) -> None:
    rng = np.random.default_rng(7)
    settings: list[dict[str, Any]] = []
    wanted: list[dict[str, Any]] = []
    codes = {"yes": 1, "undecided": 0, "no": -1}
    for number in range(300):
        has_loss, has_base = number % 3 > 0, number % 5 > 0
        count, level = int(rng.integers(1, 6)), float(rng.choice([0.8, 0.95, 0.98]))
        truths = random_truths(rng, count, has_loss=has_loss)
        delta, epsilon, ceiling = (round(float(value), 2) for value in rng.uniform(0.1, 6.0, 3))
        is_finished = rng.random(count) < 0.8
        rule = {"has_base": has_base, "level": level, "is_finished": is_finished.tolist()}
        packed = as_rule(truths, rule, num_bytes=2 + 2 * (number % 2))
        settings.append({"rule": packed, "margins": [delta, epsilon, ceiling]})
        now = odds(truths, Margins(delta, epsilon if has_loss else None, ceiling, has_base))
        choice = choose(now, level, is_finished)
        judged = {"outcome": choice.outcome, "option": choice.option}
        wanted.append(
            judged
            | {
                name: [codes[state] for state in states(getattr(now, name), level)]
                for name in ("better", "keeps", "near")
            }
        )
    assert len({each["outcome"] for each in wanted}) == 5
    judged = visit(study_page).evaluate(
        "(settings) => settings.map((each) => judge(drawnRule(each.rule), ...each.margins))",
        settings,
    )
    assert judged == wanted


def test_the_page_has_the_draws_by_which_the_study_was_judged() -> None:
    card, part = card_of(planted_study())
    draws = card.draws
    assert draws is not None
    assert draws.labels == ("rank 4", "rank 16", "rank 64")
    assert draws.level == pytest.approx(1 - 0.04 / 4)
    assert (draws.has_base, draws.is_finished) == (True, (True,) * 3)
    gains = np.frombuffer(base64.b64decode(draws.gains), f"<i{draws.num_bytes}").reshape(-1, 3)
    # 70, 80 and 81 of 100, and 50 before
    assert gains.mean(axis=0) * draws.step == pytest.approx([20.0, 30.0, 31.0], abs=0.1)
    for place, verdict in enumerate(part.verdicts):
        lower = np.sort(gains[:, place])[len(gains) // 100 - 1] * draws.step
        assert verdict.gain.lower == pytest.approx(lower, abs=0.1)


def test_the_page_begins_with_the_study_s_own_verdict(study_page: Path, visit: Visit) -> None:
    page = visit(study_page)
    page.goto(f"{page.url}#margins")
    assert page.locator(".answer").inner_text() == "Recommended: rank 16."
    assert page.locator(".sliders").is_visible()


def test_sliders_judge_the_study_under_other_margins(losing_page: Path, visit: Visit) -> None:
    page = visit(losing_page)
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
        _, part = card_of(
            planted_study(
                retention_accuracy=LOSING,
                num_in_domain=1000,
                num_retention=1000,
                recommendation=margins,
            )
        )
        said = answers.get(part.outcome, f"Recommended: rank {part.rank}.")
        outcomes.add(said)
        assert page.locator(".answer").inner_text() == said, (delta, epsilon, ceiling)
        words = {"yes": "yes", "no": "no", "undecided": "cannot tell"}
        wanted = [
            [
                words[each.better_than_base or ""],
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


def test_without_retention_there_are_no_draws_of_losses() -> None:
    card, part = card_of(planted_study(retention_tasks=()))
    assert part.epsilon_points is None
    assert card.draws is not None
    assert (card.draws.losses, card.draws.worst) == (None, None)


def test_draws_of_many_options_are_left_out() -> None:
    ranks: list[Key] = [*range(1, MOST_DRAWN + 1)]
    few = planted_study(dict.fromkeys(ranks, 0.7), num_in_domain=40, retention_tasks=())
    many = planted_study(dict.fromkeys([*ranks, 99], 0.7), num_in_domain=40, retention_tasks=())
    assert card_of(few)[0].draws is not None
    assert card_of(many)[0].draws is None
