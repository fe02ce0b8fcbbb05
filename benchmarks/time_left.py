"""How right is the time left? Records what happens in a study, and compares.

    python -m benchmarks.time_left record study.yaml --study-dir DIR --output stream.jsonl
    python -m benchmarks.time_left compare stream.jsonl...

A stream is what :class:`rankwise.study.times.Rates` is told, a JSON list a line, with the seconds
since the study began.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.records.study import StageFailure
from rankwise.study.observer import StageOutline
from rankwise.study.stages.graph import KINDS
from rankwise.study.times import Rates
from tests.support.observers import Silent

Line = list[Any]
FIRST_SECONDS = 60.0
"""What is said before is not compared."""
LAST_SHARE = 0.02
"""Nor what is said of the last part of a study: a second of five is no matter."""
_MERGED_SECONDS = 0.25


class StreamRecorder(Silent):
    """An observer that remembers what rates are to be told."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._started = time.perf_counter()

    def _add(self, *line: Any) -> None:
        now = round(time.perf_counter() - self._started, 3)
        last: Line = self.lines[-1] if self.lines else [None]
        if line[0] == last[0] == "advanced" and now - last[2] < _MERGED_SECONDS:
            last[1], last[3] = now, round(last[3] + line[1], 1)
        elif line[0] == "advanced":
            self.lines.append(["advanced", now, now, round(line[1], 1)])
        else:
            self.lines.append([line[0], now, *line[1:]])

    def planned(self, stages: Sequence[StageOutline]) -> None:
        self._add("planned", [list(stage) for stage in stages])

    def stage_started(self, stage: str) -> None:
        self._add("started", stage)

    def advanced(self, work: float) -> None:
        self._add("advanced", work)

    def skipped(self, work: float) -> None:
        self._add("skipped", work)

    def stage_finished(self) -> None:
        self._add("finished")

    def stage_failed(self, failure: StageFailure) -> None:
        self._add("dropped", failure.stage)

    def stage_left_out(self, stage: str) -> None:
        self._add("dropped", stage)

    def over(self) -> None:
        """The study has its verdict; so long the user waits."""
        self._add("over")


class Said(NamedTuple):
    """What was said at a time, in seconds, and what was right."""

    at: float
    predicted: float
    true: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.true


def all_left(rates: Rates, now: float) -> float | None:
    """Of all stages, one after the other; None before anything is known."""
    left = rates.seconds_left(now)
    return sum(left.values()) if left else None


def replayed(lines: Sequence[Line], end: float | None = None) -> list[Said]:
    """What rates say after every line; ``end``: when it was over, else at the last line."""
    rates, said, stages, stage = Rates(), list[Said](), dict[str, StageOutline](), ""
    end = lines[-1][1] if end is None else end
    for kind, at, *content in lines:
        match kind:
            case "planned":
                stages = {fields[0]: _outline(fields) for fields in content[0]}
                rates.planned(list(stages.values()))
            case "started":
                stage = content[0]
                rates.started(stages[stage], at)
            case "advanced":
                rates.advanced(stage, content[1], at)
            case "skipped":
                rates.skipped(stage, content[0])
            case "finished":
                rates.finished(stage, at)
            case "dropped":
                rates.dropped(content[0])
            case _:
                pass
        left = all_left(rates, at)
        if left is not None and end > at:
            said.append(Said(at, left, end - at))
    return said


def _outline(fields: Sequence[Any]) -> StageOutline:
    """A recorded stage; recordings do not say how slow its kind is."""
    outline = StageOutline(*fields)
    slowness = next((kind.slowness for kind in KINDS if kind.kind == outline.kind), 1.0)
    return outline._replace(slowness=slowness)


def compared(said: Iterable[Said], end: float) -> list[Said]:
    """Of what was said, what counts."""
    return [s for s in said if s.at >= FIRST_SECONDS and s.true >= LAST_SHARE * end]


def within(said: Sequence[Said], factor: float) -> float:
    """The share of the time in which it was right within a factor."""
    if len(said) < 2:
        return math.nan
    pairs = itertools.pairwise(said)
    spans = [(b.at - a.at, abs(math.log(a.ratio)) <= math.log(factor)) for a, b in pairs]
    return sum(span for span, is_right in spans if is_right) / sum(span for span, _ in spans)


def summary(said: Sequence[Said]) -> str:
    """What was said, in a line."""
    ratios = [s.ratio for s in said]
    worst = max(said, key=lambda s: abs(math.log(s.ratio)))
    return (
        f"predicted/true: at {said[0].at:.0f} s {ratios[0]:.2f}, median "
        f"{statistics.median(ratios):.2f}, worst {worst.ratio:.2f} at {worst.at:.0f} s; within 1.5 "
        f"in {within(said, 1.5):.0%} of the time, within 1.2 in {within(said, 1.2):.0%}"
    )


def _record(study: Path, folder: Path, output: Path) -> None:
    from rankwise.records.folder import StudyFolder
    from rankwise.records.study_file import load_config
    from rankwise.study.growing import run_to_verdict
    from rankwise.study.planning.plan import plan_study

    recorder, place = StreamRecorder(), StudyFolder(folder)
    run_to_verdict(
        load_config(study, []), lambda config: plan_study(config, folder=place), place, recorder
    )
    recorder.over()
    output.write_text("".join(json.dumps(line) + "\n" for line in recorder.lines))


def read_stream(path: Path) -> list[Line]:
    """A stream that was recorded."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(arguments: Sequence[str]) -> None:
    """Record a study, or compare streams."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    record = verbs.add_parser("record")
    record.add_argument("study", type=Path)
    record.add_argument("--study-dir", type=Path, required=True)
    record.add_argument("--output", type=Path, required=True)
    compare = verbs.add_parser("compare")
    compare.add_argument("streams", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    if options.verb == "record":
        _record(options.study, options.study_dir, options.output)
        return
    for path in options.streams:
        lines = read_stream(path)
        end = lines[-1][1]
        said = compared(replayed(lines), end)
        print(f"{path.name}, {end:.0f} s: {summary(said) if said else 'too short'}")


if __name__ == "__main__":
    main(sys.argv[1:])
