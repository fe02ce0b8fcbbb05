"""How much longer a model's own answers to short prompts are than the base's.

Exploratory: the recommendation does not rest on it.
"""

from __future__ import annotations

import numpy as np

from rankwise.findings.models import ModelKind, model_groups
from rankwise.findings.options import OptionGains
from rankwise.findings.pairs import bound_of
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.findings.stats.items import Items, item_size
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.recommendation import Bound


class ModelLengths(Record):
    """Mean tokens of a model's answers and of the base's, seeds averaged.

    ``difference`` is adapted - base, paired by prompt.
    """

    label: str
    kind: ModelKind
    rank: int | None
    num_seeds: int
    num_prompts: int
    base: float
    adapted: float
    difference: Bound


class TrainTaskLengths(Record):
    """How long the answers of one trained task's models are."""

    train_task: str
    confidence: float
    models: tuple[ModelLengths, ...]
    statements: tuple[str, ...]
    """Of every model, where preferences are trained: DPO often makes answers longer."""


def answer_lengths(source: OptionGains) -> TrainTaskLengths | None:
    """Every model beside the base; None where the base or all models did not answer."""
    base = source.results.base.answer_lengths
    if base is None:
        return None
    models: list[ModelLengths] = []
    first = np.array(base.num_tokens, dtype=np.float64)  # (prompts,)
    for group in model_groups(source, lambda model: model.answer_lengths is not None):
        own = [run.answer_lengths for run in group.runs if run.answer_lengths is not None]
        second = np.array([each.num_tokens for each in own], dtype=np.float64)  # (seeds, prompts)
        differences = second - first
        items = Items(differences, item_size(differences, in_points=False))
        models.append(
            ModelLengths(
                label=group.label,
                kind=group.kind,
                rank=group.rank,
                num_seeds=len(own),
                num_prompts=len(first),
                base=float(first.mean()),
                adapted=float(second.mean()),
                difference=bound_of(mean_over_tasks([items]), source.confidence),
            )
        )
    if not models:
        return None
    is_dpo = source.results.study.config.train.dpo is not None
    return TrainTaskLengths(
        train_task=source.results.train_task,
        confidence=source.confidence,
        models=tuple(models),
        statements=tuple(map(_statement, models)) if is_dpo else (),
    )


def _statement(model: ModelLengths) -> str:
    of = model.difference
    more, lower, upper = (
        quantities.formatted(each, "+.1f") for each in (of.estimate, of.lower, of.upper)
    )
    return (
        f"Own answers of {model.label}: {more} tokens ({lower} to {upper}) beside the base's "
        f"{quantities.formatted(model.base, '.1f')}."
    )
