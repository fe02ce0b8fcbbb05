"""Every bad input of the tables is refused with its sentence, and never with a traceback."""

from __future__ import annotations

import logging
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

MOST_SECONDS = 5
"""Of reading one input: deep or exploding ones would take minutes, or all memory."""


def by_name(cases: list[Case]) -> Any:
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def check(problems: tuple[str, ...], case: Case) -> None:
    assert len(problems) == len(case.problems)
    for problem, beginning in zip(problems, case.problems, strict=True):
        assert problem.startswith(beginning)
        assert len(problem) < 600


@by_name(STUDY_FILES)
def test_a_bad_study_file(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(str(case.text))
    started = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert time.perf_counter() - started < MOST_SECONDS
    check(caught.value.problems, case)


@by_name(OVERRIDES)
def test_a_bad_override(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(SMALLEST)
    with pytest.raises(ConfigError) as caught:
        load_config(path, [str(case.text)])
    check(caught.value.problems, case)


@by_name(ROWS)
def test_bad_rows(tmp_path: Path, tokenizer: Any, case: Case) -> None:
    path = tmp_path / "rows.jsonl"
    text = case.text
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        load_user_data(
            TrainConfig(data=path, held_out_fraction=0.5), tokenizer, chat_template=False
        )
    problems = tuple(line.strip() for line in str(caught.value).split("\n"))
    shown = tuple(line.replace(f"{tmp_path}/", "") for line in problems[1:] or problems)
    check(shown, case)


@pytest.mark.parametrize("path", ["nothing.jsonl", ".", "x" * 5000, "a\0b"])
def test_rows_that_are_nowhere(tmp_path: Path, tokenizer: Any, path: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read: .*\. Check the path\."):
        load_user_data(
            TrainConfig.model_construct(data=tmp_path / path, held_out_fraction=0.5),
            tokenizer,
            chat_template=False,
        )


def test_tool_calls_and_turns_that_a_template_drops(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"messages": [{"role": "tool", "content": "42"}, {"role": "assistant", "content": "a"}]}\n'
    )
    whole = tokenizer.chat_template
    tokenizer.chat_template = whole.replace("{% for message in messages %}", (
        "{% for message in messages if message['role'] != 'tool' %}"))  # fmt: skip
    try:
        with pytest.raises(DataError, match="leaves out turn 0, whose role is 'tool'; change the"):
            load_user_data(
                TrainConfig(data=path, held_out_fraction=0.5), tokenizer, chat_template=True
            )
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
    Case("metrics as text", "metric_list: acc\n", ("'acc' names no metric; write metric: acc",)),
    Case(
        "a metric without a name",
        "metric_list: [{aggregation: mean}]\n",
        ("metric_list[0]: {'aggregation': 'mean'} names no metric; write metric: acc",),
    ),
    Case(
        "an unknown metric",
        "metric_list: [{metric: acuracy, aggregation: mean}]\n",
        ("metric_list: lm-eval has no metric 'acuracy'",),
    ),
    Case(
        "a metric called as a field of items",
        "metric_list: [{metric: filter, aggregation: mean}]\n",
        ("metric_list[0]: 'filter' is a field of every item; call the metric otherwise",),
    ),
    Case(
        "an unknown aggregation",
        "metric_list: [{metric: acc, aggregation: median_of_all}]\n",
        ("metric_list[0].aggregation: no aggregation named 'median_of_all'; ",),
    ),
    Case(
        "a number as filter",
        "filter_list: [3]\n",
        ("filter_list[0]: a filter needs a name and a list of steps; write name and filter",),
    ),
    Case(
        "an unknown filter",
        "filter_list: [{name: x, filter: [{function: take_frist}]}]\n",
        ("no filter named 'take_frist'; did you mean 'take_first",),
    ),
    Case(
        "a step without a function",
        "filter_list: [{name: x, filter: [take_first]}]\n",
        ("filter_list[0].filter[0].function: no filter named None; write one of lm-eval's",),
    ),
    Case(
        "no regular expression",
        "filter_list: [{name: x, filter: [{function: regex, regex_pattern: '('}]}]\n",
        ("regex_pattern: '(' is not a regular expression: missing ), unterminated subpattern",),
    ),
    Case(
        "a number as regular expression",
        "filter_list: [{name: x, filter: [{function: regex, regex_pattern: 3}]}]\n",
        ("regex_pattern: 3 is not a regular expression",),
    ),
    Case(
        "an expression of a million letters",
        "filter_list: [{name: x, filter: [{function: regex, "
        "regex_pattern: '(?:(?:a{100}){100}){100}'}]}]\n",
        ("regex_pattern: '(?:(?:a{100}){100}){100}' has ", "written out"),
    ),
    Case(
        "an expression to ignore",
        "metric_list: [{metric: acc, regexes_to_ignore: ['(']}]\n",
        ("metric_list[0].regexes_to_ignore: '(' is not a regular expression",),
    ),
    Case(
        "an open template",
        'doc_to_text: "{{question"\n',
        ("doc_to_text: line 1 of the template: unexpected end of template",),
    ),
    Case(
        "an unknown tag",
        'doc_to_target: "{% fro x %}"\n',
        ("doc_to_target: line 1 of the template: Encountered unknown tag 'fro'",),
    ),
    Case("an unknown field", 'doc_to_text: "{{qestion}}"\n', ("'qestion' is undefined",)),
    Case("an unknown key", "doc_to_txt: x\n", ("unexpected keyword argument 'doc_to_txt'",)),
    Case("an unknown output", "output_type: choice\n", ("invalid output_type 'choice'",)),
    Case("an unknown split", "test_split: tset\n", ("KeyError: 'tset'",)),
    Case("no text", "doc_to_text: 3.5\n", ("cannot be loaded: TypeError",)),
    Case("choices as a number", "doc_to_choice: label\n", ("cannot be loaded: ",)),
    Case("no choices", 'doc_to_choice: "1 +"\n', ("cannot be loaded: SyntaxError",)),
    Case(
        "deep choices",
        f'doc_to_choice: "{"[" * 10_000}"\n',
        ("cannot be loaded: ",),
    ),
    Case("an unknown sampler", "fewshot_config: {sampler: best}\n", ("contextsampler 'best'",)),
    Case("a number as include", "include: 3\n", ("own.yaml: include is 3, not a file; write",)),
    Case(
        "an include outside of all",
        "include: ../../../../nothing.yaml\n",
        ("own.yaml includes ../../../../nothing.yaml. ",),
    ),
    Case("images", "doc_to_image: question\n", ("needs images or audio; rankwise scores text",)),
    Case("generated code", "unsafe_code: true\n", ("runs generated code or needs images",)),
]


@by_name(TASK_FILES)
def test_a_bad_task_file(tmp_path: Path, no_index: None, case: Case) -> None:
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
    assert case.problems[0] in str(reason)
    assert "own.yaml" in str(reason)
    assert len(str(reason)) < 1000


NO_PATH = "' names no file or folder; write a path"
COMMANDS = [
    (("status", ""), NO_PATH),
    (("report", "nothing"), "nothing"),
    (("verdict", "nothing"), "nothing"),
    (("export", "nothing"), "nothing"),
    (("status",), "Missing argument 'DIR'"),
    (("plan", "nothing.yaml"), "nothing.yaml has 1 problem the file cannot be read: "),
    (("plan", ""), ". has 1 problem the folder has no study.json; give a study file"),
    (("plan", "."), "the folder has no study.json; give a study file, or the folder of a study"),
    (("plan", "x" * 5000), "longer than the system takes"),
    (("plan", "~nosuchuser/study.yaml"), "the file cannot be read: "),
    (("plan", "train.epochs=0"), "train.epochs: 0 given"),
    (("plan", "train.epochs=1", "notanoverride"), "is not an override; write key=value"),
    (("plan", "--memory", "lots"), "'lots' is not an amount of memory; write 80GB, 24GiB or bytes"),
    (("plan", "--memory", "80 GBs"), "'80 GBs' is not an amount of memory"),
    (("plan", "--memory", "0GB"), "'0GB' is not an amount of memory"),
    (("plan", "--memory", "9" * 500), "is not an amount of memory"),
    (("plan", "--device", "tpu"), "'tpu' is not a device; write cpu or cuda"),
    (("plan", "--tokens-per-second", "nan"), "'nan' is not a number above 0; write one"),
    (("plan", "--tokens-per-second", "-1"), "'-1' is not a number above 0; write one"),
    (("run", "train.epochs=true"), "train.epochs: True given; input should be a valid integer"),
    (("run", "--nope"), "No such option: --nope"),
    (("nope",), "No such command 'nope'"),
    (("tasks", "--tasks-path", ""), NO_PATH),
    (("tasks", "--tasks-path", "nothing"), "tasks_path: nothing is not a folder; check the path."),
    (("tasks", "--tasks-path", "x" * 5000), "longer than the system takes"),
    (("init", "--preset", "quickstrat", "new.yaml"), "no preset named 'quickstrat'; did you mean"),
    (("init", ""), NO_PATH),
    (("init", "--from", ""), NO_PATH),
    (("init", "--from", "nothing.yaml"), "nothing.yaml has 1 problem the file cannot be read"),
    (("init", "--from", "x" * 5000), "longer than the system takes"),
    (("init", "--from", "."), "the folder has no adapter_config.json"),
    (("export", "nothing", "--format", "trl"), "nothing"),
    (("export", "nothing", "--run", "x"), "--run is for formats of one run"),
    (("extend", "nothing", "--ranks", "a"), "nothing"),
    (("audit", "nothing", "nowhere", "--limit", "1"), "Invalid value for '--limit'"),
    (("heads", "nothing", "--run", "x", "--tasks", ","), "--tasks names no task; name at least"),
    (("audit", "base", ""), NO_PATH),
    (("audit", "base", "adapter", "--output", ""), NO_PATH),
    (("export", "study", "--output", " "), NO_PATH),
    (("verdict", "", "a.jsonl"), NO_PATH),
    (("verdict", "base.jsonl", ""), NO_PATH),
    (("lm-eval", "--model_args", "pretrained="), "pretrained: say which base model"),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"), COMMANDS, ids=[" ".join(a)[:40] for a, _ in COMMANDS]
)
def test_a_bad_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "6000")  # lines are not folded
    result = rankwise(*arguments)
    logging.getLogger("lm_eval").handlers.clear()  # they write to a stream that is closed by now
    assert result.exit_code in (1, 2)
    assert sentence in words(result.output)
    assert list(tmp_path.iterdir()) == []
