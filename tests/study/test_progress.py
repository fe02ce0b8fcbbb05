"""Progress where there is no terminal: lines that go on while a stage takes long."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from rankwise.records.folder import StudyFolder
from rankwise.records.locking import StudyProgress
from rankwise.records.study import StageFailure
from rankwise.study.observer import (
    Advanced,
    StageFinished,
    StageLeftOut,
    StageOutline,
    StageStarted,
    Teller,
)
from rankwise.study.progress import LINE_SECONDS, TELL_SECONDS, Follower, TerminalObserver

TRAINING = StageOutline("t", "training", "training", "rank-8", 4000.0, 1000, 4000.0)
"""1,000 tokens, each 4 units of work."""
DONE = TRAINING._replace(work_left=0.0, is_finished=True)
SCORING = StageOutline("s", "scoring", "sums", "rank-8", 4000.0, 4000, 4000.0)
WEIGHTS = StageOutline("w", "spectra", "spectra", "weights", 2000.0, None, 2000.0)
MEMORY = 3 * 1024**3


class Log:
    """An observer that writes into a log, and the clock that it reads."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.now = 1000.0
        self._text = io.StringIO()
        console = Console(file=self._text, force_terminal=False, width=40)
        self.observer = TerminalObserver(console, is_open=is_open, clock=lambda: self.now)
        self.tell = Teller(self.observer, lambda: MEMORY)

    @property
    def lines(self) -> list[str]:
        return self._text.getvalue().splitlines()

    def advance(self, seconds: float, work: float) -> None:
        self.now += seconds
        self.tell.advanced(work)


@pytest.fixture
def log() -> Log:
    """A training begins; a scoring is left, which takes as long for its work."""
    log = Log()
    log.tell.planned([TRAINING, SCORING])
    log.tell.stage_started("t")
    return log


def test_a_long_stage_tells_how_far_it_is_how_fast_in_what_memory_and_what_is_left(
    log: Log,
) -> None:
    for _ in range(10):
        log.advance(9.0, 200.0)
    assert log.lines == [
        # 200 tokens in 36 s, and a tenth of the study; 400 in 72 s
        "rank-8: training 20% done, 6 tokens/s, 3.0 GiB; about 5.4 min left",
        "rank-8: training 40% done, 6 tokens/s, 3.0 GiB; about 4.8 min left",
    ]


def test_every_line_puts_the_next_one_off(log: Log) -> None:
    log.advance(LINE_SECONDS - 1, 200.0)
    assert log.lines == []
    log.tell.noted("memory ran out")
    log.advance(LINE_SECONDS - 1, 200.0)
    assert log.lines == ["rank-8: training: memory ran out"]
    log.advance(1.0, 200.0)
    assert len(log.lines) == 2


def test_a_short_stage_has_one_line(log: Log) -> None:
    log.advance(4.0, 4000.0)
    log.tell.stage_finished()
    assert log.lines == ["rank-8: training done in 4.0 s; about 4.0 s left"]


def test_what_an_earlier_call_did_says_nothing_about_the_speed(log: Log) -> None:
    log.tell.skipped(3000.0)
    log.advance(50.0, 500.0)
    # 125 tokens in 50 s; 500 units of the training are left, and 4,000 of the scoring
    assert log.lines == [
        "rank-8: training 88% done, 2 tokens/s, 3.0 GiB; about 7.5 min left",
    ]


def test_a_stage_that_reads_no_tokens_has_no_tokens_per_second() -> None:
    log = Log()
    log.tell.planned([WEIGHTS])
    log.tell.stage_started("w")
    log.advance(40.0, 500.0)
    assert log.lines == ["weights: spectra 25% done, 3.0 GiB; about 2.0 min left"]


def test_where_more_may_be_planned_the_time_left_is_of_what_is_planned() -> None:
    log = Log(is_open=True)
    log.tell.planned([TRAINING])
    log.tell.stage_started("t")
    log.advance(40.0, 2000.0)
    assert log.lines[0].endswith("about 40 s left of what is planned so far")


