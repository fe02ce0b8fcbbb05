"""What repaired adapters scored, and how far from the base they are, item by item."""

from __future__ import annotations

from rankwise.records.base import Record
from rankwise.records.repairs import Repair
from rankwise.records.results import TaskItems
from rankwise.records.study import Provenance, StageRecord


class RepairedItems(Record):
    """What a repaired adapter scored on one task, item by item."""

    repair: Repair
    items: TaskItems


class RepairScores(StageRecord):
    """``repair/scores/<task>.json``: the base and all repairs of one adapter on one task."""

    model: str
    task: str
    base: TaskItems
    repaired: tuple[RepairedItems, ...]
    """``AS_IT_IS`` first."""
    score_seconds: float
    provenance: Provenance


class RepairedDivergence(Record):
    """How far from the base a repaired adapter is."""

    repair: Repair
    kl_nats: tuple[float, ...]
    """KL(base || repaired) of each item, a mean over its tokens and the whole vocabulary."""


class RepairDivergences(StageRecord):
    """``repair/divergences.json``: all repairs of one adapter and the base, on right answers."""

    model: str
    tasks: tuple[str, ...]
    """The task of each item."""
    doc_ids: tuple[int, ...]
    item_tokens: tuple[int, ...]
    """Tokens of each right answer that are compared."""
    repaired: tuple[RepairedDivergence, ...]
    """As in ``RepairScores``."""
    score_seconds: float
