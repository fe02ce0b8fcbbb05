"""Other systems: where modules of POSIX are missing, everything can be imported."""

from __future__ import annotations

import subprocess
import sys

_WITHOUT = """
import os, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("resource", "fcntl", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import rankwise
from rankwise.cli.main import app  # with what others need of these
import torch, transformers, peft, lm_eval, datasets, accelerate
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
for name in [name for name in sys.modules if name.startswith("rankwise")]:
    del sys.modules[name]
sys.meta_path.insert(0, Missing())
del os.register_at_fork
for module in pkgutil.walk_packages(["rankwise"], "rankwise."):
    if module.name not in ("rankwise.__main__",):
        __import__(module.name)
"""


def test_every_module_is_imported_without_those_of_posix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
