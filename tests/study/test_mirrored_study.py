"""A study at a URL: the records of one in a folder, however it was cut off, whoever does it."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import rankwise as rw
from rankwise.errors import ModelError, RecordError, StorageError, StudyLockedError
from rankwise.records import mirror as mirrors
from rankwise.records.config.study import StudyConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.mirror import Mirror, local_folder, mirror_at
from rankwise.records.study_file import load_config
from rankwise.study.damage import find_damage
from rankwise.study.growing import do_unit_of, run_to_verdict
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.run import run_study
from rankwise.study.shift import Shift
from rankwise.study.status import study_status
from rankwise.study.stopping import StopSignals
from rankwise.study.work.worker import Worker
from tests.support.command_line import rankwise, words
from tests.support.crews import wait_for
from tests.support.killed_studies import run_at_url, started
from tests.support.observers import Recorder, Silent
from tests.support.small_studies import SEARCHED, write_study
from tests.support.study_contents import comparable

SETTINGS = """
train:
  task: colours
  epochs: 4
  max_examples: 16
  save_every: 0.001s
  learning_rate: {lora: 1e-2, full: 1e-3}
  precision: float32
methods: {lora: {ranks: [2, 4]}}
evaluation: {out_of_domain: [], held_out_text: [], limit: 4}
analysis: {null_draws: 1, head_prompts: 4}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("mirrored"), tiny_model_folder, SETTINGS)


@pytest.fixture(scope="module")
def plan(file: Path) -> StudyPlan:
    return plan_study(load_config(file))


@pytest.fixture(scope="module")
def in_folder(tmp_path_factory: pytest.TempPathFactory, plan: StudyPlan) -> Path:
    """The study as it is without a URL."""
    root = tmp_path_factory.mktemp("folder") / "study"
    run_study(plan, StudyFolder(root), Silent())
    return root


@pytest.fixture(autouse=True)
def empty_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is in memory's store, and this machine has a cache of its own."""
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def finished(in_folder: Path) -> str:
    """The URL of the study, where it is finished."""
    url = "memory://bucket/finished"
    fsspec.filesystem("memory").put(f"{in_folder}/", "/bucket/finished/", recursive=True)
    store = fsspec.filesystem("memory")
    for path in [path for path in store.find("/bucket/finished") if "/." in path]:
        store.rm_file(path)
    return url


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """From now on this is another machine, with an empty cache."""
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / name))


def opened(url: str) -> StudyFolder:
    return StudyFolder(local_folder(url))


