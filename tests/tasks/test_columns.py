"""Files as exports, hubs and sheets have them: which column is what, and in which encoding."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models.loading import load_tokenizer
from rankwise.errors import DataError
from rankwise.records.config.own_rows import ColumnsConfig
from rankwise.tasks.columns import guess
from rankwise.tasks.own_rows import OwnRows, read_own_rows, rows_kept
from rankwise.tasks.row_files import read_raw_rows
from tests.support.command_line import rankwise
from tests.support.sentences import Sentences

NUMBER = 40
_RNG = random.Random(0)
KINDS = ("billing", "bug", "refund")
WORDS = ("please", "help", "my", "app", "is", "slow", "again")
TEXT = [" ".join(_RNG.choices(WORDS, k=12)) for _ in range(99)]
KIND = [_RNG.choice(KINDS) for _ in range(NUMBER)]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def sheet(head: Sequence[str], cells: Callable[[int], Sequence[Any]], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    written = csv.writer(file, delimiter=delimiter)
    written.writerow(head)
    written.writerows(cells(i) for i in range(NUMBER))
    return file.getvalue()


def read(path: Path, tokenizer: Any, **columns: str) -> OwnRows:
    wanted = ColumnsConfig(**columns) if columns else None
    return read_own_rows(path, tokenizer, chat_template=False, columns=wanted)


def roles(own: OwnRows) -> dict[str, str]:
    (found,) = own.columns
    return found.columns


def tickets(i: int) -> Sequence[Any]:
    return f"T-{i}", f"2026-01-{i % 28 + 1:02d}T10:00", TEXT[i], KIND[i]


@pytest.mark.parametrize(
    ("head", "cells", "found", "is_guess"),
    [
        (("text", "label"), lambda i: (TEXT[i], KIND[i]), ("text", "label"), False),
        (("Text", "Category "), lambda i: (TEXT[i], KIND[i]), ("Text", "Category"), True),
        (("sentence", "label"), lambda i: (TEXT[i], i % 2), ("sentence", "label"), False),
        (("id", "text", "intent"), lambda i: (i, TEXT[i], KIND[i]), ("text", "intent"), False),
        (("Prompt", "Completion"), lambda i: (TEXT[i], KIND[i]), ("Prompt", "Completion"), False),
        (("Question", "ANSWER"), lambda i: (TEXT[i], KIND[i]), ("Question", "ANSWER"), False),
        (("Frage", "Antwort"), lambda i: (TEXT[i], TEXT[i + 9]), ("Frage", "Antwort"), True),
        (("query", "reply"), lambda i: (TEXT[i], TEXT[i + 9]), ("query", "reply"), True),
        (("User Message", "Assistant Message"), lambda i: (TEXT[i], TEXT[i + 9]),
         ("User Message", "Assistant Message"), True),
        (("ticket_id", "created_at", "subject_and_body", "queue"), tickets,
         ("subject_and_body", "queue"), True),
    ],
)  # fmt: skip
def test_one_reading_is_clear(
    tmp_path: Path,
    tokenizer: Any,
    head: Sequence[str],
    cells: Callable[[int], Sequence[Any]],
    found: tuple[str, str],
    is_guess: bool,
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(sheet(head, cells))
    own = read(path, tokenizer)
    assert roles(own) == {"prompt": found[0], "completion": found[1]}
    assert (own.guessed is not None) == is_guess
    raw = read_raw_rows(path).rows[0].content
    assert own.rows[0].completion.strip() == str(raw[found[1]])
    # what was guessed gives the same rows where it is said
    if own.needs_columns:
        assert own.rows == read(path, tokenizer, prompt=found[0], completion=found[1]).rows


def test_several_readings_are_refused_with_a_finished_command(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        sheet(
            ("title", "the body", "priority", "team"),
            lambda i: (TEXT[i][:9] + str(i), TEXT[i], ("low", "high")[i % 2], KIND[i]),
        )
    )
    with pytest.raises(DataError) as caught:
        read(path, tokenizer)
    sentence(caught.value, names=("--column 'prompt=the body' --column completion=team",))
    own = read(path, tokenizer, prompt="the body", completion="team")
    assert own.rows[0].completion == KIND[0]


def test_what_nothing_tells_is_not_guessed() -> None:
    numbers = [{"a": str(i), "b": f"{i / 7}"} for i in range(NUMBER)]
    assert guess(numbers) is None
    assert guess([{"body": TEXT[i], "kind": KIND[i]} for i in range(5)]) is None
    assert guess([{"body": "always", "kind": KIND[i]} for i in range(NUMBER)]) is None
    # names of rows are no text
    assert guess([{"key": f"k{i}", "kind": KIND[i]} for i in range(NUMBER)]) is None


def test_nested_columns_are_named_with_dots(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"id": i, "input": {"question": TEXT[i]}, "result": {"answer": KIND[i]}}
        for i in range(NUMBER)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    own = read(path, tokenizer)
    assert roles(own) == {"prompt": "input.question", "completion": "result.answer"}
    assert own.rows == read(path, tokenizer, **roles(own)).rows


@pytest.mark.parametrize("name", ["data", "examples"])
def test_a_list_of_rows_within_an_object(tmp_path: Path, tokenizer: Any, name: str) -> None:
    rows = [{"question": TEXT[i], "answer": [KIND[i]]} for i in range(NUMBER)]
    path = tmp_path / "rows.json"
    for indent in (None, 1):
        path.write_text(json.dumps({"version": "1.0", name: rows}, indent=indent))
        own = read(path, tokenizer)
        assert own.raw.format == "JSON"
        assert [row.completion.strip() for row in own.rows[:3]] == KIND[:3]


def test_several_lists_within_an_object(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    rows = [{"question": TEXT[i], "answer": KIND[i]} for i in range(NUMBER)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": rows, "test": rows}, indent=1))
    with pytest.raises(DataError) as caught:
        read(path, tokenizer)
    sentence(caught.value, names=("train", "test"))


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-8", "CSV"), ("utf-8-sig", "CSV"), ("utf-16", "CSV in UTF-16"),
     ("utf-16-be", None), ("cp1252", "CSV in Windows-1252")],
)  # fmt: skip
def test_encodings(tmp_path: Path, tokenizer: Any, encoding: str, named: str | None) -> None:
    path = tmp_path / "rows.csv"
    text = sheet(("prompt", "completion"), lambda i: (f"{TEXT[i]} „äé€“", f"{KIND[i]} ü"))
    path.write_bytes(text.encode(encoding))
    if named is None:  # without the bytes that say it
        with pytest.raises(DataError):
            read(path, tokenizer)
        return
    own = read(path, tokenizer)
    assert own.raw.format == named
    assert own.rows[0].prompt == f"{TEXT[0]} „äé€“"
    assert own.rows[0].completion == f"{KIND[0]} ü"


def test_bytes_of_another_kind_are_no_text_of_windows(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,completion\n\xe9\x01,b\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read(path, tokenizer)
    path.write_bytes("prompt,completion\na,b\n".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="UTF-16"):
        read(path, tokenizer)


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        sheet(("prompt", "completion"), lambda i: (f"{TEXT[i]} {i}", "" if i % 8 == 0 else KIND[i]))
    )
    own = read(path, tokenizer)
    assert (own.num_without_answer, len(own.rows)) == (5, NUMBER - 5)
    path.write_text(sheet(("prompt", "completion"), lambda i: (TEXT[i], " ")))
    with pytest.raises(DataError, match="is empty"):
        read(path, tokenizer)


def test_a_guess_is_said_before_training_and_kept_in_the_study_file(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(
        sheet(("Frage", "Antwort"), lambda i: (f"{TEXT[i]} {i}", KIND[i]), ";"), encoding="cp1252"
    )
    monkeypatch.setattr("rankwise.cli.try_verb.is_terminal", lambda _: True)
    done = rankwise("try", "rows.csv", "--model", tiny_model_folder, typed="n\n")
    assert done.exit_code == 2, done.output
    said = " ".join(done.stdout.split())
    assert "by a guess: prompt = Frage, completion = Antwort" in said
    assert ">>" in said  # rows as the model reads them
    sentence(
        " ".join(done.stderr.split()).partition("ConfigError")[2],
        names=("--column prompt=Frage --column completion=Antwort",),
    )
    assert not (tmp_path / "studies" / "rows" / "study.yaml").exists()
    monkeypatch.setattr("rankwise.cli.try_verb.run_and_report", lambda find, **_: find(None) and 0)
    done = rankwise("try", "rows.csv", "--model", tiny_model_folder, "--yes")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "studies" / "rows" / "study.yaml").read_text()
    assert "prompt: Frage" in text


def test_rows_are_read_once_while_they_are_kept(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(sheet(("prompt", "completion"), lambda i: (f"{TEXT[i]} {i}", KIND[i])))
    with rows_kept():
        first = read(path, tokenizer)
        with rows_kept():
            assert read(path, tokenizer) is first
        assert read(path, tokenizer, prompt="prompt", completion="completion") is not first
        path.write_text(sheet(("prompt", "completion"), lambda i: (f"{TEXT[i]} {i}!", KIND[i])))
        assert read(path, tokenizer).rows[0].prompt.endswith("!")
    assert read(path, tokenizer) is not read(path, tokenizer)


def _rows(**columns: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [{name: cell(i) for name, cell in columns.items()} for i in range(NUMBER)]


SPLITS = ("train", "test", "dev")
UNCLEAR: dict[str, list[dict[str, Any]]] = {
    "a source": _rows(
        source=lambda i: "reddit", post=TEXT.__getitem__, response=lambda i: TEXT[i + 9]
    ),
    "nothing asked": _rows(
        input=lambda i: "", document=TEXT.__getitem__, target=lambda i: TEXT[i + 9]
    ),
    "a number for a label": _rows(
        comment=TEXT.__getitem__, toxic=lambda i: i % 2, split=lambda i: SPLITS[i % 3]
    ),
    "stars beside yes and no": _rows(
        review_body=TEXT.__getitem__, star_rating=lambda i: i % 5, verified=lambda i: i % 2 == 0
    ),
    "a language": _rows(body=TEXT.__getitem__, lang=lambda i: ("en", "de")[i % 2]),
    "a class that few rows have": _rows(
        body=TEXT.__getitem__, kind=lambda i: KIND[i] if i < 9 else None
    ),
    "a header without a name": [
        {"": i, "Kategorie\n(neu)": KIND[i], "body": TEXT[i]} for i in range(NUMBER)
    ],
}  # fmt: skip


@pytest.mark.parametrize("rows", UNCLEAR.values(), ids=UNCLEAR)
def test_what_may_be_otherwise_is_not_guessed(rows: list[dict[str, Any]]) -> None:
    found = guess(rows)
    assert found is None or not found.is_clear


CORPORA: dict[str, list[dict[str, Any]]] = {
    "a score of quality": _rows(text=TEXT.__getitem__, score=lambda i: f"{i / 7:.3f}"),
    "an id": _rows(text=TEXT.__getitem__, category=lambda i: f"topic {i}"),
    "a label that few rows have": _rows(
        text=TEXT.__getitem__, label=lambda i: KIND[i] if i < 9 else ""
    ),
}


@pytest.mark.parametrize("rows", CORPORA.values(), ids=CORPORA)
def test_a_corpus_is_no_classification(
    tmp_path: Path, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert {each.convention for each in read(path, tokenizer).columns} == {"text"}


@pytest.mark.parametrize(("name", "is_asked"), [("label", False), ("category", True)])
def test_a_category_may_be_what_a_corpus_says(
    tmp_path: Path, tokenizer: Any, name: str, is_asked: bool
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(sheet(("text", name), lambda i: (TEXT[i], KIND[i])))
    own = read(path, tokenizer)
    assert (own.guessed is not None) == is_asked
    assert not own.needs_columns
    assert (own.rows[0].prompt, own.rows[0].completion) == (f"{TEXT[0]}\nLabel:", f" {KIND[0]}")


@pytest.mark.parametrize("text", ["вопрос,ответ\nПривет мир,да\n", "質問,答え\nこんにちは,はい\n"])
def test_other_alphabets_are_not_taken_for_western_ones(
    tmp_path: Path, tokenizer: Any, text: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode("cp1251" if "в" in text else "shift_jis"))
    with pytest.raises(DataError, match="not UTF-8"):
        read(path, tokenizer)


def test_a_row_with_a_list_of_objects_is_a_row(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": "a", "completion": "b", "refs": [{"u": 1}]}
    for name in ("rows.jsonl", "rows.json"):
        path = tmp_path / name
        path.write_text(json.dumps(row))
        assert [each.completion for each in read(path, tokenizer).rows] == ["b"]
