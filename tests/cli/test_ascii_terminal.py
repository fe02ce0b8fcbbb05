"""A terminal that shows ASCII only shows everything, in escapes where it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.study.printer import printable

STUDY = "base_model: m\ntrain: {task: naïve, größe: 中文}\n"


def called(*arguments: object, encoding: str = "ascii") -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "rankwise", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert b"Traceback" not in done.stderr, done.stderr
    assert b"UnicodeEncodeError" not in done.stderr
    assert done.stdout.isascii()
    assert done.stderr.isascii()
    return done


def test_what_would_hide_or_turn_the_text_beside_it_is_shown_by_its_code() -> None:
    told = "a\u202eb\x1b[31m \ud800\tעברית می‌خواهم https://user:password@host/?a=1\n"
    assert printable(told) == ("a\\u202eb\\x1b[31m \\ud800\tעברית می‌خواهم https://***@host/?***\n")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["verdict", "--help"]])
def test_help(arguments: list[str]) -> None:
    assert called(*arguments).returncode == 0


def test_an_error_with_names_in_other_scripts(tmp_path: Path) -> None:
    path = tmp_path / "größe.yaml"
    path.write_text(STUDY, encoding="utf-8")
    done = called("plan", path)
    assert done.returncode == 2
    assert b"train.gr\\xf6\\xdfe: unknown key; known here:" in done.stderr


def test_status_of_a_folder_in_another_script(tmp_path: Path) -> None:
    done = called("status", tmp_path / "中文")
    assert done.returncode in (1, 2)
    assert b"\\u4e2d\\u6587" in done.stderr


def test_json_stays_json(tmp_path: Path) -> None:
    folder = tmp_path / "aufgaben"
    folder.mkdir()
    (folder / "a.yaml").write_text("task: größe\n", encoding="utf-8")
    listings = [
        json.loads(called("tasks", "--json", "--tasks-path", folder, encoding=encoding).stdout)
        for encoding in ("ascii", "ascii:strict")
    ]
    assert "größe" in {line["name"] for line in listings[0]}
    assert listings[0] == listings[1]
