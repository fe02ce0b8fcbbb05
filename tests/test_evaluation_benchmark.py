"""The arithmetic of ``benchmarks.evaluation``: decisions, margins and noise on planted numbers."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import evaluation, evaluation_answers, margins
from benchmarks.margins import first_difference, mismatches, noise_of, per_character, spread, winner
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import load_tasks


def test_the_first_of_equal_options_wins() -> None:
    assert winner([-2.0, -1.0, -1.0]) == 1
    assert winner([-1.0, -1.0]) == 0
    assert winner([-3.0]) == 0


def test_per_character() -> None:
    found = per_character([[-6.0, -8.0]], [[3, 8]])
    assert found == [[-2.0, -1.0]]
    assert [winner(item) for item in ([-6.0, -8.0], found[0])] == [0, 1]


def test_spread_forgets_what_moves_all_options_alike() -> None:
    exact = [[-1.0, -2.0], [-3.0, -4.0, -5.0]]
    shifted = [[value + 7.0 for value in item] for item in exact]
    assert spread(shifted, exact) == pytest.approx(0.0, abs=1e-12)
    # deviations of +-0.5 around the mean of the first item, none in the second: 2 * 0.25 / 3
    moved = [[-0.5, -2.5], exact[1]]
    assert spread(moved, exact) == pytest.approx(math.sqrt(0.5 / 3))
    assert spread([[-1.5]], [[-1.0]]) == 0.0


def test_spread_and_noise_find_a_planted_deviation() -> None:
    rng = random.Random(0)
    exact = [[rng.gauss(-5, 2) for _ in range(4)] for _ in range(5000)]

    def side(deviation: float) -> list[list[float]]:
        return [[value + rng.gauss(0, deviation) for value in item] for item in exact]

    ours, peer = side(0.03), side(0.04)
    assert spread(ours, exact) == pytest.approx(0.03, rel=0.03)
    assert noise_of(0.03, 0.04) == pytest.approx(2 * math.sqrt(2) * 0.05)
    # of decisions that rounding turned, nearly all are inside the noise
    found = list(mismatches(ours, peer, exact, workload="w", model=None))
    assert len(found) > 50
    assert sum(each.is_rounding for each in found) / len(found) > 0.95


def test_a_wrong_answer_is_no_rounding() -> None:
    exact = [[-1.0, -3.0], [-1.0, -1.001], [-2.0, -1.0]]
    ours = [[-3.0, -1.0], [-1.0, -1.001], [-2.0, -1.0]]  # the first item's options are exchanged
    peer = [[-1.0, -3.0], [-1.002, -1.001], [-2.0, -1.0]]
    wrong, close = mismatches(ours, peer, exact, workload="w", model="r8", noise=0.01)
    assert (wrong.item, wrong.ours, wrong.peer, wrong.margin) == (0, 1, 0, 2.0)
    assert not wrong.is_rounding
    assert (close.item, close.ours, close.peer) == (1, 0, 1)
    assert close.margin == pytest.approx(0.001)
    assert close.is_rounding


def test_the_first_token_that_differs() -> None:
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
    assert first_difference([], [4]) == 0
    assert first_difference([1, 2], [1, 2]) is None


class Exact:
    """Float32, planted: the log-likelihood of a continuation is minus its first token's id."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def ask(self, do: str, name: str | None, items: list[Any]) -> dict[str, Any]:
        self.asked.append((do, name, items))
        return {"nats": [-float(tokens[0]) for _, tokens in items]}


def test_other_answers_are_held_against_their_first_other_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of three texts one has another number, one has other words and the same number."""
    ours = ["so 12", "it is 7 now", "5"]
    peer = ["so 13", "it is 7 yes", "5"]
    letters = SimpleNamespace(encode=lambda text, add_special_tokens: [ord(each) for each in text])
    settings = SimpleNamespace(stops=("Q",))
    requests = [SimpleNamespace(context=(100 + i,), settings=settings) for i in range(3)]
    answers: Any = SimpleNamespace(
        tasks={"gsm8k_generation": SimpleNamespace(requests=requests)}, tokenizer=letters
    )
    monkeypatch.setattr(
        evaluation_answers,
        "extracted",
        lambda task, texts: [tuple("".join(c for c in t if c.isdigit())) for t in texts],
    )
    exact: Any = Exact()
    (found,) = evaluation_answers._of_texts(answers, "r8", ours, peer, exact, noise=2.0)
    assert (found.item, found.ours, found.peer, found.rule) == (0, "1 | 2", "1 | 3", "text")
    assert found.margin == 1.0  # "2" and "3" are neighbours
    assert found.is_rounding
    assert exact.asked[0] == ("score", "r8", [[[100, *map(ord, "so 1")], [ord("2")]]])
    # a text that ends there was ended by a stop string
    (ended,) = evaluation_answers._of_texts(
        answers, "r8", ["1", "", ""], ["12", "", ""], exact, 2.0
    )
    assert ended.margin == ord("Q") - ord("2")
    assert not ended.is_rounding


def test_items_and_filters_of_real_tasks(shared_tasks: Path, tiny_model_folder: Path) -> None:
    from rankwise.engine.models.loading import load_tokenizer

    def prepared(name: str) -> Any:
        loaded = load_tasks([name], [shared_tasks], allow_code=True)[name][0]
        tokenizer = load_tokenizer(tiny_model_folder)
        return prepare_task(
            loaded, tokenizer, max_length=4096, num_fewshot=0, limit=3, chat_template=False
        )

    choices = prepared("local_arc_easy")
    scored = [(-float(index), False) for index in range(len(choices.instances))]
    values = evaluation_answers.by_item(choices, scored)
    assert [len(item) for item in values] == [
        choices.num_options[i] for i in sorted(choices.doc_ids)
    ]
    assert [value for item in values for value in item] == [nats for nats, _ in scored]
    lengths = evaluation_answers.option_lengths(choices)
    options = [len(text) for i in choices.instances[:1] for text in i.doc["choices"]]
    assert lengths[0] == options
    scored[1] = (-0.001, False)
    wins = evaluation_answers.decided(choices, scored)
    assert len(wins) == 3
    assert wins[0][0] == 0
    assert evaluation_answers.num_different(wins, [(1, 1), *wins[1:]]) == 1
    texts = ["no number", "it is 3, then 14", "so #### 7"]
    found = evaluation_answers.decided(prepared("local_gsm8k"), texts)
    assert found == [
        ("[invalid]", "[invalid]"), ("[invalid]", "14"), ("7", "7"),
    ]  # fmt: skip


def test_an_item_that_two_rules_decide_differently_counts_once() -> None:
    both = [
        margins.Mismatch("w", "r8", 3, rule, 0, 1, 0.1, 0.2)
        for rule in ("nats", "nats per character")
    ]
    other = both[0]._replace(model="r16")
    answers: Any = object.__new__(evaluation_answers.Answers)
    answers.tasks = {"w": SimpleNamespace(num_items=4)}
    answers.models = {"w": ["r8", "r16"]}
    answers._found = {"w": ()}
    assert answers.num_mismatched([*both, other]) == {"w": [2, 8]}


def test_the_keys_of_the_summary_are_those_that_are_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "PERFORMANCE.md").read_text()
    for name in (*evaluation.sides.WORKLOADS, evaluation.BASE_ONLY):
        assert f"ratio_{name}" in text
