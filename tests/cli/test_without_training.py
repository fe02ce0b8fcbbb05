"""An installation without the extra ``train`` reads, judges, reports, and says what it lacks."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rankwise.cli.application import OF_TRAINING
from tests.planted.score_tables import scores, write_csv
from tests.support.sentences import Sentences

ROOT = Path(__file__).parents[2]

_BLOCKED = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from rankwise.cli.main import entry_point
sys.argv = ["rankwise", *{arguments!r}]
entry_point()
"""


def rankwise(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command where nothing of the extra can be imported."""
    code = _BLOCKED.format(modules=sorted(OF_TRAINING), arguments=list(map(str, arguments)))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    right = [1, 0, 1, 1, 0] * 20
    write_csv(folder / "scores.csv", scores(base=[0, 0, 1, 0, 0] * 20, r4=right, r16=[1] * 100))
    done = rankwise("verdict", "scores.csv", "--output", "kept", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("verdict", "kept", "--json"), ("report", "kept"), ("status", "kept"), ("verify", "kept"),
        ("export", "kept", "--format", "csv"), ("export", "kept", "--format", "latex"),
        ("init", "own.yaml"), ("--help",), ("doctor", "--help"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_needs_no_training_works(folder: Path, arguments: tuple[str, ...]) -> None:
    done = rankwise(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("run",), ("try", "scores.csv"), ("check", "a", "b", "--tasks", "x"), ("tasks",)],
    ids=" ".join,
)
def test_what_trains_or_scores_says_what_to_install(
    folder: Path, arguments: tuple[str, ...], sentence: Sentences
) -> None:
    done = rankwise(*arguments, folder=folder)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence(re.sub(r"\s+", " ", done.stderr).strip(), names=("'.[train]'",))


def test_the_extra_brings_what_is_said_to_be_missing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [re.split(r"[<>=]", each)[0] for each in project["optional-dependencies"]["train"]]
    assert {name.replace("-", "_") for name in named} == OF_TRAINING
    light = {re.split(r"[<>=]", each)[0] for each in project["dependencies"]}
    assert not {name.replace("-", "_") for name in light} & OF_TRAINING
    for extra in ("quantization", "torchao", "liger", "ray"):
        assert "rankwise[train]" in project["optional-dependencies"][extra]
