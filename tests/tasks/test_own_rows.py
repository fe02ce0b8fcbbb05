"""The files that people have: every convention and format, and what is said of a bad row."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from pyarrow import parquet

from rankwise.engine.models.loading import load_tokenizer
from rankwise.errors import DataError
from rankwise.records.config.own_rows import ColumnsConfig, HubData, data_name, hub_data
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.tasks.own_rows import OwnRows, read_own_rows
from rankwise.tasks.row_files import read_raw_rows
from tests.support.sentences import Sentences

END = "<|im_end|>"
ASSISTANT = "<|im_start|>assistant\n"

Turns = list[dict[str, str]]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def asked(question: str, system: str = "") -> str:
    """The prompt in the tiny model's chat format."""
    before = f"<|im_start|>system\n{system}{END}\n" if system else ""
    return f"{before}<|im_start|>user\n{question}{END}\n{ASSISTANT}"


def written(path: Path, content: Any) -> Path:
    """Rows as JSON Lines, or text or bytes as they are."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        is_text = isinstance(content, str)
        text = content if is_text else "".join(f"{json.dumps(row)}\n" for row in content)
        path.write_text(text, encoding="utf-8", newline="")
    return path


def read(path: Path, tokenizer: Any, *, chat: bool = True, **columns: str) -> OwnRows:
    wanted = ColumnsConfig(**columns) if columns else None
    return read_own_rows(path, tokenizer, chat_template=chat, columns=wanted)


def pairs(own: OwnRows) -> list[tuple[str, str]]:
    return [(row.prompt, row.completion) for row in own.rows]


def problem_of(path: Path, tokenizer: Any, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, tokenizer, **settings)
    return str(caught.value)


def shared_gpt(*turns: tuple[str, str]) -> dict[str, Turns]:
    return {"conversations": [{"from": who, "value": what} for who, what in turns]}


THREE = (("1+1?", "2"), ("2+2?", "4"), ("3+3?", "6"))
CONVENTIONS: dict[str, list[dict[str, Any]]] = {
    "prompt and completion": [{"prompt": q, "completion": a} for q, a in THREE],
    "messages": [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in THREE
    ],
    "instruction and output": [{"instruction": q, "input": "", "output": a} for q, a in THREE],
    "conversations": [shared_gpt(("human", q), ("gpt", a)) for q, a in THREE],
    "question and answer": [{"question": q, "answer": a} for q, a in THREE],
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_convention_gives_the_same_conversations(
    tmp_path: Path, tokenizer: Any, convention: str
) -> None:
    own = read(written(tmp_path / "rows.jsonl", CONVENTIONS[convention]), tokenizer)
    assert pairs(own) == [(asked(q), a) for q, a in THREE]
    assert {row.end for row in own.rows} == {END}
    (columns,) = own.columns
    assert (columns.convention, columns.num_rows, columns.unread) == (convention, 3, ())


def test_a_text_is_learned_whole_and_gets_no_template(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": "Once."}, {"text": "Twice."}, {"text": "Thrice."}]
    own = read(written(tmp_path / "rows.jsonl", rows), tokenizer)
    assert pairs(own) == [("", "Once."), ("", "Twice."), ("", "Thrice.")]
    assert own.columns[0].columns == {"completion": "text"}


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3"},
            "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n",
            "3",
        ),
        ({"instruction": "Add.", "output": "3"}, "### Instruction:\nAdd.\n\n### Response:\n", "3"),
        (
            {"instruction": "Add.", "output": "3", "system": "Be brief."},
            "Be brief.\n\n### Instruction:\nAdd.\n\n### Response:\n",
            "3",
        ),
        ({"question": "1+2?", "answer": "3"}, "Question: 1+2?\nAnswer:", " 3"),
        ({"question": "1+2?", "answer": 3}, "Question: 1+2?\nAnswer:", " 3"),
        ({"prompt": "1+2=", "completion": "3"}, "1+2=", "3"),
    ],
)
def test_without_a_chat_template(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any], prompt: str, completion: str
) -> None:
    path = written(tmp_path / "rows.jsonl", [row])
    assert pairs(read(path, tokenizer, chat=False)) == [(prompt, completion)]


def test_an_input_goes_below_its_instruction_and_a_system_before_it(
    tmp_path: Path, tokenizer: Any
) -> None:
    row = {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Be brief."}
    own = read(written(tmp_path / "rows.jsonl", [row]), tokenizer)
    assert pairs(own) == [(asked("Add.\n\n1, 2", "Be brief."), "3")]
    assert own.columns[0].columns == {
        "prompt": "instruction",
        "completion": "output",
        "input": "input",
        "system": "system",
    }


@pytest.mark.parametrize(
    "row",
    [
        shared_gpt(("system", "Be brief."), ("human", "1+2?"), ("gpt", "3")),
        shared_gpt(("system", "Be brief."), ("user", "1+2?"), ("assistant", "3")),
        shared_gpt(("human", "1+2?"), ("gpt", "3")) | {"system": "Be brief."},
        {
            "conversations": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "1+2?"},
                {"role": "assistant", "content": "3"},
            ]
        },
    ],
)
def test_conversations_with_a_system_turn(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any]
) -> None:
    own = read(written(tmp_path / "rows.jsonl", [row]), tokenizer)
    assert pairs(own) == [(asked("1+2?", "Be brief."), "3")]


FILES: list[tuple[str, str | bytes, str]] = [
    ("list.json", '[{"question": "q", "answer": "a"},\n {"question": "r", "answer": "b"}]', "JSON"),
    ("list.jsonl", '\n [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]',
     "JSON"),
    ("lines.json", '{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b"}\n',
     "JSON Lines"),
    ("rows.txt", '{"question": "q", "answer": "a"}\n\n{"question": "r", "answer": "b"}',
     "JSON Lines"),
    ("comma.csv", "question,answer\nq,a\nr,b\n", "CSV"),
    ("semicolon.csv", "\ufeffquestion;answer\r\nq;a\r\n\r\nr;b\r\n", "CSV"),
    ("tab.tsv", "question\tanswer\nq\ta\nr\tb", "CSV"),
    ("quoted.CSV", '"question", answer\n"q","a"\nr,b\n', "CSV"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "kind"), FILES, ids=[name for name, _, _ in FILES])
def test_every_format(tmp_path: Path, tokenizer: Any, name: str, content: str, kind: str) -> None:
    own = read(written(tmp_path / name, content), tokenizer)
    assert pairs(own) == [(asked("q"), "a"), (asked("r"), "b")]
    assert (own.raw.source, own.raw.format, own.raw.revision) == (name, kind, None)


def test_cells_keep_lines_delimiters_quotes_and_size(tmp_path: Path, tokenizer: Any) -> None:
    long = "x" * 1_000_000
    text = f'question,answer\n"one, ""two""\nthree",{long}\n'
    own = read(written(tmp_path / "rows.csv", text), tokenizer)
    assert pairs(own) == [(asked('one, "two"\nthree'), long)]


def test_a_line_of_a_megabyte(tmp_path: Path, tokenizer: Any) -> None:
    row = {"question": "q" * 1_000_000, "answer": "a"}
    assert pairs(read(written(tmp_path / "rows.jsonl", [row]), tokenizer)) == [
        (asked("q" * 1_000_000), "a")
    ]


def test_parquet_with_conversations_and_cells_that_are_nothing(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    path = tmp_path / "rows.parquet"
    rows = [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
         "system": None, "id": 1},
        {"conversations": [{"from": "human", "value": "r"}, {"from": "gpt", "value": "b"}],
         "system": "Be brief.", "id": 2},
    ]  # fmt: skip
    Dataset.from_list(rows).to_parquet(path)
    own = read(path, tokenizer)
    assert pairs(own) == [(asked("q"), "a"), (asked("r", "Be brief."), "b")]
    assert own.columns[0].unread == ("id",)
    path.write_bytes(path.read_bytes()[:-10])
    assert "rows.parquet cannot be read: " in problem_of(path, tokenizer)
    sentence(problem_of(path, tokenizer), names=(path,), LIBRARY=LIBRARY)


MANY = {
    "rows.jsonl": '\n{"question": "q", "answer": "a"}\n',
    "rows.csv": "q,a\n",
    "rows.json": '{"question": "q", "answer": "a"},',
}


@pytest.mark.parametrize("name", MANY)
def test_more_rows_than_are_read(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str, sentence: Sentences
) -> None:
    monkeypatch.setattr("rankwise.tasks.row_files.MOST_ROWS", 3)
    before, after = {"csv": ("question,answer\n", ""), "json": ("[", "]")}.get(name[5:], ("", ""))
    for number in (3, 4):
        text = (MANY[name] * number).removesuffix(",")
        written(tmp_path / name, f"{before}{text}{after}")
        if number == 3:
            assert len(read(tmp_path / name, tokenizer).raw.rows) == 3
    sentence(problem_of(tmp_path / name, tokenizer), "first", names=(name,))
    monkeypatch.setattr("rankwise.tasks.row_files.MOST_BYTES", 20)
    sentence(problem_of(tmp_path / name, tokenizer), "0.0", names=("0.0", tmp_path / name))


def once(text: str, number: int) -> Any:
    """A column of so many texts, of which a Parquet file holds one."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * number, "int32"), [text])


