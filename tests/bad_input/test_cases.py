"""Every bad input of the tables is refused with its sentence, and never with a traceback."""

from __future__ import annotations

import logging
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import ConfigError, DataError, TaskError
from rankwise.records.config.training import TrainConfig
from rankwise.records.study_file import load_config
from rankwise.tasks.resolution import TaskNotFound, load_tasks
from rankwise.tasks.user_data import load_user_data
from tests.bad_input.cases import OVERRIDES, ROWS, SMALLEST, STUDY_FILES, Case
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

MOST_SECONDS = 5
"""Of reading one input: deep or exploding ones would take minutes, or all memory."""


def by_name(cases: list[Case]) -> Any:
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def check(problems: tuple[str, ...], case: Case, sentence: Sentences) -> None:
    assert len(problems) == len(case.places)
    for problem, place in zip(problems, case.places, strict=True):
        assert place in problem
        assert len(problem) < 600
    sentence("\n".join(problems))


@by_name(STUDY_FILES)
def test_a_bad_study_file(tmp_path: Path, case: Case, sentence: Sentences) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(str(case.text))
    started = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert time.perf_counter() - started < MOST_SECONDS
    check(caught.value.problems, case, sentence)


@by_name(OVERRIDES)
def test_a_bad_override(tmp_path: Path, case: Case, sentence: Sentences) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(SMALLEST)
    with pytest.raises(ConfigError) as caught:
        load_config(path, [str(case.text)])
    check(caught.value.problems, case, sentence)


@by_name(ROWS)
def test_bad_rows(tmp_path: Path, tokenizer: Any, case: Case, sentence: Sentences) -> None:
    path = tmp_path / "rows.jsonl"
    text = case.text
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        load_user_data(
            TrainConfig(data=path, held_out_fraction=0.5), tokenizer, chat_template=False
        )
    problems = tuple(line.strip() for line in str(caught.value).split("\n"))
    shown = tuple(line.replace(f"{tmp_path}/", "") for line in problems[1:] or problems)
    check(shown, case, sentence)


@pytest.mark.parametrize("path", ["nothing.jsonl", ".", "x" * 5000, "a\0b"])
def test_rows_that_are_nowhere(
    tmp_path: Path, tokenizer: Any, path: str, sentence: Sentences
) -> None:
    with pytest.raises(DataError) as caught:
        load_user_data(
            TrainConfig.model_construct(data=tmp_path / path, held_out_fraction=0.5),
            tokenizer,
            chat_template=False,
        )
    sentence(caught.value, LONG="[^' ]*x{5,}")


def test_tool_calls_and_turns_that_a_template_drops(
    tmp_path: Path, tokenizer: Any, sentence: Sentences
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"messages": [{"role": "tool", "content": "42"}, {"role": "assistant", "content": "a"}]}\n'
    )
    whole = tokenizer.chat_template
    tokenizer.chat_template = whole.replace("{% for message in messages %}", (
        "{% for message in messages if message['role'] != 'tool' %}"))  # fmt: skip
    try:
        with pytest.raises(DataError) as caught:
            load_user_data(
                TrainConfig(data=path, held_out_fraction=0.5), tokenizer, chat_template=True
            )
        sentence(caught.value, names=("tool",))
    finally:
        tokenizer.chat_template = whole


DATA = """
dataset_path: json
dataset_kwargs: {data_files: {train: ROWS, test: ROWS}}
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: options
doc_to_target: label
"""
TASK_FILES = [
    Case("metrics as text", "metric_list: acc\n", ("acc",)),
    Case(
        "a metric without a name",
        "metric_list: [{aggregation: mean}]\n",
        ("metric_list[0]", "aggregation", "mean"),
    ),
    Case(
        "an unknown metric",
        "metric_list: [{metric: acuracy, aggregation: mean}]\n",
        ("metric_list", "acuracy"),
    ),
    Case(
        "a metric called as a field of items",
        "metric_list: [{metric: filter, aggregation: mean}]\n",
        ("metric_list[0]: 'filter' is a field of every item; call the metric otherwise",),
    ),
    Case(
        "an unknown aggregation",
        "metric_list: [{metric: acc, aggregation: median_of_all}]\n",
        ("metric_list[0]", "median_of_all"),
    ),
    Case("a number as filter", "filter_list: [3]\n", ("filter_list[0]",)),
    Case(
        "an unknown filter",
        "filter_list: [{name: x, filter: [{function: take_frist}]}]\n",
        ("take_frist", "take_first"),
    ),
    Case(
        "a step without a function",
        "filter_list: [{name: x, filter: [take_first]}]\n",
        ("filter_list[0]",),
    ),
    Case(
        "no regular expression",
        "filter_list: [{name: x, filter: [{function: regex, regex_pattern: '('}]}]\n",
        ("regex_pattern", "("),
    ),
    Case(
        "a number as regular expression",
        "filter_list: [{name: x, filter: [{function: regex, regex_pattern: 3}]}]\n",
        ("regex_pattern",),
    ),
    Case(
        "an expression of a million letters",
        "filter_list: [{name: x, filter: [{function: regex, "
        "regex_pattern: '(?:(?:a{100}){100}){100}'}]}]\n",
        ("regex_pattern", "(?:(?:a{100}){100}){100}"),
    ),
    Case(
        "an expression to ignore",
        "metric_list: [{metric: acc, regexes_to_ignore: ['(']}]\n",
        ("metric_list[0]", "regexes_to_ignore", "("),
    ),
    Case("an open template", 'doc_to_text: "{{question"\n', ("doc_to_text", "line 1")),
    Case("an unknown tag", 'doc_to_target: "{% fro x %}"\n', ("doc_to_target", "line 1", "fro")),
    Case("an unknown field", 'doc_to_text: "{{qestion}}"\n', ("qestion",)),
    Case("an unknown key", "doc_to_txt: x\n", ("doc_to_txt",)),
    Case("an unknown output", "output_type: choice\n", ("output_type", "choice")),
    Case("an unknown split", "test_split: tset\n", ("KeyError", "tset")),
    Case("no text", "doc_to_text: 3.5\n", ("TypeError",)),
    Case("choices as a number", "doc_to_choice: label\n", ()),
    Case("no choices", 'doc_to_choice: "1 +"\n', ("SyntaxError",)),
    Case("deep choices", f'doc_to_choice: "{"[" * 10_000}"\n', ()),
    Case("an unknown sampler", "fewshot_config: {sampler: best}\n", ("best",)),
    Case("a number as include", "include: 3\n", ("own.yaml",)),
    Case(
        "an include outside of all",
        "include: ../../../../nothing.yaml\n",
        ("own.yaml", "../../../../nothing.yaml"),
    ),
    Case("images", "doc_to_image: question\n", ()),
    Case("generated code", "unsafe_code: true\n", ()),
]


