"""The time left, on planted studies of which it is known how long everything takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.time_left import (
    Line,
    Replay,
    Said,
    compared,
    read_stream,
    replayed,
    speeds_of,
    within,
)
from rankwise.study.observer import StageOutline
from rankwise.study.stages.graph import KINDS
from rankwise.study.times import Rates, seconds_left

TASKS = {"letters": 0.8, "options": 1.0, "texts": 1.5}
"""Task -> how much slower than planned it is scored."""


class Planted(NamedTuple):
    """A stage and the truth of it: seconds to begin, and per unit of work."""

    stage: StageOutline
    rate: float
    start: float = 0.0
    num_pieces: int = 40

    @property
    def seconds(self) -> float:
        return self.start + self.stage.work * self.rate

    def as_finished(self) -> StageOutline:
        return self.stage._replace(work_left=0.0, is_finished=True, seconds=self.seconds)


NUMBERS = count()


def outline(kind: str, name: str, work: float) -> StageOutline:
    identity = f"{kind}-{next(NUMBERS)}"
    slowness = next(each.slowness for each in KINDS if each.kind == kind)
    stage = StageOutline(identity, kind, name, "pass", work, round(work), work_left=work)
    return stage._replace(slowness=slowness)


def training(work: float, rate: float = 1e-3, **truth: float) -> Planted:
    return Planted(outline("training", "training", work), rate, **truth)  # type: ignore[arg-type]


def scoring(task: str, work: float, slower: float = 1.0) -> Planted:
    return Planted(outline("scoring", task, work), 1e-3 * TASKS[task] * slower)


def study(num_passes: int) -> list[Planted]:
    """The base is scored; each pass of 4 runs is trained, and scored 1.3 times slower."""
    planted = [scoring(task, 20_000) for task in TASKS]
    for _ in range(num_passes):
        planted.append(training(300_000, start=10.0))
        planted += [scoring(task, 80_000, 1.3) for task in TASKS]
    weights = outline("spectra", "spectra", 100_000)._replace(num_tokens=None)
    return [*planted, Planted(weights, 1.5e-3)]


def stream(planted: Sequence[Planted], at: float = 0.0) -> list[Line]:
    """What is told of a study that does these stages, one after the other."""
    lines: list[Line] = [["planned", at, [list(each.stage) for each in planted]]]
    return lines + _done(planted, at)


def _done(planted: Sequence[Planted], at: float) -> list[Line]:
    lines: list[Line] = []
    for each in planted:
        lines.append(["started", at, each.stage.id])
        at += each.start
        work = each.stage.work / each.num_pieces
        for _ in range(each.num_pieces):
            at += work * each.rate
            lines.append(["advanced", at, at, work])
        lines.append(["finished", at])
    return lines


def end_of(planted: Sequence[Planted]) -> float:
    return sum(each.seconds for each in planted)


def wrong_by(said: Sequence[Said], since: float, until: float = math.inf) -> float:
    """The largest factor between what was said and what was right, from a time on."""
    factors = [abs(math.log(s.ratio)) for s in said if since <= s.at < until and s.true > 5.0]
    return math.exp(max(factors))


def test_nothing_is_said_before_anything_is_known() -> None:
    planted, replay = training(1000.0), Replay()
    first, started, *_ = stream([planted])
    replay.line(*first)
    assert replay.study_seconds_left() is None
    replay.line(*started)
    replay.now = 5.0
    assert replay.study_seconds_left() is None
    assert replay.doing[planted.stage.id].tokens_per_second is None


def test_a_constant_speed_gives_the_very_time() -> None:
    replay = Replay()
    for line in stream([training(1000.0, rate=0.5, num_pieces=500)])[:102]:  # of 500 s, 100
        replay.line(*line)
    assert replay.now == pytest.approx(100.0)
    assert replay.study_seconds_left() == pytest.approx(400.0)
    (doing,) = replay.doing.values()
    assert doing.tokens_per_second == pytest.approx(2.0)
    # what does not move counts down, to no less than a half of it
    for now, left in ((110.0, 390.0), (1000.0, 200.0)):
        replay.now = now
        assert replay.study_seconds_left() == pytest.approx(left)


def test_a_second_stage_alike_is_known_before_it_begins() -> None:
    first, second = training(1000.0, rate=0.1), training(3000.0, rate=0.1)
    said = replayed(stream([first, second]))
    assert wrong_by(said, since=50.0) < 1.05


def test_a_kind_that_is_three_times_slower_than_planned_is_right_once_it_was_seen() -> None:
    slow = [Planted(outline("spectra", "spectra", 100_000), 3e-3) for _ in range(3)]
    slowness = slow[0].stage.slowness
    planted = [training(600_000), *slow]  # 600 s, then three times 300 s
    said = replayed(stream(planted))
    before = [s for s in said if s.at < 600.0][-1]
    assert before.predicted == pytest.approx(300.0 * slowness, rel=0.1)  # as planned; 900 are true
    assert wrong_by(said, since=750.0) < 1.5
    assert wrong_by(said, since=900.0) < 1.2  # a tenth counts as planned


def test_the_first_piece_of_a_new_kind_moves_the_time_left_by_little() -> None:
    """Texts that are written together end together: a first one comes after a third of the time."""
    texts = outline("scoring", "texts", 10_000.0)
    lines = stream([training(100_000)])
    lines[0] = ["planned", 0.0, [*lines[0][2], list(texts)]]
    lines += [["started", 100.0, texts.id], ["advanced", 110.0, 110.0, 100.0]]
    # 10 s as planned: a tenth of its work, in 1 s, counts beside a hundredth in 10 s
    (*_, said) = replayed(lines, end=111.0)
    assert said.predicted == pytest.approx(9_900 * (1.0 + 10.0) / (1000 + 100))


def test_what_the_last_study_took_is_known_from_the_first_second() -> None:
    lines = stream(study(3))
    said = replayed(lines, remembered=speeds_of(lines))
    assert said[0].at == 0.0
    assert wrong_by(said, since=0.0, until=end_of(study(3)) - 600.0) < 1.2
    # a kind that it had not takes as much longer than the others as planned
    weights = outline("spectra", "spectra", 1000.0)._replace(num_tokens=None)
    rates = Rates()
    rates.planned([training(1.0).stage._replace(remembered=0.2), weights])
    assert rates.seconds_left({}, 0.0)[weights.id] == pytest.approx(0.2 * weights.slowness * 1000)


def test_a_resumed_study_is_known_at_once_by_its_records() -> None:
    whole = study(4)
    half = len(whole) // 2
    left = whole[half:]
    lines = stream(left)
    lines[0] = ["planned", 0.0, [list(e.as_finished()) for e in whole[:half]] + lines[0][2]]
    said = replayed(lines)
    assert said[0].at == 0.0
    assert wrong_by(said, since=0.0, until=end_of(left) - 600.0) < 1.25


def test_a_study_of_all_kinds_is_right_within_a_half_after_a_minute() -> None:
    planted = study(3)
    weights = end_of(planted) - 150.0
    said = replayed(stream(planted))
    assert wrong_by(said, since=60.0) < 1.5
    assert wrong_by(said, since=1000.0, until=weights - 600.0) < 1.2
    assert wrong_by(said, since=weights + 50.0) < 1.2


def test_a_search_that_adds_runs_keeps_what_it_learned() -> None:
    first, second = training(200_000), training(300_000)
    lines = stream([first])
    added = ["planned", 200.0, [list(first.as_finished()), list(second.stage)]]
    said = replayed([*lines, added, *_done([second], 200.0)])
    assert all(s.predicted < 201 for s in said if s.at < 200.0)  # of what was planned
    assert wrong_by(said, since=200.1) < 1.05


def test_what_fails_or_is_left_out_is_not_waited_for() -> None:
    planted = [training(100_000) for _ in range(3)]
    lines = stream(planted)[:30]  # in the first one
    at, second = lines[-1][1], planted[1].stage.id
    left = [s.predicted for s in replayed([*lines, ["dropped", at, second]], end=at + 1.0)][-2:]
    assert left[0] - left[1] == pytest.approx(100.0, rel=0.02)
    everything = [["dropped", at, each.stage.id] for each in planted]
    assert len(replayed([lines[0], *everything], end=at + 1.0)) == 0
    assert replayed([*lines, *everything[:2]], end=at + 1.0)[-1].predicted > 99.0  # of the third


def test_work_of_an_earlier_call_says_nothing_about_the_speed() -> None:
    lines = stream([training(100_000)])
    lines[2:] = [["skipped", 0.0, 50_000], *(["advanced", s, s, 1000.0] for s in range(1, 11))]
    assert replayed(lines, end=11.0)[-1].predicted == pytest.approx(40.0)


def test_of_a_stage_that_is_half_done_only_the_rest_is_waited_for() -> None:
    planted = [training(100_000), training(200_000)]
    half = planted[1].stage._replace(work_left=50_000.0)
    lines = stream(planted)
    lines[0] = ["planned", 0.0, [list(planted[0].stage), list(half)]]
    at_half = replayed(lines)[19]
    assert at_half.predicted == pytest.approx(50.0 + 50.0, rel=0.02)


def test_a_recorded_study_is_right_within_a_half_for_most_of_its_time() -> None:
    """19 min on a busy machine: two adapters, two of DoRA, texts for behaviour, analysis."""
    lines = read_stream(Path(__file__).parent / "recorded" / "small_study.jsonl")
    end = lines[-1][1]
    said = compared(replayed(lines), end)
    texts = next(line[1] for line in lines if line[0] == "started" and "answer_lengths" in line[2])
    before = [s for s in said if s.at < texts]
    assert len(before) > 50
    assert within(before, 1.5) == 1.0
    # texts that are written together end together: what was done says little of what is left
    assert within(said, 1.5) >= 0.6


def test_a_given_speed_holds_for_every_kind_and_records_count_nothing() -> None:
    *left, weights = (each.stage for each in study(1))
    heads = outline("heads", "heads", 1000.0)  # they take longer for the same work
    done = training(1000.0, rate=9.0).as_finished()
    stages = [done, *left, heads, weights]
    assert seconds_left(stages, scored_per_second=100.0, later_work=300.0) == {
        **{stage.id: pytest.approx(stage.work / 100) for stage in left},
        heads.id: pytest.approx(3.5 * 1000 / 100),
        "after the verdict": pytest.approx(3.0),
    }


def test_what_is_left_takes_as_long_as_what_is_finished_did() -> None:
    whole = study(4)
    done, left = whole[:8], whole[8:]
    stages = [*(each.as_finished() for each in done), *(each.stage for each in left)]
    seconds = seconds_left(stages)
    assert list(seconds) == [each.stage.id for each in left]
    for kind in ("training", "scoring"):
        of_kind = [each for each in left if each.stage.kind == kind]
        found = sum(seconds[each.stage.id] for each in of_kind)
        assert found == pytest.approx(end_of(of_kind), rel=0.15)
    assert seconds_left([each.stage for each in left]) == {}
