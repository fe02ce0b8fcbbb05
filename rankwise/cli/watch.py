"""``rankwise status --watch``: the page of a study while it runs, on this machine alone."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from rankwise.cli.application import OK, emit, say
from rankwise.errors import RankwiseError, StorageError
from rankwise.records import quantities
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StudyRecord

if TYPE_CHECKING:
    from rankwise.report.parts import Table
    from rankwise.study.status import ModelStatus

ADDRESS = "127.0.0.1"
PORT = 8421
MOST_PORT = 65535
_MOST_SILENT = 32
"""Connections that have not asked for anything yet: more than any browser opens."""


class Watched:
    """The page of a study's folder, drawn again where it is older than ``seconds``."""

    def __init__(self, folder: StudyFolder, seconds: int) -> None:
        """Nothing is read yet."""
        self._folder, self._seconds = folder, seconds
        self._lock = threading.Lock()
        self._drawn_at: float | None = None
        self._text = ""

    def page(self) -> str:
        """The page of the folder as it is now, or was at the last reading.

        Raises:
            RecordError: there is no study.
        """
        with self._lock:
            now = time.monotonic()
            if self._drawn_at is None or now - self._drawn_at >= self._seconds:
                self._text = self._draw()
                self._drawn_at = time.monotonic()
            return self._text

    def _draw(self) -> str:
        from rankwise.report.page import loss_figure, question, study_page
        from rankwise.report.parts import ReportSection, TitledTable
        from rankwise.report.rendering import Page, rendered
        from rankwise.study.conclusion import conclude
        from rankwise.study.status import study_status

        study = self._folder.read_study()
        losses = {run.name: self._folder.read_losses(run.name) for run in study.models}
        lines = study_status(self._folder)
        page = Page("rankwise status --watch", study.config.name, question(study), (), ())
        left = sum(len(line.left) + (line.training in ("started", "not started")) for line in lines)
        done = "All is done." if left == 0 else f"{quantities.counted(left, 'thing')} left to do."
        remarks = [f"Read from the folder every {self._seconds} seconds. {done}"]
        try:
            outcome = conclude(self._folder)
            page = study_page(*outcome, losses, self._folder.root)
            page = page._replace(kicker="rankwise status --watch")
            remarks.append("What follows is of what is finished; it can change until all is.")
        except RankwiseError as error:
            remarks.append(f"There is no verdict yet: {error}")
        said, tables = _now(study, self._folder)
        remarks += said
        figures = [] if page.sections else list(loss_figure(study, losses))
        progress = ReportSection(
            "progress",
            "Progress",
            remarks,
            figures,
            tables=[TitledTable("", table) for table in (*tables, _table(lines))],
            points=[f"{line.model}: {failed}" for line in lines for failed in line.failed],
        )
        parts = [part._replace(sections=[progress, *part.sections]) for part in page.parts[:1]]
        sections = page.sections if parts else [progress, *page.sections]
        shown = page._replace(
            parts=[*parts, *page.parts[1:]], sections=sections, refresh_seconds=self._seconds
        )
        return rendered(shown)


def _now(study: StudyRecord, folder: StudyFolder) -> tuple[list[str], list[Table]]:
    """What is being done, and the stages that are left: remarks, and a table if there are any.

    As the process that runs it tells; where none does, by what finished stages took.
    """
    from rankwise.report.parts import Column, Table
    from rankwise.study.stages.graph import stages, study_outline
    from rankwise.study.status import run_status
    from rankwise.study.times import seconds_left

    outline = study_outline(stages(study), folder)
    left = [stage for stage in outline if not stage.is_finished]
    running = run_status(folder)
    remarks = [] if running is None else [f"{line}." for line in running.lines]
    if running is None and left:
        remarks = ["No process runs the study."]
    seconds: Mapping[str, float] = {}
    if running is not None and running.progress is not None:
        seconds = running.progress.seconds_left
    seconds = seconds or seconds_left(outline)
    seconds = {stage.id: seconds[stage.id] for stage in left if stage.id in seconds}
    if seconds:
        num_at_once = 1 if running is None else max(1, len(running.doing))
        of_all = quantities.seconds(sum(seconds.values()) / num_at_once)
        remarks.append(f"About {of_all} are left of what is planned.")

    time_left = {stage: quantities.seconds(each) for stage, each in seconds.items()}
    waiting = Table.of(
        "The stages that are left.",
        left,
        Column("Stage", lambda stage: f"{stage.model}: {stage.name}"),
        Column("Time left, about", lambda stage: time_left.get(stage.id)),
    )
    return remarks, [waiting] if left else []


