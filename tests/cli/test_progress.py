"""Progress where there is no terminal: lines that go on while a stage takes long."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rankwise.cli.progress import LINE_SECONDS, TerminalObserver


class Log:
    """An observer that writes into a log, and the clock that it reads."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._text = io.StringIO()
        console = Console(file=self._text, force_terminal=False, width=40)
        self.observer = TerminalObserver(console, clock=lambda: self.now)

    @property
    def lines(self) -> list[str]:
        return self._text.getvalue().splitlines()

    def advance(self, seconds: float, work: float) -> None:
        self.now += seconds
        self.observer.advanced(work)


@pytest.fixture
def log() -> Log:
    """A study of 8,000 units of work; its first stage trains 1,000 tokens, each 4 units."""
    log = Log()
    log.observer.study_started(8000.0, 0.0)
    log.observer.model_started("rank-8", 4000.0)
    log.observer.stage_started("rank-8", "training", 4000.0, num_tokens=1000)
    return log


def test_a_long_stage_tells_how_far_it_is_how_fast_and_what_is_left(log: Log) -> None:
    for _ in range(10):
        log.advance(9.0, 200.0)
    assert log.lines == [
        # 200 tokens in 36 s, and a tenth of the study; 400 in 72 s
        "rank-8: training 20% done, 6 tokens/s; about 5 min 24 s left",
        "rank-8: training 40% done, 6 tokens/s; about 4 min 48 s left",
    ]


def test_every_line_puts_the_next_one_off(log: Log) -> None:
    log.advance(LINE_SECONDS - 1, 200.0)
    assert log.lines == []
    log.observer.noted("memory ran out")
    log.advance(LINE_SECONDS - 1, 200.0)
    assert log.lines == ["rank-8: training: memory ran out"]
    log.advance(1.0, 200.0)
    assert len(log.lines) == 2


def test_a_short_stage_has_one_line(log: Log) -> None:
    log.advance(4.0, 4000.0)
    log.observer.stage_finished()
    assert log.lines == ["rank-8: training done in 4 s; about 4 s left"]


def test_what_an_earlier_call_did_says_nothing_about_the_speed(log: Log) -> None:
    log.observer.skipped(3000.0)
    log.advance(50.0, 500.0)
    # 125 tokens in 50 s; 500 of the 5,000 units of this call are done
    assert log.lines == ["rank-8: training 88% done, 2 tokens/s; about 7 min 30 s left"]


def test_a_stage_that_reads_no_tokens_has_no_tokens_per_second(log: Log) -> None:
    log.observer.stage_started("weights", "spectra", 2000.0, num_tokens=None)
    log.advance(40.0, 500.0)
    assert log.lines == ["rank-8: spectra 25% done; about 10 min 00 s left"]


def test_a_terminal_has_bars_instead() -> None:
    now, text = [0.0], io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    with TerminalObserver(console, clock=lambda: now[0]) as observer:
        observer.study_started(100.0, 0.0)
        observer.model_started("rank-8", 100.0)
        observer.stage_started("rank-8", "training", 100.0, num_tokens=10)
        now[0] = 10 * LINE_SECONDS
        observer.advanced(50.0)
    assert "tokens/s" not in text.getvalue()
    assert "training" in text.getvalue()
