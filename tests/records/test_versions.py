"""Which versions are tested: one table, read from what is installed, and what is said of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from rankwise.records import versions
from rankwise.records.versions import is_tested, untested

REFUSING = "raise ImportError('cannot import name AutoConfig')\n"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plants what is installed in place of torch, transformers and peft, and what was tested."""

    def plant(**found: str) -> None:
        table = {name: SpecifierSet("<5.26,>=5.4") for name in ("transformers", "peft")}
        monkeypatch.setattr(versions, "tested_versions", lambda: table)
        monkeypatch.setattr(versions, "package_version", found.get)

    return plant


def test_the_table_is_that_of_the_installed_package() -> None:
    """Of what a user may have; what the tests need is no one else's."""
    assert {
        "torch",
        "transformers",
        "peft",
        "lm-eval",
        "ray",
        "numpy",
    } <= versions.tested_versions().keys()
    assert not {"pytest", "sphinx", "rankwise"} & versions.tested_versions().keys()
    assert versions.tested_range("transformers").startswith(">=5.")


@pytest.mark.parametrize(
    ("version", "is_within"),
    [("5.4.0", True), ("5.25.9", True), ("5.25.0+cpu", True), ("5.26.0", False), ("5.3.9", False)],
)
def test_a_version_is_within_its_range_or_not(
    installed: Callable[..., None], version: str, *, is_within: bool
) -> None:
    installed(transformers=version)
    assert is_tested("transformers") is is_within
    assert is_tested("peft"), "what is missing is no wrong version"
    assert is_tested("numpy"), "nor is what has no range"


def test_other_versions_are_said_in_one_sentence(installed: Callable[..., None]) -> None:
    installed(transformers="5.25.0", peft="5.5.0")
    assert untested() == ""
    installed(transformers="6.0.0", peft="5.3.0")
    assert untested() == (
        "rankwise is not tested with transformers 6.0.0, peft 5.3.0. "
        "Install: pip install 'transformers>=5.4,<5.26' 'peft>=5.4,<5.26'"
    )
    assert untested(["peft"]).startswith("rankwise is not tested with peft 5.3.0. ")


def run_with(packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that finds these packages first."""
    code = "from rankwise.cli.main import entry_point; entry_point()"
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def plant_transformers(folder: Path, version: str, code: str) -> None:
    (folder / "transformers").mkdir()
    (folder / "transformers" / "__init__.py").write_text(code)
    described = folder / f"transformers-{version}.dist-info"
    described.mkdir()
    text = f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n"
    (described / "METADATA").write_text(text)


def test_a_later_transformers_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    plant_transformers(tmp_path, "5.99.0", REFUSING)
    done = run_with(tmp_path, "plan")
    asked = f"pip install 'transformers{versions.tested_range('transformers')}'"
    remark = f"rankwise is not tested with transformers 5.99.0. Install: {asked}"
    first, *_, last = done.stderr.strip().splitlines()
    assert (done.returncode, first) == (2, f"warning: {remark}")
    assert last.strip() == f"cannot import name AutoConfig: {remark}"
    assert "Traceback" not in done.stderr
    told = run_with(tmp_path, "doctor").stdout
    assert f"5.99.0 (NOT TESTED: {versions.tested_range('transformers')})" in told


def test_a_tested_transformers_that_cannot_be_used_is_a_bug_that_is_shown(tmp_path: Path) -> None:
    """Nothing is known of its cause, so nothing is advised."""
    plant_transformers(tmp_path, versions.package_version("transformers") or "", REFUSING)
    done = run_with(tmp_path, "plan")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "not tested" not in done.stderr
