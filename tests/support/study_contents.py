"""What of a study folder is the same however often the study was interrupted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rankwise.records.names import MANIFEST

VARYING = (
    *("provenance", "train_seconds", "score_seconds", "analysis_seconds", "peak_memory_bytes"),
    "seconds",
)


def rounded(content: Any) -> Any:
    """The same with nine digits of every number."""
    if isinstance(content, float):
        return float(f"{content:.8e}")
    if isinstance(content, dict):
        return {name: rounded(value) for name, value in content.items()}
    return [rounded(value) for value in content] if isinstance(content, list) else content


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    """What findings say of models, without how long they were trained."""
    record.pop("train_seconds", None)
    return record


def comparable(folder: Path, *, exact: bool = False) -> dict[str, Any]:
    """All records and weights of a study, without clocks, memory and provenance.

    What was set aside is left out.

    Args:
        folder: of the study.
        exact: every bit of every number counts; otherwise nine digits of an analysis of weights.
    """
    content: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in (".checked.json", MANIFEST) or name.startswith("quarantine/"):
            continue
        if path.suffix == ".safetensors":
            content[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".json" and "adapter" not in name and "checkpoint" not in name:
            record = json.loads(path.read_text(), object_hook=_timeless)
            record.pop("checksum", None)
            for varying in VARYING:
                record.pop(varying, None)
            for planned in (
                *record.get("models", ()),
                *record.get("passes", ()),
                record.get("planned"),
            ):
                if planned:  # an estimate has the process in it
                    planned.pop("estimated_memory_bytes", None)
            if (
                path.name == "spectra.json" and not exact
            ):  # decompositions round by where memory happens to lie
                record = rounded(record)
            if not exact:
                record["weights"] = rounded(record.get("weights"))
                record["gauges"] = rounded(record.get("gauges"))
            content[name] = record
        elif path.suffix == ".jsonl":
            content[name] = [json.loads(line) for line in path.read_text().splitlines()]
    return content
