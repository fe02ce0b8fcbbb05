"""The same study in two fresh processes leaves the same bytes, but for clocks and memory."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwise.records.names import MANIFEST

CODE = """
import sys
from pathlib import Path
from rankwise.report.page import write_report
from tests.support.killed_studies import finish
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study

root = Path(sys.argv[2])
outcome = finish(plan_study(load_config(Path(sys.argv[1]))), root)
parts = outcome.results, outcome.recommendation, outcome.findings
write_report(root, *parts, study=Path("study"))
"""

VARYING = {
    "train_seconds",
    "score_seconds",
    "analysis_seconds",
    "peak_memory_bytes",
    "estimated_memory_bytes",  # has the memory of the process in it
    "created_at",  # of the provenance
    "checksum",  # of a record that has one of these
}
"""All entries of records that differ between two runs of one study."""

NOT_RECORDS = {".checked.json", ".finished", MANIFEST}
"""Inodes and times of files, and hashes of pages that have times in them."""

LOCAL_TIMES = re.compile(
    r"\b\d+(\.\d+)?\s(s|min|h|MiB|GiB)\b"
    r"|\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?"
    r"|\b\d+(\.\d+)? ×"  # times of training as shares of the choice's
)
"""How the page says them."""


@pytest.fixture(scope="module")
def two_folders(
    tmp_path_factory: pytest.TempPathFactory, smallest_study: Path
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("twice")
    folders = root / "one" / "study", root / "two" / "study"
    for folder, seed in zip(folders, ("1", "4242"), strict=True):
        subprocess.run(
            [sys.executable, "-c", CODE, str(smallest_study), str(folder)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
        )
    return folders


def names(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }


def steady(content: Any) -> Any:
    """A record without the entries that vary."""
    if isinstance(content, dict):
        return {name: steady(value) for name, value in content.items() if name not in VARYING}
    return [steady(value) for value in content] if isinstance(content, list) else content


def varying(content: Any) -> set[str]:
    """Those that it has."""
    if isinstance(content, dict):
        inside = set[str]().union(*map(varying, content.values()))
        return inside | (VARYING & content.keys())
    return set[str]().union(*map(varying, content)) if isinstance(content, list) else set()


def test_all_files_are_the_same_byte_for_byte_but_for_clocks_and_memory(
    two_folders: tuple[Path, Path],
) -> None:
    one, two = map(names, two_folders)
    assert one.keys() == two.keys()
    other = [name for name in sorted(one) if one[name].read_bytes() != two[name].read_bytes()]
    print("\n".join(other))
    for name in other:
        if name in NOT_RECORDS:
            continue
        before, after = one[name].read_text(), two[name].read_text()
        if name.endswith(".json"):
            assert list(json.loads(before)) == list(json.loads(after)), name
            assert steady(json.loads(before)) == steady(json.loads(after)), name
            assert varying(json.loads(before)), name
        elif name.endswith(".csv"):
            lines = [list(csv.DictReader(text.splitlines())) for text in (before, after)]
            assert steady(lines[0]) == steady(lines[1]), name
            assert varying(lines[0]), name
        else:
            assert name == "report.html"
            assert LOCAL_TIMES.sub("#", before) == LOCAL_TIMES.sub("#", after), name
    weights = [name for name in one if name.endswith((".safetensors", ".jsonl"))]
    assert weights
    assert not {*weights} & {*other}
