"""A study of local models and tasks reaches for no network: it plans, runs, reports and audits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.audited_models import adapter as saved_adapter

# Every attempt is told on stderr and fails, so that one that a library swallows is seen as well.
# Sockets within this machine (AF_UNIX) are allowed: processes and event loops talk through them. So
# is one that is opened and not connected: urllib3 sees so, when imported, whether there is IPv6.
WATCHED = """
import json, socket, sys, traceback

def refuse(name):
    print("NETWORK", name, *traceback.format_stack()[:-2], sep="\\n", file=sys.stderr, flush=True)
    raise OSError(f"{name}: no network in this test")

class Watched(socket.socket):
    pass

def guarded(name):
    def method(self, *arguments):
        if self.family != socket.AF_UNIX:
            refuse(f"{name}{arguments}")
        return getattr(super(Watched, self), name)(*arguments)
    return method

for name in ("connect", "connect_ex", "sendto", "sendmsg"):
    setattr(Watched, name, guarded(name))
socket.socket = Watched
for name in ("create_connection", "getaddrinfo", "gethostbyname"):
    setattr(socket, name, lambda *_, _name=name, **__: refuse(_name))

from rankwise.cli.main import app
for command in json.loads(sys.argv[1]):
    print("COMMAND", command, file=sys.stderr, flush=True)
    code = app(command, standalone_mode=False)
    if code:
        sys.exit(code)
"""


def watched(*commands: tuple[object, ...]) -> subprocess.CompletedProcess[str]:
    """Run commands where nothing can be reached; libraries are not told to stay offline."""
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(commands, default=str)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in offline},
    )


def test_no_verb_of_a_local_study_reaches_for_the_network(
    study_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    study, adapter = tmp_path / "study", tmp_path / "adapter"
    short = ("methods.lora.ranks=[2]", "train.epochs=1")
    saved_adapter(tiny_model_folder, adapter)
    done = watched(
        ("doctor",),
        ("plan", study_file, *short),
        ("run", study_file, *short, "--study-dir", study),
        ("status", study),
        ("report", study),
        ("export", study),
        ("audit", tiny_model_folder, adapter, "--output", tmp_path / "audit", "--top-k", 9),
    )
    assert "NETWORK" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("COMMAND") == 7


def test_the_watch_would_see_it(study_file: Path) -> None:
    done = watched(("plan", study_file, "base_model=nobody/no-such-model"))
    assert "NETWORK" in done.stderr
    assert done.returncode != 0
