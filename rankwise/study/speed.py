"""How fast this machine reads a model, measured in seconds: the time of a study goes by it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import torch

from rankwise.engine.models.base import BaseModel, fetch_weights, load_frozen
from rankwise.engine.models.devices import ResolvedPrecision, give_back_memory
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.tasks.questions import Continuation

_CONTEXT, _SCORED = 48, 16
"""Tokens of one text: about those of a short question and its answer."""

_FEW, _MANY = 2, 32
"""Texts; many are read only where few took less than ``_LONG`` seconds."""

_LONG = 2.0


def scoring_rate(
    base: BaseModel, tokenizer: Any, precision: ResolvedPrecision, device: torch.device
) -> float:
    """Tokens of random texts that the base scores in a second, alone, as a study scores.

    Args:
        base: its weights are fetched if they are not here.
        tokenizer: its own.
        precision: of its weights and activations.
        device: that scores.

    Raises:
        ModelError: the weights cannot be had, or the model cannot be scored.
    """
    scorer = ResidentScorer(load_frozen(fetch_weights(base), precision, device), tokenizer)
    try:
        scorer.log_likelihoods([None], _texts(_FEW, len(tokenizer)))  # kernels are made
        seconds, number = _seconds(scorer, _texts(_FEW, len(tokenizer))), _FEW
        if seconds < _LONG:
            number = _MANY
            seconds = _seconds(scorer, _texts(_MANY, len(tokenizer)))
    finally:
        del scorer
        give_back_memory(device)
    return number * (_CONTEXT + _SCORED) / seconds


def _seconds(scorer: ResidentScorer, texts: Sequence[Continuation]) -> float:
    """Of one call, to its answers on the host."""
    started = time.perf_counter()
    scorer.log_likelihoods([None], texts)
    return time.perf_counter() - started


def _texts(number: int, vocabulary_size: int) -> list[Continuation]:
    """Texts that begin differently, so that all their tokens are read."""
    rng = random.Random(0)
    rows = [rng.choices(range(vocabulary_size), k=_CONTEXT + _SCORED) for _ in range(number)]
    return [Continuation(tuple(row[:_CONTEXT]), tuple(row[_CONTEXT:])) for row in rows]
