"""A study on a real Ray cluster of several processes: the same records, whatever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.executors.ray import MOST_RESTARTS, Cluster, RayExecutor
from rankwise.study.observer import Event
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.study.stages.graph import stages
from tests.support.command_line import rankwise, words
from tests.support.observers import Recorder, Silent
from tests.support.small_studies import write_study
from tests.support.study_contents import comparable
from tests.support.waiting import wait_for

pytest.importorskip("ray")

SETTINGS = """
train:
  task: colours
  epochs: 20
  max_examples: 16
  save_every: 0.001s
  learning_rate: {lora: 1e-2, full: 1e-3}
  precision: float32
methods: {lora: {ranks: [2, 4, 8], target_modules: [q_proj, k_proj, v_proj, o_proj]}}
evaluation: {out_of_domain: [], held_out_text: [], limit: 4}
analysis: {null_draws: 1, head_prompts: 4}
"""


@pytest.fixture(scope="module", autouse=True)
def polite_to_nobody() -> Iterator[None]:
    """Ray's processes get as much of a busy machine as others; by default they stand back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("ray"), tiny_model_folder, SETTINGS)


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory, file: Path) -> dict[str, Any]:
    """The records where one process did all."""
    root = tmp_path_factory.mktemp("one") / "study"
    run_study(plan_study(load_config(file)), StudyFolder(root), Silent())
    return comparable(root)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One node with room for a unit at a time."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(True, head_node_args=node)
    yield cluster
    cluster.shutdown()


class Driver:
    """A study that Ray runs, in a process of its own, with its events in a file."""

    def __init__(self, file: Path, root: Path, *more: str) -> None:
        command = [sys.executable, "-m", "rankwise", "run", str(file), f"--study-dir={root}"]
        self._out, self._err = (root.with_suffix(suffix) for suffix in (".events", ".errors"))
        with self._out.open("a") as out, self._err.open("a") as err:
            self.process = subprocess.Popen([*command, "--json", *more], stdout=out, stderr=err)

    @property
    def errors(self) -> str:
        return self._err.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        """All that were written so far, of every process on the folder."""
        lines = self._out.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def ended(self, code: int = 0, outcome: str = "done") -> list[dict[str, Any]]:
        """The events of a study that has come to its end."""
        assert self.process.wait(600) == code, self.errors
        assert "raylet" not in self.errors  # Ray itself says nothing
        events = self.events
        assert (events[-1]["event"], events[-1]["outcome"]) == ("ended", outcome)
        return events

    def wait_for(self, is_there: Callable[[], Any]) -> None:
        """Wait until something is so; the study must not end before."""

        def is_there_now() -> bool:
            assert self.is_running, self.errors
            return is_there()

        wait_for(is_there_now, patience_seconds=300)


def named(events: list[dict[str, Any]], name: str) -> list[str]:
    """The stages of the events of a name."""
    return sorted(event["stage"] for event in events if event["event"] == name)


def in_the_middle_of_a_pass(root: Path, driver: Driver) -> None:
    """Wait until adapters are being trained."""
    driver.wait_for(lambda: list(root.glob(".tasks/pass-*/*/runs/*/training.pt")))


def process_of_a_pass(root: Path, driver: Driver, number: int = 1) -> int:
    """The id of the n-th process that begins it."""
    seen: dict[str, None] = {}

    def is_there() -> bool:
        seen.update({path.name: None for path in root.glob(".tasks/pass-*/*-*")})
        return len(seen) >= number

    driver.wait_for(is_there)
    return int(list(seen)[number - 1].split("-")[0])


def test_two_units_at_a_time_leave_the_records_of_one_process(file: Path, tmp_path: Path) -> None:
    plan = plan_study(load_config(file), num_workers=2)
    run_study(plan, StudyFolder(tmp_path / "one"), Silent())
    root = tmp_path / "study"
    events = Driver(file, root, "--workers", "2").ended()
    assert comparable(root) == comparable(tmp_path / "one")
    # each stage once, and some at the same time
    assert named(events, "stage_finished") == sorted(stage.id for stage in stages(plan.record))
    at_work, most = set[str](), 0
    for event in events:
        if event["event"] == "stage_started":
            at_work.add(event["stage"])
        at_work -= {event["stage"]} if event["event"] == "stage_finished" else set()
        most = max(most, len(at_work))
    assert most == 2
    assert events[-1]["report"] == str(root / "report.html")
    assert not list(root.glob(".tasks"))


