"""The browser's set-up never fails, and says in one line why there is no browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "chromium.sh"
SHELL = shutil.which("sh") or "/bin/sh"
PASSED_ON = 'while [ "$1" != apt-get ]; do shift; done; exec "$@"'  # to the apt-get planted here


def set_up(folder: Path, **commands: str) -> list[str]:
    """What the script says where these commands, and no others, are on the path."""
    for name, text in commands.items():
        command = folder / name.replace("_", "-")
        command.write_text(f"#!{SHELL}\n{text}\n")
        command.chmod(0o755)
    done = subprocess.run(
        [SHELL, str(SCRIPT)], env={"PATH": str(folder)}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_nothing_is_done_where_there_is_a_browser(tmp_path: Path) -> None:
    assert set_up(tmp_path, chromium="exit 1", apt_get="exit 1") == []


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        ({}, "there is no apt-get"),
        (
            {"apt_get": "exit 1", "id": "echo 1000", "sudo": "exit 1"},
            "apt-get needs root, or sudo without a password",
        ),
        (
            {"apt_get": "exit 1", "id": "echo 1000"},
            "apt-get needs root, or sudo without a password",
        ),
        ({"apt_get": "exit 1", "id": "echo 0", "timeout": PASSED_ON}, "apt-get cannot fetch it"),
        (
            {
                "apt_get": 'case "$*" in *--no-download*) exit 1; esac',
                "id": "echo 0",
                "timeout": PASSED_ON,
            },
            "apt-get cannot install it",
        ),
    ],
)
def test_it_says_why_there_is_none(tmp_path: Path, commands: dict[str, str], reason: str) -> None:
    last = set_up(tmp_path, **commands)[-1]
    assert last.startswith(f"No Chromium: {reason}.")


def test_it_is_fetched_in_limited_time_and_then_installed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = set_up(
        tmp_path,
        id="echo 1000",
        sudo='[ "$2" = true ] || { shift; exec "$@"; }',
        timeout=f'printf "%s " "$1" >> {log}; {PASSED_ON}',
        apt_get=f'for last; do :; done; echo "$* : $last" >> {log}',
    )
    assert len(said) == 1
    calls = [line.split(" ") for line in log.read_text().splitlines()]
    assert [call[0] for call in calls] == ["120", "600", "0"]
    assert [
        next(word for word in ("update", "--download-only", "--no-download") if word in call)
        for call in calls
    ] == ["update", "--download-only", "--no-download"]
