"""A folder that mirrors a URL: what moves, in which order, who may write, and what is said."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from rankwise.errors import (
    ConfigError,
    RecordError,
    StorageError,
    StudyLockedError,
    StudyMovedError,
)
from rankwise.records import mirror as mirrors
from rankwise.records.file_names import MANIFEST, is_large, order
from rankwise.records.folder import StudyFolder
from rankwise.records.leases import Crew
from rankwise.records.mirror import Mirror, address_of, local_folder, mirror_at, shown_url

RUN, ADAPTER = "runs/r/run.json", "runs/r/adapter/model.safetensors"


class Machine:
    """A machine with a cache of its own, as far as a mirror sees it."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._cache, self._monkeypatch = cache, monkeypatch

    def mirror(self, url: str, leader: str | None = None) -> Mirror:
        self._monkeypatch.setenv("RANKWISE_CACHE", str(self._cache))
        return Mirror(url, leader)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Machine]:
    return lambda name: Machine(tmp_path / name, monkeypatch)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/store/study"
        return
    yield f"memory://{tmp_path.name}/study"
    MemoryFileSystem.store.clear()


@pytest.fixture
def waiting(url: str, machine: Callable[[str], Machine]) -> tuple[Mirror, Mirror]:
    """One has sent weights, which wait for the other to ask for them."""
    one, other = machine("one").mirror(url), machine("other").mirror(url)
    write(one, {ADAPTER: "3"})
    one.push(order)
    other.pull(is_large)
    return one, other


def write(mirror: Mirror, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = mirror.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)


def here(mirror: Mirror) -> dict[str, str]:
    files = [path for path in mirror.root.rglob("*") if path.is_file()]
    named = {path.relative_to(mirror.root).as_posix(): path for path in files}
    return {n: p.read_text() for n, p in named.items() if "/." not in f"/{n}"}


def there(url: str) -> dict[str, str]:
    store, root = fsspec.url_to_fs(url)
    return {
        path.removeprefix(f"{root}/"): store.cat_file(path).decode() for path in store.find(root)
    }


def test_what_one_machine_sends_another_brings_down(
    url: str, machine: Callable[[str], Machine]
) -> None:
    one, other = machine("one").mirror(url), machine("other").mirror(url)
    files = {"study.json": "1", RUN: "2", ADAPTER: "3", "runs/r/training.pt": "4"}
    write(one, files)
    write(one, {".checked.json": "own", ".workers/a/b.worker": "own", "runs/.hidden": "own"})
    write(one, {MANIFEST: "5"})  # else what it lists were another's on another machine
    one.push(order)
    assert there(url) == files | {MANIFEST: "5"}
    other.pull(is_large)
    assert (other.root / MANIFEST).exists()
    assert here(other) == {"study.json": "1", RUN: "2"}
    assert other.waits(other.root / ADAPTER, 1)
    assert not other.waits(other.root / ADAPTER, 2)  # of another size it is not what was written
    other.fetch([other.root / "runs" / "r" / "adapter"])
    assert here(other) == {"study.json": "1", RUN: "2", ADAPTER: "3"}
    assert not other.waits(other.root / ADAPTER, 1)


