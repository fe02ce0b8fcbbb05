"""Scores by two processes that hold the base together: those of one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

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
from rankwise.study.planning.plan import plan_study
from rankwise.study.sharded_scorer import ShardedScorer
from rankwise.tasks.questions import Continuation, GenerationSettings, Prompt
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
        together.take_off("a")
        with pytest.raises(ModelError, match="no adapter a is attached"):
            together.log_likelihoods(("a",), ITEMS)
        assert resident.scorer() is together
        parts = psutil.Process().children(recursive=True)
        parts[-1].kill()
        with pytest.raises(ModelError, match="a process of the scoring ended with"):
            together.log_likelihoods((None,), ITEMS)
        assert not together.is_open
        assert not any(part.is_running() for part in parts)
    finally:
        resident.release()