def _table(lines: list[ModelStatus]) -> Table:
    from rankwise.report.parts import Column, Table

    def steps(line: ModelStatus) -> str | None:
        return f"{line.num_steps_done} of {line.num_steps}" if line.num_steps else None

    return Table.of(
        "The base and every run.",
        lines,
        Column("Model", lambda line: line.model),
        Column.text("Training", lambda line: line.training),
        Column("Steps", steps),
        Column("Tasks scored", lambda line: len(line.tasks_scored)),
        Column.text("Left", lambda line: ", ".join(line.left) or "nothing"),
    )


class _Server(ThreadingHTTPServer):
    """Shows a study to whoever has the token, whatever else connects.

    Attributes:
        watched: the study.
        path: of the page, with the token.
    """

    request_queue_size = 1024

    def __init__(self, watched: Watched, port: int) -> None:
        self.watched = watched
        self.path = f"/?token={secrets.token_urlsafe(24)}"
        self.silent: OrderedDict[object, None] = OrderedDict()  # what has not asked, oldest first
        super().__init__((ADDRESS, port), _Handler)

    @property
    def address(self) -> str:
        """The page's whole address."""
        return f"http://{ADDRESS}:{self.server_port}{self.path}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have it answered; where too many have connected and not asked, the oldest goes."""
        self.silent[request] = None
        if len(self.silent) > _MOST_SILENT:
            oldest: Any = self.silent.popitem(last=False)[0]
            with contextlib.suppress(OSError):  # it is closed already
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever leaves before the answer may."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET of the page's path alone, and only where the request names this machine."""

    server_version, sys_version = "rankwise", ""
    timeout = 10

    def do_GET(self) -> None:
        """The page."""
        serving = self.server
        assert isinstance(serving, _Server)
        serving.silent.pop(self.connection, None)  # it is answered, however long that takes
        host = self.headers.get("Host", "").partition(":")[0]
        if host not in (ADDRESS, "localhost"):  # a name that leads here may be another site's
            self._answer(403, "This page is for this machine alone.")
        elif not hmac.compare_digest(self.path.encode(), serving.path.encode()):
            self._answer(
                403, "Open the address that `rankwise status --watch` printed, with its token."
            )
        else:
            try:
                self._answer(200, serving.watched.page(), "text/html")
            except RankwiseError as error:
                self._answer(503, str(error))

    def _answer(self, status: int, text: str, kind: str = "text/plain") -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (as its base)
        """Requests are not printed."""


def server(watched: Watched, port: int) -> _Server:
    """A server on the loopback; port 0 takes a free one.

    Raises:
        StorageError: the port is taken.
    """
    try:
        return _Server(watched, port)
    except OSError as error:
        raise StorageError(
            f"port {port} cannot be used: {error.strerror}. Choose another: --port 0"
        ) from error


def serve(folder: StudyFolder, port: int, seconds: int, *, as_json: bool) -> int:
    """Show the study until Ctrl-C, read again after so many seconds; prints the address.

    Raises:
        RecordError: there is no study.
        StorageError: the port is taken.
    """
    watched = Watched(folder, seconds)
    watched.page()
    with server(watched, port) as serving, contextlib.suppress(KeyboardInterrupt):
        if as_json:
            emit({"address": serving.address})
        else:
            say(f"{serving.address} (Ctrl-C ends it)", folded=False)
        serving.serve_forever()
    return OK
