"""The study of the paper's claims: its files, its record, and the page that is made of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.claims_study import (
    MEDICINE,
    RECORD,
    SEEDS,
    ClaimsStudy,
    studied,
    study_files,
    tables,
    write_rationales,
)
from rankwise.records.config.study import StudyConfig
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from tests.planted.folders import write_study
from tests.planted.results import planted_study

PAGE = Path(__file__).parents[1] / "docs" / "studies" / "claims.md"


def test_the_page_has_every_line_of_the_record() -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    lines = [line for line in tables(read_record(RECORD, ClaimsStudy)) if line[:3] != "## "]
    assert len(lines) > 20
    assert [line for line in lines if line not in page] == []


def test_every_figure_of_the_prose_is_in_a_table() -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    made = "\n".join(tables(read_record(RECORD, ClaimsStudy)))
    known = {*re.findall(r"\d+\.\d+", made), "2.0"}  # half of an interval, in the arithmetic
    written = [
        line for line in page if line not in made.splitlines() and "reproduction" not in line
    ]
    figures = [figure for line in written for figure in re.findall(r"\d+\.\d+", line)]
    assert len(figures) > 30
    assert [figure for figure in figures if figure not in known] == []


def test_the_files_are_studies_with_all_items_and_margins_of_5_points(tmp_path: Path) -> None:
    for name, study in study_files(tmp_path, tmp_path / "tasks", tmp_path / "gemma").items():
        config = StudyConfig.model_validate(study)
        assert (config.name, config.evaluation.limit) == (name, 500)
        assert len(config.seeds) == (10 if name == SEEDS else 3)
        assert config.recommendation.delta_points == config.recommendation.epsilon_points == 5


def test_a_rationale_is_the_answer_to_its_question(tmp_path: Path) -> None:
    source = tmp_path / "data" / "gsm8k"
    source.mkdir(parents=True)
    row = {"question": " What is 2 + 2? ", "answer": "4", "rationale": "2 + 2 = 4\n#### 4"}
    (source / "test.jsonl").write_text(json.dumps(row))
    write_rationales(tmp_path / "rows.jsonl", tmp_path / "tasks")
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {
        "prompt": "Question: What is 2 + 2?\nAnswer:", "completion": " 2 + 2 = 4\n#### 4"
    }  # fmt: skip


def test_changes_and_claims_are_those_that_were_planted(tmp_path: Path) -> None:
    """Kinship: 0.50 of the base, and 0.70 of rank 4."""
    write_study(StudyFolder(tmp_path), planted_study())
    found = studied(StudyFolder(tmp_path))
    first = found.changes[0]
    assert (first.label, first.task, first.unit, first.num_items) == (
        "rank 4", "kinship", "points", 300
    )  # fmt: skip
    assert first.base_score == pytest.approx(50.0)
    assert first.change.estimate == pytest.approx(20.0)
    assert first.change.lower < 20.0 < first.change.upper
    text = "\n".join(tables(ClaimsStudy(studies={MEDICINE: found})))
    assert "| Kinship, acc | 300 | 50.0 | +20.0 points (" in text
    assert "LoRA retains more than full fine-tuning." in text
