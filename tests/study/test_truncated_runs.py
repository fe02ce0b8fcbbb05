"""The largest adapter at smaller ranks: truncated exactly, refined, resumed, and in the results."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from rankwise.engine.training.trainees import effective_batches, rate_factor
from rankwise.records.config.training import TrainConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedRun, RunRecord, StudyRecord
from rankwise.records.study_file import load_config
from rankwise.study.planning.derived import largest_ranks
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.study.stages.graph import stages
from rankwise.study.stages.scoring import Score
from rankwise.study.stages.training import Truncate
from rankwise.study.status import study_status
from rankwise.weights.lowrank import read_updates
from tests.planted.grid import ALL_LINEAR, grid_run
from tests.support.observers import Recorder
from tests.support.small_studies import write_study
from tests.support.studies import run

PASS = "pass 2: 4 truncated adapters"
SETTINGS = (
    "methods.full=null",
    "methods.lora.ranks=[4, 8]",
    "methods.truncated={ranks: [2, 4], refine: 0.5}",
    "evaluation.out_of_domain=[]",
    "analysis.spectra=false",
    "analysis.heads=false",
)


class Finished(NamedTuple):
    file: Path
    model: Path
    folder: StudyFolder
    study: StudyRecord
    results: StudyResults
    recorder: Recorder

    @property
    def source(self) -> PlannedRun:
        return next(run for run in self.study.runs if run.rank == 8)

    def cut(self, rank: int) -> PlannedRun:
        return next(
            m for m in self.study.of_role("truncated") if (m.rank, m.num_steps) == (rank, 0)
        )

    def refined(self, rank: int) -> PlannedRun:
        return next(m for m in self.study.of_role("truncated") if m.rank == rank and m.num_steps)

    def record(self, model: PlannedRun) -> RunRecord:
        record = self.folder.finished_run(model)
        assert record is not None
        return record


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Finished:
    root = tmp_path_factory.mktemp("truncated")
    settings = """
train:
  task: colours
  epochs: 2
  learning_rate: {lora: 1e-2}
  precision: float32
