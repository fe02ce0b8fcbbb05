"""Scores by two processes that hold the base together: those of one process."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from rankwise.engine.models.base import load_frozen
from rankwise.engine.models.peft_adapters import save_adapter
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import ModelError
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.models import ResidentModels
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.sharded_scorer import CALLS, ShardedScorer
from rankwise.study.stopping import Stopped
from rankwise.study.work import part
from rankwise.tasks.questions import Continuation, GenerationSettings, LogLikelihood, Prompt
from tests.support.observers import Silent
from tests.support.passes import CPU, TARGETS, Setting, config

ITEMS = [
    Continuation((1, 20, 30), (40, 50)),
    Continuation((1, 20, 30), (41,)),
    Continuation((7, 8), (9, 10, 11)),
]
SAMPLED = GenerationSettings(6, ("e",), (("do_sample", True), ("temperature", 0.7)))
PROMPTS = [Prompt((1, 20, 30), GenerationSettings(5)), Prompt((7, 8), SAMPLED, draw=3)]


def write_adapter(model_folder: Path, folder: Path) -> None:
    """One whose update is not zero."""
    adapter = Setting(model_folder).trainee(config()).adapter
    for _, lora_B in adapter.factors.values():
        lora_B.fill_(0.05)
    save_adapter(
        adapter, folder, alpha=8.0, use_rslora=False, target_modules=TARGETS, base_model_name="tiny"
    )


def stop(_: int) -> None:
    """As a signal does while a question is answered."""
    raise Stopped(signal.SIGTERM)


class Planted(ShardedScorer):
    """Has no processes; ``fail`` ends them, and refuses nothing while they run."""

    def __init__(self, plan: StudyPlan) -> None:
        del plan
        self.asked: list[str] = []
        self.is_dead = False

    @property
    def is_open(self) -> bool:
        return not self.is_dead

    def close(self) -> None:
        self.is_dead = True

    def put_on(self, name: str, folder: Path) -> None:
        del folder
        self.asked.append(name)
        if len(self.asked) > 1:
            self.close()
            raise ModelError("a process of the scoring ended with -9")

    def take_off(self, name: str) -> None:
        raise FileNotFoundError(name)


def test_adapters_go_with_the_processes(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.study.models.ShardedScorer", Planted)
    plan = plan_study(load_config(study_file, ["methods.full=null"]))
    plan = dataclasses.replace(plan, record=plan.record.model_copy(update={"base_devices": 2}))
    resident = ResidentModels(plan, StudyFolder(tmp_path), Silent())
    first, second = plan.record.runs[:2]
    assert resident.put_on([first]) == [first]
    # it has failed, which is no refusal
    with pytest.raises(ModelError, match="ended with -9"):
        resident.put_on([first, second])
    resident.release(base=True)  # and asks it nothing
    assert resident.put_on([first]) == [first]
    resident.release()  # nor while it may be at a question


def test_answers_need_not_be_finite() -> None:
    answer = [[LogLikelihood(-math.inf, is_greedy=False), LogLikelihood(math.nan, is_greedy=True)]]
    call = CALLS["log_likelihoods"].answered
    assert repr(call.validate_json(call.dump_json(answer))) == repr(answer)


class Hearing(NamedTuple):
    """The other processes, as far as they are told anything."""

    told: list[tuple[Any, ...]]
    leads: bool = True

    def tell(self, *said: Any) -> None:
        self.told.append(said)


def test_processes_that_wait_for_a_question_hear_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(part, "_IDLE_SECONDS", 0.01)
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w") as asking:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("os._exit", lambda _: None)  # where nobody asks any more
        processes: Any = Hearing([])
        line, where = '["take_off", "q", "a"]', {"file": asking, "flush": True}
        timer = threading.Timer(0.5, print, [line], where)
        timer.start()
        assert next(part.questions(processes)) == ["take_off", "q", "a"]
        asking.close()
        timer.join()
    *idle, asked = processes.told
    assert asked == ("answer", "take_off", "q", "a")
    assert set(idle) == {("answer",)}


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of PyTorch starts no processes"
)
def test_equal_those_of_one_process(
    study_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    write_adapter(tiny_model_folder, tmp_path / "adapter")
    plan = plan_study(load_config(study_file, ["methods.full=null"]))
    alone = ResidentScorer(load_frozen(tiny_model_folder, "float32", CPU), plan.tokenizer)
    record = plan.record.model_copy(update={"base_devices": 2})
    wide = dataclasses.replace(plan, record=record)
    resident = ResidentModels(wide, StudyFolder(tmp_path / "study"), Silent())
    together = resident.scorer()
    assert isinstance(together, ShardedScorer)
    try:
        with pytest.raises(ModelError, match="nowhere"):
            together.put_on("b", tmp_path / "nowhere")
        models = (None, "a")
        for scorer in (alone, together):
            scorer.put_on("a", tmp_path / "adapter")
        read: list[int] = []
        expected = alone.log_likelihoods(models, ITEMS)
        for ours, theirs in zip(
            together.log_likelihoods(models, ITEMS, read.append), expected, strict=True
        ):
            assert [item.nats for item in ours] == pytest.approx(
                [item.nats for item in theirs], rel=1e-6
            )
            assert [item.is_greedy for item in ours] == [item.is_greedy for item in theirs]
        assert expected[0] != expected[1]
        assert sum(read) == 2 * sum(len(item.tokens_read) for item in ITEMS)
        assert together.generate(models, PROMPTS) == alone.generate(models, PROMPTS)
        with pytest.raises(Stopped):  # and a later question has its own answer
            together.log_likelihoods(models, ITEMS, stop)
        assert together.generate((None,), PROMPTS[:1]) == alone.generate((None,), PROMPTS[:1])
        together.take_off("a")
        with pytest.raises(ModelError, match="no adapter a is attached"):
            together.log_likelihoods(("a",), ITEMS)
        assert resident.scorer() is together
        below = psutil.Process().children(recursive=True)  # of other tests too
        parts = [each for each in below if "rankwise.study.work.part" in each.cmdline()]
        assert len(parts) == 3  # two, and what has started them
        parts[-1].kill()
        with pytest.raises(ModelError, match="a process of the scoring ended with"):
            together.log_likelihoods((None,), ITEMS)
        assert not together.is_open
        assert not any(part.is_running() for part in parts)
    finally:
        resident.release()
