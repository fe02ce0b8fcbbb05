"""Syllogisms: two premises and a conclusion that follows from them or does not.

"All singers are bakers. No bakers are pilots. Does it follow that no singers are pilots?" -> yes

Of the 256 classical forms (a mood, such as EAE, in one of four figures) 15 are valid whatever
exists. The 9 that are valid only if each term is known to have members are left out, so that no
answer hangs on how "all" is read.
"""

from __future__ import annotations

import itertools
import random
from functools import cache, partial
from typing import NamedTuple

from datasets import DatasetDict

from rankwise.errors import DataError
from rankwise.tasks.bundled.splits import ChoiceRow, balanced_splits

# quantifier -> how a statement about two terms reads.
_STATEMENTS = {
    "A": "all {} are {}",
    "E": "no {} are {}",
    "I": "some {} are {}",
    "O": "some {} are not {}",
}

# figure -> the terms of the first and of the second premise: subject, middle, predicate.
_FIGURES = {1: ("MP", "SM"), 2: ("PM", "SM"), 3: ("MP", "MS"), 4: ("PM", "MS")}


class SyllogismForm(NamedTuple):
    """One of the 256 forms: the quantifiers of both premises and the conclusion, and the figure."""

    mood: str
    figure: int


def _forms(text: str) -> tuple[SyllogismForm, ...]:
    return tuple(SyllogismForm(word[:3], int(word[3])) for word in text.split())


VALID = _forms("AAA1 EAE1 AII1 EIO1 EAE2 AEE2 EIO2 AOO2 IAI3 AII3 OAO3 EIO3 AEE4 IAI4 EIO4")
VALID_IF_NONEMPTY = _forms("AAI1 EAO1 AEO2 EAO2 AAI3 EAO3 AAI4 AEO4 EAO4")

_TERMS = """
    artists authors bakers bankers builders clerks coaches cooks dancers doctors drivers editors
    engineers farmers fishermen gardeners hunters judges lawyers managers miners musicians nurses
    officers painters pilots players poets readers runners sailors scholars scientists singers
    soldiers students swimmers teachers traders writers
"""
TERMS = _TERMS.split()
CHOICES = ["yes", "no"]


@cache
def _invalid(conclusion: str, near: bool) -> tuple[SyllogismForm, ...]:
    """The invalid forms with this conclusion; near: whose mood is valid in another figure."""
    valid_moods = {form.mood for form in VALID}
    forms = (
        SyllogismForm("".join(mood) + conclusion, figure)
        for mood in itertools.product(_STATEMENTS, repeat=2)
        for figure in _FIGURES
    )
    return tuple(
        form
        for form in forms
        if form not in VALID + VALID_IF_NONEMPTY and (form.mood in valid_moods or not near)
    )


def _draw(rng: random.Random, answer: str, near: float) -> ChoiceRow:
    """One question with this answer, as :func:`load` describes."""
    form = rng.choice(VALID)
    if answer == "no":
        forms = _invalid(form.mood[2], rng.random() < near)
        form = rng.choice(forms or _invalid(form.mood[2], False))
    terms = dict(zip("SMP", rng.sample(TERMS, 3), strict=True))
    premises = [
        _STATEMENTS[quantifier].format(terms[pair[0]], terms[pair[1]])
        for quantifier, pair in zip(form.mood, _FIGURES[form.figure], strict=False)
    ]
    if rng.random() < 0.5:
        premises.reverse()
    stated = " ".join(f"{premise.capitalize()}." for premise in premises)
    conclusion = _STATEMENTS[form.mood[2]].format(terms["S"], terms["P"])
    return ChoiceRow(
        question=f"{stated} Does it follow that {conclusion}?",
        choices=CHOICES,
        label=CHOICES.index(answer),
    )


def load(
    *, train: int = 600, test: int = 300, seed: int = 0, near: float = 0.0, **_: object
) -> DatasetDict:
    """The ``train`` and ``test`` splits: question, choices (yes, no), label.

    Valid and invalid questions share one distribution of conclusions, so that the conclusion
    alone tells nothing.

    Args:
        train: questions to train on.
        test: questions to score; no text is in both splits, or twice in one.
        seed: chooses the questions.
        near: share of the invalid questions whose mood is valid in another figure: only the order
            of the terms makes them invalid. More is harder.

    Raises:
        DataError: ``near`` is not a share.
    """
    if not 0 <= near <= 1:
        raise DataError(f"syllogism: near is {near}. Give a share from 0 to 1.")
    draw = partial(_draw, near=near)
    return balanced_splits("syllogism", draw, CHOICES, train=train, test=test, seed=seed)
