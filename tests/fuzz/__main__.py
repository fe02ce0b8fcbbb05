"""``make fuzz``: every parser in turn for RANKWISE_FUZZ_SECONDS, then one line of JSON."""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.parsers import PARSERS, TooSlow, check

BATCH = 100
"""Examples of one parser before the next has its turn, unless they take longer than"""

SECONDS = 45.0
"""of it: verbs that are called as a user would take a second each, and all parsers get a turn."""


def batch(name: str, number: int, counts: Counter[str]) -> None:
    """Try ``BATCH`` inputs; the seed is the batch's number, so that each batch tries others."""
    parser, until = PARSERS[name], time.monotonic() + SECONDS

    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(parser.inputs)
    def holds(content: Any) -> None:
        if time.monotonic() >= until:
            return
        counts[name] += 1
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            check(parser, Path(folder), content)

    holds()


def main() -> int:
    """Returns 1 if any input was answered by another error than ours."""
    seconds = float(os.environ.get("RANKWISE_FUZZ_SECONDS", "3600"))
    end = time.monotonic() + seconds
    counts: Counter[str] = Counter(dict.fromkeys(PARSERS, 0))
    failures: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number in itertools.count():
            for name in PARSERS:
                if time.monotonic() >= end:
                    result = {"seconds": seconds, "executions": counts, "failures": failures}
                    print(json.dumps(result))
                    return int(bool(failures))
                try:
                    batch(name, number, counts)
                except (Exception, TooSlow):  # noqa: BLE001 (what fuzzing looks for)
                    failures[name] += 1
                    traceback.print_exc()
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main())
