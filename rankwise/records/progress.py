"""How far the process that runs a study is."""

from __future__ import annotations

from pydantic import Field

from rankwise.records.base import Record, VersionedRecord


class StageProgress(Record):
    """A stage that is being done."""

    stage: str
    """Its id."""
    share_done: float
    """Of its work."""
    tokens_per_second: float | None
    """That it reads; None where it reads none, or at its beginning."""
    peak_memory_bytes: int
    """Of the process that does it, or of tensors on its card."""


class StudyProgress(VersionedRecord):
    """``.progress.json``: written every few seconds while a study runs."""

    told_at: str
    """When it was written: an ISO 8601 date and time with its zone."""
    stages: tuple[StageProgress, ...]
    """Those that are being done: several where a cluster does them."""
    seconds_left: dict[str, float] = Field(default_factory=dict)
    """Stage that is left, by its id -> about how long it takes; empty while it is not known."""
