"""The flat twin runs and learns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_minimal_loop_runs_and_prints_each_rank(tiny_model_folder: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "minimal_loop.py"), str(tiny_model_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["base", "rank 2", "rank 8"]
    for line in lines[1:]:
        right, learned, forgotten = (
            int(number)
            for number in re.search(r"(\d+)/12 right, (\d+) learned, (\d+) for", line).groups()  # type: ignore[union-attr]
        )
        before = int(re.search(r"base: (\d+)/12", lines[0]).group(1))  # type: ignore[union-attr]
        assert right == before + learned - forgotten
