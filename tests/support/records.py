"""Records as an early version wrote them, without checksums, with what a test puts in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankwise.records.files import read_record, write_record
from rankwise.records.folder import StudyFolder
from rankwise.records.study import RunRecord


def content_of(path: Path) -> dict[str, Any]:
    """A record's JSON without its checksum."""
    content = json.loads(path.read_bytes())
    content.pop("checksum", None)
    return content


def change(path: Path, **fields: Any) -> None:
    """Write a record again with some fields changed, as if it had always been so."""
    path.write_text(json.dumps(content_of(path) | fields))


def weights_as_they_are(folder: StudyFolder, run: str) -> None:
    """Make the record of a run agree with its weights, whatever became of them."""
    path = folder.run_file(run)
    record = read_record(path, RunRecord)
    write_record(path, record.model_copy(update={"files": {}}))