evaluation: {held_out_text: [small_prose]}
"""
    file = write_study(root, tiny_model_folder, settings)
    outcome, recorder = run(file, root / "study", *SETTINGS)
    folder = StudyFolder(root / "study")
    results: StudyResults = outcome.results
    return Finished(file, tiny_model_folder, folder, folder.read_study(), results, recorder)


def deltas(finished: Finished, model: PlannedRun) -> dict[str, torch.Tensor]:
    """The update of every layer, as PEFT makes it."""
    base: Any = AutoModelForCausalLM.from_pretrained(finished.model)
    adapted: Any = peft.PeftModel.from_pretrained(base, str(finished.folder.weights(model)))
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").double()
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }


def test_as_truncated_it_is_the_closest_of_its_rank_under_the_run_s_scaling(
    finished: Finished,
) -> None:
    before = deltas(finished, finished.source)
    for rank in (2, 4):
        after = deltas(finished, finished.cut(rank))
        assert after.keys() == before.keys()
        missed, total = 0.0, 0.0
        for name, delta in before.items():
            values = torch.linalg.svdvals(delta)
            # Eckart and Young: what is lost is the tail of the singular values
            tail = float(values[rank:].norm())
            assert float((delta - after[name]).norm()) == pytest.approx(tail, rel=1e-4, abs=1e-6)
            assert torch.linalg.matrix_rank(after[name], rtol=1e-5) == rank
            missed, total = math.hypot(missed, tail), math.hypot(total, float(delta.norm()))
        error = finished.record(finished.cut(rank)).truncation_error
        assert error == pytest.approx(missed / total, rel=1e-4)
        assert error is not None
        assert 0.01 < error < 1.0
        config = json.loads(
            (finished.folder.weights(finished.cut(rank)) / "adapter_config.json").read_text()
        )
        assert (config["r"], config["lora_alpha"]) == (rank, 2.0 * rank)
        assert finished.cut(rank).scaling == finished.source.scaling == 2.0


def test_both_factors_carry_the_same_share_of_the_update(finished: Finished) -> None:
    """A refinement whose B or A began near zero would train the other alone."""
    for update in read_updates(finished.folder.weights(finished.cut(4))).values():
        columns, rows = update.lora_B.norm(dim=0), update.lora_A.norm(dim=1)
        torch.testing.assert_close(columns, rows)


def test_a_refinement_begins_there_and_takes_the_run_s_first_batches(finished: Finished) -> None:
    refined, source = finished.refined(4), finished.source
    record = finished.record(refined)
    assert (source.num_steps, refined.num_steps, record.num_steps) == (6, 3, 3)
    lines = [
        json.loads(line)
        for line in finished.folder.metrics_file(refined.name).read_text().splitlines()
    ]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-2, 2e-2 / 3, 1e-2 / 3])
    # its first loss is that of the run's first batch under the truncated adapter
    plan = plan_study(load_config(finished.file, SETTINGS))
    config = plan.record.config.train
    (batch, *_) = effective_batches(plan.examples["colours"], source, config)
    base: Any = AutoModelForCausalLM.from_pretrained(finished.model)
    model = peft.PeftModel.from_pretrained(base, str(finished.folder.weights(finished.cut(4))))
    total, count = 0.0, 0
    for example in batch:
        tokens = torch.tensor([example.tokens])
        logits = model(input_ids=tokens).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
        total += float(losses[-example.num_loss_tokens :].sum())
        count += example.num_loss_tokens
    assert record.first_loss_nats == pytest.approx(total / count, rel=1e-4)
    assert record.num_tokens == lines[-1]["num_tokens"]
    assert record.truncation_error == finished.record(finished.cut(4)).truncation_error
    cut, trained = deltas(finished, finished.cut(4)), deltas(finished, refined)
    assert all(not torch.allclose(cut[name], trained[name]) for name in cut)


def test_a_refinement_leaves_out_the_step_without_a_rate() -> None:
    config = TrainConfig(task=("a",), warmup_ratio=0.1, schedule="linear")
    whole = rate_factor(config, 9)
    refinement = rate_factor(config, 8, starts_at_zero=False)
    assert [refinement(step) for step in range(8)] == [whole(step) for step in range(1, 9)]
    assert whole(0) == 0.0
    assert rate_factor(config, 1, starts_at_zero=False)(0) == 1.0


def test_they_are_made_in_one_pass_and_scored_together(finished: Finished) -> None:
    assert [stage for model, stage in finished.recorder.stages if model == PASS] == [
        "truncation",
        *finished.study.scored_tasks("colours"),
    ]
    graph = stages(finished.study)
    (truncate,) = [stage for stage in graph if isinstance(stage, Truncate)]
    trainings = {
        run.name: stage.id for stage in graph for run in stage.runs if stage.kind == "training"
    }
    assert truncate.needs == (trainings[finished.source.name],)
    scored = [
        s for s in graph if isinstance(s, Score) and s.models == finished.study.of_role("truncated")
    ]
    assert [stage.task for stage in scored] == [*finished.study.scored_tasks("colours")]
    assert all(truncate.id in stage.needs for stage in scored)
    assert finished.recorder.done == pytest.approx(finished.recorder.work[0])


def test_results_have_them_and_the_verdict_does_not(finished: Finished) -> None:
    results = finished.results
    assert [model.name for model in results.of_role("truncated")] == [
        m.name for m in finished.study.of_role("truncated")
    ]
    assert {run.run.planned.rank for run in results.runs if run.run} == {4, 8}
    assert results.of("colours").of_role("truncated") == results.of_role("truncated")
    lines = {line.model: line for line in study_status(finished.folder)}
    for model in finished.study.of_role("truncated"):
        assert lines[model.name].training == "trained"
        assert not lines[model.name].left


def test_running_again_does_nothing(finished: Finished) -> None:
    _, recorder = run(finished.file, finished.folder.root, *SETTINGS)
    assert recorder.stages == []


def test_what_is_lost_is_made_again_and_equals_what_it_was(
    finished: Finished, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "study")
    shutil.copytree(finished.folder.root, folder.root)
    for lost in (finished.cut(2), finished.refined(4)):
        shutil.rmtree(folder.model_folder(lost.name))
    _, recorder = run(finished.file, folder.root, *SETTINGS)
    kinds = [stage for _, stage in recorder.stages]
    assert kinds == ["truncation", *finished.study.scored_tasks("colours"), "gauges"]
    for model in finished.study.of_role("truncated"):
        again = folder.finished_run(model)
        assert again is not None
        assert again.files == finished.record(model).files


class _Stopping(Recorder):
    """Ends the process, as it were, in the middle of the refinements."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def advanced(self, work: float) -> None:
        super().advanced(work)
        self.steps += bool(work) and self.stages[-1:] == [(PASS, "truncation")]
        if self.steps == 3:  # each of two refinements has taken a step, and one another
            raise KeyboardInterrupt


