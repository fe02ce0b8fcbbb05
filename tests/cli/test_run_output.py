"""What ``rankwise run`` prints: nothing but the verdict with --quiet, events with --json."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import ModelError
from rankwise.findings.statements import headline, with_folder
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.recommendation import StudyRecommendation
from rankwise.study.stages.graph import stages
from rankwise.study.stages.scoring import ScoreWorker
from rankwise.study.stages.stage import Stage
from rankwise.study.stopping import Stopped
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study

SETTINGS = """
train: {task: colours, epochs: 1, precision: float32}
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, k_proj, v_proj, o_proj]}, full: null}
evaluation: {out_of_domain: [sums], retention: [], held_out_text: []}
"""


class Ran:
    """A study, its folder, and the events of its first run."""

    def __init__(self, root: Path, model: Path) -> None:
        self.file, self.folder = write_study(root, model, SETTINGS), root / "study"
        self.done = as_a_process("run", self.file, "--study-dir", self.folder, "--json")
        self.events = parsed(self.done.stdout)

    def of(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] in names]


def as_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a user calls it, with whatever libraries print."""
    command = [sys.executable, "-m", "rankwise", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def ran(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("events"), tiny_model_folder)


def not_warnings(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("warning: ")]


def graph(folder: Path) -> Sequence[Stage]:
    return stages(StudyFolder(folder).read_study())


# --json


def test_the_plan_comes_first_and_the_end_last(ran: Ran) -> None:
    assert ran.done.returncode == 0, ran.done.stderr
    planned, *_, ended = ran.events
    assert planned["event"] == "planned"
    assert [stage["id"] for stage in planned["stages"]] == [each.id for each in graph(ran.folder)]
    assert not any(stage["is_finished"] for stage in planned["stages"])
    said = read_record(StudyFolder(ran.folder).recommendation_file, StudyRecommendation)
    assert ended["event"] == "ended"
    assert ended | {"time": None} == {
        "event": "ended",
        "time": None,
        "outcome": "done",
        "exit_code": 0,
        "message": None,
        "recommendations": [
            {
                **{
                    name: getattr(part, name)
                    for name in ("train_task", "outcome", "rank", "mean_rank")
                },
                "statement": with_folder(part.statement, ran.folder),
            }
            for part in said.by_train_task
        ],
        "report": str(ran.folder / "report.html"),
    }
    assert len(ran.of("planned")) == len(ran.of("ended")) == 1


def test_every_stage_begins_and_ends_in_order(ran: Ran) -> None:
    told = ran.of("stage_started", "stage_finished")
    assert [(event["event"], event["stage"]) for event in told] == [
        (event, each.id)
        for each in graph(ran.folder)
        for event in ("stage_started", "stage_finished")
    ]
    times = [datetime.fromisoformat(event["time"]) for event in ran.events]
    assert times == sorted(times)
    # something was learned from the first stages, and nothing is left at the end
    assert told[-2]["seconds_left"] > 0
    assert told[-1]["seconds_left"] is None


def test_every_step_of_every_run_has_its_loss(ran: Ran) -> None:
    folder = StudyFolder(ran.folder)
    runs = folder.read_study().runs
    assert len(runs) == 2
    for run in runs:
        steps = [event for event in ran.of("step") if event["run"] == run.name]
        losses = [(event["step"], event["loss_nats"]) for event in steps]
        assert losses == folder.read_losses(run.name)
        assert {event["num_steps"] for event in steps} == {run.num_steps}
        assert steps[-1]["num_tokens"] == run.num_tokens
        assert {event["model"] for event in steps} == {"pass 1: 2 adapters"}


def test_nothing_but_warnings_is_on_stderr(ran: Ran) -> None:
    assert not_warnings(ran.done.stderr) == []
    assert not (ran.folder / ".progress.json").exists()  # and nobody is told any more


def test_a_finished_study_has_its_plan_and_its_end(ran: Ran) -> None:
    again = parsed(rankwise("run", ran.folder, "--json").stdout)
    assert [event["event"] for event in again] == ["planned", "ended"]
    assert all(stage["is_finished"] for stage in again[0]["stages"])
    assert again[1]["outcome"] == "done"


def test_a_stage_that_fails_is_an_event_and_the_outcome(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("the weights are gone")

    folder = ran.folder.with_name("failed")
    monkeypatch.setattr(ScoreWorker, "score", fail)
    done = rankwise("run", ran.file, "--study-dir", folder, "--json")
    events = parsed(done.stdout)
    failed = [event for event in events if event["event"] == "stage_failed"]
    base = [each for each in graph(folder) if each.model == "base"]
    assert [event["stage"] for event in failed] == [each.id for each in base]
    assert {(event["error"], event["message"]) for event in failed} == {
        ("ModelError", "the weights are gone")
    }
    left_out = [event["model"] for event in events if event["event"] == "stage_left_out"]
    assert set(left_out) >= {"pass 1: 2 adapters"}  # whose scores need the base's
    assert events[-1]["event"] == "ended"
    assert (events[-1]["outcome"], events[-1]["exit_code"]) == ("error", 1)
    assert events[-1]["message"].startswith("StageFailedError: ")
    assert done.exit_code == 1


def test_a_failure_that_leaves_a_verdict_is_incomplete(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ModelError("the heads are gone")

    monkeypatch.setattr("rankwise.study.stages.heads.CompareHeads.do", fail)
    done = rankwise("run", ran.file, "--study-dir", ran.folder.with_name("some"), "--json")
    ended = parsed(done.stdout)[-1]
    assert (ended["outcome"], ended["exit_code"], done.exit_code) == ("incomplete", 1, 1)


@pytest.mark.parametrize(
    ("override", "error"), [("train.epochs=0", "ConfigError"), ("train.task=nope", "PlanError")]
)
def test_what_cannot_be_run_has_an_end_alone(
    ran: Ran, tmp_path: Path, override: str, error: str
) -> None:
    done = rankwise("run", ran.file, override, "--study-dir", tmp_path / "study", "--json")
    (ended,) = parsed(done.stdout)
    assert (ended["event"], ended["outcome"], ended["exit_code"]) == ("ended", "error", 2)
    assert ended["message"].startswith(f"{error}: ")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{error}: ")


def test_a_signal_ends_it(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("rankwise.study.growing.lead", interrupted)
    done = rankwise("run", ran.folder, "--json")
    (ended,) = parsed(done.stdout)
    assert (ended["outcome"], ended["exit_code"]) == ("stopped", 143)
    assert done.exit_code == 143


def test_extending_writes_events_too(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.study.growing.lead", interrupted)
    done = rankwise("extend", ran.folder, "--seeds", 1, "--json")
    (ended,) = parsed(done.stdout)
    assert (ended["outcome"], ended["exit_code"], done.exit_code) == ("stopped", 130, 130)


def test_a_reader_that_goes_away_ends_it_with_a_sentence(ran: Ran, sentence: Sentences) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "rankwise", "run", str(ran.folder), "--json"]
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=120
    )
    os.close(writing)
    assert done.returncode == 1
    sentence(done.stderr, names=("StorageError", "stdout", "Broken pipe"))


# --quiet


def test_quiet_shows_the_verdict_alone(ran: Ran, tmp_path: Path) -> None:
    done = as_a_process("run", ran.file, "--study-dir", tmp_path / "study", "--quiet")
    assert done.returncode == 0
    assert not_warnings(done.stderr) == []
    (said,) = read_record(
        StudyFolder(tmp_path / "study").recommendation_file, StudyRecommendation
    ).by_train_task
    assert done.stdout.startswith(headline(said))
    assert f"report: {tmp_path / 'study' / 'report.html'}" in done.stdout.splitlines()


def test_quiet_tells_of_what_fails(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ModelError("the heads are gone")

    monkeypatch.setattr("rankwise.study.stages.heads.CompareHeads.do", fail)
    done = rankwise("run", ran.file, "--study-dir", tmp_path / "study", "--quiet")
    assert done.exit_code == 1
    assert "ModelError: the heads are gone" in words(done.stderr)


def test_quiet_and_events_are_two_things(ran: Ran, sentence: Sentences) -> None:
    done = rankwise("run", ran.folder, "--quiet", "--json")
    assert done.exit_code == 2
    sentence(done.stderr, names=("--quiet", "--json"))
