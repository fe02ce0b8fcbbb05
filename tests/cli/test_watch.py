"""``rankwise status --watch``: the page on the loopback, read-only, for this machine alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli.watch import ADDRESS, Watched, server
from rankwise.errors import RecordError, StorageError
from rankwise.records.folder import StudyFolder
from rankwise.records.locking import StageProgress, StudyProgress
from rankwise.study.stages.graph import stages
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.support.command_line import rankwise, words
from tests.support.records import losses_as_they_are
from tests.support.waiting import wait_for


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A finished study with planted scores."""
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study())
    return folder


@pytest.fixture
def served(folder: StudyFolder) -> Iterator[Any]:
    """Where the study is shown."""
    with server(Watched(folder, 1), 0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@contextlib.contextmanager
def working(
    folder: StudyFolder, seconds: dict[str, float], *at: tuple[str, float | None]
) -> Iterator[None]:
    """This process leads the study, and is a quarter through some stages, at some speeds."""
    with folder.lock():
        told = StudyProgress(
            told_at=datetime.now(UTC).isoformat(),
            stages=tuple(
                StageProgress(
                    stage=stage,
                    share_done=0.25,
                    tokens_per_second=speed,
                    peak_memory_bytes=3 * 1024**3,
                )
                for stage, speed in at
            ),
            seconds_left=seconds,
        )
        folder.write(folder.progress_file, told)
        yield


def answer(
    served: Any, path: str | None = None, method: str = "GET", **headers: str
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(ADDRESS, served.server_port, timeout=60)
    connection.request(method, served.path if path is None else path, headers=headers)
    found = connection.getresponse()
    return found.status, found.read().decode()


def connected(served: Any) -> socket.socket:
    return socket.create_connection((ADDRESS, served.server_port), timeout=60)


def test_the_page_has_the_verdict_and_what_is_done(served: Any) -> None:
    status, page = answer(served)
    assert status == 200
    assert "Use rank 16. " in page
    assert "8 things left to do." in page  # planted runs have no weights to analyse
    assert '<meta http-equiv="refresh" content="1">' in page  # the same address, with the token


def test_without_the_token_nothing_is_told(served: Any) -> None:
    """Any user of the machine can ask, and the page has what the study's items say."""
    token = served.path.partition("=")[2]
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    paths = (
        *("/", "/?token=", f"/?token={wrong}", f"/?token={token}A", f"/?token={token[:-1]}"),
        *(f"/{token}", f"/?a=1&token={token}", "/study.json", "/../../etc/passwd"),
    )
    sentence = "Open the address that `rankwise status --watch` printed, with its token."
    for path in paths:
        assert answer(served, path) == (403, sentence), path
    with connected(served) as raw:
        raw.sendall(b"GET /?token=\xe9\xff HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert raw.makefile("rb").read().endswith(sentence.encode())
    assert answer(served, "/", Cookie=f"token={token}", Authorization=f"token {token}")[0] == 403
    assert answer(served)[0] == 200


def test_every_server_has_another_token(folder: StudyFolder) -> None:
    paths: set[str] = set()
    for _ in range(3):
        with server(Watched(folder, 1), 0) as serving:
            paths.add(serving.path)
    assert len(paths) == 3
    assert min(map(len, paths)) >= len("/?token=") + 32


@pytest.mark.parametrize(
    "host", ["rebound.example:80", "localhost.example", "127.0.0.1.example:8421", "", "[::1]:1"]
)
def test_another_host_is_refused_with_the_token_too(served: Any, host: str) -> None:
    """A page elsewhere whose name comes to lead here must not read this one."""
    assert answer(served, Host=host) == (403, "This page is for this machine alone.")
    for own in (f"localhost:{served.server_port}", "localhost:9000"):  # as ssh -L has it
        assert answer(served, Host=own)[0] == 200


def test_idle_connections_keep_nobody_waiting(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.RequestHandlerClass, "timeout", 600)
    before = threading.active_count()
    idle = [connected(served) for _ in range(200)]
    assert answer(served)[0] == 200
    wait_for(lambda: threading.active_count() <= before + 33, patience_seconds=60)
    assert idle[0].recv(1) == b""  # the oldest went
    assert answer(served)[0] == 200
    for each in idle:
        each.close()


def test_who_asks_for_nothing_is_left(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served.RequestHandlerClass.timeout <= 60
    monkeypatch.setattr(served.RequestHandlerClass, "timeout", 0.05)
    for first in (b"", b"GET / HTTP/1.1\r\nHost: loc"):
        with connected(served) as waiting:
            waiting.sendall(first)
            assert waiting.recv(1) == b""


def test_who_leaves_before_the_answer_is_no_traceback(
    served: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, has_left = threading.Event(), threading.Event()

    def page(_: Watched) -> str:
        asked.set()
        has_left.wait(60)
        return "late"

    monkeypatch.setattr(Watched, "page", page)
    before = threading.active_count()
    for request in (f"GET {served.path} HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET / HT"):
        leaving = connected(served)
        leaving.sendall(request.encode())
        if "Host" in request:
            asked.wait(60)
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaving.close()  # by a reset
        has_left.set()
        wait_for(lambda: threading.active_count() == before)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_is_read_only(served: Any, method: str) -> None:
    assert answer(served, method=method)[0] == 501


def test_watching_writes_nothing(folder: StudyFolder, served: Any) -> None:
    def files() -> dict[Path, bytes]:
        # what was found undamaged is remembered, as by every verb that reads
        written = (path for path in folder.root.rglob("*") if path.name != ".checked.json")
        return {path: path.read_bytes() for path in written if path.is_file()}

    before = files()
    answer(served)
    assert files() == before


def test_before_the_base_is_scored_there_is_progress_and_no_verdict(folder: StudyFolder) -> None:
    shutil.rmtree(folder.root / "base")
    run = planted_study().study.runs[0]
    folder.append_metrics(run.name, {"step": 1, "loss_nats": 3.0})
    losses_as_they_are(folder, run.name)
    page = Watched(folder, 1).page()
    assert "There is no verdict yet" in page
    assert "Training loss" in page
    assert "Use rank" not in page


def test_the_stages_that_are_left_have_their_time_as_a_running_process_tells_it(
    folder: StudyFolder,
) -> None:
    left = [each for each in stages(folder.read_study()) if not each.is_finished(folder)]
    assert len(left) == 2  # heads and weights
    seconds = {each.id: 600.0 * place for place, each in enumerate(left, start=1)}
    with working(folder, seconds, (left[0].id, 1234.4)):
        page = Watched(folder, 1).page()
    assert f"process {os.getpid()} on " in page
    assert "heads: heads is 25 % done, 1,234 tokens per second, peak memory 3.0 GiB." in page
    assert "About 30.0 min are left of what is planned." in page
    for shown in ("heads: heads", "10.0 min", "weights: spectra", "20.0 min"):
        assert shown in page.split("The stages that are left.")[1]


def test_all_that_is_being_done_is_shown(folder: StudyFolder) -> None:
    heads, weights = (s.id for s in stages(folder.read_study()) if not s.is_finished(folder))
    seconds = {heads: 600.0, weights: 1200.0}
    with working(folder, seconds, (heads, 1234.4), (weights, None)):
        page = Watched(folder, 1).page()
        shown = words(rankwise("status", folder.root).stdout)
        told = json.loads(rankwise("status", folder.root, "--json").stdout)["running"]
    for text in (page, shown):
        assert "heads: heads is 25 % done, 1,234 tokens per second, peak memory" in text
        assert "weights: spectra is 25 % done, peak memory 3.0 GiB" in text
    # two at once: half of the sum
    assert "About 15.0 min are left of what is planned." in page
    assert told["process"].startswith(f"process {os.getpid()} on ")
    assert [stage["stage"] for stage in told["progress"]["stages"]] == [heads, weights]
    assert "No process runs the study." in Watched(folder, 1).page()
    assert json.loads(rankwise("status", folder.root, "--json").stdout)["running"] is None


def test_without_a_process_the_time_is_that_of_the_records(folder: StudyFolder) -> None:
    page = Watched(folder, 1).page()
    assert "No process runs the study." in page
    assert re.search(r"About [\d.]+ (s|min|h) are left of what is planned\.", page)
    assert "tokens per second" not in page
    with working(folder, {}):
        folder.progress_file.write_text("{")  # a damaged one counts for none
        assert "runs the study." in Watched(folder, 1).page()


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        Watched(StudyFolder(tmp_path), 1).page()


def test_a_port_that_is_taken_is_refused(folder: StudyFolder, served: Any) -> None:
    with pytest.raises(StorageError, match="Choose another: --port 0"):
        server(Watched(folder, 1), served.server_port)


def test_ctrl_c_ends_it_cleanly(folder: StudyFolder) -> None:
    command = [
        sys.executable,
        "-m",
        "rankwise",
        "status",
        str(folder.root),
        "--watch",
        "--port",
        "0",
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stderr is not None
            address = running.stdout.readline().removesuffix(" (Ctrl-C ends it)\n")
            with urllib.request.urlopen(address, timeout=60) as page:
                assert b"Use rank 16." in page.read()
            running.send_signal(signal.SIGINT)
            assert running.wait(60) == 0
            assert running.stderr.read() == ""
        finally:
            running.kill()  # else a failure waits for it