def test_a_small_parquet_file_of_many_rows_or_large_cells(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    path = tmp_path / "rows.parquet"
    for text, number, limit in (("q", 1_000_001, "1,000,000"), ("q" * 3_000_000, 500, "1.1 GB")):
        column = once(text, number)
        table = pyarrow.table({"question": column, "answer": column})
        parquet.write_table(table, path, compression="zstd")
        assert path.stat().st_size < 100_000
        sentence(problem_of(path, tokenizer), limit, names=("rows.parquet", limit))


def test_a_row_that_is_too_long(tmp_path: Path, tokenizer: Any) -> None:
    turns = shared_gpt(("human", "q" * 2_000_000), ("gpt", "a"))
    problem = problem_of(written(tmp_path / "rows.jsonl", [turns]), tokenizer)
    assert re.search(r"line 1: has 2,0\d\d,\d\d\d characters, and at most 2,000,000 are", problem)


LIBRARY = r"(?<=cannot be read: ).*(?=\. Save it)"
"""What pyarrow says, in words of its version."""


@pytest.mark.parametrize(
    "times",
    [
        pyarrow.array([2**62], pyarrow.timestamp("us")),
        pyarrow.array([2**40], pyarrow.timestamp("s", "Europe/Berlin")),
        pyarrow.array([1], pyarrow.timestamp("s", "No/Where")),
        pyarrow.array([2**31 - 1], pyarrow.date32()),
        pyarrow.array([2**62], pyarrow.duration("s")),
        pyarrow.array([2**62], pyarrow.time64("us")),
    ],
    ids=lambda times: str(times.type),
)
def test_times_beyond_all(tmp_path: Path, tokenizer: Any, times: Any, sentence: Sentences) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"question": ["q"], "answer": ["a"], "at": times}), path)
    problem = problem_of(path, tokenizer)
    sentence(problem, names=(path,), LIBRARY=LIBRARY)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the library reads where it would fetch ``org/rows``."""
    folder = tmp_path / "org" / "rows"
    folder.mkdir(parents=True)
    features = Features({"question": Value("string"), "answer": ClassLabel(names=["no", "yes"])})
    for split, labels in (("train", [1, 0, 1]), ("test", [0])):
        rows = [{"question": f"{split} {n}", "answer": label} for n, label in enumerate(labels)]
        Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return folder


def test_a_data_set_of_the_hub_is_read_at_one_revision(
    hub: Path, tokenizer: Any, sentence: Sentences
) -> None:
    own = read(Path("org/rows"), tokenizer)
    assert pairs(own) == [
        (asked("train 0"), "yes"),
        (asked("train 1"), "no"),
        (asked("train 2"), "yes"),
    ]
    assert own.raw.format == "Hub"
    assert own.raw.revision
    assert own.raw.source == f"org/rows:default@{own.raw.revision}/train"
    assert pairs(read(Path("org/rows/test"), tokenizer)) == [(asked("test 0"), "no")]
    message = problem_of(Path("org/rows/tset"), tokenizer)
    sentence(message, names=("tset",))


def test_name_configuration_and_revision_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    asked_for: list[Any] = []

    def refuse(*arguments: Any, **settings: Any) -> None:
        asked_for.append((arguments, settings))
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    with pytest.raises(DataError) as caught:
        read_raw_rows(Path("org/rows:main@abc/test"))
    sentence(caught.value)
    assert asked_for == [(("org/rows", "main"), {"revision": "abc"})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/rows", HubData("org/rows")),
        ("org/rows:main", HubData("org/rows", "main")),
        ("org/rows@abc/train", HubData("org/rows", None, "abc", "train")),
        ("org/rows:main@abc/train", HubData("org/rows", "main", "abc", "train")),
        ("rows.jsonl", None),
        ("rows", None),
        ("folder/rows.csv", None),
        ("/org/rows", None),
        ("../org/rows", None),
    ],
)
def test_what_is_a_file_and_what_a_data_set(text: str, expected: HubData | None) -> None:
    assert hub_data(Path(text)) == expected
    if expected is not None:
        assert str(expected) == text
        assert data_name(Path(text)) == "rows"


Problem = tuple[str, Any, str]
PROBLEMS: list[Problem] = [
    ("rows.csv", "instruction,output\na,\n",
     'row 1: column "output" is empty; give an answer or drop the row'),
    ("rows.csv", "instruction,output\n ,b\n",
     'row 1: column "instruction" is empty; write a question or drop the row'),
    ("rows.csv", "question;answer\na;b;c\n",
     "row 1: has 3 cells and the header 2; put quotes around cells that contain ';', and give"),
    ("rows.csv", 'prompt, completion\n"a", "b"\n', "row 1: has a space before a quote"),
    ("rows.csv", "question,answer\na\n", "row 1: has 1 cells and the header 2; put quotes"),
    ("rows.csv", "a,b\n1,2\n", "row 1: has a, b; needs prompt and completion, messages, instr"),
    ("rows.csv", "messages\nhello\n", 'row 1: column "messages" must be a list of objects with'),
    ("rows.jsonl", [{"text": "t", "prompt": "p"}],
     "line 1: has text and prompt: is the text an answer, or all of it? Say with columns: "
     "{completion: text} or {prompt: prompt, completion: text}"),
    ("rows.jsonl", [{"question": "q", "answer": "a", "instruction": "i", "output": "o"}],
     "line 1: could be read as instruction and output or as question and answer; say which with"),
    ("rows.jsonl", [{"question": "q", "answer": "A", "choices": ["x", "y"]}],
     'line 1: column "choices" would be lost; write it into column "question", or leave it out'),
    ("rows.jsonl", [{"question": "q", "answer": None}],
     'line 1: column "answer" is empty; give an answer or drop the row'),
    ("rows.jsonl", [{"question": "q", "answer": True}],
     'line 1: column "answer" is true or false; write it as text, or drop the row'),
    ("rows.jsonl", [{"question": {"text": "q"}, "answer": "a"}],
     'line 1: column "question" is an object; write it as text, or drop the row'),
    ("rows.jsonl", [{"text": ["a", "b"]}],
     'line 1: column "text" is a list; write it as text, or drop the row'),
    ("rows.jsonl", [{"text": " "}], 'line 1: column "text" is empty; write a text or drop the row'),
    ("rows.jsonl", [{"messages": [{"role": "user", "content": "q"}]}],
     'line 1: the last turn of column "messages" must be the assistant\'s, and not empty; add its'),
    ("rows.jsonl", [shared_gpt(("human", "q"), ("gpt", "a"), ("human", "r"))],
     'line 1: the last turn of column "conversations" must be the assistant\'s, and not empty'),
    ("rows.jsonl", [shared_gpt(("human", "q"), ("function_call", "f"), ("gpt", "a"))],
     "line 1: conversations[1] is from 'function_call'; known are human, user, gpt, assistant, sy"),
    ("rows.jsonl",
     [{"conversations": [{"from": "human", "value": "q", "weight": 1}, {"from": "gpt"}]}],
     "line 1: conversations[0] has weight, which would be lost; write it into value, or leave"),
    ("rows.jsonl", [{"conversations": [{"from": "human"}, {"from": "gpt", "value": "a"}]}],
     "line 1: conversations[0] must be an object with the texts role and content, or from and"),
    ("rows.json", '[{"question": "q", "answer": ""}]',
     'row 1: column "answer" is empty; give an answer or drop the row'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "reason"), PROBLEMS)
def test_a_bad_row_is_named_with_its_column_and_a_remedy(
    tmp_path: Path, tokenizer: Any, name: str, content: Any, reason: str
) -> None:
    message = problem_of(written(tmp_path / name, content), tokenizer)
    head, line = message.split("\n  ")
    assert head == f"{name} has 1 bad row"
    assert line.startswith(reason)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('q,a\n"x,1\n', "rows.csv row 1, up to line 2: unexpected end of data. Close its quotes"),
        ("q,q\n1,2\n", "rows.csv row 0, the header, names column 'q' twice. Rename one."),
        (
            b"question,answer\nq,\xe9\x81\n",
            "rows.csv cannot be read: line 2 is not UTF-8",
        ),
    ],
)
def test_a_table_that_is_none(
    tmp_path: Path, tokenizer: Any, content: str | bytes, sentence: str
) -> None:
    assert sentence in problem_of(written(tmp_path / "rows.csv", content), tokenizer)


def test_a_header_without_rows(tmp_path: Path, tokenizer: Any) -> None:
    for content in ("", "question,answer\n"):
        own = read(written(tmp_path / "rows.csv", content), tokenizer)
        assert (own.rows, own.columns) == ([], ())


def test_columns_of_the_study_file_come_first(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    rows = [{"question": "q", "answer": "a", "query": "r", "note": "n", "reply": "b"}]
    path = written(tmp_path / "rows.jsonl", rows)
    own = read(path, tokenizer, prompt="query", input="note", completion="reply")
    assert pairs(own) == [(asked("r\n\nn"), "b")]
    assert own.columns[0].convention == "columns"
    assert own.columns[0].unread == ("answer", "question")
    message = problem_of(path, tokenizer, prompt="qery", completion="reply")
    sentence(message, names=("qery", "columns.prompt"))


def test_columns_beside_a_convention_are_named(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"instruction": "i", "output": "o", "text": "all of it"},
        {"instruction": "j", "output": "o", "topic": "t"},
        {"messages": CONVENTIONS["messages"][0]["messages"], "prompt": "p", "completion": "c"},
    ]
    own = read(written(tmp_path / "rows.jsonl", rows), tokenizer)
    assert [(each.convention, each.num_rows, each.unread) for each in own.columns] == [
        ("instruction and output", 2, ("text", "topic")),
        ("messages", 1, ("completion", "prompt")),
    ]


def test_a_model_without_a_chat_template(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    path = written(tmp_path / "rows.jsonl", CONVENTIONS["conversations"])
    sentence(problem_of(path, tokenizer))


def test_what_is_wrong_with_every_row_is_said_once(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    said = problem_of(written(tmp_path / "rows.csv", "q,a\n" + "one,two\n" * 30), tokenizer)
    assert said.startswith("rows.csv has 30 bad rows")
    sentence(said, names=("30",))
    assert "--column prompt=... --column completion=..." in said
    assert said.count("needs prompt and completion") == 1


def test_what_is_lost_of_rows_that_can_be_read_is_warned_of(
    study_file: Path, tmp_path: Path
) -> None:
    def warnings(*rows: dict[str, Any]) -> list[str]:
        path = written(tmp_path / "rows.jsonl", list(rows))
        overrides = ["train.task=null", f"train.data={path}", "evaluation.in_domain=[]"]
        plan = plan_study(load_config(study_file, overrides))
        return [each for each in plan.record.warnings if each.startswith("train.data: ")]

    plain = [{"prompt": f"question {i}", "completion": f" {i}"} for i in range(30)]
    assert warnings(*plain) == []
    options = [row | {"choices": ["a", "b"]} for row in plain]
    assert warnings(*options) == [
        "train.data: column 'choices' of 30 rows is not read; write the options into the prompt"
    ]
    empty = [row | {"prompt": ""} if i % 3 == 0 else row for i, row in enumerate(plain)]
    (warning,) = warnings(*empty)
    assert re.search(r"\d of 27 training rows have an empty prompt; give one or drop", warning)
    assert warnings(*({"text": f"a text {i}"} for i in range(30))) == []


# pairs of answers

Q, A, B = (
    {"role": role, "content": text}
    for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
OTHER: dict[str, str] = {"role": "user", "content": "another"}


def read_pairs(path: Path, tokenizer: Any, *, chat: bool = True, **columns: str) -> OwnRows:
    wanted = ColumnsConfig(**columns) if columns else None
    return read_own_rows(path, tokenizer, chat_template=chat, columns=wanted, in_pairs=True)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b", "system": ""},
        {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
        {"prompt": [Q], "chosen": [A], "rejected": [B]},
        {"prompt": "q", "chosen": [A], "rejected": [B]},
        # the sets of UltraFeedback: whole conversations, their prompt once more, and scores
        {"prompt": "q", "chosen": [Q, A], "rejected": [Q, B], "messages": [Q, A], "score": 1.0},
        {"chosen": [Q, A], "rejected": [Q, B]},
        # LLaMA-Factory's
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
    ],
)
def test_a_pair_in_every_convention(tmp_path: Path, tokenizer: Any, row: dict[str, Any]) -> None:
    (found,) = read_pairs(written(tmp_path / "rows.jsonl", [row]), tokenizer).rows
    assert (found.prompt, found.completion, found.rejected) == (asked("q"), "a", "b")
    assert found.as_trained.rejected == f"b{END}"


def test_a_pair_without_a_template_and_with_columns(tmp_path: Path, tokenizer: Any) -> None:
    path = written(tmp_path / "rows.jsonl", [{"q": "p: ", "good": "a", "bad": "b"}])
    names = {"prompt": "q", "completion": "good", "rejected": "bad"}
    (found,) = read_pairs(path, tokenizer, chat=False, **names).rows
    assert (found.prompt, found.completion, found.rejected) == ("p: ", "a", "b")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, "has chosen, prompt; needs prompt (or question, instr"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"},
         'columns "chosen" and "rejected" hold the same answer; drop the row'),
        ({"prompt": "q", "chosen": "a", "rejected": ""},
         'column "rejected" is empty; give both answers or drop the row'),
        ({"prompt": "a", "chosen": "blue", "rejected": " blue\n"},
         'columns "chosen" and "rejected" hold the same answer; drop the row'),
        ({"prompt": "q", "chosen": " ", "rejected": "b"},
         'column "chosen" is empty; give an answer or drop the row'),
        ({"prompt": " ", "chosen": None, "rejected": "b"}, 'column "chosen" is empty; give both'),
        ({"chosen": [Q, A], "rejected": [OTHER, B]},
         'columns "chosen" and "rejected" answer different prompts; give both the same turns'),
        ({"chosen": "q a", "rejected": "q b"},
         'column "chosen" is a text with its prompt in it; write the prompt into a column'),
        ({"chosen": [Q, A], "rejected": [Q]}, 'the last turn of column "rejected" must be the'),
        ({"prompt": "q", "chosen": 0.5, "rejected": "b"}, 'column "chosen" is a number with'),
    ],
)  # fmt: skip
def test_a_bad_pair_is_named_with_a_remedy(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_pairs(written(tmp_path / "rows.jsonl", [row]), tokenizer)
    assert str(caught.value).split("\n  ")[1].startswith(f"line 1: {reason}")
