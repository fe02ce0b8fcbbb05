"""``train.turns: all``: which turns of a conversation are learned, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models.loading import load_tokenizer
from rankwise.errors import DataError
from rankwise.records.config.training import TrainConfig
from rankwise.records.fields import ADDED
from rankwise.study.planning.runs import examples_digest
from rankwise.tasks.overlap import find_overlap
from rankwise.tasks.own_rows import OwnRows, read_own_rows
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.training_rows import Example, tokenise_rows
from rankwise.tasks.user_data import load_user_data
from tests.support.sentences import Sentences

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
END = "<|im_end|>"
NO_PROMPT = "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\n{% else %}A: \
{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def turns(*said: str) -> list[dict[str, str]]:
    """Turns with role and content: ``u:Hello`` is the user's."""
    return [{"role": ROLES[each[0]], "content": each[2:]} for each in said]


def read(folder: Path, tokenizer: Any, *rows: Any, all_turns: bool = True) -> OwnRows:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return read_own_rows(file, tokenizer, chat_template=True, all_turns=all_turns)


def examples(own: OwnRows, tokenizer: Any, max_length: int = 256) -> list[Example]:
    train = TrainConfig(data=Path("rows.jsonl"), turns="all", max_length=max_length)
    return tokenise_rows([row.as_trained for row in own.rows], tokenizer, train, 10**6)


def learned(folder: Path, tokenizer: Any, *rows: Any, max_length: int = 256) -> list[list[str]]:
    """Of each row, the runs of learned tokens as text."""
    found: list[list[str]] = []
    for example in examples(read(folder, tokenizer, *rows), tokenizer, max_length):
        places = set(example.places)
        assert 0 not in places  # nothing predicts it
        assert len(places) == example.num_loss_tokens
        runs = [""]
        for place, token in enumerate(example.tokens):
            if place in places:
                runs[-1] += tokenizer.decode([token])
            elif runs[-1]:
                runs.append("")
        found.append(list(filter(None, runs)))
    return found


LONG = ("u:1+1?", "a:2", "u:And one?", "a: 3.\n\nYes. ", "u:Thanks", "a:Bye")
LEARNED = [f"2{END}", f" 3.\n\nYes. {END}", f"Bye{END}"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns(*LONG)},
        {"messages": turns("s:Be brief.", *LONG)},
        {"messages": turns(*LONG), "system": "Be brief."},
        {
            "conversations": [
                {"from": "human" if each[0] == "u" else "gpt", "value": each[2:]} for each in LONG
            ]
        },
        {"prompt": turns(*LONG[:1]), "completion": turns(*LONG[1:])},
    ],
)
def test_every_turn_is_learned_with_its_end(tmp_path: Path, tokenizer: Any, row: Any) -> None:
    assert learned(tmp_path, tokenizer, row) == [LEARNED]
    (last,) = read(tmp_path, tokenizer, row, all_turns=False).rows
    assert (last.completion, last.turns) == ("Bye", ())  # which alone is scored


def test_the_turns_of_a_prompt_are_not_learned_as_trl_does_not(
    tmp_path: Path, tokenizer: Any
) -> None:
    row = {"prompt": turns(*LONG[:3]), "completion": turns(*LONG[3:])}
    other = {"prompt": turns(*LONG[:5]), "completion": turns(*LONG[5:])}
    assert learned(tmp_path, tokenizer, row, other) == [LEARNED[1:], LEARNED[2:]]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("a:Hello!", "u:1+1?", "a:2"), ["Hello!", "2"]),
        (("s:Be brief.", "a:Hello!", "u:1+1?", "a:2"), ["Hello!", "2"]),
        (("u:1+1?", "a:Two", "a:2"), ["Two", "2"]),
        (("u:1+1?", "a:call(1, 1)", "t:2", "a:It is 2"), ["call(1, 1)", "It is 2"]),
        (("u:1+1?", "a:", "u:?", "a: \n", "u:So?", "a:2"), ["2"]),
        (("u:1+1?", "a:2"), ["2"]),
        (("u:1+1?", "a:2 2", "u:2 2", "a:2"), ["2 2", "2"]),
        (("u:What is <|im_start|>assistant\n2<|im_end|>?", "a:2", "u:And?", "a:3"), ["2", "3"]),
    ],
)
@pytest.mark.parametrize("template", [None, MARKED])
def test_odd_conversations(
    tmp_path: Path, tokenizer: Any, said: tuple[str, ...], expected: list[str], template: str | None
) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    row = {"messages": turns(*said)}
    assert learned(tmp_path, tokenizer, row) == [[f"{each}{END}" for each in expected]]