def stored(url: str, to: Path) -> dict[str, Any]:
    """What a study's records and weights at a URL are."""
    store, root = fsspec.url_to_fs(url)
    for path in store.find(root):
        place = to / path.removeprefix(f"{root}/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(store.cat_file(path))
    return comparable(to)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_it_leaves_what_a_folder_has(
    protocol: str, plan: StudyPlan, in_folder: Path, tmp_path: Path
) -> None:
    place = f"{tmp_path}/store" if protocol == "file" else "bucket"
    url = f"{protocol}://{place}/study"
    run_study(plan, opened(url), Silent())
    assert stored(url, tmp_path / "at-url") == comparable(in_folder)
    left = {path.name for path in (tmp_path / "at-url").rglob(".*")}
    assert left == set()  # nothing of a process or a machine
    assert not list((tmp_path / "at-url").rglob("*.pt"))


def test_another_machine_finds_nothing_to_do(
    plan: StudyPlan, finished: str, in_folder: Path, tmp_path: Path
) -> None:
    recorder, folder = Recorder(), opened(finished)
    run_study(plan, folder, recorder)
    assert recorder.stages == []
    assert not list(folder.root.rglob("*.safetensors"))  # and needs no weights for that
    assert stored(finished, tmp_path / "at-url") == comparable(in_folder)


def test_a_process_that_is_killed_is_followed_by_another_machine(
    file: Path,
    plan: StudyPlan,
    in_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirrors, "OWNER_SECONDS", 1.0)
    url, store = f"file://{tmp_path}/store/study", tmp_path / "store" / "study"
    process = started(run_at_url, file, url, tmp_path / "killed")
    wait_for(lambda: list(store.glob("runs/*lora*/training.pt")), process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (store / ".owner.json").exists()
    elsewhere(monkeypatch, tmp_path, "other")
    recorder = Recorder()
    run_study(plan, opened(url), recorder)
    assert stored(url, tmp_path / "at-url") == comparable(in_folder)
    assert recorder.stages
    assert ("base", "scoring") not in recorder.stages  # it was scored where it was killed


def test_a_saved_state_comes_down_where_the_training_goes_on(
    plan: StudyPlan, in_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = "memory://bucket/study", list[int]()

    class Stops(Silent):
        def stepped(self, step: Any) -> None:
            if step.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    class Steps(Silent):
        def stepped(self, step: Any) -> None:
            seen.append(step.step)

    with pytest.raises(KeyboardInterrupt):
        run_study(plan, opened(url), Stops())
    elsewhere(monkeypatch, tmp_path, "other")
    run_study(plan, opened(url), Steps())
    assert seen[0] == 4
    assert stored(url, tmp_path / "at-url") == comparable(in_folder)


@pytest.mark.parametrize("number", [0, 3, 9, 22, 45])
def test_a_store_that_fails_has_nothing_broken_and_another_machine_goes_on(
    number: int,
    plan: StudyPlan,
    in_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, calls, put = "memory://bucket/study", itertools.count(), MemoryFileSystem.put_file

    def failing(self: Any, *paths: Any, **options: Any) -> None:
        if next(calls) >= number:
            raise ConnectionError("planted")
        put(self, *paths, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", failing)
        with pytest.raises(StorageError, match=f"^{url} cannot be written: planted. Check"):
            run_study(plan, opened(url), Silent())
    elsewhere(monkeypatch, tmp_path, "reader")
    assert find_damage(opened(url), thorough=True) == []
    elsewhere(monkeypatch, tmp_path, "other")
    run_study(plan, opened(url), Silent())
    assert stored(url, tmp_path / "at-url") == comparable(in_folder)


def test_the_machine_on_which_it_failed_sends_what_it_has(
    plan: StudyPlan, in_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://bucket/study"
    number, put = itertools.count(), MemoryFileSystem.put_file

    def failing(self: Any, path: str, *more: Any, **options: Any) -> None:
        if Path(path).name == "spectra.json" and next(number) < 2:  # also at the end
            raise ConnectionError("planted")
        put(self, path, *more, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    with pytest.raises(StorageError, match="planted"):
        run_study(plan, opened(url), Silent())
    recorder = Recorder()
    run_study(plan, opened(url), recorder)
    assert {kind for _, kind in recorder.stages}.isdisjoint({"training", "scoring"})
    assert stored(url, tmp_path / "at-url") == comparable(in_folder)


def test_a_flipped_byte_at_the_url_is_noticed_and_made_again(
    plan: StudyPlan, finished: str, in_folder: Path, tmp_path: Path
) -> None:
    store = fsspec.filesystem("memory")
    (path, *_) = sorted(p for p in store.find("/bucket/finished") if "adapter_model" in p)
    content = bytearray(store.cat_file(path))
    content[-3] ^= 1
    store.pipe_file(path, bytes(content))
    assert all(line.damaged == () for line in study_status(opened(finished)))  # nothing was read
    done = rankwise("verify", finished)
    assert done.exit_code == 1
    assert "adapter_model.safetensors has other bytes than when it was written" in done.stdout
    assert f"rankwise run {finished} sets aside what is damaged" in words(done.stderr)
    folder = opened(finished)
    run = next(run for run in folder.read_study().runs if f"/{run.name}/" in path)
    with pytest.raises(RecordError, match="has other bytes"):
        folder.weights(run)
    run_study(plan, opened(finished), Silent())
    assert stored(finished, tmp_path / "at-url") == comparable(in_folder)
    assert rankwise("verify", finished).exit_code == 0
    assert any("/quarantine/001/runs/" in path for path in store.find("/bucket/finished"))


def test_weights_are_read_from_where_they_are(finished: str, in_folder: Path) -> None:
    folder = opened(finished)
    (run, *_) = folder.read_study().runs
    assert not folder.weights_folder(run).exists()
    assert (folder.weights(run) / "adapter_model.safetensors").read_bytes() == (
        StudyFolder(in_folder).weights(run) / "adapter_model.safetensors"
    ).read_bytes()


# --- verbs


def test_verbs_read_a_study_at_a_url(finished: str) -> None:
    for verb in ("status", "recommend", "claims", "verify", "report"):
        done = rankwise(verb, finished)
        assert done.exit_code == 0, done.output
    assert rankwise("export", finished, "--format", "csv").exit_code == 0
    names = {path.rpartition("/")[2] for path in fsspec.filesystem("memory").find("/bucket")}
    assert {"report.html", "looks.json", "runs.csv"} <= names  # what they write is sent
    again = rankwise("plan", finished)
    assert again.exit_code == 0, again.output


def test_a_study_is_run_at_a_url_by_the_command(
    file: Path, in_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://bucket/study"
    done = rankwise("run", file, "--study-dir", url, "--quiet")
    assert done.exit_code == 0, done.output
    elsewhere(monkeypatch, tmp_path, "other")
    assert rankwise("run", url, "--quiet").exit_code == 0
    assert fsspec.filesystem("memory").exists("/bucket/study/report.html")
    at_url = stored(url, tmp_path / "at-url")
    assert {name: at_url[name] for name in comparable(in_folder)} == comparable(in_folder)


def test_a_study_at_a_url_is_opened_from_python(finished: str, in_folder: Path) -> None:
    study = rw.open(finished)
    assert "rankwise extend memory://bucket/finished --" in study.verdict  # as it is called
    assert study.verdict.replace(finished, str(in_folder)) == rw.open(in_folder).verdict
    mirror = mirror_at(study.folder)
    assert isinstance(mirror, Mirror)
    assert mirror.shown == finished
    # what is found later is not what was found at first
    fsspec.filesystem("memory").rm_file("/bucket/finished/study.json")
    with pytest.raises(RecordError, match="is not there"):
        rw.open(finished)


@pytest.mark.parametrize(
    "options", [("--worker",), ("--workers", 2), ("--gpus", "all"), ("--only", "base-1")]
)
@pytest.mark.parametrize("is_named_by_option", [True, False])
def test_processes_that_share_a_folder_are_refused(
    options: tuple[object, ...], is_named_by_option: bool, file: Path
) -> None:
    url = "s3://me:secret@bucket/study"
    given = (file, "--study-dir", url) if is_named_by_option else (url,)
    refused = rankwise("run", *given, *options)
    assert refused.exit_code == 2
    said = words(refused.stderr)
    assert "share a folder, and s3://bucket/study is none; give --executor ray" in said
    assert "secret" not in said


def test_a_url_without_a_folder_is_a_usage_error() -> None:
    refused = rankwise("status", "s3://")
    assert refused.exit_code == 2
    assert "it names no folder" in words(refused.stderr)


def test_two_machines_do_not_run_it_at_once(
    plan: StudyPlan, finished: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "OWNER_SECONDS", 2.0)
    one = opened(finished)
    with one.held():
        elsewhere(monkeypatch, tmp_path, "other")
        assert rankwise("status", finished).exit_code == 0  # reading it is free
        with pytest.raises(StudyLockedError, match="another process runs the study"):
            run_study(plan, opened(finished), Silent())
    run_study(plan, opened(finished), Silent())


def test_what_another_machine_did_while_it_waited_is_not_done_again(
    plan: StudyPlan, in_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, recorder = "memory://bucket/study", Recorder()
    early = opened(url)  # there is nothing yet
    elsewhere(monkeypatch, tmp_path, "other")
    run_study(plan, opened(url), Silent())
    run_study(plan, early, recorder)
    assert recorder.stages == []
    assert stored(url, tmp_path / "at-url") == comparable(in_folder)


# --- led workers, each with a mirror of its own


class Led:
    """An executor that has one unit after the other done, each on another machine."""

    def __init__(
        self, config: StudyConfig, leader: StudyFolder, patch: pytest.MonkeyPatch, place: Path
    ) -> None:
        mirror = mirror_at(leader.root)
        assert mirror is not None
        self._config, self._mirror, self._patch, self._place = config, mirror, patch, place
        self.kinds: list[str] = []

    def __call__(self, shift: Shift, signals: StopSignals) -> None:
        while waiting := shift.waiting():
            assert len(self.kinds) < 50, "it never ends"
            unit = next(each.unit for each in waiting if not each.until)
            machine, self.kinds = f"machine-{len(self.kinds) % 2}", [*self.kinds, unit.kind]
            with self._patch.context() as patch:
                patch.setenv("RANKWISE_CACHE", str(self._place / machine))
                folder = StudyFolder(local_folder(self._mirror.url, self._mirror.name))
                failed = [failure.stage for failure in shift.failures()]
                failures = do_unit_of(
                    self._config,
                    partial(plan_study, folder=folder),
                    folder,
                    Silent(),
                    unit.id,
                    is_led=True,
                    failed=failed,
                )
            shift.hear_of([failure.stage for failure in failures])


def test_workers_with_mirrors_of_their_own_leave_the_records_of_one(
    plan: StudyPlan, in_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = opened("memory://bucket/study")
    led = Led(plan.record.config, folder, monkeypatch, tmp_path)
    run_study(plan, folder, Silent(), executor=led)
    assert led.kinds == ["base", "pass", "full", "gauges", "divergence", "heads", "spectra"]
    assert stored("memory://bucket/study", tmp_path / "at-url") == comparable(in_folder)
    assert not list(folder.root.rglob("*.safetensors"))  # who leads needs no weights


def test_what_fails_on_one_machine_is_not_tried_on_another(
    plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, do = opened("memory://bucket/study"), Worker.do

    def fails(worker: Worker, stage: Any, models: Any) -> None:
        if stage.kind == "training" and "full" in stage.model:
            raise ModelError("planted. Take it away.")
        do(worker, stage, models)

    monkeypatch.setattr(Worker, "do", fails)
    led = Led(plan.record.config, folder, monkeypatch, tmp_path)
    outcome = run_study(plan, folder, Silent(), executor=led)
    assert [(failure.kind, failure.error) for failure in outcome.failures] == [
        ("training", "ModelError")
    ]
    assert len(outcome.results.runs) == 2
    assert led.kinds.count("full") == 1


def test_what_a_search_drops_is_dropped_at_the_url(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the weights that another machine has made, and that the leader has never seen."""
    settings = SEARCHED.replace("search: {", "search: {policy: narrow, ")
    settings += "methods: {lora: {ranks: [2, 4, 8]}, full: null}\n"
    config = load_config(write_study(tmp_path, tiny_model_folder, settings))
    alone = StudyFolder(tmp_path / "alone")
    run_to_verdict(config, partial(plan_study, folder=alone), alone, Silent())
    folder = opened("memory://bucket/study")
    led = Led(config, folder, monkeypatch, tmp_path)
    run_to_verdict(config, partial(plan_study, folder=folder), folder, Silent(), executor=led)
    at_url = stored("memory://bucket/study", tmp_path / "at-url")
    assert at_url.keys() == comparable(alone.root).keys()
    assert any(run.is_given_up for run in alone.readable_runs())
    assert not list((tmp_path / "at-url").rglob("*.pt"))
