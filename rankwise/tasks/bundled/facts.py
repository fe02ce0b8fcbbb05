"""Factual recall as multiple choice: capitals, continents, chemical elements.

Countries and elements are tables beside this module, whose heads name source, licence and date, so
the items never change with a package. The tasks are made to show forgetting, so they ask what a
small model mostly knows. An answer is scored as the continuation of a short unfinished sentence;
wrong options are drawn from similar things.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import NamedTuple

from datasets import DatasetDict

from rankwise.errors import DataError
from rankwise.tasks.bundled.splits import ChoiceRow, choice_dataset

OPTIONS = 4

# The United Nations' region -> the word for it. Oceania is left out: it
# has too few countries to be a right answer as often as the others.
CONTINENTS = {"Africa": "Africa", "Americas": "America", "Asia": "Asia", "Europe": "Europe"}


class Fact(NamedTuple):
    """An unfinished sentence, its end, and what else could be taken for its end.

    ``subject`` is what the fact is about: all facts of one subject go to the same split.
    """

    subject: str
    question: str
    answer: str
    rivals: tuple[str, ...]


class Country(NamedTuple):
    """A country as its facts are told; ``region`` is the United Nations' region."""

    name: str
    capital: str
    region: str


def _table(name: str) -> list[list[str]]:
    """The rows of a CSV file beside this module, without comments and the head."""
    file = resources.files("rankwise.tasks.bundled") / name
    lines = file.read_text(encoding="utf-8").splitlines()
    return list(csv.reader(line for line in lines if not line.startswith("#")))[1:]


def _countries() -> list[Country]:
    return [Country(*row) for row in _table("countries.csv")]


def _capitals() -> Iterator[Fact]:
    """Each country's capital, and each capital's country; rivals are of the same region."""
    countries = _countries()
    for name, capital, region in countries:
        near = [other for other in countries if other.region == region and other.name != name]
        names = tuple(other.name for other in near)
        capitals = tuple(other.capital for other in near)
        yield Fact(name, f"The capital of {name} is", capital, capitals)
        yield Fact(name, f"{capital} is the capital of", name, names)


def _continents() -> Iterator[Fact]:
    """The continent of each country and of each capital, unless the country's name tells it."""
    for name, capital, region in _countries():
        answer = CONTINENTS.get(region)
        if answer and answer not in name:
            rivals = tuple(word for word in CONTINENTS.values() if word != answer)
            yield Fact(name, f"{name} is a country in", answer, rivals)
            yield Fact(name, f"{capital} is a city in", answer, rivals)


def _elements() -> Iterator[Fact]:
    """The symbol and the atomic number of each element.

    Rival symbols begin with the same letter where there are enough of them; rival numbers are the
    nearest ones.
    """
    elements = [(int(number), symbol, name) for number, symbol, name in _table("elements.csv")]
    for number, symbol, name in elements:
        others = [other for other in elements if other[0] != number]
        alike = [other[1] for other in others if other[1][0] == symbol[0]]
        symbols = alike if len(alike) >= OPTIONS - 1 else [other[1] for other in others]
        near = sorted(others, key=lambda other: abs(other[0] - number))[: 2 * OPTIONS]
        numbers = tuple(str(other[0]) for other in near)
        yield Fact(name, f"The chemical symbol for {name} is", symbol, tuple(symbols))
        yield Fact(name, f"The atomic number of {name} is", str(number), numbers)


TABLES: dict[str, Callable[[], Iterator[Fact]]] = {
    "capitals": _capitals,
    "continents": _continents,
    "elements": _elements,
}


def _rows(facts: Sequence[Fact], rng: random.Random) -> list[ChoiceRow]:
    """One row of four options for each fact; each label equally often, to within one."""
    labels = [index % OPTIONS for index in range(len(facts))]
    rng.shuffle(labels)
    rows: list[ChoiceRow] = []
    for fact, label in zip(facts, labels, strict=True):
        choices = rng.sample(fact.rivals, OPTIONS - 1)
        choices.insert(label, fact.answer)
        rows.append(ChoiceRow(question=fact.question, choices=choices, label=label))
    return rows


def load(*, table: str, train: int = 40, seed: int = 0, **_: object) -> DatasetDict:
    """The ``train`` and ``test`` splits of one table: question, choices (four), label.

    Args:
        table: a key of :data:`TABLES`.
        train: facts set apart for few-shot prompts, rounded up to whole subjects; all others are
            the test split. No subject is in both.
        seed: chooses the split, the wrong options and their order.

    Raises:
        DataError: there is no such table, or it has too few facts for this train split.
    """
    if table not in TABLES:
        raise DataError(f"facts: {table!r} is not a table. Use one of {', '.join(TABLES)}.")
    facts = list(TABLES[table]())
    if not 0 < train < len(facts) - 1:
        raise DataError(f"{table}: train is {train}. Give a number from 1 to {len(facts) - 2}.")
    rng = random.Random(f"{table}/{seed}")
    subjects = list(dict.fromkeys(fact.subject for fact in facts))
    rng.shuffle(subjects)
    by_subject = {subject: [f for f in facts if f.subject == subject] for subject in subjects}
    ordered = [fact for subject in subjects for fact in by_subject[subject]]
    while ordered[train].subject == ordered[train - 1].subject:
        train += 1
    splits = {"train": ordered[:train], "test": ordered[train:]}
    return DatasetDict({name: choice_dataset(_rows(part, rng)) for name, part in splits.items()})
