"""What reads records and samples files, and strategies that break such files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from rankwise.records.files import read_record, sealed
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.lm_eval_samples import read_sample_file
from rankwise.records.study import RunRecord, StudyRecord, TaskEvaluation
from rankwise.study.conclusion import conclude
from rankwise.study.damage import find_damage
from rankwise.study.status import study_status
from tests.fuzz.strategies import damaged, dumped_json_lines, with_nasty_values
from tests.planted import results as planted_results
from tests.planted.folders import write_study
from tests.support.records import items_as_they_are

_KINDS = {"study.json": StudyRecord, "run.json": RunRecord, "kinship.json": TaskEvaluation}


@cache
def _good() -> dict[str, str]:
    """Relative path -> text of every file of a small finished study."""
    with tempfile.TemporaryDirectory() as place:
        folder = StudyFolder(Path(place))
        write_study(folder, planted_results.planted_study({4: 0.7}, num_in_domain=4))
        files = [path for path in folder.root.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder.root)): path.read_text() for path in files}


def _text_of(name: str) -> str:
    return next(text for path, text in _good().items() if path.endswith(name))


def _bare(name: str) -> dict[str, Any]:
    """A record's JSON without its checksum."""
    content = json.loads(_text_of(name))
    del content["checksum"]
    return content


def _sealed(content: Any) -> str:
    """With a checksum that fits, so that what is in it counts."""
    return sealed(json.dumps(content, indent=2))


def _record(name: str) -> Callable[[Path, str], object]:
    def read(folder: Path, text: str) -> object:
        path = folder / name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return read_record(path, _KINDS[name])

    return read


def _study_with(folder: Path, name: str, text: str) -> StudyFolder:
    for path, good in _good().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(good)
        if path.endswith(name):
            (folder / path).write_bytes(text.encode("utf-8", "surrogatepass"))
    return StudyFolder(folder)


def read_status(folder: Path, text: str) -> object:
    """Damage of a run is found, whatever is in its record."""
    study = _study_with(folder, "run.json", text)
    return find_damage(study), study_status(study)


def read_samples(folder: Path, text: str) -> object:
    """Items are read or refused, also where their digest fits."""
    study = _study_with(folder, "base/eval/kinship.samples.jsonl", text)
    find_damage(study)
    items_as_they_are(study, BASE, "kinship")
    find_damage(study)
    return conclude(study)


def read_other_samples(folder: Path, text: str) -> object:
    """A samples file of lm-eval's."""
    path = folder / "samples_kinship_2026.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return read_sample_file(path)


def _records(name: str) -> st.SearchStrategy[str]:
    return st.one_of(
        st.deferred(lambda: with_nasty_values(_bare(name)).map(_sealed)),
        st.deferred(lambda: damaged([_text_of(name)])),
    )


def _samples() -> st.SearchStrategy[str]:
    text = "base/eval/kinship.samples.jsonl"
    return st.one_of(
        st.deferred(lambda: damaged([_text_of(text)])),
        st.deferred(
            lambda: with_nasty_values(
                [json.loads(line) for line in _text_of(text).split("\n") if line]
            ).map(dumped_json_lines)
        ),
    )


PARSERS: dict[str, tuple[Callable[[Path, str], object], st.SearchStrategy[str], int]] = {
    **{name: (_record(name), _records(name), 200) for name in _KINDS},
    "status of a study": (read_status, _records("run.json"), 60),
    "items of a study": (read_samples, _samples(), 60),
    "a samples file of lm-eval": (read_other_samples, _samples(), 200),
}
