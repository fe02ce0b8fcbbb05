"""Studies that are run in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from tests.support.observers import Recorder


def run(study_file: Path, folder: Path, *overrides: str) -> tuple[Any, Recorder]:
    recorder = Recorder()
    plan = plan_study(load_config(study_file, overrides))
    return run_study(plan, StudyFolder(folder), recorder), recorder
