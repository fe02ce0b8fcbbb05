"""All features of a small study: complete, finite, repeatable, and those of its own training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models.base import load_frozen
from rankwise.errors import ConfigError
from rankwise.prediction.feature_table import FEATURES, TRUNCATED_RANKS
from rankwise.prediction.probe import ProbeSetting, Reference, probe_features, train_probe
from rankwise.records.folder import StudyFolder
from rankwise.records.reading import read_results
from rankwise.records.results import weighted_by_tokens
from rankwise.records.study_file import load_config
from rankwise.study import predicting
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.predicting import measure_features
from rankwise.weights.lowrank import read_updates
from tests.support.observers import Silent
from tests.support.studies import run

ALONE = (
    "evaluation.out_of_domain=[]",
    "evaluation.retention=[hues]",
    "evaluation.num_train_items=0",
    "evaluation.trained_format=false",
    "analysis.spectra=false",
    "analysis.heads=false",
    "methods.full=null",
)


@pytest.fixture
def plan(study_file: Path) -> StudyPlan:
    return plan_study(load_config(study_file, [*ALONE, "methods.lora.ranks=[4]"]))


def _base(plan: StudyPlan) -> Any:
    return load_frozen(plan.base.folder, "float32", plan.device)


def _setting(plan: StudyPlan, num_steps: int) -> ProbeSetting:
    record = plan.record
    return ProbeSetting(
        record.config, record.runs[0], record.passes[0], record.precision, num_steps
    )


def _references(plan: StudyPlan, base: Any) -> list[Reference]:
    """Of right answers, and of texts."""
    read: list[Reference] = []
    for is_text in (False, True):
        own = [x for x in plan.gauged["colours"] if (x.task == "small_prose") == is_text]
        reference = Reference.of(base, own, max_batch_tokens=4096)
        assert reference is not None
        read.append(reference)
    return read


def test_every_name_of_the_table_is_there(study_file: Path) -> None:
    wide = ["methods.lora.ranks=[2,64]", "methods.lora.target_modules=all-linear"]
    found = measure_features(load_config(study_file, [*ALONE, *wide]))
    assert found.keys() == FEATURES.keys()
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    # by hand: 24 rows; 2 epochs in steps of 8; a llama of width 48 with 2 layers
    assert found["train_rows"] == 24
    assert found["train_steps"] == 6
    assert (found["model_layers"], found["model_width"]) == (2, 48)
    assert (found["probe_rank"], found["probe_steps"]) == (64, 6)
    assert found["probe_kl"] > 0.0


def test_twice_the_same_and_nothing_is_written(study_file: Path) -> None:
    def files() -> list[Path]:  # but for what Python compiles
        return sorted(p for p in study_file.parent.rglob("*") if "__pycache__" not in p.parts)

    before = files()
    config = load_config(study_file, [*ALONE, "methods.lora.ranks=[4]"])
    first = measure_features(config)
    assert first == measure_features(config)
    assert files() == before
    alone = measure_features(config, with_probe=False)
    assert alone == {k: v for k, v in first.items() if not k.startswith("probe_")}


def test_what_a_study_has_not_is_missing(study_file: Path) -> None:
    none = ["evaluation.retention=[]", "evaluation.held_out_text=[]", "methods.lora.ranks=[2]"]
    found = measure_features(load_config(study_file, [*ALONE, *none]))
    missing = {name for name in FEATURES.keys() - found.keys() if not name.endswith("_mlp")}
    cut = {f"probe_loss_drop_rank_{rank}" for rank in TRUNCATED_RANKS if rank >= 2}
    retention = {name for name in FEATURES if name.startswith("retention_")}
    angles = {"gradient_cosine", "gradient_overlap_left", "gradient_overlap_right"}
    assert missing == {*cut, *retention, *angles, "probe_kl_text"}


def test_the_base_answers_the_first_items_of_the_study(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [*ALONE, "methods.lora.ranks=[2]"]
    limited = measure_features(
        load_config(study_file, [*own, "evaluation.limit=7"]), with_probe=False
    )
    monkeypatch.setattr(predicting, "NUM_ITEMS", 7)
    found = measure_features(load_config(study_file, own), with_probe=False)
    of_items = {"base_accuracy", "base_p_right", "near_tie_share", "retention_p_right"}
    assert {name: found[name] for name in of_items} == {name: limited[name] for name in of_items}
    # right answers are those of the gauge, whatever the base answers
    assert found["base_loss"] != limited["base_loss"]


def test_no_steps_change_nothing(plan: StudyPlan) -> None:
    base = _base(plan)
    updates = train_probe(base, plan.examples["colours"], _setting(plan, 0))
    found = probe_features(base, updates, *_references(plan, base))
    assert found.pop("probe_energy_rank_90") == 0.0
    assert set(found.values()) == {0.0}
    assert "probe_loss_drop_rank_2" in found


def test_a_probe_of_all_steps_is_the_run_of_the_study(
    plan: StudyPlan, study_file: Path, tmp_path: Path
) -> None:
    base = _base(plan)
    (planned,) = plan.record.runs
    updates = train_probe(base, plan.examples["colours"], _setting(plan, planned.num_steps))
    found = probe_features(base, updates, *_references(plan, base))
    run(study_file, tmp_path / "study", *ALONE, "methods.lora.ranks=[4]")
    folder = StudyFolder(tmp_path / "study")
    saved = read_updates(folder.weights(planned))
    assert updates.keys() == saved.keys()
    for name, update in updates.items():
        torch.testing.assert_close(update.lora_A, saved[name].lora_A, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(update.lora_B, saved[name].lora_B, rtol=1e-4, atol=1e-6)
    (model,) = read_results(folder).runs
    gauge = model.from_base
    assert gauge is not None
    for task, name in (("colours", "probe_kl"), ("small_prose", "probe_kl_text")):
        places = [place for place, of in enumerate(gauge.tasks) if of == task]
        kls, lengths = (
            [values[place] for place in places] for values in (gauge.kl_nats, gauge.item_tokens)
        )
        mean = sum(weighted_by_tokens(kls, lengths)) / len(places)
        assert found[name] == pytest.approx(mean, rel=1e-4)


def test_a_truncated_update_is_that_of_the_weights(plan: StudyPlan) -> None:
    """Rank 1 of each matrix's update by torch's own SVD, added to the weights."""
    base = _base(plan)
    updates = train_probe(base, plan.examples["colours"], _setting(plan, 6))
    reference, texts = _references(plan, base)
    found = probe_features(base, updates, reference, texts)
    changed = _base(plan)
    for name, update in updates.items():
        delta = update.scaling * update.lora_B.double() @ update.lora_A.double()
        U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
        changed.get_submodule(name).weight += (S[0] * torch.outer(U[:, 0], Vh[0])).float()
    losses = [_loss(model, reference) for model in (base, changed)]
    assert reference.loss_nats == pytest.approx(losses[0], rel=1e-5)
    assert found["probe_loss_drop_rank_1"] == pytest.approx(losses[0] - losses[1], abs=1e-5)
    assert found["probe_loss_drop_rank_1"] != pytest.approx(found["probe_loss_drop"], rel=1e-2)


@torch.no_grad()
def _loss(model: Any, reference: Reference) -> float:
    """Nats per token of the right answers, each read alone."""
    total = number = 0.0
    for answer in reference.answers:
        logits = model(torch.tensor([answer.tokens_read])).logits[0, -len(answer.continuation) :]
        chosen = torch.tensor(answer.continuation)
        total -= float(logits.log_softmax(-1).gather(1, chosen[:, None]).sum())
        number += len(chosen)
    return total / number


class _Noted(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, text: str) -> None:
        self.notes.append(text)


def test_a_probe_that_diverges_is_left_out_and_said(study_file: Path) -> None:
    observer = _Noted()
    overrides = [*ALONE, "methods.lora.ranks=[4]", "train.learning_rate.lora=1e30"]
    found = measure_features(load_config(study_file, overrides), observer=observer)
    assert not [name for name in found if name.startswith("probe_")]
    assert "base_loss" in found
    (note,) = observer.notes
    assert note.startswith("the probe of rank 4 diverged, so its features are missing: the ")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.task=[colours,sums]", "evaluation.retention=[]"], "2 tasks are trained"),
        (["methods.lora=null", "methods.full={}"], "no rank is trained"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    study_file: Path, overrides: list[str], said: str
) -> None:
    config = load_config(study_file, [*ALONE, *overrides])
    with pytest.raises(ConfigError, match=said):
        measure_features(config)
