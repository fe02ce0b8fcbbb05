"""Scores of texts are those of the packages that define them, and end for texts of every length."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from rankwise.tasks.text_scores import MOST_CHARACTERS, bleu, chrf, rouge

WORDS = ("the", "cats", "sat", "running", "runs", "ponies", "x1", "Ünï", ".", "happily", "yyyyy")


def test_rouge_is_rouge_score_s() -> None:
    scorer = RougeScorer(["rougeL", "rouge1", "rouge2"], use_stemmer=True)
    rng = random.Random(0)
    for _ in range(500):
        answer, right = (" ".join(rng.choices(WORDS, k=rng.randint(0, 30))) for _ in range(2))
        theirs = {name: each.fmeasure for name, each in scorer.score(right, answer).items()}
        assert rouge(answer, right) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    ["y" * 200_000, "y " * 100_000, "running " * 20_000, " ".join(map(str, range(30_000))), "\n"],
    ids=["a word", "a letter", "words", "numbers", "nothing"],
)
def test_long_texts_are_compared(text: str) -> None:
    numbers = [bleu(text, text), chrf(text, text), *rouge(text, text).values()]
    assert all(0 <= number <= 1 for number in numbers)
    assert rouge(text, text)["rouge1"] == (text != "\n")


def test_texts_are_compared_up_to_a_length() -> None:
    text = "a b c d " * (MOST_CHARACTERS // 8)
    assert len(text) == MOST_CHARACTERS
    for score in (bleu, chrf, lambda answer, right: rouge(answer, right)["rougeL"]):
        assert score(text, text + "and more") == 1
        assert score(text[:-100], text) < 1
