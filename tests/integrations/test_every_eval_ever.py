"""A study's scores as records of Every Eval Ever."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rankwise.integrations.exported import Exported
from rankwise.integrations.formats import export_study
from rankwise.records.folder import StudyFolder
from tests.planted.folders import write_study
from tests.planted.results import planted_study

# What the schema, version 0.3.0, requires.
REQUIRED = {
    *("schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info"),
    *("eval_library", "evaluation_results"),
}
DATA_STORE = re.compile(
    r"data/[^/]+/[^/]+/[^/]+/[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.json"
)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study(diverged=[(64, 0)]))
    return folder


def content(exported: Exported) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(exported.file.read_text(encoding="utf-8"))
    return read


def test_every_model_has_its_scores(folder: StudyFolder) -> None:
    exported = export_study(folder, "every-eval-ever")
    ranks = [content(each)["model_info"]["additional_details"].get("rank") for each in exported]
    assert ranks == [None, "4", "16", None]  # the base, two ranks, full; rank 64 diverged
    first = content(exported[2])
    by_task = {each["evaluation_name"]: each for each in first["evaluation_results"]}
    kinship = by_task["kinship"]
    assert kinship["score_details"]["score"] == 0.8  # planted
    assert kinship["score_details"]["uncertainty"]["num_samples"] == 300
    # 240 of 300 right: sqrt(0.8 * 0.2 / 299)
    stderr = kinship["score_details"]["uncertainty"]["standard_error"]["value"]
    assert stderr == pytest.approx(0.0231327, abs=1e-6)
    assert kinship["metric_config"]["lower_is_better"] is False
    prose = by_task["pydoc_topics"]
    assert prose["score_details"]["score"] == pytest.approx(2.54)
    assert prose["metric_config"]["lower_is_better"] is True
    assert prose["metric_config"]["max_score"] == "Infinity"
    assert first["source_metadata"]["evaluator_relationship"] == "first_party"
    assert first["retrieved_timestamp"] == "1767225600.0"  # 2026-01-01


def test_the_files_lie_as_in_the_data_store(folder: StudyFolder) -> None:
    exported = export_study(folder, "every-eval-ever")
    root = folder.root / "export" / "every-eval-ever"
    names = [each.file.relative_to(root).as_posix() for each in exported]
    assert all(DATA_STORE.fullmatch(name) for name in names), names
    assert len(set(names)) == len(names)
    before = [each.file.read_bytes() for each in exported]
    assert [each.file.read_bytes() for each in export_study(folder, "every-eval-ever")] == before


def test_a_record_has_what_the_schema_requires(folder: StudyFolder) -> None:
    for each in export_study(folder, "every-eval-ever"):
        log = content(each)
        assert set(log) >= REQUIRED
        details = log["model_info"]["additional_details"]
        assert (details["deployment_type"], details["model_availability"]) == (
            "self_deployed",
            "unknown",
        )
        assert all(isinstance(value, str) for value in details.values())


def test_their_schema_accepts_it(folder: StudyFolder) -> None:
    schema = pytest.importorskip("every_eval_ever.schema")
    jsonschema = pytest.importorskip("jsonschema")
    for each in export_study(folder, "every-eval-ever"):
        jsonschema.validate(content(each), schema.schema_json())
