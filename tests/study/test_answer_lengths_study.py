"""Lengths of answers in a study: greedy texts of every model, off by default, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rankwise.engine.scoring import resident
from rankwise.records.answer_lengths import AnswerLengths
from rankwise.records.files import read_record
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.study_file import load_config
from rankwise.report.page import write_report
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.study.stages.answer_lengths import MeasureLengths
from rankwise.study.stages.graph import stages
from rankwise.study.status import study_status
from rankwise.tasks.short_prompts import MOST_NEW_TOKENS, short_prompts
from tests.support.observers import Silent
from tests.support.saved_adapters import save_dora
from tests.support.studies import run

SMALL = (
    "evaluation.out_of_domain=[]",
    "evaluation.held_out_text=[]",
    "evaluation.num_train_items=0",
    "analysis.spectra=false",
    "analysis.heads=false",
)
ON = (*SMALL, "analysis.answer_lengths=true")


def greedy(model: Any, tokens: tuple[int, ...], eos: int) -> list[int]:
    """Without a cache, token by token."""
    new: list[int] = []
    while len(new) < MOST_NEW_TOKENS and eos not in new:
        with torch.no_grad():
            new.append(int(model(torch.tensor([[*tokens, *new]])).logits[0, -1].argmax()))
    return [token for token in new if token != eos]


def test_models_write_what_greedy_decoding_writes(study_file: Path, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    outcome, recorder = run(study_file, folder.root, *ON)
    plan = plan_study(load_config(study_file, ON))
    assert recorder.stages.count(("answer_lengths", "answer_lengths")) == 1
    models: dict[str, Any] = {BASE: AutoModelForCausalLM.from_pretrained(plan.base.folder)}
    for planned in plan.record.runs:
        weights = folder.weights_folder(planned)
        base = AutoModelForCausalLM.from_pretrained(plan.base.folder)
        is_full = planned.method == "full"
        models[planned.name] = (
            AutoModelForCausalLM.from_pretrained(weights)
            if is_full
            else PeftModel.from_pretrained(base, weights)
        )
    assert len(plan.short_prompts) == len(short_prompts())
    for name, model in models.items():
        record = read_record(MeasureLengths.path(folder, name), AnswerLengths)
        for place in (0, 13, 29):
            prompt = plan.short_prompts[place]
            assert short_prompts()[place] in plan.tokenizer.decode(prompt.tokens)
            tokens = greedy(model.eval(), prompt.tokens, plan.tokenizer.eos_token_id)
            text = plan.tokenizer.decode(tokens, skip_special_tokens=True)
            assert record.texts[place].strip() == text.strip()
    (part,) = outcome.findings.answer_lengths
    assert len(part.models) == 3
    page = write_report(folder.root, *outcome).read_text(encoding="utf-8")
    assert "Length of own answers" in page

    name = plan.record.runs[2].name
    MeasureLengths.path(folder, name).unlink()
    assert [line.model for line in study_status(folder) if "answer_lengths" in line.left] == [name]
    _, recorder = run(study_file, folder.root, *ON)
    assert recorder.stages == [("answer_lengths", "answer_lengths")]
    assert not any(line.left for line in study_status(folder))


class Noting(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, text: str) -> None:
        self.notes.append(text)


def test_what_is_no_plain_lora_writes_alone(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in scoring, it is not tried beside other adapters."""
    tried: list[Path] = []
    load = resident.load_frozen_adapter

    def remembered(model: Any, path: Path, *rest: Any) -> Any:
        tried.append(path.parent)
        return load(model, path, *rest)

    monkeypatch.setattr(resident, "load_frozen_adapter", remembered)
    settings = ("methods.full=null", "methods.lora.ranks=[2]", "methods.variants={names: [vera]}")
    folder = StudyFolder(tmp_path / "study")
    outcome, _ = run(study_file, folder.root, *ON, "analysis.gauges=false", *settings)
    study = outcome.results.study
    (plain,), (variant,) = study.runs, study.of_role("variant")
    assert set(tried) == {folder.model_folder(plain.name)}
    record = read_record(MeasureLengths.path(folder, variant.name), AnswerLengths)
    assert len(record.texts) == len(short_prompts())


def test_what_the_engine_refuses_writes_alone_and_is_named_once(
    study_file: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    save_dora(tmp_path / "dora", tiny_model_folder)
    imported = json.dumps([{"adapter": str(tmp_path / "dora")}])
    overrides = (*ON, "methods.full=null", "methods.lora=null", f"methods.imported={imported}")
    plan, folder = plan_study(load_config(study_file, overrides)), StudyFolder(tmp_path / "study")
    for _ in range(2):  # the second time, all but these is there already
        observer = Noting()
        run_study(plan, folder, observer)
        (note,) = observer.notes
        assert "is scored alone" in note
        assert "use_dora" in note
        path = MeasureLengths.path(folder, plan.record.runs[0].name)
        assert len(read_record(path, AnswerLengths).texts) == len(short_prompts())
        path.unlink()


def test_it_is_off_unless_it_is_asked_for(study_file: Path) -> None:
    off, on = (plan_study(load_config(study_file, each)).record for each in (SMALL, ON))
    assert not any(isinstance(stage, MeasureLengths) for stage in stages(off))
    assert off.fingerprint != on.fingerprint
    assert [r.fingerprint for r in off.runs] == [r.fingerprint for r in on.runs]
    named = plan_study(load_config(study_file, (*SMALL, "analysis.answer_lengths=false"))).record
    assert named.fingerprint == off.fingerprint
