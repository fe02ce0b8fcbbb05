"""Kinship: a few sentences about a family, and the question who one person is to another.

"Mary is Paul's mother. Paul is Jane's brother. Who is Mary to Jane?" -> mother

Every answer follows from the sentences alone, if brothers and sisters share both parents and the
named people are all different. The gender of the person asked about is said by that person's own
relation word, never by the name only.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import cache, partial

from datasets import DatasetDict

from rankwise.errors import DataError
from rankwise.tasks.bundled.splits import ChoiceRow, balanced_splits

# kind of relation -> the word for a woman, the word for a man.
WORDS = {
    "parent": ("mother", "father"),
    "child": ("daughter", "son"),
    "sibling": ("sister", "brother"),
    "grandparent": ("grandmother", "grandfather"),
    "parent's sibling": ("aunt", "uncle"),
}
ANSWERS = [word for words in WORDS.values() for word in words]

# Kinds that a sentence can state, and how each reads from the other person's side.
_INVERSE = {"parent": "child", "child": "parent", "sibling": "sibling"}

# X is the first to M, and M is the second to Y: what X is to Y. What is not here is either not
# certain (a parent of Y's child may be Y) or has no word in WORDS.
_COMPOSED = {
    ("parent", "parent"): "grandparent",
    ("parent", "sibling"): "parent",
    ("child", "parent"): "sibling",
    ("sibling", "parent"): "parent's sibling",
    ("sibling", "child"): "child",
    ("sibling", "sibling"): "sibling",
    ("grandparent", "sibling"): "grandparent",
    ("parent's sibling", "sibling"): "parent's sibling",
}

_WOMEN = """
    Anna Ann Mary Alice Sarah Rose Jane Maria Lily Emily Elizabeth Marie Emma Ruth Clara Laura
    Julia Helen Grace Lucy Kate Eva Sofia Nora Amy Ella Diana Linda Susan Karen Nancy Lisa
"""
_MEN = """
    John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Mark
    Paul Andrew George Edward Jacob Stephen Samuel Frank Jack Henry Adam Peter Carl Arthur Louis
    Ben Tom Luke Simon
"""
# A person's gender is the index of its names here, and of its words in WORDS.
NAMES = (_WOMEN.split(), _MEN.split())


@cache
def chains(steps: int) -> dict[str, list[tuple[str, ...]]]:
    """Kind of relation -> every chain of ``steps`` stated relations that amounts to it."""
    found: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in WORDS}
    for chain in itertools.product(_INVERSE, repeat=steps):
        kind: str | None = chain[0]
        for step in chain[1:]:
            kind = _COMPOSED.get((kind, step)) if kind else None
        if kind:
            found[kind].append(chain)
    return found


def _draw(
    rng: random.Random, answer: str, steps: Sequence[int], inverted: float, shuffled: bool
) -> ChoiceRow:
    """One question with this answer, as :func:`load` describes."""
    kind = next(kind for kind, words in WORDS.items() if answer in words)
    chain = rng.choice(chains(rng.choice(steps))[kind])
    genders = [WORDS[kind].index(answer), *(rng.randrange(2) for _ in chain)]
    pools = [rng.sample(names, len(genders)) for names in NAMES]
    people = [(pools[gender][index], gender) for index, gender in enumerate(genders)]
    sentences: list[str] = []
    for index, (step, first, second) in enumerate(zip(chain, people, people[1:], strict=False)):
        relation = first[0], second[0], WORDS[step][first[1]]
        if index > 0 and rng.random() < inverted:  # from the other side
            relation = second[0], first[0], WORDS[_INVERSE[step]][second[1]]
        sentences.append("{} is {}'s {}.".format(*relation))
    if shuffled:
        rng.shuffle(sentences)
    question = f"Who is {people[0][0]} to {people[-1][0]}?"
    return ChoiceRow(
        question=" ".join([*sentences, question]), choices=ANSWERS, label=ANSWERS.index(answer)
    )


def load(
    *,
    train: int = 600,
    test: int = 300,
    seed: int = 0,
    steps: Sequence[int] = (2,),
    inverted: float = 0.0,
    shuffled: bool = False,
    **_: object,
) -> DatasetDict:
    """The ``train`` and ``test`` splits: question, choices (all ten answers), label.

    Args:
        train: questions to train on.
        test: questions to score; no text is in both splits, or twice in one.
        seed: chooses the questions.
        steps: stated relations between the two people; each question draws one of these numbers.
        inverted: share of the relations after the first that are told from the other side ("Jane
            is Paul's sister" for "Paul is Jane's brother").
        shuffled: whether the sentences come in random order, not from one person to the next.

    Raises:
        DataError: ``steps`` has a number below 2 or above 4, or ``inverted`` is not a share.
    """
    if not steps or not all(2 <= number <= 4 for number in steps):
        raise DataError(f"kinship: steps is {list(steps)}. Give numbers from 2 to 4.")
    if not 0 <= inverted <= 1:
        raise DataError(f"kinship: inverted is {inverted}. Give a share from 0 to 1.")
    draw = partial(_draw, steps=steps, inverted=inverted, shuffled=shuffled)
    return balanced_splits("kinship", draw, ANSWERS, train=train, test=test, seed=seed)
