"""The examples for clusters: the batch script runs, and every command in them exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.crews import wait_for

from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from tests.support.documented import command_problems
from tests.support.observers import Silent
from tests.support.slurm import Array, directives
from tests.support.small_studies import write_study
from tests.support.study_contents import comparable

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ROOT / "examples" / "clusters"
SETTINGS = """
train:
  task: colours
  epochs: 3
  save_every: 0.001s
  learning_rate: {lora: 1e-2, full: 1e-3}
  precision: float32
methods: {lora: {ranks: [2, 4]}}
evaluation: {out_of_domain: [], held_out_text: [], limit: 4}
analysis: {spectra: false, heads: false}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("clusters"), tiny_model_folder, SETTINGS)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With the command ``rankwise``, which is this checkout's."""
    command = tmp_path / "bin" / "rankwise"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m rankwise "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    paths = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **paths, "OMP_NUM_THREADS": "1"}


def holder(root: Path) -> int:
    """The process of a worker that is training; 0 where none is."""
    names = [path.name for path in root.glob(".workers/*/*.progress")]
    training = list(root.glob("runs/*/training.pt"))
    return int(names[0].split(".")[-3]) if names and training else 0


def test_a_slurm_array_of_which_one_task_is_preempted_leaves_the_records_of_one_worker(
    file: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    script, root = CLUSTERS / "slurm.sbatch", tmp_path / "study"
    with Array(script, [str(file), str(root)], tmp_path, environment, "0-1") as array:
        wait_for(lambda: holder(root))
        pid = holder(root)
        # exec: the worker is the process that Slurm knows and signals
        (task,) = (task for task, each in array.processes.items() if each.pid == pid)
        assert array.preempt(task) == 143
        assert array.wait() == [0, 0], array.log(1 - task).read_text()
        assert "stopped by SIGTERM; finished work is kept" in array.log(task).read_text()
        assert all("all units are done" in array.log(each).read_text() for each in (0, 1))
    plan = plan_study(load_config(file), num_workers=2)
    run_study(plan, StudyFolder(tmp_path / "one"), Silent())
    assert comparable(root) == comparable(tmp_path / "one")
    assert not (root / ".workers").exists()


def test_the_script_asks_for_what_its_comments_promise() -> None:
    options = directives(CLUSTERS / "slurm.sbatch")
    assert (options["gpus"], options["signal"]) == ("1", "B:TERM@120")
    assert options["open-mode"] == "append"


# --- what cannot run here is read


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((CLUSTERS / name).read_text(encoding="utf-8")))


def workers_of(command: str) -> int:
    """The number of workers that a command plans for; it must be one that rankwise understands."""
    assert command_problems(command.removeprefix("exec ")) == []
    assert "--worker " in command
    (number,) = re.findall(r"--workers[= ](\d+)", command)
    return int(number)


def test_the_kubernetes_job_starts_the_workers_that_it_plans_for() -> None:
    claim, job = documents("kubernetes.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    number = workers_of(shlex.join(worker["command"]))
    assert spec["completions"] == spec["parallelism"] == number
    assert spec["completionMode"] == "Indexed"
    # what Kubernetes asks for where an index has failures of its own
    assert (pod["restartPolicy"], "backoffLimit" in spec) == ("Never", False)
    assert pod["terminationGracePeriodSeconds"] > 30
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in worker["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    claimed = volumes["studies"]["persistentVolumeClaim"]["claimName"]
    assert claimed == claim["metadata"]["name"]
    (place,) = re.findall(r"--study-dir=(\S+)", " ".join(worker["command"]))
    assert place.startswith(mounts["studies"])
    ignored, failed = spec["podFailurePolicy"]["rules"]
    assert ignored["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert failed["onExitCodes"]["containerName"] == worker["name"]
    assert failed["onExitCodes"]["values"] == [2]  # as of every usage error


def test_the_skypilot_jobs_are_the_workers_that_they_plan_for() -> None:
    text = (CLUSTERS / "skypilot.yaml").read_text(encoding="utf-8")
    (task,), (volume,) = documents("skypilot.yaml"), documents("skypilot-volume.yaml")
    (jobs,) = re.findall(r"for n in ([\d ]+); do sky jobs launch", text)
    assert workers_of(task["run"]) == len(jobs.split())
    ((mounted, name),) = task["volumes"].items()
    assert name == volume["name"]
    assert f"--study-dir {mounted}/" in task["run"]
    assert volume["config"]["access_mode"] == "ReadWriteMany"


def test_the_job_of_the_hub_has_options_that_exist() -> None:
    text = (CLUSTERS / "hf_jobs.sh").read_text(encoding="utf-8")
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    begin = words.index("hf")
    asked = {word for word in words[begin:] if word.startswith("--")}
    hf = Path(sys.executable).with_name("hf")
    done = subprocess.run(
        [hf, "jobs", "run", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "400"},
    )  # fmt: skip
    for wanted in (*asked, words[words.index("--flavor") + 1]):
        assert re.search(rf"(?<![\w-]){wanted}(?![\w-])", done.stdout), wanted
    (inner,) = (word for word in words if "rankwise run" in word)
    (command,) = (line.strip() for line in inner.splitlines() if "rankwise run" in line)
    assert command_problems(command) == []
    assert command.endswith("--gpus all")


@pytest.mark.parametrize(
    ("copies", "code", "kept"),
    [
        ("", 3, ["study.json"]),  # a first run: the bucket is empty
        ("cp() { return 1; }", 1, []),  # a partial copy is never run, nor copied back
    ],
)
def test_the_job_of_the_hub_runs_on_a_whole_copy(
    copies: str, code: int, kept: list[str], tmp_path: Path
) -> None:
    text = (CLUSTERS / "hf_jobs.sh").read_text(encoding="utf-8")
    (inner,) = (word for word in shlex.split(text, comments=True) if "rankwise run" in word)
    inner = inner.replace("/kept", f"{tmp_path}/kept").replace("/tmp/mine", f"{tmp_path}/mine")
    run = f"rankwise() {{ touch {tmp_path}/mine/study.json; return 3; }}"
    done = subprocess.run(["bash", "-c", f"{copies}\n{run}\n{inner}"], check=False)
    assert done.returncode == code
    assert [path.name for path in (tmp_path / "kept/mine").iterdir()] == kept


@pytest.mark.parametrize("name", ["slurm.sbatch", "hf_jobs.sh"])
def test_the_scripts_are_scripts(name: str) -> None:
    done = subprocess.run(["bash", "-n", CLUSTERS / name], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_batch_script_has_a_command_that_exists() -> None:
    *_, last = (CLUSTERS / "slurm.sbatch").read_text(encoding="utf-8").splitlines()
    stands = {"$1": "study.yaml", "$2": "studies/mine", "$SLURM_ARRAY_TASK_COUNT": "4"}
    for name, value in stands.items():
        last = last.replace(f'"{name}"', value)
    first, _, end = directives(CLUSTERS / "slurm.sbatch")["array"].partition("-")
    assert workers_of(last) == int(end) - int(first) + 1
