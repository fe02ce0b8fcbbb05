"""A study on a real Ray cluster of several processes: the same records, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli.workers import MOST_RESTARTS
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.study.stages import stages
from tests.support.command_line import rankwise, words
from tests.support.crews import wait_for
from tests.support.observers import Silent
from tests.support.small_studies import write_study
from tests.support.study_contents import comparable

pytest.importorskip("ray")

SETTINGS = """
train:
  task: colours
  epochs: 20
  max_examples: 16
  save_every: 0.001s
  learning_rate: {lora: 1e-2, full: 1e-3}
  precision: float32
methods: {lora: {ranks: [2, 4, 8]}}
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


def begun(file: Path, root: Path | str, *more: str) -> subprocess.Popen[str]:
    """A study that Ray runs, in a process of its own; its events are its output."""
    command = [sys.executable, "-m", "rankwise", "run", str(file), f"--study-dir={root}"]
    command += ["--executor", "ray", "--json", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(
    driver: subprocess.Popen[str], code: int = 0, outcome: str = "done"
) -> list[dict[str, Any]]:
    """The events of a study that has come to its end."""
    output, errors = driver.communicate()
    assert driver.returncode == code, errors
    assert "raylet" not in output + errors  # Ray itself says nothing
    events = [json.loads(line) for line in output.splitlines()]
    assert (events[-1]["event"], events[-1]["outcome"]) == ("ended", outcome)
    return events


def named(events: list[dict[str, Any]], name: str) -> list[str]:
    """The stages of the events of a name."""
    return sorted(event["stage"] for event in events if event["event"] == name)


def in_the_middle_of_a_pass(root: Path) -> None:
    """Wait until adapters are being trained."""
    wait_for(lambda: list(root.glob("runs/*lora*/training.pt")), patience_seconds=300)


def owner_of_a_pass(root: Path, number: int = 1) -> int:
    """The id of the process that takes it for the n-th time, once there is one."""
    pattern = f".workers/*/pass-*.{number}.lease"
    wait_for(lambda: any(lease.read_text() for lease in root.glob(pattern)), patience_seconds=300)
    (lease,) = root.glob(pattern)
    return int(lease.read_text().split(".")[-2])


def test_a_cluster_of_its_own_leaves_the_records_of_two_workers(file: Path, tmp_path: Path) -> None:
    plan = plan_study(load_config(file), num_workers=2)
    run_study(plan, StudyFolder(tmp_path / "one"), Silent())
    root = tmp_path / "study"
    events = ended(begun(file, root, "--workers", "2"))
    assert comparable(root) == comparable(tmp_path / "one")
    assert named(events, "stage_finished") == sorted(stage.id for stage in stages(plan.record))
    assert {event.get("worker") for event in events[:-1]} == {0, 1, 2}
    assert events[-1]["report"] == str(root / "report.html")
    assert not (root / ".workers").exists()


def test_a_process_of_ray_that_is_killed_in_a_pass(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    root = tmp_path / "study"
    driver = begun(file, root, "--address", cluster.address)
    in_the_middle_of_a_pass(root)
    victim = owner_of_a_pass(root)
    os.kill(victim, signal.SIGKILL)
    events = ended(driver)
    assert comparable(root) == of_one
    notes = [event["text"] for event in events if event["event"] == "noted"]
    assert any(f".{victim} was lost; its unit is begun again" in note for note in notes)
    (again,) = {
        stage
        for stage in named(events, "stage_started")
        if named(events, "stage_started").count(stage) > 1
    }
    assert again.startswith("training-")  # and nothing else is done twice


def test_a_unit_whose_process_is_killed_again_and_again(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    """It has failed in the end; what does not need it is done."""
    root = tmp_path / "study"
    driver = begun(file, root, "--address", cluster.address)
    for number in range(1, MOST_RESTARTS + 2):
        os.kill(owner_of_a_pass(root, number), signal.SIGKILL)
    events = ended(driver, 1, "incomplete")
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


def test_a_driver_that_is_killed_and_started_again(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    root = tmp_path / "study"
    driver = begun(file, root, "--address", cluster.address)
    in_the_middle_of_a_pass(root)
    driver.kill()
    output, _ = driver.communicate()
    before = named([json.loads(line) for line in output.splitlines()], "stage_finished")
    events = ended(begun(file, root, "--address", cluster.address))
    assert comparable(root) == of_one
    assert not set(before) & set(named(events, "stage_started"))


def test_a_signal_lets_the_tasks_save_what_they_train(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    root = tmp_path / "study"
    driver = begun(file, root, "--address", cluster.address)
    in_the_middle_of_a_pass(root)
    driver.terminate()
    output, errors = driver.communicate()
    assert driver.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; finished work is kept" in errors
    end = json.loads(output.splitlines()[-1])
    assert (end["event"], end["outcome"]) == ("ended", "stopped")
    assert not (root / ".workers").exists()  # all have left
    assert list(root.glob("runs/*/training.pt"))
    run_study(plan_study(load_config(file)), StudyFolder(root), Silent())
    assert comparable(root) == of_one


def test_a_node_that_comes_late_takes_units(
    file: Path, of_one: dict[str, Any], cluster: Any, tmp_path: Path
) -> None:
    root = tmp_path / "study"
    driver = begun(file, root, "--address", cluster.address)
    in_the_middle_of_a_pass(root)
    cluster.add_node(num_cpus=1, object_store_memory=2**27)
    events = ended(driver)
    assert comparable(root) == of_one
    workers = [event["worker"] for event in events if event["event"] == "stage_started"]
    assert workers[0] == 1
    assert 2 in workers  # while the first is at work


@pytest.fixture
def without_a_common_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one processor, and a driver, each with a cache of its own."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 2**27}
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "node-0"))
    cluster = Cluster(True, head_node_args={**node, "include_dashboard": False})
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "node-1"))
    cluster.add_node(**node)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "driver"))
    yield cluster
    cluster.shutdown()


def test_nodes_without_a_common_folder_share_a_url(
    file: Path, without_a_common_folder: Any, tmp_path: Path
) -> None:
    plan = plan_study(load_config(file), num_workers=2)
    run_study(plan, StudyFolder(tmp_path / "one"), Silent())
    store = tmp_path / "store" / "study"
    driver = begun(file, f"file://{store}", "--address", without_a_common_folder.address)
    events = ended(driver)
    at_url = comparable(store)
    assert {n: at_url[n] for n in comparable(tmp_path / "one")} == comparable(tmp_path / "one")
    assert (store / "report.html").exists()
    assert not list(store.rglob(".*"))
    assert {event.get("worker") for event in events[:-1]} == {0, 1, 2}
    for node in ("node-0", "node-1"):
        assert list((tmp_path / node).rglob("*.safetensors"))
    assert not list((tmp_path / "driver").rglob("*.safetensors"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "here"])
def test_an_address_without_a_cluster_is_refused(address: str, file: Path, tmp_path: Path) -> None:
    options = ("--study-dir", tmp_path / "study", "--executor", "ray", "--address", address)
    refused = rankwise("run", file, *options)
    assert refused.exit_code == 2
    assert f"--address {address}: " in words(refused.stderr)
    assert not (tmp_path / "study").exists()
