"""What is published: the files of the wheel and of the source distribution, and their version."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from lm_eval.api.model import LM
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.sources import package_sources

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["train"]]
"""What reading, training and scoring need."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution of this tree."""
    folder = str(tmp_path_factory.mktemp("dist"))
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=folder, versions=["standard"])
    (source,) = SdistBuilder(str(ROOT)).build(directory=folder, versions=["standard"])
    return Path(wheel), Path(source)


def package_files() -> set[str]:
    """Every file of the package, as it lies in the tree."""
    files = (path for path in (ROOT / "rankwise").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_has_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = set(archive.namelist())
    of_package = {name for name in names if ".dist-info/" not in name}
    assert of_package == package_files()
    suffixes = {PurePosixPath(name).suffix for name in of_package}
    assert suffixes - {".json"} == {
        *(".py", ".yaml", ".html", ".css", ".js", ".bib", ".csv", ".jsonl", ".typed")
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (described,) = importlib.metadata.distributions(path=[str(built[0])])
    declared = [*described.entry_points.select(group="lm_eval.models")]
    assert [each.name for each in declared] == ["rankwise"]
    assert issubclass(declared[0].load(), LM)


def test_the_source_distribution_has_what_its_list_says(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert package_files() <= names
    assert {name.partition("/")[0] for name in names} == {
        "rankwise", "tests", "benchmarks", "examples", "docs",
        "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Dockerfile", "LICENSE", "Makefile",
        "PKG-INFO",
        "README.md", "SECURITY.md", "SKILL.md", "constraints.txt", "llms.txt", "pyproject.toml",
        ".gitignore",
    }  # fmt: skip
    assert not [name for name in names if "__pycache__" in name or name.endswith("study.json")]


def test_the_version_is_the_same_everywhere(built: tuple[Path, Path]) -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [PROJECT["version"]]
    assert [path.name for path in built] == [
        f"rankwise-{PROJECT['version']}-py3-none-any.whl",
        f"rankwise-{PROJECT['version']}.tar.gz",
    ]


@pytest.mark.parametrize(
    ("repository", "tag", "is_right"),
    [
        ("OWNER/rankwise", f"v{PROJECT['version']}", True),
        ("other/rankwise", f"v{PROJECT['version']}", False),
        ("OWNER/rankwise", "v9.9.9", False),
    ],
)
def test_the_notebook_installs_the_wheel_that_a_release_makes(
    built: tuple[Path, Path], tmp_path: Path, repository: str, tag: str, is_right: bool
) -> None:
    """By the step of the workflow, run in a shell."""
    notebook = ROOT / "examples" / "rank_study.ipynb"
    cells = {
        cell["id"]: "".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]
    }
    (given,) = re.findall(r'%pip install --quiet "(.+)"', cells["install"])
    wanted = Requirement(given)
    assert (wanted.name, wanted.extras) == ("rankwise", {"train"})
    assert str(wanted.url).rpartition("/")[2] == built[0].name
    assert "colab.research.google.com/github/OWNER/rankwise/blob/main/examples" in cells["question"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    steps = {step.get("name"): step for step in workflow["jobs"]["build"]["steps"]}
    for folder, file in (("dist", built[0]), ("examples", notebook)):
        (tmp_path / folder).mkdir()
        shutil.copy(file, tmp_path / folder)
    done = subprocess.run(
        ["bash", "-e", "-c", steps["The notebook installs this wheel"]["run"]],
        cwd=tmp_path, env={"GITHUB_REPOSITORY": repository, "GITHUB_REF_NAME": tag}, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == is_right


def test_a_release_writes_its_version_wherever_it_stands() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    for each in settings["bumpversion"]["files"]:
        search = each["search"].format(current_version=PROJECT["version"])
        text = (ROOT / each["filename"]).read_text(encoding="utf-8")
        assert re.search(search if each.get("regex") else re.escape(search), text, re.MULTILINE)


CALLED = {"pyyaml": "yaml", "vl-convert-python": "vl_convert"}
"""Distributions whose package has another name."""

NOT_DECLARED = {
    "mlflow": "a tracker that users install themselves",
    "pip": "fetches the embedded model; of a Python without it, the error says so",
    "triton": "comes with builds of torch for cards, and what needs it asks for it",
}

NOT_IMPORTED = {
    "pytablewriter": "lm-eval asks for any version, and pip may find one of 2018",
    "tenacity": "lm-eval's client of servers asks for it, but not lm-eval",
}


def packages(requirements: list[str]) -> set[str]:
    names = {canonicalize_name(Requirement(each).name) for each in requirements}
    return {CALLED.get(name, name.replace("-", "_")) for name in names}


def imported() -> set[str]:
    """The top of every name that a module imports, anywhere in it, or asks for by a text."""
    found: set[str] = set()
    for source in package_sources().values():
        for node in source.nodes:
            match node:
                case ast.Import(names=names):
                    found |= {alias.name for alias in names}
                case ast.ImportFrom(module=str(module), level=0):
                    found.add(module)
                case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                    if ast.unparse(node.func).rpartition(".")[2] in ("import_module", "find_spec"):
                        found.add(name)
                case _:
                    pass
    tops = {name.partition(".")[0] for name in found}
    return tops - sys.stdlib_module_names - {"rankwise"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    declared = packages(NEEDED)
    extras = {k: v for k, v in PROJECT["optional-dependencies"].items() if k != "train"}
    optional = packages([each for extra in extras.values() for each in extra])
    optional |= NOT_DECLARED.keys()
    found = imported()
    assert found - optional - declared == set()
    assert declared - found == NOT_IMPORTED.keys()
    assert NOT_DECLARED.keys() <= found


def test_every_dependency_has_a_least_version_and_a_limit() -> None:
    for each in map(Requirement, NEEDED):
        assert {bound.operator for bound in each.specifier} == {">=", "<"}, each.name


def pinned() -> list[Requirement]:
    """The lines of the lock; a package may have one for older and one for newer Pythons."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def lock_of(name: str) -> list[Version]:
    same = [each for each in pinned() if canonicalize_name(each.name) == canonicalize_name(name)]
    return [Version(bound.version) for each in same for bound in each.specifier]


def test_the_lock_has_one_version_of_everything_that_is_installed() -> None:
    """None of one platform alone, such as torch's +cpu, which PyPI does not have."""
    for each in pinned():
        (bound,) = each.specifier
        assert (bound.operator, Version(bound.version).local) == ("==", None), each
    wanted = [
        *NEEDED,
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    for each in map(Requirement, wanted):
        if each.name == "rankwise":
            continue
        assert lock_of(each.name), each.name
        assert all(each.specifier.contains(version) for version in lock_of(each.name)), each.name


INTERNALS = {
    "accelerate", "bitsandbytes", "datasets", "gguf", "huggingface-hub", "liger-kernel", "lm-eval",
    "peft", "ray", "safetensors", "tokenizers", "torch", "torchao", "transformers", "trl", "typer",
}  # fmt: skip
"""What we call beyond its documented interface, or whose numbers are ours."""


def test_of_libraries_whose_internals_are_used_no_untested_minor_version_is_allowed() -> None:
    """A range is a promise about versions that do not exist yet: it ends at the lock's."""
    extras = PROJECT["optional-dependencies"].values()
    lines = {Requirement(each).name: Requirement(each) for each in NEEDED}
    lines |= {Requirement(each).name: Requirement(each) for extra in extras for each in extra}
    for name in INTERNALS:
        (limit,) = [bound.version for bound in lines[name].specifier if bound.operator == "<"]
        (locked,) = lock_of(name)
        release = list(locked.release[: len(limit.split("."))])
        assert limit == ".".join(map(str, [*release[:-1], release[-1] + 1])), name
