"""``rankwise watch``: the page of a study on this machine while it runs, read from its folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rankwise.cli.application import OK, Folder, Json, emit, say, verb
from rankwise.cli.run_verbs import STUDIES
from rankwise.errors import RankwiseError, StorageError
from rankwise.records import quantities
from rankwise.records.leases import LEASE_SECONDS, Watch

if TYPE_CHECKING:
    from rankwise.records.folder import StudyFolder
    from rankwise.records.progress import StudyProgress
    from rankwise.records.study import StudyRecord
    from rankwise.report.parts import Table
    from rankwise.study.observer import StageOutline
    from rankwise.study.status import ModelStatus

ADDRESS = "127.0.0.1"
PORT = 8421
_MOST_PORT = 65535


class Watched:
    """The page of a study's folder, drawn again where it is older than ``seconds``."""

    def __init__(self, folder: StudyFolder, seconds: int) -> None:
        """Nothing is read yet."""
        self._folder, self._seconds = folder, seconds
        self._lock = threading.Lock()
        self._workers = Watch(LEASE_SECONDS)
        self._drawn_at: float | None = None
        self._text = ""

    def page(self) -> str:
        """As the folder is now, or was so many seconds ago.

        Raises:
            RecordError: there is no study.
            StorageError: the URL of the study cannot be read.
        """
        with self._lock:
            now = time.monotonic()
            if self._drawn_at is None or now - self._drawn_at >= self._seconds:
                self._text = self._draw()
                self._drawn_at = time.monotonic()
            return self._text

    def _draw(self) -> str:
        from rankwise.report.page import kinds_of, loss_figure, question, study_page
        from rankwise.report.parts import ReportSection, TitledTable
        from rankwise.report.rendering import Page, rendered
        from rankwise.study.conclusion import conclude
        from rankwise.study.status import study_status

        self._folder.refresh()
        study = self._folder.read_study()
        losses = {run.name: self._folder.read_losses(run.name) for run in study.models}
        lines = study_status(self._folder)
        page = Page("rankwise watch", study.config.name, question(study), (), ())
        remarks = [f"Read from the folder every {self._seconds} seconds. {_done(lines)}"]
        try:
            outcome = conclude(self._folder)
            page = study_page(*outcome, losses)._replace(kicker="rankwise watch")
            remarks.append("What follows is of what is finished; it can change until all is.")
        except RankwiseError as error:
            remarks.append(f"There is no verdict yet: {error}")
        now = _now(study, self._folder, self._workers)
        remarks += now.remarks
        figures = [] if page.sections else list(loss_figure(study, losses))
        progress = ReportSection(
            "progress",
            "Progress",
            remarks,
            figures,
            tables=[TitledTable("", table) for table in (*now.tables, _table(lines))],
            points=[f"{line.model}: {failed}" for line in lines for failed in line.failed],
        )
        parts = [part._replace(sections=[progress, *part.sections]) for part in page.parts[:1]]
        sections = page.sections if parts else [progress, *page.sections]
        shown = page._replace(
            parts=[*parts, *page.parts[1:]], sections=sections, refresh_seconds=self._seconds
        )
        return rendered(shown, kinds_of(study), with_images=False)[0]


def _done(lines: list[ModelStatus]) -> str:
    left = sum(len(line.left) + (line.training in ("started", "not started")) for line in lines)
    return "All is done." if left == 0 else f"{quantities.counted(left, 'thing')} left to do."


class _Now(NamedTuple):
    """What is being done, and the stages that are left; both empty where nothing is."""

    remarks: list[str]
    tables: list[Table]


def _now(study: StudyRecord, folder: StudyFolder, watch: Watch) -> _Now:
    """As the workers tell; where none does, by what finished stages took."""
    from rankwise.study.outline import study_outline
    from rankwise.study.pace import Pace
    from rankwise.study.stages import stages
    from rankwise.study.status import worker_status

    outline = study_outline(stages(study), folder)
    left = [stage for stage in outline if not stage.is_finished]
    workers = worker_status(folder, watch)
    remarks = [f"{worker}." for worker in workers]
    if not workers and left:
        remarks = ["No process runs the study."]
    told = [worker.progress for worker in workers if worker.progress is not None]
    seconds = _seconds_left(told)
    if not told:
        pace = Pace()
        pace.planned(outline)
        seconds = pace.stages_left(0.0)
    seconds = {stage.id: seconds[stage.id] for stage in left if stage.id in seconds}
    if seconds:
        # not those without a unit: who leads others does none
        of_all = quantities.seconds(sum(seconds.values()) / max(1, len(told)))
        shared = f", if {len(told)} workers share it evenly" if len(told) > 1 else ""
        remarks.append(f"About {of_all} are left of what is planned{shared}.")
    return _Now(remarks, [_left_table(left, seconds)] if left else [])