@pytest.mark.parametrize("said", [("u:1+1?",), ("s:Be brief.",), ("a:2",), ("u:1+1?", "a:")])
def test_without_an_answer_a_row_is_refused_as_ever(
    tmp_path: Path, tokenizer: Any, said: tuple[str, ...]
) -> None:
    problems: list[str] = []
    for all_turns in (False, True):
        with pytest.raises(DataError) as caught:
            read(tmp_path, tokenizer, {"messages": turns(*said)}, all_turns=all_turns)
        problems.append(str(caught.value))
    assert problems[0] == problems[1]


def test_templates_without_a_header_are_read_turn_by_turn(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = NO_PROMPT
    own = read(tmp_path, tokenizer, {"messages": turns(*LONG)})
    (row,) = own.rows
    assert [row.prompt[begin:stop] for begin, stop in row.turns[:-1]] == [
        f"A: 2{END}",
        f"A:  3.\n\nYes. {END}",
    ]


def test_a_template_that_changes_earlier_turns_is_refused(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    tokenizer.chat_template = THINKS
    said = ("u:1+1?", "a:<think>So.</think>2", "u:And one?", "a:3")
    with pytest.raises(DataError) as caught:
        read(tmp_path, tokenizer, *({"messages": turns(*said, f"u:{n}", "a:4")} for n in range(20)))
    sentence(caught.value, names=("train.turns", "generation"))
    # where there are no thoughts, every turn stands as it is asked for
    plain = {"messages": turns(*LONG)}
    assert learned(tmp_path, tokenizer, plain) == [LEARNED]
    # a template that has the marks, and not around answers
    tokenizer.chat_template = THINKS + "{# {% generation %} #}"
    with pytest.raises(DataError) as caught:
        read(tmp_path, tokenizer, plain)
    sentence(caught.value, "without marks", names=("train.turns",))


def test_a_system_turn_that_is_refused_is_left_out(tmp_path: Path, tokenizer: Any) -> None:
    row = {"messages": turns("s:Be brief.", *LONG)}
    for template in (tokenizer.chat_template, MARKED):
        tokenizer.chat_template = NO_SYSTEM + template
        assert learned(tmp_path, tokenizer, row) == [LEARNED]


@pytest.mark.parametrize("template", [None, MARKED])
def test_a_thousand_turns_are_cut_on_the_left(
    tmp_path: Path, tokenizer: Any, template: str | None
) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    said = [each for n in range(500) for each in (f"u:{n}?", f"a:{n}!")]
    row = {"messages": turns(*said)}
    whole = learned(tmp_path, tokenizer, row, max_length=10**6)[0]
    assert whole == [f"{n}!{END}" for n in range(500)]
    cut = learned(tmp_path, tokenizer, row, max_length=100)[0]
    assert 2 < len(cut) < 20
    assert cut[1:] == whole[len(whole) - len(cut) + 1 :]
    (example,) = examples(read(tmp_path, tokenizer, row), tokenizer, 100)
    assert (len(example.tokens), example.is_truncated) == (100, True)
    with pytest.raises(DataError, match="its completion has"):
        examples(read(tmp_path, tokenizer, row), tokenizer, 4)


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    class Slow:
        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    own = read(tmp_path, tokenizer, {"messages": turns(*LONG)})
    with pytest.raises(DataError, match=r"train\.turns: last"):
        examples(own, Slow())


def test_what_is_learned_is_in_the_digest_and_the_default_in_no_fingerprint(
    tmp_path: Path, tokenizer: Any
) -> None:
    row = {"messages": turns(*LONG)}
    digests = {
        examples_digest(examples(read(tmp_path, tokenizer, row, all_turns=each), tokenizer))
        for each in (False, True)
    }
    assert len(digests) == 2
    train = TrainConfig(data=Path("rows.jsonl"))
    assert "turns" not in train.model_dump(context=ADDED)
    assert train.model_copy(update={"turns": "all"}).model_dump(context=ADDED)["turns"] == "all"


@pytest.mark.parametrize("all_turns", [False, True])
def test_a_scored_answer_that_is_learned_earlier_in_a_row_is_found(
    tmp_path: Path, tokenizer: Any, all_turns: bool
) -> None:
    """Rows that go on from one another, as exports of chats have them."""
    rows = [
        {"messages": turns(*(each for n in range(k) for each in (f"u:Question {m}.{n}?", "a:ok")))}
        for m in range(8)
        for k in (1, 2, 3)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    train = TrainConfig(data=file, turns="all" if all_turns else "last", held_out_fraction=0.2)
    data = load_user_data(train, tokenizer, chat_template=True)
    (task,) = data.tasks
    how: dict[str, Any] = {"num_fewshot": 0, "limit": None, "chat_template": False}
    scored = [prepare_task(task, tokenizer, max_length=256, **how)]
    overlap = find_overlap({"rows": data.training}, scored, tokenizer)
    assert (overlap.num_rows > 0) == all_turns
    assert data.read.turns == train.turns
    assert data.read.num_conversations == len(rows)
    assert data.read.num_turns == sum(len(row.turns) or 1 for row in data.training)
