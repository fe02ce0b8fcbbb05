"""What repaired adapters scored, item by item."""

from __future__ import annotations

from rankwise.records.base import Record
from rankwise.records.repairs import Repair
from rankwise.records.results import TaskItems
from rankwise.records.study import Provenance, StageRecord


class RepairedItems(Record):
    """What a repaired adapter scored on one task, item by item."""

    repair: Repair
    items: TaskItems


class RepairScores(StageRecord, has_texts=True):
    """``repair/scores/<task>.json``: the base and all repairs of one adapter on one task."""

    model: str
    task: str
    base: TaskItems
    repaired: tuple[RepairedItems, ...]
    """``AS_IT_IS`` first."""
    score_seconds: float
    provenance: Provenance
