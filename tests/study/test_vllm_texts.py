"""A study whose texts vLLM writes: nothing else is asked of it, one engine is open at a time."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from rankwise.engine.models import base as models
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from tests.support.fake_vllm import FakeVllm
from tests.support.studies import run

SMALL = ["methods.lora.ranks=[2, 4]", "evaluation.limit=6", "train.epochs=1"]
BY_VLLM = "evaluation.engine={loglikelihood: resident, generate_until: vllm}"


def test_vllm_writes_the_texts_and_nothing_else(
    study_file: Path, tmp_path: Path, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[nn.Module]] = []

    def load(*args: Any, **options: Any) -> nn.Module:
        assert not vllm.is_running  # its memory would be missing
        model = load_frozen(*args, **options)
        loaded.append(weakref.ref(model))
        return model

    def nothing_is_loaded() -> None:
        assert loaded
        assert [ref for ref in loaded if ref() is not None] == []

    load_frozen = models.load_frozen
    monkeypatch.setattr(models, "load_frozen", load)
    vllm.on_opening = nothing_is_loaded
    plan = plan_study(load_config(study_file, [*SMALL, BY_VLLM]))
    kinds = {name: task.loaded.output_type for name, task in plan.tasks.items()}
    assert [name for name, kind in kinds.items() if kind == "generate_until"] == ["sums"]
    run(study_file, tmp_path / "study", *SMALL, BY_VLLM)
    run(study_file, tmp_path / "plain", *SMALL)
    folder, plain = StudyFolder(tmp_path / "study"), StudyFolder(tmp_path / "plain")
    runs = folder.read_study().runs
    assert {each.method for each in runs} == {"lora", "full"}
    for name in (BASE, *(each.name for each in runs)):
        full = any(each.name == name and each.method == "full" for each in runs)
        who = "None" if name == BASE or full else name
        texts = [line["resps"][0][0] for line in folder.read_samples(name, "sums")]
        assert len(texts) == 6
        assert all(text.startswith(f"{who} continues") for text in texts)
        for task in sorted(kinds.keys() - {"sums"}):
            assert folder.read_samples(name, task) == plain.read_samples(name, task)
    # the base, the adapters of the pass, and the full fine-tuning have been asked by themselves
    opened = {options["model"] for options in vllm.opened}
    assert len(opened) == 2
    lengths = {request.num_tokens for request in plan.tasks["sums"].requests}
    assert {options["max_model_len"] for options in vllm.opened} == {max(lengths)}


def test_vllm_is_opened_once_for_all_texts_of_a_model(
    study_file: Path, tmp_path: Path, vllm: FakeVllm
) -> None:
    settings = [*SMALL, BY_VLLM, "train.task=sums", "evaluation.out_of_domain=[colours]"]
    settings += ["evaluation.num_train_items=4", "methods.full=null"]
    study = plan_study(load_config(study_file, settings)).record
    # texts, log-likelihoods, texts: in the study's order it would be opened twice
    assert [task for task in study.scored_tasks() if task in ("sums", "colours", "sums@train")] == [
        "sums", "colours", "sums@train",
    ]  # fmt: skip
    run(study_file, tmp_path / "study", *settings)
    assert len(vllm.opened) == 2  # for the base, and for the pass
    finished = StudyFolder(tmp_path / "study")
    assert len(finished.read_samples(BASE, "sums@train")) == 4


def test_only_tasks_that_generate_depend_on_who_writes(study_file: Path, vllm: FakeVllm) -> None:
    plain = plan_study(load_config(study_file, SMALL)).record
    written = plan_study(load_config(study_file, [*SMALL, BY_VLLM])).record
    differ = {
        name
        for name, fingerprint in plain.task_fingerprints.items()
        if written.task_fingerprints[name] != fingerprint
    }
    assert differ == {"sums"}
    assert written.fingerprint != plain.fingerprint