@by_name(TASK_FILES)
def test_a_bad_task_file(tmp_path: Path, no_index: None, case: Case, sentence: Sentences) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Is it?", "options": ["yes", "no"], "label": 1}\n' * 3)
    folder = tmp_path / "tasks"
    folder.mkdir()
    key = str(case.text).partition(":")[0]
    kept = [line for line in DATA.splitlines() if not line.startswith(f"{key}:")]
    text = "\n".join(["task: own", *kept, str(case.text)])
    (folder / "own.yaml").write_text(text.replace("ROWS", str(rows)))
    reason = load_tasks(["own"], [folder])["own"]
    assert isinstance(reason, TaskError | TaskNotFound)
    said = str(reason)
    sentence(said, names=("own.yaml", *case.places), LIBRARY=r"(?<=loaded: ).*(?=\. Check its)")
    assert len(str(reason)) < 1000


COMMANDS = [
    (("status", ""), ()),
    (("report", "nothing"), ()),
    (("verdict", "nothing"), ()),
    (("export", "nothing"), ()),
    (("status",), ("DIR",)),
    (("plan", "nothing.yaml"), ("nothing.yaml",)),
    (("plan", ""), ("study.json",)),
    (("plan", "."), ("study.json",)),
    (("plan", "x" * 5000), ()),
    (("plan", "~nosuchuser/study.yaml"), ()),
    (("plan", "train.epochs=0"), ("train.epochs",)),
    (("plan", "train.epochs=1", "notanoverride"), ("key=value",)),
    (("plan", "--memory", "lots"), ("lots",)),
    (("plan", "--memory", "80 GBs"), ("80 GBs",)),
    (("plan", "--memory", "0GB"), ("0GB",)),
    (("plan", "--memory", "9" * 500), ()),
    (("plan", "--device", "tpu"), ("tpu",)),
    (("plan", "--tokens-per-second", "nan"), ("nan",)),
    (("plan", "--tokens-per-second", "-1"), ("-1",)),
    (("run", "train.epochs=true"), ("train.epochs",)),
    (("run", "--nope"), ("--nope",)),
    (("nope",), ("nope",)),
    (("tasks", "--tasks-path", ""), ()),
    (("tasks", "--tasks-path", "nothing"), ("tasks_path",)),
    (("tasks", "--tasks-path", "x" * 5000), ()),
    (("init", "--preset", "quickstrat", "new.yaml"), ("quickstrat",)),
    (("init", ""), ()),
    (("init", "--from", ""), ()),
    (("init", "--from", "nothing.yaml"), ("nothing.yaml",)),
    (("init", "--from", "x" * 5000), ()),
    (("init", "--from", "."), ("adapter_config.json",)),
    (("export", "nothing", "--format", "trl"), ()),
    (("export", "nothing", "--run", "x"), ("--run",)),
    (("extend", "nothing", "--ranks", "a"), ()),
    (("audit", "nothing", "nowhere", "--limit", "1"), ("--limit",)),
    (("heads", "nothing", "--run", "x", "--tasks", ","), ("--tasks",)),
    (("audit", "base", ""), ()),
    (("audit", "base", "adapter", "--output", ""), ()),
    (("export", "study", "--output", " "), ()),
    (("verdict", "", "a.jsonl"), ()),
    (("verdict", "base.jsonl", ""), ()),
    (("lm-eval", "--model_args", "pretrained="), ("pretrained",)),
]


@pytest.mark.parametrize(
    ("arguments", "names"), COMMANDS, ids=[shlex.join(a)[:40] for a, _ in COMMANDS]
)
def test_a_bad_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    names: tuple[str, ...],
    sentence: Sentences,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "6000")  # lines are not folded
    result = rankwise(*arguments)
    logging.getLogger("lm_eval").handlers.clear()  # they write to a stream that is closed by now
    assert result.exit_code in (1, 2)
    sentence(words(result.output), names=names, LONG="[^' ]*x{5,}|9{500}")
    assert list(tmp_path.iterdir()) == []
