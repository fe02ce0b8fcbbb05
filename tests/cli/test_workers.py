"""``rankwise run --workers``: processes that share a study, their one display, and their end."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rankwise.cli.workers import MOST_RESTARTS, Heard, Team, TeamDisplay, Workers, worker_places
from rankwise.errors import ConfigError, ModelError
from rankwise.records import quantities
from rankwise.records.folder import StudyFolder
from rankwise.study.stages import stages
from rankwise.study.units import owners, units
from rankwise.study.work.worker import Worker
from tests.support.command_line import rankwise, words
from tests.support.crews import wait_for
from tests.support.small_studies import write_study

SETTINGS = """
train: {task: colours, epochs: 1, save_every: 0.001s, precision: float32}
methods: {lora: {ranks: [2, 4]}, full: null}
evaluation: {out_of_domain: [], retention: [], held_out_text: [], limit: 6}
analysis: {heads: false, spectra: false}
"""
PLANNED = {
    "event": "planned",
    "stages": [
        {"id": "a", "work": 30.0, "is_finished": False},
        {"id": "b", "work": 60.0, "is_finished": False},
        {"id": "c", "work": 10.0, "is_finished": True},
    ],
}


def event(name: str, stage: str = "a", **content: Any) -> dict[str, Any]:
    return {"event": name, "stage": stage, "model": "base", "name": "colours", **content}


# --- what they do together


def test_a_team_knows_how_far_it_is() -> None:
    team = Team()
    team.hear(Heard(1, event=PLANNED))
    assert team.share_done == 0.1
    team.hear(Heard(1, event=event("stage_started", "a")))
    team.hear(Heard(2, event=event("stage_started", "b")))
    team.hear(Heard(2, event=event("progress", "b", share_done=0.5, tokens_per_second=9.0)))
    assert team.share_done == 0.4
    assert team.doing[2] == ("b", "base: colours", 0.5, 9.0)
    team.hear(Heard(1, event=event("stage_finished", "a", seconds=1.0)))
    assert team.share_done == 0.7
    team.hear(Heard(2, code=-9))  # what it was at is not done
    assert team.share_done == 0.4
    assert not team.has_come_to_the_end
    team.hear(Heard(1, code=0))
    assert team.has_come_to_the_end


def test_a_worker_that_ends_with_an_error_has_not_come_to_the_end() -> None:
    team = Team()
    team.hear(Heard(1, event={"event": "ended", "outcome": "error", "message": "PlanError: x"}))
    team.hear(Heard(1, code=1))
    assert not team.has_come_to_the_end
    assert team.errors == {1: "PlanError: x"}


def shown(*heard: Heard, quiet: bool = False, terminal: bool = False) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    with TeamDisplay(console, 2, quiet=quiet) as display:
        for each in heard:
            display.show(each)
    return text.getvalue()


def test_one_display_shows_all_of_them() -> None:
    heard = (
        Heard(1, event=PLANNED),
        Heard(2, line="warning: few items"),
        Heard(1, line="warning: few items"),
        Heard(1, event=event("stage_started")),
        Heard(1, event=event("noted", text="memory ran out")),
        Heard(1, event=event("stage_finished", seconds=3.0)),
        Heard(2, code=-9),
    )
    lines = shown(*heard).splitlines()
    assert lines[:2] == ["warning: few items", "worker 1: memory ran out"]
    assert lines[2].startswith("worker 1: base: colours done in 3")
    assert f"{quantities.share(0.4)} of the study is done" in lines[2]
    assert lines[3:] == ["worker 2: was ended by signal 9; others do its work"]
    quiet = shown(*heard, quiet=True)
    assert "done in" not in quiet
    assert "memory ran out" in quiet
    bars = shown(*heard[:4], terminal=True)
    assert "worker 1: base: colours" in bars
    assert "worker 2: waits" in bars


# --- processes

ONCE = """
import os, signal, sys
from pathlib import Path
print('{"event": "noted", "text": "' + os.environ["NAME"] + '"}', flush=True)
print("a line", file=sys.stderr, flush=True)
mark = Path(os.environ["NAME"])
if os.environ["NAME"].endswith("always") or not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_is_killed_is_started_again(tmp_path: Path) -> None:
    places = [{"NAME": str(tmp_path / name)} for name in ("once", "always")]
    with Workers([sys.executable, "-c", ONCE], places) as workers:
        heard = list(workers.heard())
    codes = {number: [each.code for each in heard if each.worker == number] for number in (1, 2)}
    assert [code for code in codes[1] if code is not None] == [-9, 0]
    assert [code for code in codes[2] if code is not None] == [-9] * (MOST_RESTARTS + 1)
    assert {each.event["text"] for each in heard if each.event} == {p["NAME"] for p in places}
    assert {each.line for each in heard if each.line} == {"a line"}


