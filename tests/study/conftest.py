"""A finished study that tests may spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rankwise.records.folder import StudyFolder
from tests.support.small_studies import SMALL, Study, write_study
from tests.support.studies import run


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Study:
    root = tmp_path_factory.mktemp("damage")
    settings = """
train: {task: colours, epochs: 1, learning_rate: {lora: 1e-2, full: 1e-3}, precision: float32}
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, k_proj, v_proj, o_proj]}}
"""
    file = write_study(root, tiny_model_folder, settings)
    run(file, root / "study", *SMALL)
    return Study(file, StudyFolder(root / "study"))


@pytest.fixture
def study(finished_study: Study, tmp_path: Path) -> Study:
    """A copy, so that it can be spoilt."""
    shutil.copytree(finished_study.folder.root, tmp_path / "study")
    return Study(finished_study.file, StudyFolder(tmp_path / "study"))
