"""How far a worker is with what it does of a study."""

from __future__ import annotations

from pydantic import Field

from rankwise.records.base import VersionedRecord


class StudyProgress(VersionedRecord):
    """``.workers/…/<worker>.progress``: written every few seconds while a worker has a unit."""

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
    """Stage that is left, by its id -> about how long it takes; empty while it is not known."""
