"""How long it takes from a clone to a study: the README's commands in new environments.

    python -m benchmarks.installation

Each way is taken twice, first with empty caches and then with those that the first left, in a new
copy of this tree and a new environment. ``make demo`` is the README's first command, with and
without a uv on the PATH; pip's line and ``rankwise run`` are its next two. The study behind each
is a small one, of two ranks on 24 rows. Needs a package index; the last line is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDY = "methods.lora.ranks=[1,4] methods.full=null train.max_examples=24 evaluation.limit=8"
WAYS = {
    "make": ["make .venv/bin/rankwise", "make demo"],
    "pip": [
        "python3 -m venv .venv",
        '. .venv/bin/activate && pip install ".[train]" --constraint constraints.txt',
        f". .venv/bin/activate && rankwise run {STUDY}",
    ],
}
"""Way -> what is typed: installing last but one, then the study."""


def size(folder: Path) -> int:
    """Bytes of a folder's files, each once however many names it has."""
    sizes = dict[tuple[int, int], int]()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            about = path.stat()
            sizes[about.st_dev, about.st_ino] = about.st_size
    return sum(sizes.values())


def tried(commands: Iterable[str], home: Path) -> dict[str, float]:
    """Seconds of each command in a new copy of the tree, with a home's caches; bytes installed."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    found = dict[str, float]()
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        for name in map(os.fsdecode, filter(None, files)):
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        environment = {**os.environ, "HOME": str(home), "DEMO": STUDY}
        for name in ("XDG_CACHE_HOME", "UV_CACHE_DIR", "RANKWISE_CACHE", "VIRTUAL_ENV"):
            environment.pop(name, None)
        for command in commands:
            start = time.perf_counter()
            subprocess.run(command, shell=True, cwd=folder, env=environment, check=True)
            found[command] = round(time.perf_counter() - start, 1)
        assert list(Path(folder).glob("studies/*/report.html")), "the study has no report"
        found["bytes"] = size(Path(folder, ".venv"))
    return found


def main() -> None:
    """Take every way, cold and warm."""
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way, commands in WAYS.items():
            home = Path(folder, way)
            home.mkdir()
            for state in ("cold", "warm"):
                print(f"{way}, {state}", file=sys.stderr)
                measured[f"{way}, {state}"] = tried(commands, home)
            measured[f"{way}, warm"]["cache_bytes"] = size(home)
    print(json.dumps({"benchmark": "installation", "python": sys.version.split()[0], **measured}))


if __name__ == "__main__":
    main()
