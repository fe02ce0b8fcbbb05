"""How long a model's own answers to short prompts are."""

from __future__ import annotations

from rankwise.records.study import StageRecord


class AnswerLengths(StageRecord):
    """``answer_lengths.json``: what a model writes after each of ``prompts``, greedily.

    ``num_tokens`` are those of each text; ``is_finished`` says which of them ended by themselves
    within ``tasks.short_prompts.MOST_NEW_TOKENS``.
    """

    model: str
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    num_tokens: tuple[int, ...]
    is_finished: tuple[bool, ...]
    score_seconds: float
