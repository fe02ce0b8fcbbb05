"""Stages as jobs of several devices: planted graphs by hand, and the graph of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models.devices import Machine
from rankwise.records.folder import StudyFolder
from rankwise.records.study import FullTraining, PlannedPass, PlannedRun, StudyRecord
from rankwise.records.study_file import load_config
from rankwise.study.costs import PASS_WORK, training_work
from rankwise.study.planning.plan import plan_study
from rankwise.study.stages import AnalyseWeights, CompareHeads, Score, Stage, Train, stages
from rankwise.study.timetable import Timetable, timetable
from tests.planted.results import planted_run_record
from tests.support.passes import planned


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path)


def training(model: str, *runs: PlannedRun) -> Train:
    cut = PlannedPass(
        runs=tuple(run.name for run in runs),
        max_tokens=8,
        gradient_checkpointing=False,
        estimated_memory_bytes=0,
    )
    names = tuple(run.name for run in runs)
    return Train(model, runs, names, (), training_work(runs), 0, 0, cut, False)


def scoring(model: str, needs: tuple[str, ...], work: float, *runs: PlannedRun | None) -> Score:
    names = tuple("base" if run is None else run.name for run in runs)
    return Score(model, runs, names, needs, work, 0, 0, "task", "base")


def last(
    kind: type[CompareHeads | AnalyseWeights], work: float, train: Stage
) -> CompareHeads | AnalyseWeights:
    names = (kind.kind,) * len(train.models)
    return kind(kind.kind, train.models, names, (train.id,), work, 0, 0, "sums")


def run(name: str, num_tokens: int, **options: Any) -> PlannedRun:
    return planned(1, name=name, num_tokens=num_tokens, num_trainable_parameters=1, **options)


A, B = run("a", 40), run("b", 80)  # 100 and 200 of work
FULL = run("full", 25, method="full", full=FullTraining())  # 100


def graph() -> list[Stage]:
    base = scoring("base", (), 100, None)
    train = training("pass 1: 2 adapters", A, B)
    scored = scoring(train.model, (train.id, base.id), 60, A, B)
    heads = last(CompareHeads, 20, train)
    return [base, train, scored, heads, last(AnalyseWeights, 5000, train)]


def spans(times: Timetable) -> dict[str, tuple[int, float, float]]:
    return {
        times.titles[slot.job.name]: (slot.device, slot.start, slot.end)
        for slot in times.schedule.slots
    }


def test_a_pass_is_one_job_and_trains_beside_the_base(folder: StudyFolder) -> None:
    times = timetable(graph(), folder, 2, pass_work=10, tokens_per_second=4.0)
    assert spans(times) == {
        "base": (0, 0, 100),
        "pass 1: 2 adapters": (1, 0, 10 + 300 + 60),
        "heads on sums": (0, 370, 390),
    }
    # a and b on a device each: 240 by both, base included, and then the heads
    assert times.least == (100 + 130 + 230 + 2 * 10) / 2 + 20
    assert times.busy_share == pytest.approx((100 + 370 + 20) / (2 * 390))
    assert times.seconds(390) == 39
    assert times.device_hours == pytest.approx((390 + 370) / 10 / 3600)
    assert times.cost is None
    priced = timetable(graph(), folder, 2, 10, 4.0, price_per_hour=3.0)
    assert priced.described()["cost"] == priced.cost == pytest.approx(3 * 760 / 36000)


def test_on_one_device_jobs_follow_each_other(folder: StudyFolder) -> None:
    times = timetable(graph(), folder, 1, pass_work=10, tokens_per_second=None)
    assert times.schedule.makespan == times.least == 100 + 370 + 20
    assert times.busy_share == 1
    described = times._replace(price_per_hour=3.0).described()
    assert (described["seconds"], described["device_hours"], described["cost"]) == (None,) * 3


def test_what_is_done_is_not_done_again(folder: StudyFolder) -> None:
    folder.write(folder.run_file("a"), planted_run_record(A, diverged=False))
    times = timetable(graph(), folder, 1, pass_work=10, tokens_per_second=None)
    assert times.schedule.makespan == 100 + (10 + 200 + 60) + 20
    folder.write(folder.run_file("b"), planted_run_record(B, diverged=True))  # nothing more is due
    times = timetable(graph(), folder, 1, pass_work=10, tokens_per_second=None)
    assert times.schedule.makespan == 100 + (10 + 30) + 10


def test_full_fine_tuning_shares_nothing(folder: StudyFolder) -> None:
    base, *others = graph()
    full = training("full", FULL)
    scored = scoring("full", (full.id, base.id), 30, FULL)
    times = timetable([base, *others, full, scored], folder, 3, 10, None)
    assert spans(times)["full"] == (2, 0, 10 + 100 + 30)
    (job,) = (slot.job for slot in times.schedule.slots if slot.job.name == full.id)
    assert job.needs == (base.id,)
    assert job.ahead == 100


def test_nothing_left_takes_no_time(folder: StudyFolder) -> None:
    times = timetable([], folder, 2, 10, 1.0)
    assert (times.schedule.makespan, times.least, times.busy_share) == (0, 0, 0)


def record(study_file: Path, num_devices: int, *overrides: str) -> StudyRecord:
    machine, config = Machine(torch.device("cuda"), 80 * 10**9), load_config(study_file, overrides)
    return plan_study(config, machine=machine, num_workers=num_devices).record


def test_a_study_is_shared_by_devices(study_file: Path, folder: StudyFolder) -> None:
    settings = ("seeds=[0,1]", "methods.truncated={ranks: [1]}")
    one, three = (record(study_file, number, *settings) for number in (1, 3))
    changed = {"passes": one.passes, "provenance": one.provenance}
    assert three.model_copy(update=changed) == one  # runs, fingerprints and everything else
    names = [sorted(name for each in study.passes for name in each.runs) for study in (one, three)]
    assert names[0] == names[1]
    assert len(three.passes) > len(one.passes)
    wholes = {
        stage.id
        for study in (one, three)
        for stage in stages(study)
        if not isinstance(stage, Train | Score) or stage.model == "base"
    }
    ids = [{stage.id for stage in stages(study)} & wholes for study in (one, three)]
    assert ids[0] == ids[1]  # what is no pass is the same stage
    slow, fast = (
        timetable(stages(study), folder, number, PASS_WORK["cuda"], None)
        for study, number in ((one, 1), (three, 3))
    )
    assert slow.schedule.makespan == pytest.approx(slow.least)
    assert slow.least / 3 < fast.least <= fast.schedule.makespan < slow.schedule.makespan / 1.5
