"""How long work took, remembered on this machine from study to study."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.records.folder import StudyFolder
from rankwise.records.study import StudyRecord
from rankwise.study import speeds
from rankwise.study.speeds import MOST_REMEMBERED, remember_speeds, remembered_speeds
from rankwise.study.times import Spent
from tests.planted.results import planted_study
from tests.support.command_line import rankwise

SPENT = {"training": Spent(100.0, 2000.0), "scoring": Spent(30.0, 6000.0)}
SPEEDS = {"training": 0.05, "scoring": 0.005}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(speeds, "_path", lambda: tmp_path / "cache" / "speeds.json")
    return tmp_path / "cache" / "speeds.json"


def of_base(base: str, **changes: str) -> StudyRecord:
    study = planted_study({4: 0.5}).study
    return study.model_copy(update={"base_model_fingerprint": base, **changes})


def test_the_last_study_of_a_base_is_remembered(file: Path) -> None:
    first, other = of_base("one"), of_base("other")
    assert remembered_speeds(first) == {}
    remember_speeds(first, SPENT)
    assert remembered_speeds(first) == SPEEDS
    # another base, precision or device says nothing
    assert remembered_speeds(other) == {}
    precision = "float32" if first.precision == "bfloat16" else "bfloat16"
    assert remembered_speeds(of_base("one", precision=precision)) == {}
    card = first.provenance.model_copy(update={"device": "another card"})
    assert remembered_speeds(first.model_copy(update={"provenance": card})) == {}
    # a study without a kind leaves that kind as it was
    remember_speeds(first, {"scoring": Spent(60.0, 6000.0)})
    assert remembered_speeds(first) == {"training": 0.05, "scoring": 0.01}


def test_what_took_no_time_is_not_remembered(file: Path) -> None:
    remember_speeds(of_base("one"), {"scoring": Spent(0.5 * speeds.LEAST_SECONDS, 10.0)})
    assert not file.exists()


def test_the_file_stays_small(file: Path) -> None:
    bases = [of_base(f"{number}") for number in range(MOST_REMEMBERED + 2)]
    for base in (*bases, bases[2]):
        remember_speeds(base, SPENT)
    known = [bool(remembered_speeds(base)) for base in bases]
    assert known == [False, False, *[True] * MOST_REMEMBERED]
    remember_speeds(bases[0], SPENT)  # the oldest goes, which is no longer the third
    assert [bool(remembered_speeds(base)) for base in bases[:4]] == [True, False, True, False]


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(change(file.read_bytes()))


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "spoil",
    [
        damaged(lambda content: content[: len(content) // 2]),
        damaged(lambda content: b""),
        damaged(lambda content: content.replace(b"0.05", b"5000")),
        damaged(lambda content: b"[" * 100_000),
        damaged(lambda content: b"\xff\xfe" + content),
        as_folder,
        as_pipe,
    ],
)
def test_a_damaged_file_is_as_none(file: Path, spoil: Callable[[Path], object]) -> None:
    study = of_base("one")
    remember_speeds(study, SPENT)
    spoil(file)
    assert remembered_speeds(study) == {}
    remember_speeds(study, SPENT)
    if file.is_file():
        assert remembered_speeds(study) == SPEEDS


@pytest.mark.parametrize("speed", ["0.0", "-1.0", "1e300", "NaN", "Infinity", '"fast"'])
def test_a_speed_that_is_none_is_not_believed(file: Path, speed: str) -> None:
    from rankwise.records.files import sealed, write_atomically

    key = speeds._key(study := of_base("one"))  # pyright: ignore[reportPrivateUsage]
    content = (
        f'{{\n  "schema_version": 1,\n  "seconds_per_work": {{"{key}": {{"scoring": {speed}}}}}\n}}'
    )
    write_atomically(file, sealed(content))
    assert remembered_speeds(study) == {}


def test_a_cache_that_cannot_be_written_is_no_failure(file: Path) -> None:
    file.parent.write_text("a file")
    remember_speeds(of_base("one"), SPENT)
    assert remembered_speeds(of_base("one")) == {}


def test_the_next_study_of_a_base_is_timed_by_the_last(
    study_file: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(*arguments: object) -> Any:
        done = rankwise("plan", study_file, "--study-dir", tmp_path / "next", "--json", *arguments)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def measured(_: object) -> float:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(speeds, "LEAST_SECONDS", 0.0)
    assert planned()["seconds"] is None
    few = ("methods.lora.ranks=[2]", "evaluation.out_of_domain=[]", "analysis.heads=false")
    assert rankwise("run", study_file, "--study-dir", tmp_path / "last", *few).exit_code == 0
    plan = planned()
    known = remembered_speeds(StudyFolder(tmp_path / "last").read_study())
    assert {"training", "scoring", "gauges", "spectra"} == {*known}
    by_kind = {
        kind: sum(stage["work"] for stage in plan["stages"] if stage["kind"] == kind)
        for kind in {*known}
    }
    of_known = sum(known[kind] * work for kind, work in by_kind.items())
    assert plan["seconds"] > of_known > 0  # with heads, which take longer than what is known
    assert plan["margins"][0]["seconds"] is not None
    # nothing is measured, and another machine is not timed by this one
    monkeypatch.setattr("rankwise.study.budgets.scoring_rate", measured)
    assert planned("--budget", "1h")["budget"]["fits"]
    assert planned("--device", "cuda", "--memory", "80GB")["is_rate_assumed"]
    assert planned("--device", "cpu")["seconds"] is None
