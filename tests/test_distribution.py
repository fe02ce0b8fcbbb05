"""What is published: the files of the wheel and of the source distribution, and their version."""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[1]


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
        *(".py", ".yaml", ".html", ".css", ".js", ".bib", ".csv", ".txt", ".typed")
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_source_distribution_has_what_its_list_says(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert package_files() <= names
    assert {name.partition("/")[0] for name in names} == {
        "rankwise", "tests", "benchmarks", "examples", "docs",
        "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO",
        "README.md", "SECURITY.md", "SKILL.md", "constraints.txt", "llms.txt", "pyproject.toml",
        ".gitignore",
    }  # fmt: skip
    assert not [name for name in names if "__pycache__" in name or name.endswith("study.json")]


def test_the_version_is_the_same_everywhere(built: tuple[Path, Path]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [project["version"]]
    assert [path.name for path in built] == [
        f"rankwise-{project['version']}-py3-none-any.whl",
        f"rankwise-{project['version']}.tar.gz",
    ]
