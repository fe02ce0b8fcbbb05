"""The study files of the collection and the reproduction, and the pages that are made of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import reproduction, reproduction_table
from benchmarks.prediction import both, pages, train
from benchmarks.prediction.table import tables
from rankwise.findings.pairs import run_record
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from tests.planted.folders import write_study
from tests.planted.results import planted_study


def test_every_study_file_is_one(tmp_path: Path) -> None:
    files = {cell.name: train.study_of(cell) for cell in train.CELLS}
    files |= {f"reproduction-{name}": each for name, each in reproduction.studies().items()}
    assert len(files) == len(train.CELLS) + 4
    for name, content in files.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content))
        assert load_config(file).name == name


def test_the_collection_brackets_one_rank_and_has_each_at_the_rate_of_the_rule() -> None:
    (methods,) = {str(train.study_of(cell)["methods"]) for cell in train.CELLS}
    entries = yaml.safe_load(methods)["lora"]["_"]
    assert sorted(each["rank"] for each in entries) == [2, 4, 8, 8, 8, 16, 32, 64]
    assert {each["rank"]: each["learning_rate"] for each in entries[:6]}[64] == pytest.approx(2e-4)


def test_a_page_has_the_verdict_and_the_table_of_every_finished_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pages", str(tmp_path), "--to", str(tmp_path)])
    planted = planted_study()
    rate = run_record(planted.runs[0]).planned.learning_rate
    monkeypatch.setattr(pages, "RULE", SimpleNamespace(rate_of=lambda _: rate))
    for name in ("kinship-160", "kinship-40"):
        write_study(StudyFolder(tmp_path / name), planted)
    pages.main()
    page = (tmp_path / "collection-tables.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("##")]
    studies = ["### Kinship, 40 rows, 4 epochs", "### Kinship, 160 rows, 1 epoch"]
    assert headings == ["## Kinship", *studies]
    row = next(line for line in page.splitlines() if line.startswith("| 160 |"))
    assert row.count("|") == 8
    assert "| Recommended: rank 16 | 4: +20.0, 16: +30.0, 64: +31.0 | +31.0 |" in row
    assert page.count("**The study") == 2


def test_the_tables_of_the_page_are_those_of_the_records() -> None:
    """Every line of both stands on the page as the command prints it."""
    page = Path(train.ROOT / "docs/studies/collection.md").read_text(encoding="utf-8")
    lines = [*tables(), *both.tables()]
    assert [line for line in lines if line not in page.splitlines()] == []


def test_the_tables_of_the_reproduction_are_those_of_its_findings() -> None:
    page = Path(train.ROOT / "docs/studies/reproduction.md").read_text(encoding="utf-8")
    lines = [line for line in reproduction_table.tables() if not line.startswith("## ")]
    assert len(lines) > 100
    assert [line for line in lines if line not in page.splitlines()] == []
