"""How much of the right text an answer has: ROUGE, BLEU and chrF of one text, in 0..1."""

from __future__ import annotations

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

MOST_CHARACTERS = 100_000
"""Compared of each text: forty pages. chrF takes 2 kB for each of them."""

_LONGEST_STEMMED = 100
"""Letters; no longer word of English has a stem, and the stemmer calls itself for each letter."""


def bleu(answer: str, right: str) -> float:
    """BLEU of a sentence, by sacrebleu; lm-eval's, of a corpus, is 0 for answers of three words."""
    import sacrebleu

    return _share(sacrebleu.sentence_bleu(_cut(answer), [_cut(right)]).score)


def chrf(answer: str, right: str) -> float:
    """The chrF of a sentence, by sacrebleu."""
    import sacrebleu

    return _share(sacrebleu.sentence_chrf(_cut(answer), [_cut(right)]).score)


def rouge(answer: str, right: str) -> dict[str, float]:
    """F1 of words in the longest common subsequence, of words, and of pairs of words.

    Words and their stems are rouge_score's. Its table for the first has as many entries as the
    product of both numbers of words.
    """
    words, others = _words(answer), _words(right)
    pairs, other_pairs = list(itertools.pairwise(words)), list(itertools.pairwise(others))
    return {
        "rougeL": _f1(_num_in_order(words, others), words, others),
        "rouge1": _f1((Counter(words) & Counter(others)).total(), words, others),
        "rouge2": _f1((Counter(pairs) & Counter(other_pairs)).total(), pairs, other_pairs),
    }


def _f1(num_common: int, found: Sequence[object], wanted: Sequence[object]) -> float:
    return 2 * num_common / (len(found) + len(wanted)) if num_common else 0.0


def _cut(text: str) -> str:
    return text[:MOST_CHARACTERS]


def _share(score: float) -> float:
    return min(score / 100, 1.0)  # rounding gives 100.00000000000004 for equal texts


def _words(text: str) -> list[str]:
    from rouge_score.tokenize import tokenize

    return tokenize(_cut(text), _stemmer())


@functools.cache
def _stemmer() -> Any:
    from rouge_score import tokenizers

    stem: Callable[[str], str] = tokenizers.porter.PorterStemmer().stem
    return SimpleNamespace(stem=lambda word: stem(word) if len(word) <= _LONGEST_STEMMED else word)


def _num_in_order(words: Sequence[str], others: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Hyyrö, Bit-parallel LCS-length computation revisited (2004): one bit for each of ``words``.
    """
    places: dict[str, int] = defaultdict(int)
    for place, word in enumerate(words):
        places[word] |= 1 << place
    every = (1 << len(words)) - 1
    row = every
    for word in others:
        found = row & places.get(word, 0)
        row = ((row + found) | (row - found)) & every
    return len(words) - row.bit_count()
