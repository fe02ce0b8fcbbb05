"""Where a study is that is being run."""

from __future__ import annotations

from pydantic import Field

from rankwise.records.base import VersionedRecord


class StudyProgress(VersionedRecord):
    """``.progress.json``: written every few seconds while a study runs, and removed at its end."""

    told_at: str
    """When it was written: an ISO 8601 date and time with its zone."""
    stage: str
    """The id of the stage that is being done."""
    share_done: float
    """Of its work."""
    tokens_per_second: float | None
    """That it reads; None where it reads none, or at its beginning."""
    peak_memory_bytes: int
    """Of the process, or of tensors on the card."""
    seconds_left: dict[str, float] = Field(default_factory=dict)
    """Stage that is left, by its id -> about how long it takes; empty before anything is known."""