def test_only_what_has_changed_moves(
    url: str, machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    kind = LocalFileSystem if url.startswith("file") else MemoryFileSystem
    for name in ("put_file", "get_file"):
        done = getattr(kind, name)

        def noticed(self: Any, one: str, two: str, *a: Any, done: Any = done, **more: Any) -> None:
            moved.append(Path(one).name)
            done(self, one, two, *a, **more)

        monkeypatch.setattr(kind, name, noticed)
    one, other = machine("one").mirror(url), machine("other").mirror(url)
    write(one, {"study.json": "1", RUN: "2"})
    one.push(order)
    one.push(order)
    one.pull(is_large)
    assert sorted(moved) == ["run.json", "study.json"]
    other.pull(is_large)
    write(one, {RUN: "3"})  # as long as before
    one.push(order)
    moved.clear()
    other.pull(is_large)
    other.push(order)
    assert moved == ["run.json"]
    assert here(other)[RUN] == "3"


def test_what_is_taken_away_is_gone_on_both_sides(
    url: str, machine: Callable[[str], Machine]
) -> None:
    one, other = machine("one").mirror(url), machine("other").mirror(url)
    write(one, {"study.json": "1", "failures/a.json": "2", ADAPTER: "3"})
    one.push(order)
    other.pull(is_large)
    (other.root / "failures" / "a.json").unlink()
    other.push(order)
    assert there(url) == {"study.json": "1", ADAPTER: "3"}  # what was not brought down stays
    one.pull(is_large)
    assert here(one) == {"study.json": "1", ADAPTER: "3"}
    other.forget([other.root / "runs" / "r"])
    other.push(order)
    assert there(url) == {"study.json": "1"}


def test_new_weights_take_the_place_of_those_that_are_here(
    url: str, waiting: tuple[Mirror, Mirror]
) -> None:
    one, other = waiting
    other.fetch([other.root])  # nothing: it is no name below the study
    other.fetch([other.root / ADAPTER])
    write(one, {ADAPTER: "4"})
    one.push(order)
    other.pull(is_large)
    assert here(other) == {}  # the old ones would be believed to be the new ones
    other.fetch([other.root / ADAPTER])
    assert here(other) == {ADAPTER: "4"}


def test_a_cache_that_lost_a_file_brings_it_down_again(
    url: str, machine: Callable[[str], Machine]
) -> None:
    mirror = machine("one").mirror(url)
    write(mirror, {"study.json": "1", ADAPTER: "3"})
    mirror.push(order)
    for name in here(mirror):
        (mirror.root / name).unlink()
    mirror.pull(is_large)
    mirror.push(order)
    assert there(url) == {"study.json": "1", ADAPTER: "3"}
    assert here(mirror) == {"study.json": "1"}
    assert mirror.waits(mirror.root / ADAPTER, 1)


def test_what_a_worker_of_this_machine_takes_away_does_not_come_back(
    url: str, machine: Callable[[str], Machine]
) -> None:
    mirror = machine("one").mirror(url)
    write(mirror, {"study.json": "1", "failures/a.json": "2"})
    mirror.push(order)
    worker = Crew(mirror.root).join()
    (mirror.root / "failures" / "a.json").unlink()
    mirror.pull(is_large)
    assert here(mirror) == {"study.json": "1"}
    worker.leave()


def test_a_record_comes_last_and_goes_first(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://ordered/study"
    done: list[str] = []
    put, remove = MemoryFileSystem.put_file, MemoryFileSystem.rm_file

    def putting(self: Any, path: str, place: str, *more: Any, **options: Any) -> None:
        done.append(Path(place).name)
        put(self, path, place, *more, **options)

    def removing(self: Any, path: str) -> None:
        done.append(f"-{Path(path).name}")
        remove(self, path)

    monkeypatch.setattr(MemoryFileSystem, "put_file", putting)
    monkeypatch.setattr(MemoryFileSystem, "rm_file", removing)
    mirror = machine("one").mirror(url)
    parts = "runs/r/training-shards-3/0.pt.part", "runs/r/training.pt"
    write(mirror, dict.fromkeys((RUN, *parts, ADAPTER, "base/eval/t.samples.jsonl"), "1"))
    write(mirror, {"base/eval/t.json": "2", "runs/r/adapter/adapter_config.json": "3"})
    mirror.push(order)
    assert set(done[-2:]) == {"run.json", "t.json"}
    assert done[-3] == "training.pt"
    done.clear()
    (mirror.root / RUN).unlink()
    (mirror.root / ADAPTER).unlink()
    write(mirror, {"base/eval/t.json": "4"})
    mirror.push(order)
    assert done == ["-run.json", "-model.safetensors", "t.json"]
    MemoryFileSystem.store.clear()


def test_what_was_made_anew_here_is_not_taken_for_what_waits(
    url: str, waiting: tuple[Mirror, Mirror]
) -> None:
    _, other = waiting
    write(other, {ADAPTER: "4"})
    assert not other.waits(other.root / ADAPTER, 1)
    other.fetch([other.root / ADAPTER])
    assert here(other) == {ADAPTER: "4"}
    other.push(order)
    assert there(url) == {ADAPTER: "4"}


def test_names_that_lead_out_of_the_mirror_are_none_of_the_study(
    machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    store, url = fsspec.filesystem("memory"), "memory://hostile/study"
    leads_out = ("../../x.json", "a\\..\\b.json", str(tmp_path / "outside.json"))
    for name in (*leads_out, ".checked.json", ".workers/a", "study.json"):
        store.pipe_file("/hostile/new", b"1")  # by its own way, names are made plain
        store.store[f"/hostile/study/{name}"] = store.store.pop("/hostile/new")
    mirror = machine("one").mirror(url)
    mirror.pull(is_large)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")}
    assert found == {
        (mirror.root / name).relative_to(tmp_path).as_posix()
        for name in ("study.json", ".mirror.json")
    }
    MemoryFileSystem.store.clear()


# --- who runs the study


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(mirrors, "OWNER_SECONDS", 0.6)
    return 0.6


def test_two_machines_do_not_run_one_study(
    url: str, machine: Callable[[str], Machine], quick: float
) -> None:
    one, other = machine("one").mirror(url), machine("other").mirror(url)
    with one.held():
        time.sleep(2 * quick)  # it counts
        with pytest.raises(StudyLockedError, match="another process runs the study"), other.held():
            pass
        write(one, {"study.json": "1"})
        one.push(order)
    assert there(url) == {"study.json": "1"}  # what says who runs it is gone
    began = time.monotonic()
    with other.held(), other.held():
        assert time.monotonic() - began < quick


def test_who_has_gone_without_a_word_is_followed_after_a_while(
    url: str, machine: Callable[[str], Machine], quick: float
) -> None:
    one, other = machine("one").mirror(url), machine("other").mirror(url)
    one.pull(is_large)
    one._count(0)  # and no more
    began = time.monotonic()
    with other.held():
        assert time.monotonic() - began > quick
    one._count(0)
    again, began = machine("one").mirror(url), time.monotonic()
    with again.held():  # of this machine the system knows that nobody is there
        assert time.monotonic() - began < quick


def test_a_mark_that_nobody_can_read_is_somebody_s(
    url: str, machine: Callable[[str], Machine], quick: float
) -> None:
    one, other = machine("one").mirror(url), machine("other").mirror(url)
    with one.held():
        one._store.pipe_file(one._there(".owner.json"), b"{")
        with pytest.raises(StudyMovedError):
            one._check()
        time.sleep(quick)
        write(one, {"study.json": "1"})
        with pytest.raises(StorageError, match="nothing more is sent to"):
            one.push(order)
    began = time.monotonic()
    with other.held():
        assert time.monotonic() - began > quick  # it stands still


def test_two_processes_of_one_machine_do_not_run_one_study(
    url: str, machine: Callable[[str], Machine]
) -> None:
    one, two = machine("one").mirror(url), machine("one").mirror(url)
    with one.held(), pytest.raises(StudyLockedError), two.held():
        pass


def test_who_was_taken_over_sends_nothing_more(
    url: str, machine: Callable[[str], Machine], quick: float
) -> None:
    one, other = machine("one").mirror(url), machine("other").mirror(url)
    with one.held():
        other.pull(is_large)
        other._count(0)
        time.sleep(quick)
        write(one, {"study.json": "1"})
        with pytest.raises(StorageError, match="nothing more is sent to"):
            one.push(order)
    assert list(there(url)) == [".owner.json"]
    assert json.loads(there(url)[".owner.json"])["owner"] == other.name


def test_who_is_led_follows_its_leader_alone(
    url: str, machine: Callable[[str], Machine], quick: float
) -> None:
    leader = machine("one").mirror(url)
    led = machine("other").mirror(url, leader.name)
    with pytest.raises(StudyMovedError, match="who ran it has gone"), led.held():
        pass
    with leader.held(), led.held():
        write(led, {"study.json": "1"})
        led.push(order)
    with led_by_nobody(led), pytest.raises(StorageError, match="nothing more is sent to"):
        led.push(order)


class led_by_nobody:
    """As a worker is whose leader was there when it began."""

    def __init__(self, led: Mirror) -> None:
        self._led = led

    def __enter__(self) -> None:
        self._led._sure_at = time.monotonic() - 10

    def __exit__(self, *_: object) -> None:
        self._led._sure_at = None


# --- what is said


def test_a_store_that_fails_is_named_and_what_failed_is_sent_later(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://failing/study"
    mirror = machine("one").mirror(url)
    files = {"study.json": "1", RUN: "2", ADAPTER: "3"}
    write(mirror, files)
    put, calls = MemoryFileSystem.put_file, itertools.count()

    class NoCredentialsError(Exception):
        """As of botocore: no error of the system."""

    def failing(self: Any, *paths: Any, **options: Any) -> None:
        if next(calls) == 1:
            raise NoCredentialsError("Unable to locate credentials")
        put(self, *paths, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    said = f"^{url} cannot be written: Unable to locate credentials. Check the address"
    with pytest.raises(StorageError, match=said):
        mirror.push(order)
    assert there(url) == {ADAPTER: "3"}
    mirror.push(order)
    assert there(url) == files
    MemoryFileSystem.store.clear()


def test_no_secret_of_a_url_is_said(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://me:p%40ss@place/study?token=abc"
    mirror = machine("one").mirror(url)

    def failing(self: Any, path: str, **_: Any) -> None:
        raise OSError(f"{url} refused me:p%40ss, that is p@ss, at ?token=abc")

    monkeypatch.setattr(MemoryFileSystem, "find", failing)
    with pytest.raises(StorageError) as error:
        mirror.pull(is_large)
    said = f"{error.value} {mirror.root} {error.value.__cause__}"
    assert "memory://place/study" in said
    for secret in ("p%40ss", "p@ss", "abc", "me:"):
        assert secret not in said
    assert shown_url(url) == "memory://place/study"


@pytest.mark.parametrize(
    ("url", "package"), [("s3://bucket/study", "s3fs"), ("gs://bucket/study", "gcsfs")]
)
def test_a_package_that_is_missing_is_named(
    url: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    importing = builtins.__import__

    def without(name: str, *more: Any, **options: Any) -> Any:
        if name.partition(".")[0] in (package, "gcsfs", "s3fs"):
            raise ImportError(f"No module named {name!r}")
        return importing(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=package):
        StudyFolder(local_folder(url))


def test_a_protocol_that_nobody_knows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="Protocol not known: nosuch"):
        StudyFolder(local_folder("nosuch://bucket/study"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["s3://", "file:///", "memory:////", "s3://?x=1"])
def test_a_url_without_a_folder_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="it names no folder"):
        local_folder(text)


def test_a_path_is_no_url(tmp_path: Path) -> None:
    assert local_folder(tmp_path) == tmp_path
    assert mirror_at(tmp_path) is None
    assert address_of(tmp_path) == str(tmp_path)
    folder = StudyFolder(tmp_path)
    assert (folder.address, folder.is_mirror) == (str(tmp_path), False)


def test_nothing_at_a_url_is_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    folder = StudyFolder(local_folder("memory://nothing/study/"))
    assert folder.address == "memory://nothing/study/"
    with pytest.raises(RecordError, match="is not there"):
        folder.read_study()
