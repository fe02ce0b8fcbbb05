"""How right is the time left? Records what happens in a study, and compares.

    python -m benchmarks.time_left record study.yaml --study-dir DIR --output stream.jsonl
    python -m benchmarks.time_left compare stream.jsonl...

A stream is what whoever follows a study is told, a JSON list a line, with the seconds since the
study began. ``--remembered`` names the stream of the last study on that machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.records.study import StageFailure
from rankwise.study.observer import (
    Advanced,
    Planned,
    Skipped,
    StageFinished,
    StageLeftOut,
    StageOutline,
    StageStarted,
)
from rankwise.study.progress import Follower
from rankwise.study.stages.graph import KINDS
from tests.support.observers import Silent

Line = list[Any]
FIRST_SECONDS = 60.0
"""What is said before is not compared."""
LAST_SHARE = 0.02
"""Nor what is said of the last part of a study: a second of five is no matter."""
_MERGED_SECONDS = 0.25

GONE = {"answer_lengths": 2.3}
"""Slowness of kinds of stages that recorded studies have and the package has no more."""


class StreamRecorder(Silent):
    """An observer that remembers what a follower is to be told."""

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


class Replay(Follower):
    """Follows a stream, at its times.

    Args:
        remembered: kind of stage -> seconds per unit of work.
    """

    def __init__(self, remembered: Mapping[str, float] | None = None) -> None:
        self.now = 0.0
        super().__init__(clock=lambda: self.now)
        self._remembered, self._stage = remembered or {}, ""

    def line(self, kind: str, at: float, *content: Any) -> None:
        """Take a line of a stream into account."""
        self.now = at
        match kind:
            case "planned":
                self(Planned(tuple(map(self._outline, content[0]))))
            case "started":
                self._stage = content[0]
                self(StageStarted(self._stage))
            case "advanced":
                self(Advanced(self._stage, content[1], 0))
            case "skipped":
                self(Skipped(self._stage, content[0]))
            case "finished":
                self(StageFinished(self._stage))
            case "dropped":
                self(StageLeftOut(content[0]))
            case _:
                pass

    def _outline(self, fields: Sequence[Any]) -> StageOutline:
        """A recorded stage; how slow its kind is, is as the code says now."""
        outline = StageOutline(*fields)
        known = {kind.kind: kind.slowness for kind in KINDS} | GONE
        slowness = known.get(outline.kind, 1.0)
        return outline._replace(slowness=slowness, remembered=self._remembered.get(outline.kind))

    @property
    def speeds(self) -> dict[str, float]:
        """Kind of stage -> seconds per unit of work of what was done."""
        return {kind: seconds / work for kind, (seconds, work) in self._rates.spent_now.items()}


def replayed(
    lines: Sequence[Line], end: float | None = None, remembered: Mapping[str, float] | None = None
) -> list[Said]:
    """What is said after every line; ``end``: when it was over, else at the last line."""
    replay, said = Replay(remembered), list[Said]()
    end = lines[-1][1] if end is None else end
    for line in lines:
        replay.line(*line)
        left = replay.study_seconds_left()
        if left is not None and end > replay.now:
            said.append(Said(replay.now, left, end - replay.now))
    return said


def speeds_of(lines: Sequence[Line]) -> dict[str, float]:
    """What the machine of a stream remembers of it."""
    replay = Replay()
    for line in lines:
        replay.line(*line)
    return replay.speeds


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
    compare.add_argument("--remembered", type=Path)
    options = parser.parse_args(arguments)
    if options.verb == "record":
        _record(options.study, options.study_dir, options.output)
        return
    last = options.remembered
    remembered = None if last is None else speeds_of(read_stream(last))
    for path in options.streams:
        lines = read_stream(path)
        end = lines[-1][1]
        said = compared(replayed(lines, remembered=remembered), end)
        print(f"{path.name}, {end:.0f} s: {summary(said) if said else 'too short'}")


if __name__ == "__main__":
    main(sys.argv[1:])