WAITS = """
import signal, sys, time
from pathlib import Path

def stop(*_):
    Path(sys.argv[1]).write_text("saved")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
print('{"event": "noted", "text": "ready"}', flush=True)
time.sleep(600)
"""


def test_workers_save_when_the_block_ends(tmp_path: Path) -> None:
    saved = tmp_path / "saved"

    def stopped() -> None:
        with Workers([sys.executable, "-c", WAITS, str(saved)], [{}]) as workers:
            assert next(workers.heard()).event["text"] == "ready"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert saved.read_text() == "saved"


def test_the_cores_are_shared_and_cards_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert worker_places(3, None, is_worker=False) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    cards = [place["CUDA_VISIBLE_DEVICES"] for place in worker_places(None, "all", is_worker=False)]
    assert cards == ["4", "GPU-7"]
    (place,) = worker_places(None, "GPU-7", is_worker=False)
    assert place == {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "GPU-7"}
    with pytest.raises(ConfigError, match="there is no card 0; there are 4, GPU-7"):
        worker_places(None, "0", is_worker=False)
    with pytest.raises(ConfigError, match="without --workers and --worker"):
        worker_places(2, "all", is_worker=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="--workers N to share a CPU"):
        worker_places(None, "all", is_worker=False)


# --- the command


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("team"), tiny_model_folder, SETTINGS)


def test_two_workers_run_a_study_to_its_report(file: Path, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    command = [sys.executable, "-m", "rankwise", "run", file, "--study-dir", folder.root]
    done = subprocess.run(
        [*command, "--workers", "2", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["worker"] for each in events if each["event"] == "planned"} == {1, 2}
    (end,) = (each for each in events if each["event"] == "ended")
    assert events[-1] == end
    assert (end["outcome"], end["report"]) == ("done", str(folder.report_file))
    graph = stages(folder.read_study())
    assert len(folder.read_study().passes) == 2
    finished = [each["stage"] for each in events if each["event"] == "stage_finished"]
    assert sorted(finished) == sorted(stage.id for stage in graph)
    # a worker that comes late finds nothing to do, and says where the verdict is
    again = rankwise("run", file, "--study-dir", folder.root, "--worker")
    assert again.exit_code == 0
    assert f"rankwise report {folder.root}" in words(again.stdout)


def test_a_signal_ends_all_of_them_and_the_study_goes_on(file: Path, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    command = [sys.executable, "-m", "rankwise", "run", str(file), f"--study-dir={folder.root}"]
    team = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(folder.root.glob("runs/*/metrics.jsonl")))
    team.send_signal(signal.SIGTERM)
    _, errors = team.communicate()
    assert team.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; finished work is kept" in errors
    assert not (folder.root / ".workers").exists()  # all of them have left
    done = rankwise("run", file, "--study-dir", folder.root)
    assert done.exit_code == 0


def test_one_unit_and_what_cannot_be_done(file: Path, tmp_path: Path) -> None:
    root = tmp_path / "study"
    listed = json.loads(rankwise("plan", file, "--study-dir", root, "--json").stdout)["units"]
    base = listed[0]["id"]
    assert rankwise("run", file, "--study-dir", root, "--only", base).exit_code == 0
    all_units = units(stages(StudyFolder(root).read_study()))
    folder = StudyFolder(root)
    described = [unit.described(owners(all_units), folder, None) for unit in all_units]
    assert [each["id"] for each in described if each["is_finished"]] == [base]
    refused = rankwise("run", file, "--study-dir", root, "--only", "pass-1")
    assert refused.exit_code == 2
    assert "there is no unit 'pass-1'" in words(refused.stderr)
    refused = rankwise("run", file, "--workers", 2, "--quiet", "--json")
    assert (refused.exit_code, "give one" in words(refused.stderr)) == (2, True)


def test_one_unit_that_fails_ends_with_1(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ModelError("planted. Mend it.")

    root = tmp_path / "study"
    listed = json.loads(rankwise("plan", file, "--study-dir", root, "--json").stdout)["units"]
    monkeypatch.setattr(Worker, "do", fails)
    failed = rankwise("run", file, "--study-dir", root, "--only", listed[0]["id"], "--json")
    last = json.loads(failed.stdout.splitlines()[-1])
    assert (failed.exit_code, last["outcome"], last["exit_code"]) == (1, "incomplete", 1)
    monkeypatch.undo()
    again = rankwise("run", file, "--study-dir", root, "--only", listed[0]["id"])
    assert again.exit_code == 0


def test_a_study_that_cannot_be_planned_ends_all_with_its_error(file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rankwise", "run", str(file), "evaluation.retention=[nothing]",
         f"--study-dir={tmp_path / 'study'}", "--workers", "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("nothing") == 1, done.stderr
