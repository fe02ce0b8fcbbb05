"""What the command sets for torch before it is imported, unless the user has set it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys

import pytest

from rankwise.engine.models.libraries import before_torch

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


@pytest.mark.parametrize("version", ["2.8.0", "2.9.1+cu128", "2.13.0"])
@pytest.mark.parametrize("theirs", [None, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_the_memory_of_a_card_is_extended_unless_the_user_says_how(
    monkeypatch: pytest.MonkeyPatch, version: str, theirs: str | None
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    environment = {} if theirs is None else {theirs: "max_split_size_mb:128"}
    monkeypatch.setattr(os, "environ", dict(environment))
    before_torch()
    if theirs is None:
        name = "PYTORCH_CUDA_ALLOC_CONF" if version == "2.8.0" else "PYTORCH_ALLOC_CONF"
        environment = {name: "expandable_segments:True"}
    always = {"OMP_WAIT_POLICY": "passive", "USE_HUB_KERNELS": "0"}
    assert os.environ == environment | always
