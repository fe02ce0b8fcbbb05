"""The examples for clusters: they parse, their commands exist, and what they name twice agrees."""

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

from tests.support.documented import command_problems

CLUSTERS = Path(__file__).resolve().parents[1] / "examples" / "clusters"
FILES = ["hf_jobs.sh", "kubernetes.yaml", "skypilot.yaml", "slurm.sbatch"]
STANDS = {"$1": "study.yaml", "$2": "studies/mine", "$first": "node-1"}


def text_of(name: str) -> str:
    """A file, its continued lines joined, and what a shell fills in filled in."""
    text = (CLUSTERS / name).read_text(encoding="utf-8").replace("\\\n", " ")
    for variable, value in STANDS.items():
        text = text.replace(variable, value)
    return text


def command_of(name: str) -> str:
    """The command by which a file runs a study."""
    (command,) = re.findall(r"\brankwise run .*", text_of(name))
    return command


def option(command: str, name: str) -> str:
    words = shlex.split(command)
    return words[words.index(name) + 1]


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((CLUSTERS / name).read_text(encoding="utf-8")))


def test_all_examples_are_read_here() -> None:
    assert sorted(path.name for path in CLUSTERS.iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_the_command_of_an_example_exists(name: str) -> None:
    assert command_problems(command_of(name)) == []


@pytest.mark.parametrize("name", ["hf_jobs.sh", "slurm.sbatch"])
def test_the_scripts_are_scripts(name: str) -> None:
    done = subprocess.run(["bash", "-n", CLUSTERS / name], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_slurm_job_has_one_ray_on_each_node_and_is_led_at_its_address() -> None:
    text = text_of("slurm.sbatch")
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert (asked["ntasks-per-node"], asked["gpus-per-task"]) == ("1", "1")
    assert "exclusive" in asked
    (started, led) = re.findall(r'--address "?([\w:-]+)', text)
    assert started == led
    # Slurm sets these variables where the script asks for what they say
    used = set(re.findall(r"\$SLURM_([A-Z_]+_PER_TASK)", text))
    assert {name.lower().replace("_", "-") for name in used} <= asked.keys()


def test_the_head_of_the_kubernetes_cluster_has_the_study_and_the_others_have_the_cards() -> None:
    claim, job = documents("kubernetes.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    assert job["spec"]["entrypoint"] == command_of("kubernetes.yaml")
    pod = cluster["headGroupSpec"]["template"]["spec"]
    (head,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in head["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    claimed = volumes["studies"]["persistentVolumeClaim"]["claimName"]
    assert claimed == claim["metadata"]["name"]
    command = command_of("kubernetes.yaml")
    assert option(command, "--study-dir").startswith(f"{mounts['studies']}/")
    assert shlex.split(command)[2].startswith(f"{mounts['study']}/")
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["image"] == head["image"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


def test_one_node_of_the_skypilot_cluster_leads() -> None:
    (task,) = documents("skypilot.yaml")
    assert subprocess.run(["bash", "-nc", task["run"]], check=False).returncode == 0
    assert command_problems(task["setup"].strip()) == []
    begin = task["run"].index('if [ "$SKYPILOT_NODE_RANK" = 0 ]; then')
    assert task["run"].index("rankwise run") > begin > task["run"].index("start_cluster")
    # SkyPilot has a Ray of its own, which `auto` might find
    assert option(command_of("skypilot.yaml"), "--address") == "localhost:6379"


def test_the_job_of_the_hub_has_options_that_exist() -> None:
    words = shlex.split(text_of("hf_jobs.sh"), comments=True)
    asked = {word for word in words[words.index("hf") :] if word.startswith("--")}
    hf = Path(sys.executable).with_name("hf")
    wide = {**os.environ, "COLUMNS": "400"}
    command = [hf, "jobs", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=wide)
    for wanted in (*asked, option(shlex.join(words), "--flavor")):
        assert re.search(rf"(?<![\w-]){wanted}(?![\w-])", done.stdout), wanted


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
    words = shlex.split((CLUSTERS / "hf_jobs.sh").read_text(encoding="utf-8"), comments=True)
    (inner,) = (word for word in words if "rankwise run" in word)
    inner = inner.replace("/kept", f"{tmp_path}/kept").replace("/tmp/mine", f"{tmp_path}/mine")
    run = f"rankwise() {{ touch {tmp_path}/mine/study.json; return 3; }}"
    done = subprocess.run(["bash", "-c", f"{copies}\n{run}\n{inner}"], check=False)
    assert done.returncode == code
    assert [path.name for path in (tmp_path / "kept/mine").iterdir()] == kept
