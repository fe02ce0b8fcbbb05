"""One of the processes that share a model: ``python -m rankwise.study.work.part job.json``.

``study.started`` has them started, one for each device. In a training the first one writes into the
study's folder. It tells on stdout what it does; by stdin it is asked to stop, or what is scored.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rankwise.engine.models.base import BaseModel, load_tokenizer
from rankwise.engine.models.devices import is_out_of_memory
from rankwise.engine.scoring.resident import CACHE_SHARE, ResidentScorer, free_share
from rankwise.engine.training.sharded import LEAVE, Processes, ShardedModel, joined
from rankwise.errors import ModelError, StorageError
from rankwise.records.config.mitigations import RowsConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedPass, PlannedRun, StageFailure
from rankwise.study.context import StudyContext
from rankwise.study.observer import StageOutline, TrainingStep
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.sharded_scorer import CALLS
from rankwise.study.started import MARK
from rankwise.study.stopping import Stopped, StopSignals
from rankwise.study.work.processes import STOP, WRITE
from rankwise.study.work.training import train_part
from rankwise.tasks.training_rows import Example

_IDLE_SECONDS = 600.0


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


def _base(job: dict[str, Any]) -> BaseModel:
    name, weights, fingerprint = job["base"]
    return BaseModel(name, Path(weights), fingerprint)


def _examples(rows: Sequence[Any]) -> tuple[Example, ...]:
    return tuple(Example(tuple(tokens), *rest) for tokens, *rest in rows)


class _Follower:
    """The process that follows this one, as far as this one hears of it."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals
        self._agreed = threading.Semaphore(0)
        _listen(self._hear)

    def agree(self) -> None:
        """Wait until it says that the folder may be written; it ends this process if not."""
        tell(asks=WRITE)
        self._agreed.acquire()

    def _hear(self, line: str) -> None:
        """Stop at the end of a step when asked to."""
        if line == STOP:
            self._signals.ask(signal.SIGTERM)
        elif line == WRITE:
            self._agreed.release()


def _listen(hear: Callable[[str], None]) -> None:
    """From now on hear each line of stdin, and end this process when nobody follows any more."""

    def listen() -> None:
        for line in sys.stdin:
            hear(line.strip())
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()


def train(job: dict[str, Any], processes: Processes) -> None:
    """Do this process's part of a training."""
    folder, base = StudyFolder(Path(job["folder"])), _base(job)
    runs = [PlannedRun.model_validate(run) for run in job["runs"]]
    plan = StudyPlan(
        record=folder.read_study(),
        base=base,
        tokenizer=load_tokenizer(base.folder),
        device=processes.device,
        examples={task: _examples(rows) for task, rows in job["examples"].items()},
        tasks={},
        answers={},
        head_prompts={},
        others={
            RowsConfig.model_validate(rows): _examples(examples) for rows, examples in job["others"]
        },
    )
    context = StudyContext.of(plan, folder, _Telling())
    if processes.leads:
        folder.guard = _Follower(context.signals).agree
    try:
        train_part(context, runs, PlannedPass.model_validate(job["pass"]), processes)
    except Stopped:
        tell(stopped=True)  # first: one that leaves closes its connections
        processes.tell(LEAVE)
        return
    if processes.leads:
        tell(done=True)


def score(job: dict[str, Any], processes: Processes) -> None:
    """Answer one question after the other, as the other processes do, until nobody asks any more.

    All of them read the same, since they gather each layer together; the first one answers.
    """
    base, device = _base(job), processes.device
    sharded = ShardedModel(base.folder, job["precision"], processes, is_frozen=True)
    model: Any = sharded.model
    with torch.no_grad():
        # From now on what is outside of the layers stays gathered. What FSDP makes once it makes
        # here: in inference mode it could not be used again.
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    scorer = ResidentScorer(
        model,
        load_tokenizer(base.folder),
        max_batch_tokens=job["max_batch_tokens"],
        cache_bytes=min(processes.gathered(free_share(device, CACHE_SHARE))),
        may_shrink=False,
    )
    for name, question, answer in questions(processes):
        asked = CALLS[name].asked.validate_json(Path(question).read_bytes())
        found, refusal = _answered(scorer, name, asked, processes)
        if len(set(processes.gathered(refusal))) > 1:
            raise ModelError("processes that share a model differ in what they can read")
        if not processes.leads:
            continue
        if refusal is None:
            Path(answer).write_bytes(CALLS[name].answered.dump_json(found))
        tell(answered=answer, refused=refusal)


def _answered(
    scorer: ResidentScorer, name: str, asked: tuple[Any, ...], processes: Processes
) -> tuple[Any, str | None]:
    """What a call gives, and why it was refused."""
    takes_time = name in ("log_likelihoods", "generate") and processes.leads
    advance = [lambda num_tokens: tell(read=num_tokens)] if takes_time else []
    try:
        return getattr(scorer, name)(*asked, *advance), None
    except ModelError as error:
        return None, str(error)


def questions(processes: Processes) -> Iterator[Sequence[str]]:
    """What is asked by stdin, in every process; this one ends when nobody asks any more.

    Now and then the first process tells the others that nothing is asked: they would not wait for
    it longer than they do for anything.
    """
    lines: queue.Queue[str] = queue.Queue()
    if processes.leads:
        _listen(lines.put)
    while True:
        question: Sequence[str] = ()
        if processes.leads:
            with contextlib.suppress(queue.Empty):
                question = json.loads(lines.get(timeout=_IDLE_SECONDS))
            processes.tell("answer", *question)
        else:
            _, question = processes.hear()
        if question:
            yield question


def _reason(error: Exception) -> dict[str, str]:
    """Why this process ends, as it is told."""
    if isinstance(error, StorageError):
        return {"storage": str(error)}
    kind = "memory" if is_out_of_memory(error) else "failed"
    return {kind: f"{type(error).__name__}: {error}"}


_DOES = {"training": train, "scoring": score}

if __name__ == "__main__":
    try:
        job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        with joined(job["device"]) as processes:
            _DOES[job["does"]](job, processes)
    except Exception as error:
        tell(**_reason(error))
        raise
