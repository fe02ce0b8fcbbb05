"""What is written down of a stage that failed."""

from __future__ import annotations

from rankwise.records.study import SCHEMA_VERSION, Record, SchemaVersion


class StageFailure(Record):
    """``failures/<stage>.json``: why a stage of a study could not be done; removed once it is."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    stage: str
    """The stage's id."""
    kind: str
    """What the stage does: training, scoring, divergence, heads or spectra."""
    name: str
    """The scored task, or the kind."""
    model: str
    """What the stage works on, as it is shown: "base", a run's name, or a pass."""
    runs: tuple[str, ...]
    """The runs whose records are missing; empty for the base."""
    error: str
    """The kind of error, such as OutOfMemoryError."""
    message: str
    """What went wrong, and what to do about it."""
    failed_at: str
    """When: an ISO 8601 date and time with its zone."""

    @property
    def what(self) -> str:
        """What failed, in words: scoring arc_easy, or training."""
        return f"scoring {self.name}" if self.kind == "scoring" else self.kind
