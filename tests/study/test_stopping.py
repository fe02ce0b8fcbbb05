"""Which signals stop a study, and what a stopped one keeps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.training.trainees import Trainee
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.growing import Extension, extended
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.study.stopping import Stopped, StopSignals
from tests.support.observers import Recorder
from tests.support.small_studies import SMALL, Study


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops(number: signal.Signals) -> None:
    with pytest.raises(Stopped), StopSignals().listening():
        os.kill(os.getpid(), number)


def test_a_closed_terminal_does_not_stop_what_nohup_started() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals().listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def stopped_extension(
    study: Study, root: Path, monkeypatch: pytest.MonkeyPatch, take_step: Callable[..., Any]
) -> StudyFolder:
    """A finished study of one rank and one seed, whose second seed was stopped in its training."""
    config = load_config(study.file, [*SMALL, "methods.lora.ranks=[2]"])
    folder = StudyFolder(root)
    run_study(plan_study(config), folder, Recorder())
    plan = plan_study(extended(config, Extension(num_seeds=1)))
    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "take_step", take_step)
        with pytest.raises(Stopped):
            run_study(plan, folder, Recorder())
    return StudyFolder(root)


def test_an_extension_that_was_stopped_goes_on(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's plan is that of the extension, since a training of it is saved."""
    take_step = Trainee.take_step

    def stopping(self: Trainee, *arguments: Any, **named: Any) -> Any:
        metrics = take_step(self, *arguments, **named)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    folder = stopped_extension(study, tmp_path / "s", monkeypatch, stopping)
    kept = folder.read_study().config
    assert kept.seeds == (0, 1)
    outcome = run_study(plan_study(kept), folder, Recorder())
    assert len(outcome.results.runs) == 2


def test_a_plan_of_which_nothing_came_is_taken_back(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*_: Any, **__: Any) -> Any:
        raise Stopped(signal.SIGTERM)

    folder = stopped_extension(study, tmp_path / "s", monkeypatch, stopping)
    assert list(folder.root.rglob("training.pt")) == []
    assert folder.read_study().config.seeds == (0,)
