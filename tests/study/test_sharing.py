"""Workers that share a study: the same records as of one, nothing twice, nothing lost."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import ModelError, PlanError, StudyLockedError
from rankwise.records import leases
from rankwise.records.folder import StudyFolder
from rankwise.records.leases import Crew
from rankwise.records.study_file import load_config
from rankwise.study import run as running
from rankwise.study.conclusion import conclude
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.run import do_unit, run_study
from rankwise.study.stages import stages
from rankwise.study.units import units
from rankwise.study.work.worker import Worker
from tests.support.crews import wait_for
from tests.support.killed_studies import run_shared, started
from tests.support.observers import Recorder, Silent
from tests.support.small_studies import SEARCHED, write_study
from tests.support.study_contents import comparable

SETTINGS = """
train:
  task: colours
  epochs: 1
  max_examples: 16
  save_every: 0.001s
  learning_rate: {lora: 1e-2, full: 1e-3}
  precision: float32
methods: {lora: {ranks: [2, 4, 8]}}
seeds: [0, 1]
evaluation: {out_of_domain: [], held_out_text: [], limit: 4}
analysis: {null_draws: 1, head_prompts: 4}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """Three ranks and full fine-tuning, two seeds."""
    return write_study(tmp_path_factory.mktemp("shared"), tiny_model_folder, SETTINGS)


def planned(file: Path, num_workers: int = 2) -> StudyPlan:
    return plan_study(load_config(file), num_workers=num_workers)


@pytest.fixture(scope="module")
def plan(file: Path) -> StudyPlan:
    """For two workers."""
    return planned(file)


@pytest.fixture(scope="module")
def of_one(
    tmp_path_factory: pytest.TempPathFactory, plan: StudyPlan
) -> tuple[dict[str, Any], float]:
    """The records where one worker did all, and how long it took."""
    root, before = tmp_path_factory.mktemp("one") / "study", time.monotonic()
    run_study(plan, StudyFolder(root), Silent())
    return comparable(root), time.monotonic() - before


def begun(root: Path) -> Counter[str]:
    """Stage -> how often a worker began it."""
    return Counter(line.split()[1] for line in root.with_suffix(".log").read_text().splitlines())


