"""The command's threads sleep while they wait, unless the user has said how they wait."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

# Loads torch as a verb does, after the command has begun.
_COMMAND = """
import contextlib, sys
from rankwise.cli.main import entry_point
sys.argv = ["rankwise", "--version"]
with contextlib.suppress(SystemExit):
    entry_point()
import torch
"""


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_threads_wait_as_the_user_says_or_asleep(before: str | None, after: str) -> None:
    environment = {**os.environ, "OMP_DISPLAY_ENV": "true"}  # OpenMP prints what it has read
    environment.pop("OMP_WAIT_POLICY", None)
    if before:
        environment["OMP_WAIT_POLICY"] = before
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"OMP_WAIT_POLICY\s*=\s*'(\w+)'", done.stderr) == [after]
