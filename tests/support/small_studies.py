"""A finished study of seconds, to be spoilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun
from tests.support.studies import run

SMALL = ("evaluation.out_of_domain=[sums]", "evaluation.held_out_text=[]", "methods.full=null")


class Study(NamedTuple):
    file: Path
    folder: StudyFolder

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        return self.folder.read_study().runs

    def adapter(self, number: int = 0) -> Path:
        return self.folder.weights_folder(self.runs[number]) / "adapter_model.safetensors"

    def again(self) -> Any:
        return run(self.file, self.folder.root, *SMALL)