def test_a_failure_is_told_and_not_waited_for(log: Log) -> None:
    log.advance(10.0, 2000.0)
    log.tell.stage_failed(
        StageFailure(
            stage="t",
            kind="training",
            name="training",
            model="rank-8",
            runs=("rank-8",),
            error="ModelError",
            message="no weights",
            failed_at="2026-01-01T00:00:00+00:00",
        )
    )
    log.tell.event(StageLeftOut("s"))
    assert log.lines == ["rank-8: training: failed: no weights"]
    assert not log.observer.seconds_left()


def test_a_resumed_study_says_what_is_done() -> None:
    log = Log()
    log.tell.planned([DONE, SCORING])
    log.tell.planned([DONE])
    assert log.lines == [
        "resuming: 50% is done",
        "everything is done; nothing is trained or scored again",
    ]


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_has_two_bars_of_80_columns(
    no_color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    now, text = [0.0], io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    name = "pass 1: 16 adapters of a long name"
    with TerminalObserver(console, clock=lambda: now[0]) as observer:
        tell = Teller(observer, lambda: MEMORY)
        tell.planned([TRAINING._replace(model=name), SCORING])
        tell.stage_started("t")
        now[0] = 100.0
        tell.advanced(2000.0)
    shown = text.getvalue()
    assert bool(re.search(r"\x1b\[[\d;]*3\d", shown)) is not no_color
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)
    *_, study, stage = (line for line in shown.replace("\r", "\n").split("\n") if "left" in line)
    assert "study" in study
    assert "3.0 GiB" in study
    assert "5.0 min left" in study
    assert stage.startswith("training: pass 1: 16 adap")
    assert "5 tokens/s" in stage
    assert "1.7 min left" in stage
    assert (len(study), len(stage)) == (80, 80)


def test_the_folder_is_told_now_and_then_and_at_the_end_no_more(tmp_path: Path) -> None:
    folder, now = StudyFolder(tmp_path), [0.0]

    def told_now() -> StudyProgress | None:
        leader = folder.leader()
        assert leader is not None
        assert leader[0].startswith(f"process {os.getpid()} on ")
        return leader[1]

    with folder.lock(), Follower(folder, clock=lambda: now[0]) as observer:
        tell = Teller(observer, lambda: MEMORY)
        assert told_now() is None
        tell.planned([TRAINING, SCORING])
        tell.stage_started("t")
        begun = told_now()
        assert begun is not None
        (stage,) = begun.stages
        assert (stage.stage, stage.share_done, begun.seconds_left) == ("t", 0.0, {})
        now[0] = TELL_SECONDS - 1
        tell.advanced(400.0)
        assert told_now() == begun
        now[0] = 10.0
        tell.advanced(600.0)
        told = told_now()
        assert told is not None
        (stage,) = told.stages
        assert stage.share_done == 0.25
        assert stage.tokens_per_second == pytest.approx(25.0)
        assert stage.peak_memory_bytes == MEMORY
        assert told.seconds_left == pytest.approx({"t": 30.0, "s": 40.0}, rel=0.01)
    assert folder.leader() is None
    assert not folder.progress_file.exists()


def test_two_stages_at_once_share_the_time_left() -> None:
    log = Log()
    log.tell.planned([TRAINING, SCORING])
    log.observer(StageStarted("t"))
    log.observer(StageStarted("s"))
    log.now += 20.0
    log.observer(Advanced("t", 2000.0, MEMORY))
    log.observer(Advanced("s", 1000.0, MEMORY))
    assert list(log.observer.doing) == ["t", "s"]
    # 20 s of the training and about 60 s of the scoring are left, done side by side
    assert log.observer.study_seconds_left() == pytest.approx(40.0, rel=0.15)
    log.observer(StageFinished("t"))
    assert list(log.observer.doing) == ["s"]
    assert log.lines[-1].startswith("rank-8: training done in 20 s")
