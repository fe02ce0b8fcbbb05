"""A study whose process is killed anywhere ends, when it is run again, with the same records."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rankwise.errors import StudyLockedError
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import StudyPlan, plan_study
from tests.support.file_events import file_events
from tests.support.killed_studies import Moment, finish, run_alone, run_and_wait, run_until, started
from tests.support.study_contents import comparable

pytestmark = pytest.mark.usefixtures("shapes_once")


class Undisturbed(NamedTuple):
    """What a study does and leaves where nothing stops it, in a process of its own."""

    num_events: int
    seconds: float
    contents: dict[str, Any]
    exact: dict[str, Any]


class Tally(NamedTuple):
    """How a killed study ended."""

    moment: str
    was_killed: bool
    has_same_records: bool
    is_same_bit_for_bit: bool
    left: list[str]


def nothing_stops(study_file: Path, plan: StudyPlan, root: Path) -> Undisturbed:
    with file_events(root) as events:
        finish(plan, root)
    process = started(run_alone, study_file, root.parent / "first")  # the server imports
    process.join()
    assert process.exitcode == 0
    begun = time.monotonic()
    process = started(run_alone, study_file, root.parent / "second")
    process.join()
    assert process.exitcode == 0
    seconds = time.monotonic() - begun
    second = root.parent / "second"
    return Undisturbed(len(events), seconds, comparable(second), comparable(second, exact=True))


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, smallest_study: Path, smallest_plan: StudyPlan
) -> Undisturbed:
    return nothing_stops(smallest_study, smallest_plan, tmp_path_factory.mktemp("kills") / "study")


def killed_and_resumed(
    study_file: Path,
    plan: StudyPlan,
    folder: Path,
    undisturbed: Undisturbed,
    num_events: int,
    num_moments: int,
) -> list[Tally]:
    """Kill a study at some file events, spread out evenly, and at some random moments."""
    tallies: list[Tally] = []
    for index in range(num_events):
        number = 1 + round(index * (undisturbed.num_events - 1) / max(num_events - 1, 1))
        moment: Moment = "before" if index % 2 else "after"
        exit_code: int | None = 0
        while exit_code == 0 and number > 0:
            root = folder / f"event-{index}-{number}" / "study"
            process = started(run_until, study_file, root, number, moment)
            process.join()
            exit_code, where = process.exitcode, f"{moment} event {number}"
            number -= 1 + number // 20  # a faster run writes less by the clock, and has fewer
        tallies.append(resumed(plan, root, where, exit_code, undisturbed))
    generator, attempts = random.Random(0), 0
    while len(tallies) < num_events + num_moments:
        attempts += 1
        assert attempts <= 5 * num_moments, "the studies end before they are killed"
        root, share = folder / f"moment-{attempts}" / "study", generator.random()
        process = started(run_alone, study_file, root)
        time.sleep(share * undisturbed.seconds)
        process.kill()
        process.join()
        if process.exitcode != 0:  # it may have been faster than the undisturbed one
            where = f"after {share * undisturbed.seconds:.2f} s"
            tallies.append(resumed(plan, root, where, process.exitcode, undisturbed))
    return tallies


def resumed(
    plan: StudyPlan, root: Path, moment: str, exit_code: int | None, undisturbed: Undisturbed
) -> Tally:
    finish(plan, root)
    return Tally(
        moment,
        exit_code == -signal.SIGKILL,
        comparable(root) == undisturbed.contents,
        comparable(root, exact=True) == undisturbed.exact,
        [path.name for path in root.rglob("*") if "tmp" in path.name or path.suffix == ".pt"],
    )


def check(tallies: Sequence[Tally]) -> None:
    print(
        f"{len(tallies)} studies: {sum(tally.was_killed for tally in tallies)} killed, "
        f"{sum(tally.has_same_records for tally in tallies)} resumed with the same records, "
        f"{sum(tally.is_same_bit_for_bit for tally in tallies)} bit for bit"
    )
    for tally in tallies:
        if not (tally.was_killed and tally.has_same_records and tally.is_same_bit_for_bit):
            print(tally)
    assert all(tally.was_killed for tally in tallies)
    assert all(tally.has_same_records and not tally.left for tally in tallies)


def test_killed_at_six_places(
    smallest_study: Path, smallest_plan: StudyPlan, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    tallies = killed_and_resumed(smallest_study, smallest_plan, tmp_path, undisturbed, 6, 0)
    check(tallies)


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, smallest_study: Path
) -> tuple[Path, StudyPlan, Undisturbed]:
    """A search at tuned rates: checkpoints, states that wait for the next rung, what is dropped."""
    root = tmp_path_factory.mktemp("searched")
    file = root / "searched.yaml"
    file.write_text(
        smallest_study.read_text()
        .replace("tasks_path: tasks", f"tasks_path: {smallest_study.parent / 'tasks'}")
        .replace("full: 1e-3}", "full: 1e-3, tune: true}")
        .replace("\nevaluation:", "\n  full: null\nevaluation:")
        .replace("analysis: {null_draws: 1}", "analysis: {spectra: false, heads: false}")
        + "search: {policy: narrow, validation_items: 6}\n"
    )
    plan = plan_study(load_config(file))
    return file, plan, nothing_stops(file, plan, root / "study")


def test_a_search_killed_at_six_places(
    searched: tuple[Path, StudyPlan, Undisturbed], tmp_path: Path
) -> None:
    file, plan, undisturbed = searched
    check(killed_and_resumed(file, plan, tmp_path, undisturbed, 6, 0))


@pytest.mark.slow
def test_a_search_killed_at_forty_places(
    searched: tuple[Path, StudyPlan, Undisturbed], tmp_path: Path
) -> None:
    file, plan, undisturbed = searched
    check(killed_and_resumed(file, plan, tmp_path, undisturbed, 30, 10))


@pytest.mark.slow
def test_killed_at_sixty_places(
    smallest_study: Path, smallest_plan: StudyPlan, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    tallies = killed_and_resumed(smallest_study, smallest_plan, tmp_path, undisturbed, 40, 20)
    check(tallies)


def test_a_second_process_is_refused_until_the_first_is_killed(
    smallest_study: Path, smallest_plan: StudyPlan, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    root, waiting = tmp_path / "study", tmp_path / "waiting"
    first = started(run_and_wait, smallest_study, root, undisturbed.num_events // 2, waiting)
    while not waiting.exists():
        assert first.is_alive()
        time.sleep(0.05)
    before = comparable(root)
    with pytest.raises(StudyLockedError, match=r"process \d+ on \S+ is working on"):
        finish(smallest_plan, root)
    assert comparable(root) == before
    first.kill()
    first.join()
    finish(smallest_plan, root)
    assert comparable(root) == undisturbed.contents
