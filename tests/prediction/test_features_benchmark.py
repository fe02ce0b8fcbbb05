"""The benchmark that measures study files: what it writes, and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.prediction_features import main
from rankwise.records.study_file import load_config
from rankwise.study.predicting import measure_features


def test_entries_are_written_and_others_stay(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "features.json"
    output.write_text(json.dumps({"another": {"features": {"train_rows": 3.0}}}))
    main([str(study_file), "--output", str(output), "--no-probe"])
    found = json.loads(output.read_text())
    assert found.keys() == {"another", "tiny"}
    assert found["another"] == {"features": {"train_rows": 3.0}}
    entry = found["tiny"]
    assert entry["features"] == measure_features(load_config(study_file), with_probe=False)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["tiny"] == {name: x for name, x in entry.items() if name != "features"}
    assert summary["tiny"]["cpu_seconds"] > 0
