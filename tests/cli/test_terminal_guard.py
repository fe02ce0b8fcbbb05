"""Names of other people on a terminal, by every verb that shows any: none of them acts there."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

import rankwise as rw
from rankwise.errors import ConfigError, DataError, visible
from rankwise.records.folder import StudyFolder
from rankwise.study.observer import Decided, Noted, StageOutline, Teller
from rankwise.study.printer import Guarded, Printer
from rankwise.study.progress import QuietObserver, TerminalObserver
from rankwise.tasks import resolution
from tests.planted import score_tables
from tests.support.command_line import rankwise
from tests.support.records import change, content_of
from tests.support.terminal import (
    ALL,
    HARMLESS,
    HOSTILE,
    acting,
    fail,
    hostile_folder,
    in_terminal,
    log,
    print_by_hand,
    printed_by,
    warn,
    without_codes,
    write_lines,
)

RIGHT = {"base": [0, 1] * 20, "r8": [1, 1, 0, 1] * 10, "r16": [1, 1, 1, 0] * 10}


def table(folder: Path, names: dict[str, str], **columns: str) -> Path:
    """A table of scores whose models have other names; ``columns`` are alike in every row."""
    rows = score_tables.scores(**{names.get(name, name): right for name, right in RIGHT.items()})
    return score_tables.write_csv(folder / "scores.csv", [{**row, **columns} for row in rows])


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lm-eval's own tasks, whose index takes seconds to build."""
    monkeypatch.setattr(resolution, "lm_evals_own", dict)


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """A study of scores that a stranger may have made."""
    assert rankwise("verdict", table(tmp_path, {}), "--output", tmp_path / "study").exit_code == 0
    return StudyFolder(tmp_path / "study")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_name_with_a_hidden_character_is_refused_by_its_code(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.json"
    rows = score_tables.scores(**{name: RIGHT["base"], "r8": RIGHT["r8"]})
    path.write_text(json.dumps([{**row, "model": f"m{row['model']}m"} for row in rows]))
    code, printed = printed_by("verdict", path)
    assert (code, acting(printed)) == (2, "")
    assert ascii(name).strip("'") in without_codes(printed)
    with pytest.raises(DataError) as caught:
        rw.verdict([{**row, "model": f"m{row['model']}m"} for row in rows])
    assert visible(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize("name", HARMLESS)
def test_a_name_in_any_script_is_printed_as_it_is(tmp_path: Path, name: str) -> None:
    path = table(tmp_path, {"r8": name, "r16": "other"})
    output = tmp_path / "study"
    for arguments in (["verdict", path, "--output", output], ["status", output]):
        code, printed = printed_by(*arguments)
        assert (code, acting(printed)) == (0, "")
        assert name in without_codes(printed).replace(" ", " ") or " " in name


@pytest.mark.parametrize("verb", ["status", "verdict", "report", "verify", "plan", "run"])
def test_a_strangers_study_acts_on_no_terminal(study: StudyFolder, verb: str) -> None:
    """Whatever text of its records is hostile; names of models are refused."""
    content = content_of(study.study_file)
    content["warnings"] = [ALL]
    content["scores"]["files"] = {ALL: "0" * 64}
    content["scores"]["columns"] = {"item": ALL}
    for run in content["models"]:
        run |= {"alpha_labels": [ALL], "rate_labels": [ALL]}
    change(study.study_file, **content)
    _, printed = printed_by(verb, study.root)
    assert acting(printed) == ""
    content["models"][0]["called"] = f"r8{ALL}"
    change(study.study_file, **content)
    code, printed = printed_by(verb, study.root)
    assert (code != 0, acting(printed)) == (True, "")
    assert "called" in printed


def test_a_strangers_study_in_a_terminal_of_its_own(study: StudyFolder) -> None:
    change(study.study_file, warnings=[ALL])
    code, printed = in_terminal("report", study.root)
    assert (code, acting(printed)) == (0, "")
    assert "\x1b[1m" in printed  # our own codes are there
    page = study.report_file.read_text(encoding="utf-8")
    assert visible(page) == page
    assert "\\u202e" in page


@pytest.mark.parametrize("verb", ["status", "report", "export", "verdict"])
def test_the_name_of_a_folder(study: StudyFolder, tmp_path: Path, verb: str) -> None:
    place = hostile_folder(tmp_path, ALL) / "study"
    study.root.rename(place)
    options = ("--format", "csv") if verb == "export" else ()
    code, printed = printed_by(verb, place, *options)
    assert (code, acting(printed)) == (2, "")  # refused before any work


@pytest.mark.parametrize(
    "arguments",
    [
        [ALL],
        ["run", f"--{ALL}"],
        ["export", "x", "--format", ALL],
        ["status", ALL],
        ["verdict", f"{ALL}.csv"],
        ["plan", f"{ALL}=1"],
        ["tasks", ALL],
        ["extend", "x", "--seeds", ALL],
        ["lm-eval", "--tasks", ALL.replace("\0", "")],
        ["init", "--preset", ALL],
    ],
    ids=lambda arguments: arguments[0][:8],
)
@pytest.mark.usefixtures("no_index")
def test_what_was_typed(arguments: list[str]) -> None:
    code, printed = printed_by(*arguments)
    assert (code != 0, acting(printed)) == (True, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "x", "--format", "{url}"],
        ["extend", "x", "--seeds", "{url}"],
        ["status", "x", "--port", "{url}"],
        ["run", "--{url}"],
        ["{url}"],
        ["tasks", "{url}"],
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.usefixtures("no_index")
def test_a_password_in_a_wrong_option_is_not_said(arguments: list[str], as_json: bool) -> None:
    _, printed = printed_by(*with_password(arguments, as_json))
    assert "hunter2" not in printed


def test_a_password_is_not_said_by_the_process_itself() -> None:
    given = with_password(["run", "--{url}"], as_json=False)
    done = subprocess.run(
        [sys.executable, "-m", "rankwise", *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "hunter2" not in done.stdout + done.stderr


def with_password(arguments: list[str], as_json: bool) -> list[str]:
    url = "http://carol:hunter2@proxy.example/x"
    return [*(each.format(url=url) for each in arguments), *(["--json"] * as_json)]


@pytest.mark.parametrize("way", [print_by_hand, write_lines, warn, log, fail])
def test_what_libraries_and_tracebacks_print(way: Callable[[], None]) -> None:
    code = (
        "from rankwise.study.printer import guard_streams; guard_streams()\n"
        f"from tests.support.terminal import {way.__name__}; {way.__name__}()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    printed = (done.stdout + done.stderr).decode()
    assert "\\u202e" in printed
    assert acting(printed) == ""


def test_a_bar_of_tqdm_is_drawn_again_and_its_name_does_not_act() -> None:
    written = io.StringIO()
    guarded = Guarded(written)
    for text in (f"\r{ALL}: 50%", "\n", "\x1b[A", "\x1b[A\x1b[A", f"\x1b[A{ALL}"):
        guarded.write(text)
    lines = written.getvalue()
    assert lines.startswith("\r<\\x1b]0;title\\x07>")
    assert lines.count("\x1b") == 3
    assert not hasattr(guarded, "buffer")


def printed(show: Callable[[Printer], Any]) -> str:
    written = io.StringIO()
    show(Printer(file=written, force_terminal=True, width=60))
    return written.getvalue()


def a_table() -> Table:
    made = Table(title=ALL, caption=Text(ALL))
    made.add_column(ALL)
    made.add_column(Text(ALL), overflow="fold")
    made.add_row(ALL, Text(ALL, style="bold"))
    return made


def follow(console: Printer) -> None:
    outline = StageOutline("t", "training", ALL, ALL, 10.0, 10, 10.0)
    with TerminalObserver(console) as observer:
        tell = Teller(observer, lambda: 0)
        tell.planned([outline])
        tell.stage_started("t")
        tell.advanced(5.0)
        observer(Noted(ALL, "t"))
        observer(Decided(ALL))
        print(f"{ALL}\x1b]8;;https://example.com\x1b\\here\x1b]8;;\x1b\\")
        tell.stage_finished()
    QuietObserver(console)(Noted(ALL))


@pytest.mark.parametrize(
    "show",
    [
        lambda console: console.print(ALL, "[red]x[/red]", a_table(), sep=ALL, end=ALL),
        lambda console: console.print(Text.assemble((ALL, "red"), ALL)),
        lambda console: console.out(ALL),
        lambda console: console.rule(ALL),
        lambda console: console.log(ALL),
        lambda console: console.status(ALL).__enter__().stop(),
        follow,
    ],
    ids=["print", "text", "out", "rule", "log", "status", "progress"],
)
def test_no_way_leads_past_the_printer(show: Callable[[Printer], Any]) -> None:
    assert "\\x1b" in printed(show)
    assert acting(printed(show)) == ""


def test_an_error_hides_nothing_wherever_it_is_shown() -> None:
    for error in (DataError(ALL), ConfigError(ALL, [ALL])):
        assert visible(str(error)) == str(error)
        assert "\\u202e" in str(error)
