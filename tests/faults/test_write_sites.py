"""A study whose disk fails at any place that writes says so, and goes on when it is run again."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from rankwise.errors import RankwiseError, StorageError
from rankwise.records.files import writing
from rankwise.records.folder import StudyFolder
from rankwise.records.outputs import write_outputs
from rankwise.report.page import write_report
from rankwise.study.conclusion import conclude
from rankwise.study.planning.plan import StudyPlan
from tests.support.file_events import FileEvent, Site, file_events
from tests.support.killed_studies import finish
from tests.support.study_contents import comparable

pytestmark = pytest.mark.usefixtures("shapes_once")

SPACE = {errno.ENOSPC, errno.EDQUOT}
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EACCES", "EINTR")}
SAMPLE = {"ENOSPC": 6, "EIO": 24, "EACCES": 24}
"""Every how manieth site fails in the normal tests."""


class Fault:
    """Lets the first event of a site fail, or also everything after it that needs room."""

    def __init__(self, site: Site, number: int, *, stays: bool = False) -> None:
        self.site, self.number, self.stays = site, number, stays
        self.event: FileEvent | None = None

    def __str__(self) -> str:
        return f"{self.site} {errno.errorcode[self.number]}"

    def __call__(self, event: FileEvent) -> None:
        is_first = self.event is None and event.site == self.site
        needs_room = event.site.kind not in ("unlink", "rmdir")
        if is_first or (self.event is not None and self.stays and needs_room):
            self.event = self.event or event
            raise OSError(self.number, os.strerror(self.number), event.path)


@pytest.fixture(scope="session")
def write_sites(
    tmp_path_factory: pytest.TempPathFactory, smallest_plan: StudyPlan
) -> tuple[Site, ...]:
    """Every site of a study that writes, in the order in which they come."""
    root = tmp_path_factory.mktemp("sites") / "study"
    with file_events(root) as events:
        finish(smallest_plan, root)
    return tuple(dict.fromkeys(event.site for event in events))


def misfits(
    plan: StudyPlan,
    root: Path,
    fault: Fault,
    undisturbed: dict[str, Any],
) -> list[str]:
    """What is wrong with a study that a fault hits and that is run again, in words."""
    told, _ = hit(plan, root, fault)
    return [*told, *not_resumed(plan, root, undisturbed, fault)]


def hit(plan: StudyPlan, root: Path, fault: Fault) -> tuple[list[str], bool]:
    """What is wrong with how a study that a fault hits stops, and whether it went on to its end."""
    found: list[str] = []
    has_ended = False
    with file_events(root, before=fault):
        try:
            outcome = finish(plan, root)
        except StorageError as error:
            found += wrong_words(str(error), root, fault.number)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is the wrong one)
            found.append(f"{type(error).__name__}: {error}")
        else:
            has_ended = True
            found += [f"failed: {failure.message}" for failure in outcome.failures]
    if fault.event is None:
        found.append("was not reached")
    return [f"{fault}: {problem}" for problem in found], has_ended


def wrong_words(message: str, root: Path, number: int) -> list[str]:
    """What a message lacks: the path, or the remedy for what happened and no other."""
    found: list[str] = []
    if not message.startswith(str(root)) or "\n" in message:
        found.append(f"does not begin with a path: {message}")
    if ("Free some space" in message) > (number in SPACE):
        found.append(f"another remedy: {message}")
    if "run again: finished work is kept" not in message:
        found.append(f"no remedy: {message}")
    return found


def not_resumed(
    plan: StudyPlan, root: Path, undisturbed: dict[str, Any], fault: Fault
) -> list[str]:
    try:
        finish(plan, root)
    except RankwiseError as error:
        return [f"{fault}: again: {type(error).__name__}: {error}"]
    contents = comparable(root)
    names = sorted({*contents, *undisturbed})
    others = [name for name in names if contents.get(name) != undisturbed.get(name)]
    left = [path.name for path in root.rglob("*") if "tmp" in path.name or path.suffix == ".pt"]
    found = [*(f"again: another {name}" for name in others), *(f"left behind: {n}" for n in left)]
    return [f"{fault}: {problem}" for problem in found]


def fail_each(
    plan: StudyPlan,
    folder: Path,
    sites: Sequence[Site],
    number: int,
    undisturbed: dict[str, Any],
    *,
    stays: bool = False,
) -> None:
    problems: list[str] = []
    for index, site in enumerate(sites):
        fault = Fault(site, number, stays=stays)
        problems += misfits(plan, folder / str(index) / "study", fault, undisturbed)
    assert sites
    assert not problems, "\n".join(problems)


def fail_in_turn(
    plan: StudyPlan,
    folder: Path,
    sites: Sequence[Site],
    number: int,
    undisturbed: dict[str, Any],
) -> None:
    """One study goes on from fault to fault; where it ended, another one takes the next."""
    problems: list[str] = []
    root = folder / "0" / "study"
    for index, site in enumerate(sites, 1):
        fault = Fault(site, number)
        told, has_ended = hit(plan, root, fault)
        if fault.event is None:  # the study was past this site
            problems += not_resumed(plan, root, undisturbed, fault)
            root = folder / f"{index}-again" / "study"
            told, has_ended = hit(plan, root, fault)
        problems += told
        if has_ended or index == len(sites):
            problems += not_resumed(plan, root, undisturbed, fault)
            root = folder / str(index) / "study"
    assert sites
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_the_sites_fails_once(
    name: str,
    write_sites: tuple[Site, ...],
    smallest_plan: StudyPlan,
    undisturbed_study: dict[str, Any],
    tmp_path: Path,
) -> None:
    sites = write_sites[list(SAMPLE).index(name) :: SAMPLE[name]]
    fail_in_turn(smallest_plan, tmp_path, sites, ERRORS[name], undisturbed_study)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_state_of_training_that_could_not_be_removed_is_removed_next_time(
    name: str, smallest_plan: StudyPlan, undisturbed_study: dict[str, Any], tmp_path: Path
) -> None:
    site = Site("records.folder.StudyFolder.finish_run", "unlink", "training.pt")
    fail_each(smallest_plan, tmp_path, [site], ERRORS[name], undisturbed_study)


def test_what_is_written_in_rust_says_which_error_it_was(tmp_path: Path) -> None:
    # as tokenizers and safetensors word them, from a full device and a file that grew too large
    for error in (
        Exception("No space left on device (os error 28)"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ):
        expected = pytest.raises(StorageError, match=r"No space left on device\. Free some space")
        with expected, writing(tmp_path):
            raise error
    with pytest.raises(StorageError, match=r"cut\. Check the disk"), writing(tmp_path):
        raise SafetensorError("cut")
    with pytest.raises(Exception, match=r"^something else$"), writing(tmp_path):
        raise Exception("something else")


def test_tokenizers_really_says_so(smallest_plan: StudyPlan, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="Free some space"), writing(tmp_path):
        smallest_plan.tokenizer.save_pretrained(str(tmp_path))


def test_python_retries_what_a_signal_interrupts(tmp_path: Path) -> None:
    # a pipe, because a write to a disk is not interrupted: one that is full waits for its reader
    pipe, content, signals = tmp_path / "pipe", bytes(1 << 20), 0
    os.mkfifo(pipe)

    def received(*_: Any) -> None:
        nonlocal signals
        signals += 1

    read: list[bytes] = []

    def read_late() -> None:
        time.sleep(0.1)  # meanwhile open() waits
        with pipe.open("rb") as file:
            time.sleep(0.1)  # meanwhile write() waits
            read.append(file.read())

    before = signal.signal(signal.SIGALRM, received)
    signal.siginterrupt(signal.SIGALRM, True)  # the calls end with EINTR and do not start again
    reader = threading.Thread(target=read_late)
    reader.start()
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        with writing(pipe):
            pipe.write_bytes(content)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        reader.join()
    assert read == [content]
    assert signals > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ERRORS)
def test_every_site_fails_once(
    name: str,
    write_sites: tuple[Site, ...],
    smallest_plan: StudyPlan,
    undisturbed_study: dict[str, Any],
    tmp_path: Path,
) -> None:
    fail_each(smallest_plan, tmp_path, write_sites, ERRORS[name], undisturbed_study)


@pytest.mark.slow
def test_the_disk_is_full_from_every_site_on(
    write_sites: tuple[Site, ...],
    smallest_plan: StudyPlan,
    undisturbed_study: dict[str, Any],
    tmp_path: Path,
) -> None:
    fail_each(smallest_plan, tmp_path, write_sites, errno.ENOSPC, undisturbed_study, stays=True)


def spoilt(finished: Path, root: Path) -> None:
    """A copy of a finished study in which one samples file was cut."""
    shutil.copytree(finished, root)
    samples = sorted(root.glob("runs/*/eval/*.samples.jsonl"))[0]
    samples.write_bytes(samples.read_bytes()[:-20])


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory, smallest_plan: StudyPlan) -> Path:
    root = tmp_path_factory.mktemp("finished") / "study"
    finish(smallest_plan, root)
    return root


def test_the_disk_fails_while_damage_is_set_aside(
    finished_study: Path,
    smallest_plan: StudyPlan,
    undisturbed_study: dict[str, Any],
    tmp_path: Path,
) -> None:
    spoilt(finished_study, tmp_path / "study")
    with file_events(tmp_path / "study") as events:
        finish(smallest_plan, tmp_path / "study")
    moved = "study.quarantine.set_aside"
    sites = dict.fromkeys(event.site for event in events if event.site.function == moved)
    assert {site.kind for site in sites} >= {"mkdir", "open", "write", "replace", "rename"}
    problems: list[str] = []
    for index, site in enumerate(sites):
        root = tmp_path / str(index) / "study"
        spoilt(finished_study, root)
        fault = Fault(site, errno.ENOSPC)
        problems += misfits(smallest_plan, root, fault, undisturbed_study)
    assert not problems, "\n".join(problems)


def test_the_disk_fails_while_the_report_is_written(
    finished_study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rankwise.report.page.study_figures", lambda *_: ())
    monkeypatch.setattr("rankwise.report.page.study_sections", lambda *_: [])
    root = tmp_path / "study"
    shutil.copytree(finished_study, root)
    outcome = conclude(StudyFolder(root))

    def write() -> bytes:
        write_outputs(root, {"report/old.svg": "of an earlier report"})
        parts = outcome.results, outcome.recommendation, outcome.findings
        return write_report(root, *parts).read_bytes()

    whole = write()
    with file_events(root) as events:
        write()
    sites = dict.fromkeys(
        event.site
        for event in events
        if event.site.function.startswith(("report", "records.outputs"))
    )
    assert len(sites) > 20
    messages: list[str] = []
    for site in sites:
        fault = Fault(site, errno.ENOSPC)
        with file_events(root, before=fault):
            try:
                write()
            except StorageError as error:
                messages.append(str(error))
        assert fault.event is not None
        assert write() == whole
        assert not list(root.rglob("*tmp"))
        assert not (root / "report" / "old.svg").exists()
    assert len(messages) > 10
    assert all(message.startswith(str(root)) for message in messages)
