"""Records with what a test puts in, under the checksum that they would have."""

from __future__ import annotations

import hashlib
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


def signed(text: str) -> str:
    """A record's text with a checksum; what is no JSON object of some lines stays as it is."""
    if not text.endswith("\n}"):
        return text
    checksum = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return text[:-2] + f',\n  "checksum": "{checksum}"\n}}\n'


def write_content(path: Path, content: dict[str, Any]) -> None:
    """Write a record's JSON with a checksum."""
    path.write_text(signed(json.dumps(content, indent=2)))


def change(path: Path, **fields: Any) -> None:
    """Write a record again with some fields changed, as if it had always been so."""
    write_content(path, content_of(path) | fields)


def weights_as_they_are(folder: StudyFolder, run: str) -> None:
    """Make the record of a run agree with its weights, whatever became of them."""
    path = folder.run_file(run)
    record = read_record(path, RunRecord)
    write_record(path, record.model_copy(update={"files": {}}))