def killed_in_a_pass(
    file: Path, of_one: dict[str, Any], cluster: Any, root: Path, seconds: float | None = None
) -> None:
    """Kill the process of a pass, and compare what comes of the study.

    ``seconds`` after it has begun; None: once it has saved a state.
    """
    driver = Driver(file, root, "--address", cluster.address)
    if seconds is None:
        in_the_middle_of_a_pass(root, driver)
    victim = process_of_a_pass(root, driver)
    time.sleep(seconds or 0.0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    events = driver.ended()
    assert comparable(root) == of_one
    done = named(events, "stage_finished")
    assert len(done) == len(set(done))  # nothing is done twice that was finished
    if seconds is None:
        notes = [event["text"] for event in events if event["event"] == "noted"]
        assert any(f"the process {victim} on " in note for note in notes)
        again = {stage for stage in named(events, "stage_started") if stage in done}
        assert again


def test_a_process_of_ray_that_is_killed_in_a_pass(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    killed_in_a_pass(file, of_one, cluster, tmp_path / "study")


@pytest.mark.slow
def test_a_process_of_ray_that_is_killed_at_twenty_moments(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    generator = random.Random(0)
    for number in range(20):
        seconds = generator.uniform(0.0, 8.0)
        killed_in_a_pass(file, of_one, cluster, tmp_path / f"study-{number}", seconds)


def test_a_unit_whose_process_is_killed_again_and_again(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    """It has failed in the end; what does not need it is done."""
    root = tmp_path / "study"
    driver = Driver(file, root, "--address", cluster.address)
    killed: set[int] = set()
    while len(killed) <= MOST_RESTARTS:
        now = {int(path.name.split("-")[0]) for path in root.glob(".tasks/pass-*/*-*")}
        for process in now - killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            killed.add(process)
        assert driver.is_running, driver.errors
        time.sleep(0.02)
    events = driver.ended(1, "incomplete")
    (failed,) = (event for event in events if event["event"] == "stage_failed")
    assert (failed["kind"], failed["error"]) == ("training", "WorkerLostError")
    graph = stages(StudyFolder(root).read_study())
    left = {stage for stage in graph if not stage.is_finished(StudyFolder(root))}
    # the others are done for the full fine-tuning, which did not fail
    alone = {stage.id for stage in left if stage.kind in ("training", "scoring", "divergence")}
    told = {failed["stage"], *named(events, "stage_left_out")}
    assert alone <= told <= {stage.id for stage in left}
    run_study(plan_study(load_config(file)), StudyFolder(root), Silent())
    # the first verdict was a look, and looks share the error
    judged = {"findings.json", "looks.json", "recommendation.json"}
    again = comparable(root)
    assert again.keys() == of_one.keys()
    assert all(again[name] == of_one[name] for name in again.keys() - judged)


def driver_killed(
    file: Path, of_one: dict[str, Any], cluster: Any, root: Path, seconds: float | None = None
) -> None:
    """Kill the process that leads, start it again, and compare what comes of the study."""
    driver = Driver(file, root, "--address", cluster.address)
    in_the_middle_of_a_pass(root, driver)
    time.sleep(seconds or 0.0)
    driver.process.kill()
    driver.process.wait()
    before = driver.events
    events = Driver(file, root, "--address", cluster.address).ended()[len(before) :]
    assert comparable(root) == of_one
    assert not set(named(before, "stage_finished")) & set(named(events, "stage_started"))


def test_a_driver_that_is_killed_and_started_again(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    driver_killed(file, of_one, cluster, tmp_path / "study")


@pytest.mark.slow
def test_a_driver_that_is_killed_at_ten_moments(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    generator = random.Random(0)
    for number in range(10):
        seconds = generator.uniform(0.0, 3.0)
        driver_killed(file, of_one, cluster, tmp_path / f"study-{number}", seconds)


def test_a_signal_lets_the_tasks_save_what_they_train(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    root = tmp_path / "study"
    driver = Driver(file, root, "--address", cluster.address)
    in_the_middle_of_a_pass(root, driver)
    driver.process.terminate()
    driver.ended(128 + signal.SIGTERM, "stopped")
    assert "stopped by SIGTERM; finished work is kept" in driver.errors
    assert not list(root.glob(".tasks"))
    assert list(root.glob("runs/*/training.pt"))
    run_study(plan_study(load_config(file)), StudyFolder(root), Silent())
    assert comparable(root) == of_one


def test_a_node_that_comes_late_takes_units(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    root = tmp_path / "study"
    driver = Driver(file, root, "--address", cluster.address)
    in_the_middle_of_a_pass(root, driver)
    node = cluster.add_node(num_cpus=1, object_store_memory=2**27)
    most = 0
    while driver.is_running:
        most = max(most, len(list(root.glob(".tasks/*/*-*"))))
        time.sleep(0.02)
    driver.ended()
    cluster.remove_node(node)
    assert comparable(root) == of_one
    assert most == 2


def test_nodes_without_a_common_folder(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    """Files come from the process that leads, and go there; a lost task goes on from its state."""
    root, killed = tmp_path / "study", list[int]()
    seen = Recorder()

    def observer(event: Event) -> None:
        seen(event)
        states = list(root.glob(".tasks/pass-*/*/runs/*/training.pt"))
        if states and not killed:
            killed.append(int(states[0].parents[2].name.split("-")[0]))
            os.kill(killed[0], signal.SIGKILL)

    with Cluster(cluster.address) as here:
        executor = RayExecutor(here, None)
        executor.seen_at = tmp_path / "nowhere"
        plan = plan_study(load_config(file), machine=executor.machine)
        run_study(plan, StudyFolder(root), observer, executor=executor)
    assert killed
    assert comparable(root) == of_one
    assert not list(root.glob(".tasks"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "here"])
def test_an_address_without_a_cluster_is_refused(address: str, file: Path, tmp_path: Path) -> None:
    options = ("--study-dir", tmp_path / "study", "--address", address)
    refused = rankwise("run", file, *options)
    assert refused.exit_code == 2
    assert f"--address {address}: " in words(refused.stderr)
    assert not (tmp_path / "study").exists()
