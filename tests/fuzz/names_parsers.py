"""Names that others choose, of models, tasks, kinds, studies and folders, through the verbs.

Whatever they are, a verb ends in a result or a sentence, nothing of them acts on a terminal, and
nothing hidden stands in the pages, tables and Markdown that are made.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from rankwise.errors import visible
from rankwise.records.files import sealed
from rankwise.records.folder import StudyFolder
from tests.fuzz.strategies import NASTY_TEXTS
from tests.planted.score_tables import write_csv
from tests.support.command_line import rankwise
from tests.support.terminal import HARMLESS, HOSTILE, acting, hostile_folder, printed_by

_MARKS = (
    *("<script>alert(1)</script>", "&amp;", "`", "|", "=1+1", "@x", "-1", "{{x}}", "'", '"', "\\"),
    *("../x", "/", "$(x)", "r8_s0", "rank 16", "base", "\ud800", "*", "_", "#", "\n", "\r\n", "\t"),
)
_FIXED = (*HOSTILE, *HARMLESS, *_MARKS, *NASTY_TEXTS)

names = st.one_of(
    st.sampled_from(_FIXED),
    st.lists(st.sampled_from(_FIXED) | st.text(max_size=4), min_size=1, max_size=4).map("".join),
    st.text(max_size=12),
)
"""Mostly of what acts somewhere: on a terminal, in HTML, Markdown, CSV, a path or a pattern."""

_SHOWN = ("html", "md", "tex", "csv", "svg")
"""Endings of files in which a hidden character could act."""


def _clean(folder: Path) -> None:
    """Nothing hidden stands in what was made, and no cell of a table is a formula."""
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix[1:] in _SHOWN:
            text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
            assert visible(text) == text, f"{path.name} has {_around(text)!a}"
            if path.suffix == ".csv":
                cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
                assert not [cell for cell in cells if cell[:1] in ("=", "@", "\t")], path.name


def _around(text: str) -> str:
    start = next(i for i, (a, b) in enumerate(zip(text, visible(text), strict=False)) if a != b)
    return text[max(start - 40, 0) : start + 40]


def said(*arguments: object) -> int:
    """The exit code of a verb, whose print does not act."""
    code, printed = printed_by(*arguments)
    assert acting(printed) == "", acting(printed)
    assert "Traceback" not in printed
    assert code in (0, 1, 2), printed
    return code


_VIEWS = (
    ("status",),
    ("verdict",),
    ("report",),
    ("plan",),
    ("export", "--format", "csv"),
    ("export", "--format", "markdown"),
    ("export", "--format", "latex"),
)


_Shown = tuple[str, ...]
_shown = st.sampled_from(_VIEWS)


def _show(root: Path, view: _Shown) -> None:
    verb, *options = view
    said(verb, root, *options)
    _clean(root)


def read_table(folder: Path, drawn: tuple[list[str], str, str, str, _Shown]) -> None:
    """A table with such models, a task, a kind of item and a column; kept as a study and shown."""
    models, task, kind, column, view = drawn
    path = folder / "scores.jsonl"
    rows = [
        {
            "id": f"q{number}", "model": model, "task": task, column or "x": kind,
            "acc": int(number % (place + 2) == 0),
        }
        for number in range(12)
        for place, model in enumerate(["base", *models])
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    output = folder / "study"
    if said("verdict", path, "--output", output, "--slice", column or "x") == 0:
        _show(output, view)


def read_log(folder: Path, drawn: tuple[str, str, str, _Shown]) -> None:
    """Logs of Inspect's of two models on a task."""
    task, *models, view = drawn
    files: list[Path] = []
    for place, model in enumerate(models):
        samples = [
            {"id": n, "epoch": 1, "scores": {"match": {"value": "CI"[(n + place) % 2]}}}
            for n in range(12)
        ]
        content = {"status": "success", "eval": {"task": task, "model": model}, "samples": samples}
        files.append(folder / f"{place}.json")
        files[-1].write_text(json.dumps(content))
    output = folder / "study"
    if said("verdict", *files, "--base", models[0], "--output", output) == 0:
        _show(output, view)


@cache
def _scored() -> dict[str, str]:
    """Name -> text of every record of a small study of scores."""
    with tempfile.TemporaryDirectory() as place:
        rows = [
            {"id": f"q{number}", "model": model, "acc": int(number % (index + 2) == 0)}
            for number in range(12)
            for index, model in enumerate(["base", "r8", "r16"])
        ]
        path, root = write_csv(Path(place, "scores.csv"), rows), Path(place, "study")
        assert rankwise("verdict", path, "--output", root).exit_code == 0
        files = (*root.rglob("*.json"), *root.rglob("*.jsonl"))
        return {path.relative_to(root).as_posix(): path.read_text() for path in files}


def _write_scored(root: Path, changed: dict[str, str]) -> StudyFolder:
    for name, text in (_scored() | changed).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    return StudyFolder(root)


def read_record(folder: Path, drawn: tuple[str, int, str, _Shown]) -> None:
    """A stranger's study, in which one text of a record is such a name."""
    ending, place, name, view = drawn
    record = next(each for each in sorted(_scored()) if each.endswith(ending))
    content = json.loads(_scored()[record])
    del content["checksum"]
    texts = list(_texts(content))
    holder, key = texts[place % len(texts)]
    holder[key] = name
    _write_scored(folder / "study", {record: sealed(json.dumps(content, indent=2))})
    _show(folder / "study", view)


def _texts(content: Any) -> Iterator[tuple[Any, Any]]:
    keys = content.keys() if isinstance(content, dict) else range(len(content))
    for key in list(keys):
        if isinstance(content[key], str):
            yield content, key
        elif isinstance(content[key], dict | list):
            yield from _texts(content[key])


def read_folder(folder: Path, drawn: tuple[str, _Shown]) -> None:
    """A study in a folder of such a name."""
    name, view = drawn
    try:
        place = hostile_folder(folder, name[:60])
    except (OSError, ValueError):
        return  # the file system has no such name
    _show(_write_scored(place / "study", {}).root, view)


def read_settings(folder: Path, drawn: tuple[str, str, list[str]]) -> None:
    """A study file and a task file with such names, and a command line."""
    study, task, typed = drawn
    (folder / "tasks").mkdir()
    (folder / "tasks" / "own.yaml").write_text(json.dumps({"task": task, "description": study}))
    content = {"name": study, "base_model": task, "train": {"task": task}, "tasks_path": "tasks"}
    (folder / "study.yaml").write_text(json.dumps(content))
    said("plan", folder / "study.yaml")
    said("tasks", "--tasks-path", folder / "tasks")
    given = [each.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for each in typed]
    if not {"-", "--"} & {each[:1] for each in given}:  # options may name files that are written
        said("status", *given)
        said("export", folder, "--format", *given)


Reader = Callable[[Path, Any], None]

PARSERS: dict[str, tuple[Reader, st.SearchStrategy[Any], int]] = {
    "names in a table": (
        read_table,
        st.tuples(st.lists(names, min_size=1, max_size=3), names, names, names, _shown),
        10,
    ),
    "names in a log": (read_log, st.tuples(names, names, names, _shown), 8),
    "names in a stranger's study": (
        read_record,
        st.tuples(
            st.sampled_from(["study.json", "study.json", "run.json", "eval/scores.json"]),
            st.integers(0, 10_000),
            names,
            _shown,
        ),
        10,
    ),
    "names of a folder": (read_folder, st.tuples(names, _shown), 8),
    "names in settings": (
        read_settings,
        st.tuples(names, names, st.lists(names, min_size=1, max_size=2)),
        8,
    ),
}
