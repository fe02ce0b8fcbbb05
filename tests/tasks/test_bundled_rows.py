"""The bundled rows whose answers are JSON: read by name, all different, right by their check."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import DataError
from rankwise.tasks.answer_checks import checker
from rankwise.tasks.bundled.own_sets import SETS
from rankwise.tasks.row_files import read_raw_rows
from tests.support.sentences import Sentences


def texts(name: str) -> list[tuple[str, str]]:
    """What is asked last, and the answer."""
    if name == "extraction":
        return [(row["prompt"], row["completion"]) for row in SETS[name]()]
    return [tuple(turn["content"] for turn in row["messages"][-2:]) for row in SETS[name]()]


def answers(name: str) -> list[tuple[str, Any]]:
    return [(asked, json.loads(answer)) for asked, answer in texts(name)]


@pytest.mark.parametrize(
    ("name", "size"), [("extraction", 2000), ("tool_calls", 200), ("short_prompts", 30)]
)
def test_rows_are_read_by_name_and_differ(name: str, size: int) -> None:
    raw = read_raw_rows(Path(f"bundled/{name}"))
    assert (raw.source, raw.format, len(raw.rows)) == (f"bundled/{name}", "bundled", size)
    assert [row.content for row in raw.rows] == SETS[name]()
    assert len({asked for asked, _ in texts(name)}) == size


def test_every_field_of_a_text_stands_in_it() -> None:
    for prompt, fields in answers("extraction"):
        text = prompt.partition("\n\n")[2]
        assert list(fields) == ["name", "city", "amount", "date"]
        assert fields["name"] in text
        assert fields["city"] in text
        assert f"{fields['amount']:,} euros" in text
        date = datetime.date.fromisoformat(fields["date"])
        assert f"{date:%-d %B %Y}" in text


def test_every_argument_of_a_call_is_the_tools_and_stands_in_the_request() -> None:
    rows = answers("tool_calls")
    system = SETS["tool_calls"]()[0]["messages"][0]["content"]
    tools = dict(re.findall(r"(\w+)\(([^)]*)\)", system))
    assert {call["tool"] for _, call in rows} == tools.keys()
    for request, call in rows:
        assert list(call) == ["tool", "arguments"]
        assert call["arguments"].keys() == set(tools[call["tool"]].split(", "))
        assert all(str(value) in request for value in call["arguments"].values())


@pytest.mark.parametrize("name", ["extraction", "tool_calls"])
def test_right_answers_pass_the_check_of_json(name: str) -> None:
    right = [answer for _, answer in texts(name)]
    check = checker("json", {f"row {number}": text for number, text in enumerate(right)}, name)
    assert all(check(text, {"completion": text})["all_correct"] == 1.0 for text in right)
    assert check(right[0], {"completion": right[1]})["all_correct"] == 0.0


def test_rows_are_the_same_in_every_process() -> None:
    program = (
        "import hashlib, json; from rankwise.tasks.bundled.own_sets import SETS; "
        "print(hashlib.sha256(json.dumps([make() for make in SETS.values()]).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    here = json.dumps([make() for make in SETS.values()]).encode()
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()


@pytest.mark.parametrize("name", ["bundled/extractoin", "bundled/extraction/test", "bundled/x"])
def test_other_rows_do_not_come_with_rankwise(name: str, sentence: Sentences) -> None:
    with pytest.raises(DataError) as caught:
        read_raw_rows(Path(name))
    sentence(caught.value, names=(name,))
