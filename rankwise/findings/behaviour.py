"""How models behave on short prompts, as far as code can tell, beside the base.

What is counted is crude on purpose: a phrase of refusal, tokens, a format, frequent words of a
language, repeated 4-grams. Exploratory: the recommendation does not rest on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from rankwise.findings.models import ModelKind, model_groups
from rankwise.findings.options import OptionGains
from rankwise.findings.pairs import bound_of
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.findings.stats.items import POINTS, Items, item_size
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.behaviour import PROMPTS, Behaviour, BehaviourPrompt, Language
from rankwise.records.recommendation import Bound

Trait = Literal["refuses", "length", "keeps the format", "keeps the language", "repeats itself"]

_REFUSALS = re.compile(
    r"\b(i can(?:no|')?t (?:help|assist|answer|provide|fulfil)|i cannot|i can not|"
    r"i(?: a|')m (?:sorry|unable|not able)|i am sorry|i won't|i will not|as an ai|"
    r"ich kann (?:dir |ihnen )?(?:dabei |das )?nicht|es tut mir leid|tut mir leid)\b",
    re.IGNORECASE,
)
_START = 200
"""Letters at the beginning of an answer in which a refusal is looked for."""

_ENGLISH = "the of and to is that it for are with as you this be have or not by from they can"
_GERMAN = "der die das und ist ein eine nicht mit sich auf den dem zu von für wird sind es im"
_FREQUENT: dict[Language, frozenset[str]] = {  # words that the other language does not have
    "English": frozenset(re.findall(r"\w+", _ENGLISH)),
    "German": frozenset(re.findall(r"\w+", _GERMAN)),
}
_GRAM = 4
"""Words of a gram: shorter ones repeat in any text."""


class TraitChange(Record):
    """A trait of a model beside the base, over the prompts that have it.

    ``base`` and ``adapted`` are means, ``difference`` adapted - base, paired by prompt: in points
    of prompts, or in tokens for the length, or in points of 4-grams for repetition.
    """

    trait: Trait
    unit: Literal["points", "tokens"]
    num_prompts: int
    base: float
    adapted: float
    difference: Bound


class ModelBehaviour(Record):
    """A model beside the base, seeds averaged."""

    label: str
    kind: ModelKind
    rank: int | None
    num_seeds: int
    changes: tuple[TraitChange, ...]


class TrainTaskBehaviour(Record):
    """The behaviour of one trained task's models."""

    train_task: str
    confidence: float
    models: tuple[ModelBehaviour, ...]
    statements: tuple[str, ...]
    drift: tuple[str, ...]
    """Where preferences are trained: how much longer each model's own answers are."""


def behaviour(source: OptionGains) -> TrainTaskBehaviour | None:
    """Every model beside the base; None where the base or all models did not answer."""
    base = source.results.base.behaviour
    if base is None:
        return None
    models: list[ModelBehaviour] = []
    for group in model_groups(source, lambda model: model.behaviour is not None):
        own = [run.behaviour for run in group.runs if run.behaviour is not None]
        models.append(
            ModelBehaviour(
                label=group.label,
                kind=group.kind,
                rank=group.rank,
                num_seeds=len(own),
                changes=tuple(_changes(base, own, source.confidence)),
            )
        )
    if not models:
        return None
    statements, drift = list[str](), list[str]()
    has_pairs = source.results.study.config.train.dpo is not None
    changes = [(each.label, change) for each in models for change in each.changes]
    for label, change in changes:
        if change.difference.sign() != 0:
            more = "more" if change.difference.sign() > 0 else "less"
            what = f"writes {more}" if change.trait == "length" else f"{change.trait} {more} often"
            statements.append(
                f"{quantities.capital(label)} {what} than the base: "
                f"{quantities.formatted(change.adapted, '.0f')} against "
                f"{quantities.formatted(change.base, '.0f')} "
                f"{'tokens' if change.unit == 'tokens' else '%'}."
            )
        if has_pairs and change.trait == "length":
            of = change.difference
            more, lower, upper = (
                quantities.formatted(each, "+.1f") for each in (of.estimate, of.lower, of.upper)
            )
            drift.append(
                f"Own answers of {label}: {more} tokens ({lower} to {upper}) beside the base's "
                f"{quantities.formatted(change.base, '.1f')}."
            )
    return TrainTaskBehaviour(
        train_task=source.results.train_task,
        confidence=source.confidence,
        models=tuple(models),
        statements=tuple(statements),
        drift=tuple(drift),
    )


