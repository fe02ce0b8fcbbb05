"""One of the processes of a full fine-tuning: ``python -m rankwise.study.work.part job.json``.

``processes`` has them started, one for each device. The first one writes into the study's folder
and tells on stdout what it does; by stdin it is asked to stop.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.engine.models.base import BaseModel, load_tokenizer
from rankwise.engine.models.devices import is_out_of_memory
from rankwise.engine.training.sharded import LEAVE, joined
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedPass, PlannedRun, StageFailure
from rankwise.study.context import StudyContext
from rankwise.study.observer import StageOutline, TrainingStep
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.stopping import Stopped, StopSignals
from rankwise.study.work.processes import MARK, STOP
from rankwise.study.work.training import train_part
from rankwise.tasks.training_rows import Example


def tell(**event: Any) -> None:
    """Write one line that begins with ``MARK``, at once: other processes write there too."""
    os.write(1, f"\n{MARK}{json.dumps(event)}\n".encode())


class _Telling:
    """An observer of the study that tells the process that follows."""

    def advanced(self, work: float) -> None:
        tell(advanced=work)

    def skipped(self, work: float) -> None:
        tell(skipped=work)

    def stepped(self, step: TrainingStep) -> None:
        tell(stepped=step)

    def noted(self, text: str) -> None:
        tell(noted=text)

    def study_started(self, stages: Sequence[StageOutline]) -> None: ...
    def stage_started(self, stage: str) -> None: ...
    def stage_finished(self) -> None: ...
    def stage_failed(self, failure: StageFailure) -> None: ...
    def stage_left_out(self, stage: str) -> None: ...
    def decided(self, text: str) -> None: ...


def _listen(signals: StopSignals) -> None:
    """Stop at the end of a step when asked to, and at once when nobody follows any more."""
    for line in sys.stdin:
        if line.strip() == STOP:
            signals.ask(signal.SIGTERM)
    os._exit(1)


def train(job: dict[str, Any]) -> None:
    """Do this process's part."""
    folder, device = StudyFolder(Path(job["folder"])), job["device"]
    name, weights, fingerprint = job["base"]
    base = BaseModel(name, Path(weights), fingerprint)
    runs = [PlannedRun.model_validate(run) for run in job["runs"]]
    with joined(device) as processes:
        plan = StudyPlan(
            record=folder.read_study(),
            base=base,
            tokenizer=load_tokenizer(base.folder),
            device=processes.device,
            examples={
                runs[0].train_task: tuple(
                    Example(tuple(tokens), *rest) for tokens, *rest in job["examples"]
                )
            },
            tasks={},
            answers={},
            head_prompts={},
        )
        context = StudyContext.of(plan, folder, _Telling())
        if processes.leads:
            threading.Thread(target=_listen, args=(context.signals,), daemon=True).start()
        try:
            train_part(context, runs, PlannedPass.model_validate(job["pass"]), processes)
        except Stopped:
            processes.tell(LEAVE)
            tell(stopped=True)
            return
        if processes.leads:
            tell(done=True)


if __name__ == "__main__":
    try:
        train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        tell(**{"memory" if is_out_of_memory(error) else "failed": message})
        raise
