"""Divergence from the base in a study: against dense logits, of an update of zero, resumed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.results import Divergence
from rankwise.records.study_file import load_config
from rankwise.report.page import write_report
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.reading import read_results
from rankwise.study.stages.gauges import CompareWithBase
from rankwise.study.stages.graph import stages
from rankwise.study.status import study_status
from tests.support.observers import Recorder
from tests.support.records import weights_as_they_are
from tests.support.studies import run

SMALL = (
    "evaluation.out_of_domain=[]",
    "evaluation.retention=[hues]",
    "evaluation.num_train_items=0",
    "analysis.spectra=false",
    "analysis.heads=false",
)


class Finished(NamedTuple):
    """A finished small study; ``folder`` is a copy for one test."""

    outcome: Any
    plan: StudyPlan
    folder: StudyFolder


@pytest.fixture(scope="module")
def original() -> list[Finished]:
    """Filled by the first test that needs it."""
    return []


@pytest.fixture
def finished(
    study_file: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    original: list[Finished],
) -> Finished:
    if not original:
        folder = tmp_path_factory.mktemp("original") / "study"
        outcome, _ = run(study_file, folder, *SMALL)
        plan = plan_study(load_config(study_file, SMALL))
        original.append(Finished(outcome, plan, StudyFolder(folder)))
    shutil.copytree(original[0].folder.root, tmp_path / "study")
    return original[0]._replace(folder=StudyFolder(tmp_path / "study"))


def gauged(recorder: Recorder) -> list[str]:
    return [stage for _, stage in recorder.stages if stage == "gauges"]


def dense(model: Any, tokens: tuple[int, ...], kept: int) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, -kept:]
    return logits.double().log_softmax(-1)


def test_every_model_has_the_kl_of_dense_logits(finished: Finished) -> None:
    _, plan, folder = finished
    answers = plan.inputs["gauges"]["colours"]
    assert [each.task for each in answers] == ["colours"] * 26 + ["small_prose"] * 10
    models = plan.record.models
    assert {"lora", "full"} == {model.method for model in models}
    for planned in models:
        record = read_record(CompareWithBase.path(folder, planned.name), Divergence)
        base: Any = AutoModelForCausalLM.from_pretrained(plan.base.folder)
        weights = folder.weights_folder(planned)
        if planned.method == "full":
            own = AutoModelForCausalLM.from_pretrained(weights)
        else:
            own = PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(plan.base.folder), weights
            )
        assert record.reference == "base"
        assert record.item_tokens == tuple(len(each.continuation) for each in answers)
        for place in (0, 7, 26, 31):
            each = answers[place]
            tokens = (*each.context, *each.continuation)[:-1]
            p, q = (dense(m.eval(), tokens, len(each.continuation)) for m in (base, own))
            kl = float((p.exp() * (p - q)).sum(-1).mean())
            assert kl > 1e-6
            assert record.kl_nats[place] == pytest.approx(kl, rel=1e-3, abs=1e-7)
            rise = (p - q).gather(-1, torch.tensor(each.continuation)[:, None]).mean()
            assert record.rise_nats[place] == pytest.approx(float(rise), rel=1e-3, abs=1e-6)


def test_an_update_of_zero_is_at_exactly_zero(finished: Finished, study_file: Path) -> None:
    folder = finished.folder
    name = finished.plan.record.runs[0].name
    path = folder.weights_folder(finished.plan.record.runs[0]) / "adapter_model.safetensors"
    zero = {k: t * (0.0 if "lora_B" in k else 1.0) for k, t in load_file(path).items()}
    save_file(zero, path, metadata={"format": "pt"})
    weights_as_they_are(folder, name)
    CompareWithBase.path(folder, name).unlink()
    _, recorder = run(study_file, folder.root, *SMALL)
    assert recorder.stages == [("gauges", "gauges")]
    record = read_record(CompareWithBase.path(folder, name), Divergence)
    assert set(record.kl_nats) == set(record.rise_nats) == {0.0}
    assert set(record.top1_agreement) == {1.0}


def test_a_missing_record_is_made_again_alone(finished: Finished, study_file: Path) -> None:
    _, plan, folder = finished
    name = plan.record.runs[1].name
    path = CompareWithBase.path(folder, name)
    before = {other: other.stat().st_mtime_ns for other in folder.root.rglob("gauges.json")}
    path.unlink()
    assert read_results(folder).runs[1].from_base is None
    left = {line.model: "gauges" in line.left for line in study_status(folder)}
    assert [model for model, is_left in left.items() if is_left] == [name]
    _, recorder = run(study_file, folder.root, *SMALL)
    assert recorder.stages == [("gauges", "gauges")]
    assert recorder.done == pytest.approx(recorder.work[0] - recorder.work[1])
    changed = {o for o, time in before.items() if o.stat().st_mtime_ns != time}
    assert changed == {path}


def test_they_can_be_switched_off(finished: Finished, study_file: Path) -> None:
    on, off, named = (
        plan_study(load_config(study_file, (*SMALL, *setting))).record
        for setting in ((), ("analysis.gauges=false",), ("analysis.gauges=true",))
    )
    assert not any(isinstance(stage, CompareWithBase) for stage in stages(off))
    assert "gauges" not in off.inputs
    assert [run.fingerprint for run in off.runs] == [run.fingerprint for run in on.runs]
    assert named.fingerprint == on.fingerprint != off.fingerprint
    outcome, recorder = run(study_file, finished.folder.root, *SMALL, "analysis.gauges=false")
    assert recorder.stages == []
    assert outcome.findings.gauges == ()


def test_the_report_has_the_gauges(finished: Finished) -> None:
    (part,) = finished.outcome.findings.gauges
    models = finished.plan.record.models
    assert len(part.models) == len(models)
    assert all(
        model.kl_prompts and model.kl_prose and model.retention_loss for model in part.models
    )
    page = write_report(finished.folder.root, *finished.outcome).read_text(encoding="utf-8")
    assert all(model.label in page for model in part.models)
    lines = (finished.folder.root / "report" / "gauges.csv").read_text(encoding="utf-8")
    assert len(lines.splitlines()) == 1 + len(models)
