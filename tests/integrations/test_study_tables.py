"""A study's numbers as CSV and Parquet: the report's own, typed, and nothing is cut."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from pyarrow import parquet

from rankwise.errors import RecordError
from rankwise.integrations.formats import export_study
from rankwise.records.folder import StudyFolder
from rankwise.report.page import write_report
from rankwise.study.conclusion import conclude
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.support.sentences import Sentences

OF_EACH_TASK = ["ranks", "runs", "differences", "scores"]
OF_FINDINGS = ["signatures", "transfer", "retention", "mechanism-pairs", "mechanism-agreement"]
TABLES = [*OF_EACH_TASK, *OF_FINDINGS]


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A study that recommends rank 16; rank 64 diverged."""
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study(diverged=[(64, 0)]))
    return folder


def test_the_csv_files_are_the_reports(folder: StudyFolder, tmp_path: Path) -> None:
    written = export_study(folder, "csv")
    assert [each.name for each in written] == TABLES
    write_report(tmp_path / "page", *conclude(folder))
    of_report = {path.name: path.read_bytes() for path in (tmp_path / "page/report").iterdir()}
    assert {*of_report} == {f"{name}.csv" for name in TABLES}
    for each in written:
        assert each.file == folder.root / "export" / "csv" / f"{each.name}.csv"
        assert each.file.read_bytes() == of_report[f"{each.name}.csv"]


def test_parquet_has_the_same_rows_with_their_types(folder: StudyFolder, tmp_path: Path) -> None:
    written = export_study(folder, "parquet", tmp_path / "out")
    assert [each.file for each in written] == [tmp_path / "out" / f"{t}.parquet" for t in TABLES]
    tables = {each.name: parquet.read_table(each.file) for each in written}
    runs = {row["rank"]: row for row in tables["runs"].to_pylist() if row["method"] == "lora"}
    assert runs[16]["in_domain"] == pytest.approx(80.0)  # planted
    assert runs[16]["recommended"] is True
    assert runs[64]["status"] == "diverged"
    assert runs[64]["gain"] is None
    types = {field.name: str(field.type) for field in tables["runs"].schema}
    assert (types["rank"], types["gain"], types["recommended"]) == ("int64", "double", "bool")
    for name, table in tables.items():
        text = export_study(folder, "csv")[TABLES.index(name)].file.read_text(encoding="utf-8")
        rows = list(csv.reader(text.splitlines()))
        assert rows[0] == table.column_names
        assert len(rows) == 1 + table.num_rows


def test_the_same_study_gives_the_same_bytes(folder: StudyFolder) -> None:
    before = [each.file.read_bytes() for each in export_study(folder, "parquet")]
    assert [each.file.read_bytes() for each in export_study(folder, "parquet")] == before


def test_a_study_without_a_finished_run_has_no_tables(
    folder: StudyFolder, sentence: Sentences
) -> None:
    for run in folder.read_study().runs:
        folder.run_file(run.name).unlink()
    with pytest.raises(RecordError) as caught:
        export_study(folder, "csv")
    sentence(caught.value)
    assert not (folder.root / "export").exists()
