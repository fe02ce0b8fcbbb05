"""The bundled tasks: right answers, splits that share nothing, rows that hang on the seed only."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

import rankwise
from rankwise.errors import DataError
from rankwise.tasks.bundled import facts, kinship, prose, syllogism
from rankwise.tasks.bundled.splits import normalised

REPOSITORY = Path(rankwise.__file__).resolve().parent.parent
TASKS = REPOSITORY / "rankwise" / "tasks" / "bundled"
NAMES = sorted(
    path.stem
    for path in TASKS.glob("*.yaml")
    # the others are groups of tasks
    if not path.stem.startswith(("_", "retention_")) and path.stem != "general"
)
CHOICE_NAMES = [name for name in NAMES if name != "pydoc_topics"]
HARD_KINSHIP: dict[str, Any] = {"steps": [2, 3, 4], "inverted": 0.5, "shuffled": True}

DIGEST = """
import hashlib, json
from rankwise.tasks.bundled import facts, kinship, prose, syllogism
splits = {
    "kinship": kinship.load(train=50, test=50, steps=[2, 3], inverted=0.5, shuffled=True),
    "syllogism": syllogism.load(train=50, test=50, near=0.5),
    "prose": prose.load(),
    **{table: facts.load(table=table) for table in facts.TABLES},
}
rows = {name: [list(part) for part in split.values()] for name, split in splits.items()}
print(json.dumps({n: hashlib.sha256(json.dumps(r).encode()).hexdigest() for n, r in rows.items()}))
"""


@cache
def loaded(name: str) -> Any:
    """The lm-eval task of a bundled YAML file."""
    manager = TaskManager(include_path=TASKS, include_defaults=False)
    return manager.load([name])["tasks"][name]


def choice_rows(name: str) -> list[dict[str, Any]]:
    """Train and test rows of a multiple-choice task."""
    task = loaded(name)
    return [*task.training_docs(), *task.test_docs()]


def test_rows_are_the_same_in_processes_that_hash_strings_differently() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert set(json.loads(digests.pop())) == {*CHOICE_NAMES, "prose"}


@pytest.mark.parametrize("module", [kinship, syllogism])
def test_another_seed_gives_other_questions_and_another_train_size_the_same_test(
    module: Any,
) -> None:
    first = module.load(train=20, test=40, seed=1)
    assert list(first["test"]) == list(module.load(train=80, test=40, seed=1)["test"])
    assert list(first["test"]) != list(module.load(train=20, test=40, seed=2)["test"])


@pytest.mark.parametrize("name", CHOICE_NAMES)
def test_no_question_is_in_both_splits_or_twice_in_one(name: str) -> None:
    keys = [normalised(row["question"]) for row in choice_rows(name)]
    assert len(keys) == len(set(keys))


ITEMS = {
    "capitals": "ca8680a480ae53cdb8c3b40dea8c1bc9f64f41f51d3d859113a9f19dc7ee9b55",
    "continents": "2daee005607b0f141694121e5d290734c883ca6f50f3d50e262dbe8d054cc92c",
    "elements": "fba0e4e685c077dd12f3bb7c28a813ed4f7027a9f1292ffe7b5c5988b0e09f0c",
}
"""sha256 of every row: finished studies were scored on these items."""


@pytest.mark.parametrize("table", facts.TABLES)
def test_the_items_are_those_of_finished_studies(table: str) -> None:
    splits = {name: list(part) for name, part in facts.load(table=table).items()}
    found = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()
    assert found == ITEMS[table]


@pytest.mark.parametrize("table", facts.TABLES)
def test_facts_about_one_subject_are_in_one_split(table: str) -> None:
    subjects = {fact.question: fact.subject for fact in facts.TABLES[table]()}
    splits = facts.load(table=table)
    train, test = ({subjects[q] for q in splits[name]["question"]} for name in ("train", "test"))
    assert train
    assert not train & test


@pytest.mark.parametrize("name", CHOICE_NAMES)
def test_labels_are_balanced_in_each_split(name: str) -> None:
    task = loaded(name)
    for docs in (task.training_docs(), task.test_docs()):
        counts = Counter(docs["label"])
        assert len(counts) == len(docs[0]["choices"])
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("name", CHOICE_NAMES)
def test_lm_eval_reads_the_rows_as_they_are_meant(name: str) -> None:
    task = loaded(name)
    assert task.config.metadata["domain"] in {"reasoning", "knowledge"}
    assert task.has_training_docs()
    assert task.has_test_docs()
    assert task.fewshot_docs() is not None
    for row in choice_rows(name):
        choices = task.doc_to_choice(row)
        assert choices == row["choices"]
        assert len({normalised(choice) for choice in choices}) == len(choices)
        assert task.doc_to_target(row) == row["label"]
        assert task.doc_to_text(row).startswith(row["question"])
        assert name == "syllogism" or choices[row["label"]] not in row["question"].split()


# --- kinship: an explicit family, closed under what brothers, sisters and parents mean ---

GENDER = {
    word: index
    for words in (
        ("mother", "father"),
        ("daughter", "son"),
        ("sister", "brother"),
        ("grandmother", "grandfather"),
        ("aunt", "uncle"),
    )
    for index, word in enumerate(words)
}


class Family:
    """People, who is parent of whom and who are siblings, from the sentences of a question."""

    def __init__(self, sentences: list[str]) -> None:
        self.parents: set[tuple[str, str]] = set()
        self.siblings: set[tuple[str, str]] = set()
        self.gender: dict[str, int] = {}
        for sentence in sentences:
            match = re.fullmatch(r"(\w+) is (\w+)'s (\w+)", sentence)
            assert match, sentence
            self.add(*match.groups())
        while self.grow():
            pass

    def add(self, person: str, other: str, word: str) -> None:
        assert self.gender.setdefault(person, GENDER[word]) == GENDER[word]
        if word in ("mother", "father"):
            self.parents.add((person, other))
        elif word in ("daughter", "son"):
            self.parents.add((other, person))
        else:
            self.siblings |= {(person, other), (other, person)}

    def grow(self) -> bool:
        """Add what follows in one step; whether anything did."""
        size = len(self.parents) + len(self.siblings)
        for (a, b), (c, d) in itertools.product(self.siblings.copy(), repeat=2):
            if b == c and a != d:
                self.siblings.add((a, d))
        for (parent, child), (a, b) in itertools.product(self.parents.copy(), self.siblings):
            if child == a:
                self.parents.add((parent, b))
        for (p, child), (q, other) in itertools.product(self.parents, repeat=2):
            if p == q and child != other:
                self.siblings.add((child, other))
        return len(self.parents) + len(self.siblings) > size

    def words(self, person: str, other: str) -> set[str]:
        """Every word for what ``person`` is to ``other``."""
        others_parents = {parent for parent, child in self.parents if child == other}
        holds = {
            ("mother", "father"): (person, other) in self.parents,
            ("daughter", "son"): (other, person) in self.parents,
            ("sister", "brother"): (person, other) in self.siblings,
            ("grandmother", "grandfather"): any(
                (person, p) in self.parents for p in others_parents
            ),
            ("aunt", "uncle"): any((person, p) in self.siblings for p in others_parents),
        }
        return {words[self.gender[person]] for words, true in holds.items() if true}


def check_kinship(row: dict[str, Any]) -> None:
    *sentences, question = re.split(r"(?<=\.) ", row["question"])
    match = re.fullmatch(r"Who is (\w+) to (\w+)\?", question)
    assert match
    family = Family([sentence.rstrip(".") for sentence in sentences])
    assert family.words(*match.groups()) == {row["choices"][row["label"]]}
    names = {name for pair in family.parents | family.siblings for name in pair}
    assert len(names) == len(sentences) + 1


def test_kinship_answers_are_right_in_the_family_graph() -> None:
    for row in choice_rows("kinship"):
        check_kinship(row)
    for row in kinship.load(train=300, test=300, seed=7, **HARD_KINSHIP)["test"]:
        check_kinship(dict(row))


@pytest.mark.parametrize("settings", [{"steps": [1]}, {"steps": []}, {"inverted": 1.5}])
def test_kinship_refuses_settings_without_meaning(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="kinship"):
        kinship.load(**settings)


def test_a_split_larger_than_the_number_of_questions_is_an_error() -> None:
    def draw(_: object, answer: str) -> Any:
        return {"question": answer, "choices": ["a", "b"], "label": 0}

    with pytest.raises(DataError, match="2 different questions"):
        kinship.balanced_splits("tiny", draw, ["a", "b"], train=2, test=2, seed=0)


# --- syllogisms: every world of three terms, by which of the 8 kinds of individual exist ---

KINDS = list(itertools.product([False, True], repeat=3))
WORLDS = [
    [kind for kind, exists in zip(KINDS, members, strict=True) if exists]
    for members in itertools.product([False, True], repeat=len(KINDS))
]


def holds(statement: str, terms: list[str], world: list[tuple[bool, ...]]) -> bool:
    match = re.fullmatch(r"(all|no|some) (\w+) are( not)? (\w+)", statement)
    assert match, statement
    quantifier, subject, negated, predicate = match.groups()
    among = [kind[terms.index(predicate)] for kind in world if kind[terms.index(subject)]]
    if quantifier == "all":
        return all(among)
    if quantifier == "no":
        return not any(among)
    return not all(among) if negated else any(among)


def check_syllogism(row: dict[str, Any]) -> None:
    first, second, conclusion = re.split(r"\. ", row["question"].lower())
    conclusion = conclusion.removeprefix("does it follow that ").removesuffix("?")
    terms = sorted(set(re.findall(r"\w+", f"{first} {second}")) & set(syllogism.TERMS))
    assert len(terms) == 3
    premises_hold = [w for w in WORLDS if holds(first, terms, w) and holds(second, terms, w)]
    everyone = [w for w in premises_hold if all(any(k[i] for k in w) for i in range(3))]
    follows = all(holds(conclusion, terms, world) for world in premises_hold)
    assert follows == all(holds(conclusion, terms, world) for world in everyone)
    assert row["choices"][row["label"]] == ("yes" if follows else "no")


def test_syllogism_answers_are_right_in_every_world() -> None:
    for row in choice_rows("syllogism"):
        check_syllogism(row)
    for row in syllogism.load(train=10, test=300, seed=7, near=1.0)["test"]:
        check_syllogism(dict(row))


def test_the_conclusion_of_a_syllogism_alone_tells_little() -> None:
    rows = syllogism.load(train=10, test=2000, seed=3)["test"]
    counts: Counter[tuple[int, str]] = Counter()
    for row in rows:
        words = row["question"].split(" that ")[1].split()
        counts[row["label"], f"{words[0]} {words[3] == 'not'}"] += 1
    for shape in {shape for _, shape in counts}:
        assert counts[0, shape] == pytest.approx(counts[1, shape], rel=0.3)


# --- facts and prose ---


def test_well_known_facts_have_their_answers() -> None:
    answers = {fact.question: fact.answer for table in facts.TABLES.values() for fact in table()}
    assert answers["The capital of France is"] == "Paris"
    assert answers["Tokyo is the capital of"] == "Japan"
    assert answers["Kenya is a country in"] == "Africa"
    assert answers["The chemical symbol for iron is"] == "Fe"
    assert answers["The atomic number of carbon is"] == "6"


@pytest.mark.parametrize("table", facts.TABLES)
def test_no_wrong_option_is_right(table: str) -> None:
    for fact in facts.TABLES[table]():
        assert fact.answer not in fact.rivals
        assert len(set(fact.rivals)) == len(fact.rivals) >= facts.OPTIONS - 1


def test_facts_refuse_an_unknown_table_and_a_train_split_of_everything() -> None:
    with pytest.raises(DataError, match="capitals, continents, elements"):
        facts.load(table="rivers")
    with pytest.raises(DataError, match="train is 5000"):
        facts.load(table="elements", train=5000)


def test_prose_is_prose() -> None:
    task = loaded("pydoc_topics")
    texts = [task.doc_to_target(row) for row in task.test_docs()]
    assert task.config.output_type == "loglikelihood_rolling"
    assert task.config.metadata["domain"] == "prose"
    assert len(set(texts)) == len(texts) == 48
    assert len(set(task.test_docs()["topic"])) >= 20
    for text in texts:
        assert 90 <= len(text.split()) <= 150
        assert sum(c.isalpha() or c == " " for c in text) >= 0.9 * len(text)
        assert text[0].isupper()
        assert text[-1] == "."
        assert "\n" not in text


def test_prose_refuses_more_passages_than_there_are() -> None:
    with pytest.raises(DataError, match="passages is 100000"):
        prose.load(passages=100_000)
