"""Checkpoints of runs as models of their own, and trainings that stop at one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rankwise.errors import ConfigError
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.study.searches.policy import TrialResult
from rankwise.study.stages.graph import stages
from rankwise.study.stopping import Stopped
from tests.support.observers import Recorder, Silent
from tests.support.sentences import Sentences
from tests.support.small_studies import SEARCHED, write_study
from tests.support.studies import run

# with a constant rate, the first epoch of two is the whole of a training of one
CONSTANT = ("train.schedule=constant", "train.warmup_ratio=0.0")


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    settings = "methods: {lora: {ranks: [2, 4], target_modules: attention}, full: null}\n"
    return write_study(
        tmp_path_factory.mktemp("checkpoints"), tiny_model_folder, settings + SEARCHED
    )


def weights_of(folder: StudyFolder, run: PlannedRun) -> dict[str, torch.Tensor]:
    return load_file(folder.weights_folder(run) / "adapter_model.safetensors")


def of_rank(models: tuple[PlannedRun, ...], rank: int) -> PlannedRun:
    (found,) = [model for model in models if model.rank == rank]
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_checkpoint_is_what_a_training_of_so_many_steps_gives(
    study_file: Path, tmp_path: Path
) -> None:
    half = (*CONSTANT, "train.score_checkpoints=[0.5]")
    run(study_file, tmp_path / "two", *half)
    run(study_file, tmp_path / "one", *CONSTANT, "train.epochs=1", "train.score_checkpoints=[1]")
    two, one = StudyFolder(tmp_path / "two"), StudyFolder(tmp_path / "one")
    study = two.read_study()
    assert {run.num_steps for run in study.runs} == {18}  # 18 rows: 6 of 24 are held out
    assert {point.num_steps for point in study.of_role("checkpoint")} == {9}
    for rank in (2, 4):
        early = weights_of(two, of_rank(study.of_role("checkpoint"), rank))
        assert same(early, weights_of(one, of_rank(one.read_study().runs, rank)))
        assert not same(early, weights_of(two, of_rank(study.runs, rank)))


def test_checkpoints_are_scored_with_the_ends_and_take_no_part_in_the_verdict(
    study_file: Path, tmp_path: Path
) -> None:
    (results, recommendation, findings), _ = run(
        study_file, tmp_path, *CONSTANT, "train.score_checkpoints=[3, 0.5]"
    )
    steps = [
        (point.run.planned.rank, point.run.num_steps) for point in results.of_role("checkpoint")
    ]
    assert sorted(steps) == [(2, 3), (2, 9), (4, 3), (4, 9)]
    tasks = {"colours", "sums", "colours@validation", "sums@validation"}
    assert all(tasks <= point.items.keys() for point in results.of_role("checkpoint"))
    (found,) = findings.checkpoints
    assert all(point.kl_prompts and point.kl_prompts.estimate > 0 for point in found.points)
    (part,) = recommendation.by_train_task
    assert [verdict.label for verdict in part.verdicts] == ["rank 2", "rank 4"]
    study = results.study
    (training,) = [stage for stage in stages(study) if stage.kind == "training"]
    assert training.work == 2.5 * sum(run.num_tokens for run in study.runs)


def test_held_out_rows_are_not_trained_on(study_file: Path) -> None:
    whole = plan_study(load_config(study_file))
    plan = plan_study(load_config(study_file, ["train.score_checkpoints=[1]"]))
    requests = plan.tasks["colours@validation"].requests
    whole_rows = {tuple(example.tokens) for example in whole.examples["colours"]}
    trained = {tuple(example.tokens) for example in plan.examples["colours"]}
    assert (len(whole_rows), len(trained)) == (24, 18)
    assert trained < whole_rows
    # the last token of a training row is the end of text
    answers = {(*request.context, *request.continuation) for request in requests}
    assert sum(tokens[:-1] in answers for tokens in whole_rows - trained) == 6
    assert not any(tokens[:-1] in answers for tokens in trained)


def test_rows_behind_max_examples_are_held_out_first(study_file: Path) -> None:
    overrides = ["train.score_checkpoints=[1]", "train.max_examples=10"]
    plan = plan_study(load_config(study_file, overrides))
    assert len(plan.examples["colours"]) == 10
    documents = {
        instance.doc["question"] for instance in plan.tasks["colours@validation"].instances
    }
    assert len(documents) == 6


def test_a_training_ends_at_the_last_checkpoint_that_keeps_enough(
    study_file: Path, tmp_path: Path
) -> None:
    settings = [*CONSTANT, "train.score_checkpoints=[2, 0.5]", "train.stop={retention_loss: 1e-6}"]
    settings += ["train.task=sums", "evaluation.retention=[colours]"]
    (results, recommendation, _), _ = run(study_file, tmp_path, *settings)
    search = results.search
    assert search is not None
    assert search.policy == "stop"
    (part,) = search.by_train_task
    assert not part.decisions[-1].wanted
    ends: set[str] = set()
    for rank in (2, 4):
        shown = [each for each in part.shown if each.rank == rank]
        lost = [each.retention_loss.estimate > 1e-6 for each in shown if each.retention_loss]
        assert not any(lost[:-1])  # it went on as long as it kept enough
        ends.add(shown[-2 if lost[-1] and len(shown) > 1 else -1].run)
    assert {run.name for run in results.study.runs} == ends == set(part.decisions[-1].finalists)
    assert all("colours" in run.items for run in results.runs)
    (verdicts,) = [part.verdicts for part in recommendation.by_train_task]
    assert len(verdicts) == 2


def test_a_training_may_end_at_numbers_of_steps(study_file: Path) -> None:
    """Steps, shares of steps, and steps beyond the end; each progress is a step of its run."""
    overrides = ["train.score_checkpoints=[2, 0.5, 100]", "train.stop={retention_loss: 1}"]
    plan = plan_study(load_config(study_file, overrides))
    assert plan.planner is not None
    candidates = plan.planner.candidates["colours"]
    policy, known, steps = candidates.policy("points"), {}, []
    while (decision := policy(known)).wanted:
        steps.append({candidates.model(progress).num_steps for progress in decision.wanted})
        shown = TrialResult((np.zeros(6),), (np.zeros(6),))
        known |= dict.fromkeys(decision.wanted, shown)
    assert steps == [{2}, {9}, {18}]


def test_where_nothing_is_lost_every_training_ends_at_its_end(
    study_file: Path, tmp_path: Path
) -> None:
    settings = ["train.score_checkpoints=[2]", "train.stop={retention_loss: 100.0}"]
    (results, _, _), _ = run(study_file, tmp_path, *settings)
    assert {run.of for run in results.study.runs} == {None}
    folder = StudyFolder(tmp_path)
    for candidate in results.study.of_role("searched"):  # its weights are no longer needed
        assert not folder.weights_folder(candidate).exists()
    run(study_file, tmp_path, *settings)  # and are not missed


def test_a_stopped_study_goes_on_to_the_same_checkpoints(study_file: Path, tmp_path: Path) -> None:
    settings = [*CONSTANT, "train.score_checkpoints=[4]", "train.save_every=0.001s"]
    run(study_file, tmp_path / "whole", *settings)
    whole = StudyFolder(tmp_path / "whole")
    folder = StudyFolder(tmp_path / "stopped")
    for after in (3, 7, 20):
        with pytest.raises(Stopped):
            run_study(plan_study(load_config(study_file, settings)), folder, _Stopping(after))
    run_study(plan_study(load_config(study_file, settings)), folder, Silent())
    study: StudyRecord = folder.read_study()
    for model in (*study.runs, *study.of_role("checkpoint")):
        assert same(weights_of(whole, model), weights_of(folder, model))


class _Stopping(Recorder):
    """Asks the study to stop after so many advances."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def advanced(self, work: float) -> None:
        self._left -= 1
        if self._left == 0:
            raise Stopped(15)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.score_checkpoints=[0]", "train.score_checkpoints[0]"),
        ("train.score_checkpoints=[1.5]", "train.score_checkpoints[0]"),
        ("train.stop={retention_loss: 1}", "score_checkpoints"),
        ("search.budget=soon", "search.budget"),
        ("search.rungs=[0.5, 0.2]", "search.rungs"),
    ],
    ids=["none", "more than all", "stop", "budget", "rungs"],
)
def test_settings_that_make_no_sense_are_refused(
    study_file: Path, override: str, named: str, sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(study_file, [override])
    sentence(caught.value, names=(named,))
