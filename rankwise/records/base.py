"""What every record is: frozen, without unknown fields, and versioned where it is a file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

# A record of another version is refused: its fields may mean something else.
SchemaVersion = Literal[1]
SCHEMA_VERSION: SchemaVersion = 1


class Record(BaseModel):
    """Base of everything that is written into a study folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VersionedRecord(Record):
    """Base of what is written as a file of its own."""

    schema_version: SchemaVersion = SCHEMA_VERSION