def test_two_workers_leave_the_records_of_one(
    file: Path, plan: StudyPlan, of_one: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    root = tmp_path / "study"
    workers = [started(run_shared, file, root, 2) for _ in range(2)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert comparable(root) == of_one[0]
    assert begun(root) == {stage.id: 1 for stage in stages(plan.record)}
    log = [line.split() for line in root.with_suffix(".log").read_text().splitlines()]
    trained = {stage.id: stage for stage in stages(plan.record) if stage.kind == "training"}
    assert len({process for process, stage in log if stage in trained}) == 2  # both trained
    assert not (root / ".workers").exists()


def test_two_workers_of_which_one_is_killed_three_times(
    file: Path, plan: StudyPlan, of_one: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    killed_three_times(file, tmp_path / "study", of_one, seed=0)


def killed_three_times(
    file: Path, root: Path, of_one: tuple[dict[str, Any], float], seed: int
) -> int:
    """Kill one of two workers at random moments; returns how often a stage was begun again."""
    generator, (contents, seconds) = random.Random(seed), of_one
    steady = started(run_shared, file, root, 2)
    for _ in range(3):
        victim = started(run_shared, file, root, 2)
        time.sleep(generator.uniform(0.1, 0.35) * seconds)
        victim.kill()
        victim.join()
    steady.join()
    assert steady.exitcode == 0
    assert comparable(root) == contents
    again = begun(root)
    assert again.keys() == {stage.id for stage in stages(StudyFolder(root).read_study())}
    assert sum(again.values()) - len(again) <= 3  # of each that was killed, one stage at most
    return sum(again.values()) - len(again)


@pytest.mark.slow
def test_killed_three_times_in_twenty_studies(
    file: Path, of_one: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    again = [
        killed_three_times(file, tmp_path / str(seed) / "study", of_one, seed)
        for seed in range(1, 21)
    ]
    print(f"20 studies, 60 workers killed; {sum(again)} stages were begun again")


def test_ten_workers_lose_nothing_and_do_nothing_twice(file: Path, tmp_path: Path) -> None:
    root = tmp_path / "study"
    workers = [started(run_shared, file, root, 10) for _ in range(10)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 10
    graph = stages(StudyFolder(root).read_study())
    assert begun(root) == {stage.id: 1 for stage in graph}
    assert all(stage.is_finished(StudyFolder(root)) for stage in graph)
    assert conclude(StudyFolder(root)).results.left_out == {}


def test_a_worker_that_is_told_to_stop_saves_and_gives_its_unit_back(
    file: Path, plan: StudyPlan, of_one: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    root = tmp_path / "study"
    worker = started(run_shared, file, root, 2)
    wait_for(lambda: list(root.glob("runs/*/metrics.jsonl")), worker)
    assert worker.pid is not None
    assert list(root.glob(".workers/*/*.lease"))
    worker.terminate()
    worker.join()
    assert worker.exitcode == 1  # Stopped, which nothing here catches
    assert not (root / ".workers").exists()
    states = list(root.glob("runs/*/training.pt"))
    assert states or list(root.glob("runs/*/run.json"))
    run_study(plan, StudyFolder(root), Silent())
    assert comparable(root) == of_one[0]


def test_one_goes_on_with_what_another_began_and_was_taken_from_it(
    plan: StudyPlan,
    of_one: tuple[dict[str, Any], float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that loses its lease in a pass writes nothing more, and joins again."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)
    recorder, crews = Recorder(), list[Crew]()
    join = Crew.join

    def joined(crew: Crew) -> Crew:
        crews.append(crew)
        return join(crew)

    def late(step: Any) -> None:
        if len(crews) == 1 and step.step == 2:
            crews[0]._counted_at -= 60.0  # as if it had been frozen

    monkeypatch.setattr(Crew, "join", joined)
    monkeypatch.setattr(recorder, "stepped", late)
    notes = list[str]()
    monkeypatch.setattr(recorder, "noted", notes.append)
    run_study(plan, StudyFolder(tmp_path / "study"), recorder)
    assert len(crews) == 2
    assert "goes on as a new worker" in notes[0]
    assert comparable(tmp_path / "study") == of_one[0]


def test_a_unit_waits_for_what_it_needs_and_not_for_more(
    plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another worker scores the base, everything is done but the scoring of runs."""
    folder, recorder = StudyFolder(tmp_path / "study"), Recorder()
    base, *_ = units(stages(plan.record))
    trained = [stage.model for stage in stages(plan.record) if stage.kind == "training"]
    assert len(trained) > 2
    taken = list[Crew]()

    def pause(_: float) -> None:
        """Nothing is left but what needs the base: let the other one do it."""
        if taken:
            done = [name for _, name in recorder.stages]
            assert done[: len(trained)] == ["training"] * len(trained)
            assert {"heads", "spectra", "gauges"} <= set(done)
            assert "colours" not in done
            taken.pop().leave()

    begin = running._Part._begin

    def also(part: Any, plan: StudyPlan) -> None:
        begin(part, plan)
        taken.append(Crew(folder.root).join())
        assert taken[0].take(base.id)

    monkeypatch.setattr(running._Part, "_begin", also)
    monkeypatch.setattr("rankwise.study.shift.sleep", pause)
    outcome = run_study(plan, folder, recorder)
    assert not outcome.failures
    scored = [model for model, name in recorder.stages if name == "colours"]
    assert scored == ["base", *trained]


# --- plans


def test_others_work_under_the_passes_that_are_there(file: Path, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    with folder.lock(shares=True):
        crew = Crew(folder.root).join()
        folder.write(folder.study_file, planned(file, 3).record)
    run_study(planned(file, 1), folder, Silent(), shares=True)
    assert len(folder.read_study().passes) == 5  # three of adapters, two full fine-tunings
    crew.leave()
    run_study(planned(file, 1), folder, Silent())
    assert len(folder.read_study().passes) == 3


def test_another_plan_waits_for_those_who_are_at_work(
    file: Path, plan: StudyPlan, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "study")
    with folder.lock(shares=True):
        crew = Crew(folder.root).join()
        folder.write(folder.study_file, plan.record)
    before = folder.study_file.read_bytes()
    other = plan_study(load_config(file, ["seeds=[0,1,2]"]))
    with pytest.raises(StudyLockedError, match="under another plan"):
        run_study(other, folder, Silent(), shares=True)
    assert folder.study_file.read_bytes() == before
    with pytest.raises(StudyLockedError, match="--worker"):
        run_study(other, folder, Silent())
    crew.leave()


def test_who_joins_in_the_middle_of_a_search_goes_on_under_its_plan(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Though more could be planned already: one task's trainings are done, the other's are not."""
    settings = SEARCHED.replace("search: {", "search: {policy: narrow, ")
    settings = settings.replace("task: colours", "task: [colours, hues]")
    settings = settings.replace("full: 1e-3}", "full: 1e-3, tune: true}")
    settings += "methods: {lora: {ranks: [2, 4]}, full: null}\n"
    file, folder = write_study(tmp_path, tiny_model_folder, settings), StudyFolder(tmp_path / "s")
    plan = plan_study(load_config(file))
    (planned_pass,) = plan.record.passes
    parts = [
        tuple(run.name for run in plan.record.models if run.train_task == task)
        for task in plan.record.tasks
    ]
    passes = tuple(planned_pass.model_copy(update={"runs": names}) for names in parts)
    study = plan.record.model_copy(update={"passes": passes})
    base, first, _ = units(stages(study))
    with folder.lock(shares=True):
        crew = Crew(folder.root).join()
        folder.write(folder.study_file, study)
    for unit in (base, first):
        assert do_unit(plan, folder, Silent(), unit.id) == []
    assert run_study(plan, folder, Silent(), shares=True).failures == ()
    crew.leave()


def test_what_failed_is_tried_by_one_worker_of_a_crew(
    plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one leaves it out, and what needs it."""
    folder, tried, do = StudyFolder(tmp_path / "study"), list[str](), Worker.do

    def fails(worker: Worker, stage: Any, models: Any) -> None:
        tried.append(stage.id)
        if stage.kind == "heads":
            raise ModelError("planted. Take it away.")
        do(worker, stage, models)

    monkeypatch.setattr(Worker, "do", fails)
    with folder.lock(shares=True):
        crew = Crew(folder.root).join()
    first = run_study(plan, folder, Silent(), shares=True)
    second = run_study(plan, folder, Silent(), shares=True)
    assert [failure.kind for failure in first.failures] == ["heads"]
    assert second.failures == first.failures
    assert len(tried) == len(stages(plan.record))
    crew.leave()
    monkeypatch.undo()
    assert run_study(plan, folder, Silent()).failures == ()


def test_one_unit_alone(plan: StudyPlan, tmp_path: Path) -> None:
    folder, recorder = StudyFolder(tmp_path / "study"), Recorder()
    all_units = units(stages(plan.record))
    base, first = all_units[:2]
    assert do_unit(plan, folder, recorder, base.id) == []
    tasks = list(plan.record.scored_tasks())
    assert recorder.stages == [("base", task) for task in tasks]
    assert not folder.recommendation_file.exists()
    do_unit(plan, folder, recorder, first.id)
    assert [name for _, name in recorder.stages] == [*tasks, "training", *tasks]
    with pytest.raises(PlanError, match=r"what heads-.* needs is not done"):
        do_unit(plan, folder, Silent(), next(u.id for u in all_units if u.kind == "heads"))
    with pytest.raises(PlanError, match=f"did you mean '{base.id}'"):
        do_unit(plan, folder, Silent(), base.id[:-1])


def test_one_unit_that_fails_under_a_plan_of_which_nothing_comes(
    file: Path, plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, though ``study.json`` is again the earlier one, which has no such unit."""

    def fails(*_: Any) -> None:
        raise ModelError("planted. Take it away.")

    folder = StudyFolder(tmp_path / "study")
    folder.write(folder.study_file, plan.record)
    monkeypatch.setattr(Worker, "do", fails)
    other = plan_study(load_config(file, ["evaluation.limit=3"]))
    base, *_ = units(stages(other.record))
    failures = do_unit(other, folder, Silent(), base.id)
    assert {failure.stage for failure in failures} == {stage.id for stage in base.stages}
    assert folder.read_study() == plan.record


def test_nobody_waits_where_nothing_is_to_come(plan: StudyPlan, tmp_path: Path) -> None:
    """A shift without anything to do is over at once, also with others there."""
    folder = StudyFolder(tmp_path / "study")
    run_study(plan, folder, Silent())
    with folder.lock(shares=True):
        crew = Crew(folder.root).join()
    before = time.monotonic()
    run_study(plan, folder, Silent(), shares=True)
    assert time.monotonic() - before < leases.LEASE_SECONDS / 4
    crew.leave()


# --- studies that plan more as they go


@pytest.mark.parametrize("policy", ["policy: narrow, ", ""])
def test_workers_share_a_search_and_a_growing_study(
    policy: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    if policy:
        settings = SEARCHED.replace("search: {", f"search: {{{policy}")
        settings = settings.replace("full: 1e-3}", "full: 1e-3, tune: true}")
        settings += "methods: {lora: {ranks: [2, 4]}, full: null}\n"
    else:
        settings = SETTINGS.replace("seeds: [0, 1]\n", "") + "search: {until: decided}\n"
        settings += "deploy: [merged-bf16]\n"  # at the end, by whoever is there
    file = write_study(tmp_path, tiny_model_folder, settings)
    run_shared(file, tmp_path / "one" / "study")
    root = tmp_path / "two" / "study"
    workers = [started(run_shared, file, root) for _ in range(2)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    one, two = (comparable(tmp_path / name / "study") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert one["recommendation.json"] == two["recommendation.json"]
    assert [run["name"] for run in one["study.json"]["runs"]] == [
        run["name"] for run in two["study.json"]["runs"]
    ]


# --- what a worker has


def on_cards(plan: StudyPlan, num_devices: int) -> StudyPlan:
    """The plan with its full fine-tunings dealt out over so many cards of one machine."""
    passes = tuple(
        planned.model_copy(update={"num_devices": num_devices}) if is_full else planned
        for planned in plan.record.passes
        for is_full in ["full" in planned.runs[0]]
    )
    assert len({planned.num_devices for planned in passes}) == 2
    return replace(plan, record=plan.record.model_copy(update={"passes": passes}))


def test_what_needs_more_cards_than_anybody_has_fails_when_all_else_is_done(
    plan: StudyPlan, tmp_path: Path
) -> None:
    folder, recorder = StudyFolder(tmp_path / "study"), Recorder()
    outcome = run_study(on_cards(plan, 2), folder, recorder)
    assert [failure.kind for failure in outcome.failures] == ["training"] * 2
    said = "planned for 2 cards of one machine, and no worker that is there has more than 1. Start"
    assert all(said in failure.message for failure in outcome.failures)
    trained = [each.run.planned for each in outcome.results.runs if each.run]
    assert [run.method for run in trained] == ["lora"] * 6
    assert run_study(plan, folder, Silent()).failures == ()  # on one card, if it fits there


def test_what_another_worker_has_the_cards_for_is_left_to_it(
    plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, wide = StudyFolder(tmp_path / "study"), on_cards(plan, 2)
    with folder.lock(shares=True):
        crew = Crew(folder.root, num_devices=2).join()
        folder.write(folder.study_file, wide.record)
    waited = list[int]()

    def pause(_: float) -> None:
        """Nothing is left for one card; after the third look the other worker goes."""
        waited.append(len(folder.failures()))
        if len(waited) == 3:
            crew.leave()

    monkeypatch.setattr("rankwise.study.shift.sleep", pause)
    outcome = run_study(plan, folder, Silent(), shares=True)
    assert waited == [0, 0, 0]
    assert [failure.kind for failure in outcome.failures] == ["training"] * 2


def test_the_disk_must_have_room_for_all_who_are_there(
    plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = StudyFolder(tmp_path / "study"), list[int]()
    monkeypatch.setattr(running, "require_disk", lambda *of: asked.append(of[2]))
    with folder.lock(shares=True):
        crews = [Crew(folder.root).join() for _ in range(3)]
    run_study(plan, folder, Silent(), shares=True)  # the first with a plan
    run_study(plan, folder, Silent(), shares=True)
    assert asked == [4, 4]
    for crew in crews:
        crew.leave()
    run_study(plan, folder, Silent())
    assert asked[2:] == [2]  # it is planned for two