def test_a_refinement_goes_on_where_it_was_saved(finished: Finished, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    shutil.copytree(finished.folder.root, folder.root)
    for model in finished.study.of_role("truncated"):
        shutil.rmtree(folder.model_folder(model.name))
    plan = plan_study(load_config(finished.file, [*SETTINGS, "train.save_every=0.001s"]))
    with pytest.raises(KeyboardInterrupt):
        run_study(plan, folder, _Stopping())
    assert folder.finished_run(finished.cut(2)) is not None
    assert folder.finished_run(finished.refined(2)) is None
    assert folder.training_state_file(finished.refined(2)).exists()
    run(finished.file, folder.root, *SETTINGS, "train.save_every=0.001s")
    for model in finished.study.of_role("truncated"):
        again = folder.finished_run(model)
        assert again is not None
        assert again.files == finished.record(model).files
        lines = folder.metrics_file(model.name).read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == [*range(1, model.num_steps + 1)]


def test_of_a_search_its_largest_finalist_is_truncated(finished: Finished, tmp_path: Path) -> None:
    tuned = ("train.learning_rate.tune=true", "search.validation_items=6", "methods.lora.ranks=[8]")
    settings = [*SETTINGS, *tuned, "methods.truncated={ranks: [2]}", "evaluation.held_out_text=[]"]
    outcome, _ = run(finished.file, tmp_path / "study", *settings)
    (source,) = outcome.results.study.runs
    assert {model.run.planned.rank for model in outcome.results.of_role("truncated")} == {2}
    for model in outcome.results.of_role("truncated"):
        assert model.run.planned.of.name == source.name
        assert model.run.planned.learning_rate == source.learning_rate
        assert "colours" in model.evaluations


def test_another_refinement_is_another_model_beside_the_first(
    finished: Finished, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "study")
    shutil.copytree(finished.folder.root, folder.root)
    settings = [*SETTINGS, "methods.truncated={ranks: [2, 4], refine: 0.2}"]
    outcome, recorder = run(finished.file, folder.root, *settings)
    assert [kind for _, kind in recorder.stages].count("truncation") == 1
    steps = {model.run.planned.num_steps for model in outcome.results.of_role("truncated")}
    assert steps == {0, 1}
    assert folder.finished_run(finished.refined(4)) is not None  # it stays


def test_without_refinement_and_without_ranks(finished: Finished) -> None:
    study = plan_study(load_config(finished.file, [*SETTINGS, "methods.truncated={refine: 0}"]))
    (model,) = study.record.of_role("truncated")
    assert (model.rank, model.num_steps, model.refined_in) == (4, 0, None)
    # however it is refined, what is truncated is the same
    assert model.fingerprint == finished.cut(4).fingerprint
    assert model.name == finished.cut(4).name


def test_what_diverged_leaves_nothing_to_truncate(finished: Finished, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    shutil.copytree(finished.folder.root, folder.root)
    for model in finished.study.of_role("truncated"):
        shutil.rmtree(folder.model_folder(model.name))
    record = finished.record(finished.source)
    diverged = record.model_copy(update={"status": "diverged", "message": "the loss was nan"})
    folder.write(folder.run_file(finished.source.name), diverged)
    recorder = Recorder()
    outcome = run_study(plan_study(load_config(finished.file, SETTINGS)), folder, recorder)
    assert not outcome.failures
    total, already_done = recorder.work
    assert recorder.done == pytest.approx(total - already_done)
    for model in outcome.results.of_role("truncated"):
        assert model.run is not None
        assert model.run.status == "diverged"
        assert "the loss was nan" in (model.run.message or "")
        assert not model.evaluations
    _, again = run(finished.file, folder.root, *SETTINGS)
    assert again.stages == []


def test_the_largest_rank_of_every_setting_task_and_seed() -> None:
    plans = [
        grid_run(task, rank, alpha_labels=alpha, target_modules=modules, seed=seed)
        for task in ("sums", "organs")
        for rank in (8, 32)
        for alpha in (("2r",), ("16",))
        for modules in (ALL_LINEAR, ("q_proj",))
        for seed in (0, 1)
    ]
    plans += [grid_run("sums", 64, seed=7), grid_run("sums", None)]
    found = largest_ranks(plans)
    assert {run.rank for run in found} == {32, 64}
    assert len(found) == 2 * 2 * 2 * 2 + 1
    # alpha 2r and 16 are one run at rank 8, which is the largest of neither
    both = grid_run("sums", 8, alpha_labels=("2r", "16"))
    assert largest_ranks(
        [both, grid_run("sums", 32), grid_run("sums", 64, alpha_labels=("16",))]
    ) == (
        grid_run("sums", 32),
        grid_run("sums", 64, alpha_labels=("16",)),
    )