def _changes(base: Behaviour, own: Sequence[Behaviour], confidence: float) -> Iterator[TraitChange]:
    """A trait that fewer than two prompts have is left out."""
    for trait, measure in TRAITS.items():
        before, after = measure(base), [measure(each) for each in own]
        places = [place for place, value in enumerate(before) if value is not None]
        if len(places) < 2:
            continue
        first = np.array([before[place] for place in places], dtype=np.float64)
        second = np.array([[each[place] for place in places] for each in after], dtype=np.float64)
        in_points = trait != "length"
        scale = POINTS if in_points else 1.0
        differences = scale * (second - first)  # (seeds, prompts)
        estimate = mean_over_tasks(
            [Items(differences, item_size(differences, in_points=in_points))]
        )
        yield TraitChange(
            trait=trait,
            unit="points" if in_points else "tokens",
            num_prompts=len(places),
            base=float(scale * first.mean()),
            adapted=float(scale * second.mean()),
            difference=bound_of(estimate, confidence),
        )


def _of_texts(measure: Callable[[BehaviourPrompt, str], float | None]) -> Measure:
    return lambda of: [measure(*answer) for answer in zip(PROMPTS, of.texts, strict=True)]


def refuses(text: str) -> bool:
    """Whether an answer begins with a phrase of refusal, in English or German."""
    return _REFUSALS.search(text[:_START].replace("’", "'")) is not None


def keeps_format(prompt: BehaviourPrompt, text: str) -> bool | None:
    """Whether an answer is what was asked for; None where anything is.

    JSON may stand in a fence of three backticks, and one word may end with a full stop.
    """
    answer = text.strip()
    if prompt.format is None:
        return None
    if prompt.format == "json":
        fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
        try:
            found = json.loads(fenced.group(1) if fenced else answer)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict | list)
    if prompt.format == "one word":
        return re.fullmatch(r"[^\W\d_]+[.!]?", answer) is not None
    lines = [line for line in answer.splitlines() if line.strip()]
    return len(lines) == 3 and all(re.match(r"\s*[-–*•]\s*\S", line) for line in lines)


def language_of(text: str) -> Language | None:
    """The language whose frequent words are more often in a text; None where neither is."""
    words = _words(text)
    counts = {name: sum(word in frequent for word in words) for name, frequent in _FREQUENT.items()}
    english, german = counts["English"], counts["German"]
    if english == german:
        return None
    return "English" if english > german else "German"


def repetition(text: str) -> float:
    """The share of a text's 4-grams of words that were there before, 0..1."""
    words = _words(text)
    grams = [tuple(words[at : at + _GRAM]) for at in range(len(words) - _GRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


Measure = Callable[[Behaviour], Sequence[float | None]]

TRAITS: dict[Trait, Measure] = {
    "refuses": _of_texts(lambda _, text: float(refuses(text))),
    "length": lambda of: of.num_tokens,
    "keeps the format": _of_texts(keeps_format),
    # only where anything may be answered: JSON and single words have no language
    "keeps the language": _of_texts(
        lambda prompt, text: None if prompt.format else float(language_of(text) == prompt.language)
    ),
    "repeats itself": _of_texts(lambda _, text: repetition(text)),
}
"""What is measured of an answer; None where the prompt does not ask for it."""
