"""Records with what a test puts in, sealed as if they had always been so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankwise.records.files import digest_of, read_record, sealed, write_record
from rankwise.records.folder import StudyFolder
from rankwise.records.study import RunRecord


def content_of(path: Path) -> dict[str, Any]:
    """A record's JSON without its checksum."""
    content = json.loads(path.read_bytes())
    content.pop("checksum", None)
    return content


def seal(path: Path, content: Any) -> None:
    """Write the JSON of a record with its checksum, whatever it says."""
    path.write_text(sealed(json.dumps(content, indent=2)))


def change(path: Path, **fields: Any) -> None:
    """Write a record again with some fields changed, as if it had always been so."""
    seal(path, content_of(path) | fields)


def weights_as_they_are(folder: StudyFolder, run: str) -> None:
    """Make the record of a run agree with its weights, whatever became of them."""
    path = folder.run_file(run)
    record = read_record(path, RunRecord)
    write_record(path, record.model_copy(update={"files": {}}))


def losses_as_they_are(folder: StudyFolder, run: str) -> None:
    """Make the record of a run agree with its losses, whatever became of them."""
    change(folder.run_file(run), metrics=digest_of(folder.metrics_file(run)).model_dump())


def items_as_they_are(folder: StudyFolder, model: str, task: str) -> None:
    """Make the record of a scoring agree with its items, whatever became of them."""
    digest = digest_of(folder.samples_file(model, task))
    change(folder.evaluation_file(model, task), samples=digest.model_dump())