def _seconds_left(told: list[StudyProgress]) -> dict[str, float]:
    """Stage -> about how long it takes: by whoever is at it, else by who told last."""
    seconds: dict[str, float] = {}
    for progress in sorted(told, key=lambda progress: progress.told_at):
        seconds |= progress.seconds_left
    for progress in told:
        if progress.stage in progress.seconds_left:
            seconds[progress.stage] = progress.seconds_left[progress.stage]
    return seconds


def _left_table(left: list[StageOutline], seconds: Mapping[str, float]) -> Table:
    from rankwise.report.parts import Column, table

    def time_left(stage: StageOutline) -> str | None:
        known = seconds.get(stage.id)
        return None if known is None else quantities.seconds(known)

    columns: list[Column[StageOutline]] = [
        Column("Stage", lambda stage: f"{stage.model}: {stage.name}"),
        Column("Time left, about", time_left),
    ]
    return table("The stages that are left.", columns, left)


def _table(lines: list[ModelStatus]) -> Table:
    from rankwise.report.parts import Column, table

    def steps(line: ModelStatus) -> str | None:
        return f"{line.num_steps_done} of {line.num_steps}" if line.num_steps else None

    columns: list[Column[ModelStatus]] = [
        Column("Model", lambda line: line.model),
        Column("Training", lambda line: line.training, is_text=True),
        Column("Steps", steps),
        Column("Tasks scored", lambda line: len(line.tasks_scored)),
        Column("Left", lambda line: ", ".join(line.left) or "nothing", is_text=True),
    ]
    return table("The base and every run.", columns, lines)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET of / alone, and only where the request names this machine."""

    server_version, sys_version = "rankwise", ""

    def __init__(self, watched: Watched, *args: object) -> None:
        self._watched = watched
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """The page."""
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            self._answer(403, "This page is for this machine alone.")
        elif self.path != "/":
            self._answer(404, "There is one page: /")
        else:
            try:
                self._answer(200, self._watched.page(), "text/html")
            except RankwiseError as error:
                self._answer(503, str(error))

    def _answer(self, status: int, text: str, kind: str = "text/plain") -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (as its base)
        """Requests are not printed."""


def server(watched: Watched, port: int) -> ThreadingHTTPServer:
    """A server on the loopback; port 0 takes a free one.

    Raises:
        StorageError: the port is taken.
    """
    try:
        return ThreadingHTTPServer((ADDRESS, port), partial(_Handler, watched))
    except OSError as error:
        raise StorageError(
            f"port {port} cannot be used: {error.strerror}. Choose another: --port 0"
        ) from error


@verb(STUDIES)
def watch(
    directory: Folder,
    port: Annotated[
        int, typer.Option("--port", help="Of 127.0.0.1; 0 takes a free one.", max=_MOST_PORT, min=0)
    ] = PORT,
    every: Annotated[
        int, typer.Option("--every", metavar="SECONDS", help="Read the folder so often.", min=1)
    ] = 15,
    as_json: Json = False,
) -> int:
    """Show a study in the browser while it runs: progress, losses, scores as they come.

    The page is read from the study's folder, which nothing is written to, and is
    for this machine alone. Ctrl-C ends it; the study goes on.
    """
    from rankwise.records.folder import StudyFolder

    watched = Watched(StudyFolder(directory), every)
    watched.page()
    with server(watched, port) as serving:
        try:
            address = f"http://{ADDRESS}:{serving.server_address[1]}/"
            if as_json:
                emit({"address": address})
            else:
                say(f"{address} (Ctrl-C ends it)", folded=False)
            serving.serve_forever()
        except KeyboardInterrupt:
            return OK
    return OK
