"""Users' own rows: every convention, every bad row named, and no row both trained and scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models.loading import load_tokenizer
from rankwise.errors import DataError
from rankwise.records.config.own_rows import OwnSetConfig
from rankwise.records.config.training import TrainConfig
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.training_rows import TrainingRow
from rankwise.tasks.user_data import UserData, behind_rows, load_own_set, load_user_data
from tests.support.sentences import Sentences

END = "<|im_end|>"
ASSISTANT = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def written(folder: Path, rows: list[Any], *, ensure_ascii: bool = True) -> Path:
    path = folder / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=ensure_ascii) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(path: Path, tokenizer: Any, *, chat_template: bool = False, **options: Any) -> UserData:
    train = TrainConfig(data=path, **({"held_out_fraction": 0.1} | options))
    return load_user_data(train, tokenizer, chat_template=chat_template)


def pairs(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Say {n}:", "completion": f" {n}"} for n in range(count)]


def scored_pairs(data: UserData, index: int = 0) -> list[tuple[str, str]]:
    docs = data.tasks[index].task.test_docs()
    return [(doc["prompt"], doc["completion"]) for doc in docs]


def everything(data: UserData) -> list[tuple[str, str]]:
    return [row[:2] for row in data.training] + scored_pairs(data)  # type: ignore[misc]


def prepared(data: UserData, tokenizer: Any, index: int = 0, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "max_length": 256,
        "num_fewshot": None,
        "limit": None,
        "chat_template": False,
    }
    return prepare_task(data.tasks[index], tokenizer, **(settings | options))


def problems_of(path: Path, tokenizer: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, tokenizer, **options)
    return str(caught.value)


def test_prompt_and_completion_are_taken_as_they_are(tmp_path: Path, tokenizer: Any) -> None:
    data = load(written(tmp_path, pairs(40)), tokenizer)
    assert len(data.training) == 36
    assert len(data.tasks) == 1
    assert sorted(everything(data)) == sorted((f"Say {n}:", f" {n}{END}") for n in range(40))


def test_held_out_rows_are_never_trained_on_and_do_not_change(
    tmp_path: Path, tokenizer: Any
) -> None:
    path = written(tmp_path, pairs(30))
    data = load(path, tokenizer, held_out_fraction=0.3)
    held_out = scored_pairs(data)
    assert len(held_out) == 9
    assert not set(held_out) & {row[:2] for row in data.training}
    again = load(path, tokenizer, held_out_fraction=0.3, max_examples=5)
    assert scored_pairs(again) == held_out
    assert again.training == data.training[:5]


@pytest.mark.parametrize(("fraction", "held_out"), [(0.001, 1), (0.5, 2), (0.999, 3)])
def test_something_is_always_trained_on_and_scored(
    tmp_path: Path, tokenizer: Any, fraction: float, held_out: int
) -> None:
    data = load(written(tmp_path, pairs(4)), tokenizer, held_out_fraction=fraction)
    assert (len(data.training), len(scored_pairs(data))) == (4 - held_out, held_out)


def test_the_chat_template_goes_around_a_plain_prompt_if_asked(
    tmp_path: Path, tokenizer: Any
) -> None:
    rows = [{"prompt": "2+2?", "completion": "4"}, {"prompt": "1+1?", "completion": "2"}]
    data = load(written(tmp_path, rows), tokenizer, chat_template=True)
    assert sorted(everything(data)) == [
        (f"<|im_start|>user\n1+1?{END}\n{ASSISTANT}", f"2{END}"),
        (f"<|im_start|>user\n2+2?{END}\n{ASSISTANT}", f"4{END}"),
    ]


@pytest.mark.parametrize("chat_template", [False, True])
def test_conversations_are_rendered_whatever_the_setting(
    tmp_path: Path, tokenizer: Any, chat_template: bool
) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"messages": [system, user("2+2?"), assistant("4"), user("And 3+3?"), assistant("6")]},
        {"prompt": [user("1+1?")], "completion": [assistant("2")]},
        {"prompt": [user("a")], "completion": [assistant("b"), user("c"), assistant("d")]},
    ]
    data = load(written(tmp_path, rows), tokenizer, chat_template=chat_template)
    assert set(everything(data)) == {
        (
            f"<|im_start|>system\nBe brief.{END}\n<|im_start|>user\n2+2?{END}\n{ASSISTANT}4{END}\n"
            f"<|im_start|>user\nAnd 3+3?{END}\n{ASSISTANT}",
            f"6{END}",
        ),
        (f"<|im_start|>user\n1+1?{END}\n{ASSISTANT}", f"2{END}"),
        (
            f"<|im_start|>user\na{END}\n{ASSISTANT}b{END}\n<|im_start|>user\nc{END}\n{ASSISTANT}",
            f"d{END}",
        ),
    }


def test_equal_rows_are_kept_once(tmp_path: Path, tokenizer: Any, sentence: Sentences) -> None:
    path = written(tmp_path, pairs(5) * 4)
    data = load(path, tokenizer, held_out_fraction=0.4)
    assert len(everything(data)) == len(set(everything(data))) == 5
    message = problems_of(written(tmp_path, pairs(1) * 9), tokenizer)
    sentence(message, names=(path,))


def test_rows_that_differ_in_form_only_are_the_same_row(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": [user("q")], "completion": [assistant("a")]},
        {"messages": [user("q"), assistant("a")]},
        {"messages": [user("q"), assistant("b")]},
    ]
    assert len(everything(load(written(tmp_path, rows), tokenizer))) == 2


def test_all_bad_rows_are_named_at_once(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    path = tmp_path / "rows.jsonl"
    bad = [
        '{"prompt": "ok", "completion": "fine"}',
        '{"prompt": "half',
        "[1, 2]",
        '{"query": "q", "reply": "a"}',
        "{}",
        '{"prompt": "p", "completion": ""}',
        '{"prompt": "p", "completion": " \\n"}',
        '{"prompt": "p", "completion": 4.5}',
        '{"messages": [{"role": "user", "content": "only"}]}',
        "",
        '{"messages": []}',
        '{"prompt": [{"role": "user", "content": "q"}], "completion": "text"}',
    ]
    path.write_text("\n".join(bad))
    lines = problems_of(path, tokenizer).split("\n  ")
    # rows 6 and 7 have no answer: they are left out
    assert lines[0] == "rows.jsonl has 8 bad rows"
    assert [line.split(": ", 1)[0] for line in lines[1:]] == [
        f"line {number}" for number in (2, 3, 4, 5, 8, 9, 11, 12)
    ]
    said = {line.split(": ", 1)[0]: line.split(": ", 1)[1] for line in lines[1:]}
    sentence(said["line 3"], "no object")
    sentence(said["line 4"], "other columns", names=("query", "reply"))
    assert "say columns: {prompt: ..., completion: ...}" in said["line 4"]
    sentence(said["line 5"], "no columns")
    sentence(said["line 8"], "a number", names=("completion",))
    sentence(said["line 9"], "no answer", names=("messages",))
    as_turns = "must be a list of objects with role and content, or with from and value"
    assert said["line 11"].startswith(f'column "messages" {as_turns}')
    assert said["line 12"].startswith(f'column "completion" {as_turns}')


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([user("q"), assistant(" ")], '"messages"'),
        ([assistant("a")], "line 1"),
        ([user("q"), {"role": "assistant"}], "messages[1]"),
        ("text", '"messages"'),
        (None, '"messages"'),
    ],
    ids=["blank", "no question", "no content", "text", "null"],
)
def test_conversations_without_an_answer(
    tmp_path: Path, tokenizer: Any, messages: Any, named: str, sentence: Sentences
) -> None:
    path = written(tmp_path, [{"messages": messages}, *pairs(3)])
    sentence(problems_of(path, tokenizer), names=("rows.jsonl", "line 1", named))


def test_of_many_bad_rows_the_first_ten_are_shown(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{} if number % 2 else {"other": number} for number in range(25)]
    message = problems_of(written(tmp_path, rows), tokenizer)
    assert message.startswith("rows.jsonl has 25 bad rows")
    assert "line 10: " in message
    assert "line 11: " not in message
    assert message.endswith("and 15 more")


def test_a_tokenizer_without_a_chat_template(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    path = written(tmp_path, [{"messages": [user("q"), assistant("a")]}, *pairs(3)])
    sentence(problems_of(path, tokenizer))
    assert len(everything(load(written(tmp_path, pairs(3)), tokenizer))) == 3


@pytest.mark.parametrize("content", ["", "\n \n\n"], ids=["empty", "blank lines"])
def test_a_file_without_rows(
    tmp_path: Path, tokenizer: Any, content: str, sentence: Sentences
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    sentence(problems_of(path, tokenizer), names=(path,))


def test_one_row_cannot_be_trained_on_and_held_out(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    path = written(tmp_path, pairs(1))
    sentence(problems_of(path, tokenizer), names=(path,))


def test_a_missing_file_and_one_that_is_not_utf_8(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    assert "nowhere.jsonl cannot be read" in problems_of(tmp_path / "nowhere.jsonl", tokenizer)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "\xe9\x81", "completion": "b"}\n')
    message = problems_of(path, tokenizer)
    sentence(message, names=("latin.jsonl", "utf-8"))


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_every_kind_of_text_survives(tmp_path: Path, tokenizer: Any, ensure_ascii: bool) -> None:
    texts = ["é中🙂", "a\nb\r\nc\td", "\u2028 and \x85 and \u2029", '"quoted" \\ {{jinja}} {% x %}']
    rows = [{"prompt": text, "completion": f"answer {text}"} for text in texts]
    data = load(written(tmp_path, rows, ensure_ascii=ensure_ascii), tokenizer)
    assert set(everything(data)) == {(text, f"answer {text}{END}") for text in texts}
    for (prompt, completion), instance in zip(
        scored_pairs(data), prepared(data, tokenizer).instances, strict=True
    ):
        assert instance.args == (prompt, completion)


def test_files_of_other_editors(tmp_path: Path, tokenizer: Any) -> None:
    lines = [json.dumps(row) for row in pairs(3)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    assert sorted(everything(load(path, tokenizer))) == [
        (f"Say {n}:", f" {n}{END}") for n in (0, 1, 2)
    ]


def test_half_a_surrogate_pair_is_a_bad_row(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    path = tmp_path / "rows.jsonl"
    for beside in ('"completion": "\\ud83d"', '"completion": "c", "other": ["\\uDC00"]'):
        row = '{"prompt": "p", ' + beside + "}"
        path.write_text(f"{row}\n{json.dumps(pairs(1)[0])}\n")
        sentence(problems_of(path, tokenizer), "lines", names=("line 1",))
        path.write_text(f"[{row}]")
        sentence(problems_of(path, tokenizer), "a list", names=("row 1",))


def test_what_is_scored_is_the_completion_as_it_is_trained(tmp_path: Path, tokenizer: Any) -> None:
    data = load(written(tmp_path, pairs(10)), tokenizer, held_out_fraction=0.4)
    (task,) = data.tasks
    assert (task.name, task.output_type, task.domain) == ("data_rows", "loglikelihood", "own data")
    ready = prepared(data, tokenizer)
    assert ready.num_items == 4
    for (prompt, completion), request in zip(scored_pairs(data), ready.requests, strict=True):
        assert completion.count(END) == 1
        assert completion.endswith(END)
        assert tokenizer.decode(request.context) == prompt
        assert tokenizer.decode(request.continuation) == completion
        assert request.continuation[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("options", [{"num_fewshot": 3}, {"chat_template": True}])
def test_settings_for_benchmarks_leave_own_prompts_alone(
    tmp_path: Path, tokenizer: Any, options: dict[str, Any]
) -> None:
    path = written(tmp_path, [{"messages": [user(str(n)), assistant("a")]} for n in range(20)])
    for index in (0, 1):

        def asked(index: int = index, **options: Any) -> Any:
            data = load(path, tokenizer, held_out_fraction=0.5, judged_by=["loss", "exact"])
            return prepared(data, tokenizer, index, **options)

        assert asked(**options).requests == asked().requests
        assert asked(**options).num_fewshot == 0


def test_exact_match_compares_what_is_generated(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"Say {n}:", "completion": f" it is {n}\n"} for n in range(10)]
    data = load(
        written(tmp_path, rows), tokenizer, held_out_fraction=0.2, judged_by=["loss", "exact"]
    )
    loss, exact = data.tasks
    assert [loss.name, exact.name] == ["data_rows", "data_rows_texts"]
    assert exact.output_type == "generate_until"
    ready = prepared(data, tokenizer, 1)
    assert [instance.args[0] for instance in ready.instances] == [p for p, _ in scored_pairs(data)]
    assert all(instance.args[1]["until"] == [END] for instance in ready.instances)
    right, wrong = ready.instances
    answer = exact.task.doc_to_target(right.doc)
    assert answer == f"it is {right.doc['prompt'][4:-1]}"
    right.resps, wrong.resps = [f"  {answer}\n\n"], [f"{answer} or so"]
    exact.task.apply_filters()
    scores = [
        exact.task.process_results(instance.doc, [instance.filtered_resps["stripped"]])
        for instance in (right, wrong)
    ]
    assert [score["exact_match"] for score in scores] == [1, 0]


def test_an_empty_prompt_is_allowed(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "", "completion": f"text {n}"} for n in range(4)]
    data = load(written(tmp_path, rows), tokenizer)
    (request,) = prepared(data, tokenizer).requests
    assert request.context == (tokenizer.bos_token_id,)
    assert tokenizer.decode(request.continuation) == scored_pairs(data)[0][1]


def test_a_choice_is_among_all_answers_that_occur(tmp_path: Path, tokenizer: Any) -> None:
    answers = (" A", " B", " A or B")
    rows = [{"prompt": f"Say {n}:", "completion": answers[n % 3]} for n in range(30)]
    path = written(tmp_path, rows)
    data = load(path, tokenizer, held_out_fraction=0.2, judged_by="choice")
    (task,) = data.tasks
    assert (task.name, task.output_type, data.trained_items.name) == (
        "data_rows",
        "multiple_choice",
        "data_rows@train",
    )
    ready = prepared(data, tokenizer)
    assert (ready.num_items, ready.chance) == (6, pytest.approx(1 / 3))
    for instance in ready.instances:
        assert instance.args[0] == instance.doc["prompt"]
        assert instance.args[1] == f"{sorted(answers)[instance.idx]}{END}"
        right = rows[int(instance.doc["prompt"][4:-1])]["completion"]
        assert sorted(answers)[instance.doc["completion"]] == right
    assert data.read.answers == (" A", " A or B", " B")


@pytest.mark.parametrize(
    ("answers", "number"), [(["one"], 1), ([f"answer {n}" for n in range(101)], 101)]
)
def test_a_choice_among_too_few_or_too_many(
    tmp_path: Path, tokenizer: Any, answers: list[str], number: int, sentence: Sentences
) -> None:
    rows = [{"prompt": f"q {n}", "completion": answers[n % number]} for n in range(202)]
    message = problems_of(written(tmp_path, rows), tokenizer, judged_by="choice")
    sentence(message, names=("rows.jsonl", number, "100", "judged_by"))


def test_numbers_are_compared_behind_the_marks(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    rows = [{"prompt": f"q {n}", "completion": f"It is {n}.\n#### 1,{n}00"} for n in range(10, 20)]
    path = written(tmp_path, rows)
    data = load(path, tokenizer, held_out_fraction=0.2, judged_by="number")
    number, loss = data.tasks
    assert [number.name, loss.name, data.name] == ["data_rows_texts", "data_rows", "data_rows"]
    first, *_ = instances = prepared(data, tokenizer).instances
    right = first.doc["prompt"][2:]
    written_texts = {
        f"thus\n#### 1,{right}00": 1,
        f"#### 1{right}00.": 1,
        f"#### $1,{right}00": 1,
        f"#### 2,{right}00": 0,
        f"#### 1,{right}00 and more": 0,
        f"#### 1{right}00\nso\n#### 2": 0,
    }
    for text, score in written_texts.items():
        for instance in instances:
            instance.resps = [text]
            instance.filtered_resps = {}
        number.task._instances = instances
        number.task.apply_filters()
        got = number.task.process_results(first.doc, [first.filtered_resps["stripped"]])
        assert got["number"] == score, text
    path = written(tmp_path, [*rows, {"prompt": "q", "completion": "none"}])
    sentence(
        problems_of(path, tokenizer, judged_by="number"), names=("rows.jsonl", "#### ", "judged_by")
    )


@pytest.mark.parametrize(
    ("judged_by", "names", "kinds"),
    [
        ("loss", ["mine"], ["loglikelihood"]),
        ("choice", ["mine"], ["multiple_choice"]),
        (["exact", "contains"], ["mine"], ["generate_until"]),
        (["exact", "loss", "contains"], ["mine", "mine_loss"], ["generate_until", "loglikelihood"]),
        (["choice", "exact"], ["mine", "mine_texts"], ["multiple_choice", "generate_until"]),
    ],
)
def test_every_row_of_a_set_is_scored_and_its_first_judge_has_its_name(
    tmp_path: Path, tokenizer: Any, judged_by: Any, names: list[str], kinds: list[str]
) -> None:
    path = written(tmp_path, [{"q": f"Say {n % 3}{n}:", "a": f" {n % 3}"} for n in range(12)] * 2)
    wanted = {"prompt": "q", "completion": "a"}
    config = OwnSetConfig.model_validate({"data": path, "judged_by": judged_by, "columns": wanted})
    own = load_own_set("mine", config, tokenizer, chat_template=True)
    assert [task.name for task in own.tasks] == names
    assert [task.output_type for task in own.tasks] == kinds
    assert [len(task.task.eval_docs) for task in own.tasks] == [12] * len(names)
    assert own.tasks[0].task.eval_docs[5]["prompt"] == (
        f"<|im_start|>user\nSay 25:{END}\n{ASSISTANT}"
    )
    assert (own.read.num_rows, own.read.num_distinct, own.read.num_held_out) == (24, 12, 12)


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_question_behind_rows_begins_once(tmp_path: Path, tokenizer: Any, is_chat: bool) -> None:
    path = written(tmp_path, [{"prompt": f"<s>q{n}?", "completion": f"a{n}"} for n in range(6)])
    config = OwnSetConfig.model_validate({"data": path, "judged_by": "exact"})
    (asked,) = load_own_set("mine", config, tokenizer, chat_template=False).tasks
    rows = [TrainingRow(f"<s>r{n}?", f"b{n}<e>", "<e>") for n in range(2)]
    behind = behind_rows(asked, rows, "mine@prompt-2", is_chat=is_chat, bos="<s>")
    end = "<e>" if is_chat else "\n\n"
    doc = asked.task.eval_docs[3]
    assert behind.task.doc_to_text(doc) == f"<s>r0?b0{end}r1?b1{end}q3?"
    assert asked.task.doc_to_text(doc) == "<s>q3?"
    assert behind_rows(asked, [], "mine@prompt-0", is_chat=is_chat, bos="").task.doc_to_text(
        doc
    ) == asked.task.doc_to_text(doc)


def of_conversations(count: int, column: str = "conversation_id") -> list[dict[str, str]]:
    """Four rows of each conversation."""
    return [{**row, column: f"c{n % count}"} for n, row in enumerate(pairs(4 * count))]


@pytest.mark.parametrize("column", ["conversation_id", "thread"])
def test_rows_of_a_conversation_stay_together_and_know_it(
    tmp_path: Path, tokenizer: Any, column: str
) -> None:
    rows = of_conversations(10, column)
    columns = {"prompt": "prompt", "completion": "completion", "cluster": column}
    options = {} if column == "conversation_id" else {"columns": columns}
    data = load(written(tmp_path, rows), tokenizer, held_out_fraction=0.25, **options)
    docs = list(data.tasks[0].task.eval_docs)
    held_out = {doc[column] for doc in docs}
    assert (len(docs), len(held_out)) == (12, 3)
    assert all(doc[column] == f"c{int(doc['prompt'][4:-1]) % 10}" for doc in docs)
    assert {int(row.prompt[4:-1]) % 10 for row in data.training} == {
        n for n in range(10) if f"c{n}" not in held_out
    }
    assert data.read.cluster == column
    assert data.read.columns[0].columns["cluster"] == column


def test_a_column_that_groups_nothing_is_left_unless_it_was_named(
    tmp_path: Path, tokenizer: Any
) -> None:
    for rows in ([*of_conversations(3), {"prompt": "a", "completion": "b"}], of_conversations(1)):
        path = written(tmp_path, rows)
        data = load(path, tokenizer)
        assert data.read.cluster is None
        assert "conversation_id" not in data.tasks[0].task.eval_docs[0]
        columns = {"prompt": "prompt", "completion": "completion", "cluster": "conversation_id"}
        message = problems_of(path, tokenizer, columns=columns)
        assert "column 'conversation_id'" in message or "no column 'conversation_id'" in message


def longest(length: int, count: int = 4) -> list[dict[str, str]]:
    """Rows of which one has an answer of that many letters, each a token of the tiny tokenizer."""
    short = [{"prompt": f"Say {n}:", "completion": f"{n}"} for n in range(count - 1)]
    return [*short, {"prompt": "Say it:", "completion": "é" * (length // 2) + "x" * (length % 2)}]


def asked_of(path: Path, tokenizer: Any, max_length: int | None = None, **settings: Any) -> Any:
    config = OwnSetConfig.model_validate({"data": path, "judged_by": "exact", **settings})
    options: dict[str, Any] = {"chat_template": False, "max_length": max_length}
    (task,) = load_own_set("mine", config, tokenizer, **options).tasks
    return task


def room_of(task: Any) -> int:
    return task.task.config.generation_kwargs["max_gen_toks"]


@pytest.mark.parametrize(
    ("length", "max_length", "settings", "room", "warning"),
    [
        (3, None, {}, 256, None),
        (170, None, {}, 256, None),  # a margin of a half does not reach lm-eval's limit
        (201, None, {}, 302, None),
        (981, 4096, {}, 1472, None),
        # the longest prompt has six tokens, and is not cut
        (981, 1200, {}, 1194, None),
        (981, 500, {}, 494, "1 of 4 right answers have more than 494 tokens, up to 981"),
        (981, 200, {}, 256, "shorten the rows"),
        (981, 4096, {"max_new_tokens": 981}, 981, None),
        (981, 4096, {"max_new_tokens": 20}, 20, "set max_new_tokens to 981 or more"),
        (3, 200, {"max_new_tokens": 199}, 199, None),
    ],
)
def test_a_model_may_write_what_the_longest_right_answer_needs(
    tmp_path: Path,
    tokenizer: Any,
    length: int,
    max_length: int | None,
    settings: dict[str, Any],
    room: int,
    warning: str | None,
) -> None:
    path = written(tmp_path, longest(length), ensure_ascii=False)
    task = asked_of(path, tokenizer, max_length, **settings)
    assert room_of(task) == room
    assert warning in (task.warning or "") if warning else task.warning is None


@pytest.mark.parametrize(("settings", "room"), [({}, 600), ({"max_new_tokens": 30}, 30)])
def test_held_out_rows_have_the_same_room(
    tmp_path: Path, tokenizer: Any, settings: dict[str, Any], room: int
) -> None:
    rows = [{"prompt": f"Say {n}:", "completion": "é" * 200} for n in range(4)]
    path = written(tmp_path, rows, ensure_ascii=False)
    data = load(path, tokenizer, judged_by=("loss", "exact"), **settings)
    assert room_of(data.tasks[1]) == room
    assert bool(data.tasks[1].warning) == (room < 400)


def test_what_a_model_has_no_room_for_is_refused(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    path = written(tmp_path, longest(3))
    with pytest.raises(DataError) as caught:
        asked_of(path, tokenizer, 200, max_new_tokens=200)
    sentence(caught.value, names=("max_new_tokens", "200"))


def test_another_limit_is_another_question_and_the_same_one_is_not(
    tmp_path: Path, tokenizer: Any
) -> None:
    def digest(**settings: Any) -> str:
        task = asked_of(path, tokenizer, 4096, **settings)
        options: dict[str, Any] = {"num_fewshot": None, "limit": None, "chat_template": False}
        return prepare_task(task, tokenizer, max_length=4096, **options).digest

    path = written(tmp_path, longest(3))
    assert digest() == digest(max_new_tokens=256) != digest(max_new_tokens=257)
