"""Everything that reads input of other people, in one table.

The property of each: whatever the input, it returns or raises ``RankwiseError``, and in time.
To add one, write a function that takes an empty folder and the input, and put it into ``PARSERS``
with a strategy that makes inputs, and the number of examples that a normal test run has time for.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml
from hypothesis import strategies as st

from rankwise.errors import ConfigError, RankwiseError
from rankwise.records.study_file import load_config, preset_names, preset_text
from tests.fuzz import (
    answers_parsers,
    folders_parsers,
    models_parsers,
    names_parsers,
    records_parsers,
    scores_parsers,
    weights_parsers,
)
from tests.fuzz.strategies import (
    NASTY_VALUES,
    damaged,
    dumped_json_lines,
    dumped_yaml,
    values,
    with_nasty_values,
)
from tests.planted import tool_configs

MOST_SECONDS = 20
"""Of processor time for one input. Nothing takes longer than one; a bomb takes hours."""

LONGEST_WAIT = 300
"""Seconds for one input by the clock: a machine may stall, and a pipe blocks for ever."""

TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {train: rows.jsonl, test: rows.jsonl}}
output_type: multiple_choice
training_split: train
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
num_fewshot: 1
description: "Answer."
doc_to_text: "{{question}}"
doc_to_choice: options
doc_to_target: label
target_delimiter: " "
generation_kwargs: {until: ["x"], max_gen_toks: 5, do_sample: false}
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: x, filter: [{function: regex, regex_pattern: "(.*)"}, {function: take_first}]}
tag: [mine]
metadata: {version: 1.0}
"""
_DOCUMENT = '{"question": "Is it?", "options": ["yes", "no"], "label": 1}\n'
_TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
_ROWS = [
    {"prompt": "a", "completion": "b"},
    {"messages": _TURNS},
    {"prompt": _TURNS[:1], "completion": _TURNS[1:]},
    {"instruction": "a", "input": "b", "output": "c", "system": "d"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"question": "a", "answer": "b", "choices": []},
    {"text": "a"},
]
_TABLE = 'question,answer\n"a, ""b""",c\nd,"e\nf"\n'


class Parser(NamedTuple):
    """Something that reads input.

    Attributes:
        read: takes an empty folder and an input.
        inputs: makes inputs.
        num_examples: how many a normal test run tries: a few seconds' worth.
    """

    read: Callable[[Path, Any], object]
    inputs: st.SearchStrategy[Any]
    num_examples: int


class TooSlow(BaseException):
    """The reader took more than ``MOST_SECONDS``."""


def check(parser: Parser, folder: Path, content: Any) -> None:
    """Let a parser read an input; anything but a result or a ``RankwiseError`` goes up.

    That it was too slow goes up too, whatever the parser makes of the alarm.
    """
    with _alarm(), contextlib.suppress(RankwiseError):
        parser.read(folder, content)


@contextlib.contextmanager
def _alarm() -> Generator[None]:
    rang: list[TooSlow] = []

    def ring(*_: object) -> None:
        rang.append(TooSlow(f"more than {MOST_SECONDS} s, or {LONGEST_WAIT} s of waiting"))
        raise rang[0]

    before = signal.signal(signal.SIGPROF, ring), signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)
        if rang:
            raise rang[0]


def read_study(folder: Path, text: str) -> object:
    path = folder / "study.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return load_config(path)


def read_overrides(folder: Path, overrides: list[str]) -> object:
    path = folder / "study.yaml"
    path.write_text("base_model: m\ntrain: {task: t}\n")
    return load_config(path, overrides)


def read_tool_config(folder: Path, text: str) -> object:
    """Another tool's config; the study that is made of one is read back."""
    from rankwise.integrations.sources import read_source
    from rankwise.integrations.study_text import study_text

    source, study = folder / "config.yaml", folder / "study.yaml"
    source.write_bytes(text.encode("utf-8", "surrogatepass"))
    study.write_text(study_text(read_source(source), folder).text, encoding="utf-8")
    try:
        return load_config(study)
    except ConfigError as error:
        raise AssertionError(f"{text!r} makes a study that does not load: {error}") from error


def read_trainer_folder(folder: Path, texts: tuple[str, str, str]) -> object:
    """A Trainer's files."""
    from rankwise.integrations.sources import read_source

    for name, text in zip(
        ("adapter_config.json", "README.md", "trainer_state.json"), texts, strict=True
    ):
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    return read_source(folder)


@cache
def _tokenizer() -> Any:
    from tests.support.tiny_tasks import tiny_tokenizer

    return tiny_tokenizer()


def read_rows(folder: Path, text: str, name: str = "rows.jsonl") -> object:
    from rankwise.records.config.training import TrainConfig
    from rankwise.tasks.user_data import load_user_data

    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return load_user_data(
        TrainConfig(data=path, held_out_fraction=0.5), _tokenizer(), chat_template=True
    )


def read_task(folder: Path, text: str) -> object:
    """Index, check, load and prepare; whatever the file says, none of it is code that may run."""
    from rankwise.tasks import resolution
    from rankwise.tasks.requests import prepare_task

    (folder / "rows.jsonl").write_text(_DOCUMENT * 3)
    (folder / "tasks").mkdir(exist_ok=True)
    text = text.replace("rows.jsonl", str(folder / "rows.jsonl"))
    (folder / "tasks" / "own.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with patch.object(resolution, "lm_evals_own", dict):  # which takes seconds
        loaded = resolution.load_tasks(["own"], [folder / "tasks"])["own"]
    if isinstance(loaded, RankwiseError):
        raise loaded
    settings: dict[str, Any] = {"num_fewshot": None, "limit": 2, "chat_template": False}
    leaves = loaded if isinstance(loaded, tuple) and not hasattr(loaded, "suggestion") else ()
    return [prepare_task(leaf, _tokenizer(), max_length=64, **settings) for leaf in leaves]


_STUDY: dict[str, Any] = {
    "name": "own",
    "base_model": {"name": "m", "revision": "main"},
    "tasks_path": ["tasks", "more"],
    "allow_task_code": False,
    "train": {
        "data": "rows.jsonl",
        "held_out_fraction": 0.1,
        "max_examples": 9,
        "epochs": [1, 2],
        "batch_size": 2,
        "learning_rate": {"lora": [1e-4, {"rule": "constant", "value": 1e-4}], "full": 1e-5},
        "warmup_ratio": 0.1,
        "weight_decay": 0.0,
        "max_length": 64,
    },
    "methods": {
        "lora": {
            "ranks": [2, 4],
            "alpha": {"policy": "fixed", "alpha": 4},
            "target_modules": ["q"],
        },
        "full": {"optimizer": "adamw"},
        "imported": [{"adapter": "a", "name": "x", "train_task": "rows"}],
    },
    "seeds": [0, 1],
    "evaluation": {
        "retention": ["x"],
        "metric": {"x": "acc"},
        "domains": {"x": "y"},
        "clusters": {"x": "passage"},
        "num_fewshot": 0,
        "limit": 5,
        "num_train_items": 5,
    },
    "analysis": {"top_k": 5, "null_draws": 1, "head_prompts": 4},
    "recommendation": {"delta_points": 0.5, "confidence": 0.9},
}
_STUDY_TEXT = dumped_yaml(_STUDY)
_PRESETS = [preset_text(name) for name in preset_names()]
_KEYS = [
    *("train.epochs", "train.learning_rate.lora", "train.data", "train.task", "seeds", "name"),
    *("methods.lora.ranks", "methods.lora.target_modules", "methods.lora.alpha", "methods.full"),
    *("evaluation.limit", "evaluation.metric.t", "tasks_path", "base_model", "base_model.name"),
]

PARSERS: dict[str, Parser] = {
    "study file": Parser(
        read_study,
        st.one_of(
            with_nasty_values(_STUDY).map(dumped_yaml), damaged([*_PRESETS, _STUDY_TEXT]), st.text()
        ),
        300,
    ),
    "overrides": Parser(
        read_overrides,
        st.lists(
            st.tuples(
                st.sampled_from(_KEYS) | st.text(max_size=10),
                st.sampled_from(NASTY_VALUES) | values,
            ).map(lambda pair: f"{pair[0]}={dumped_yaml(pair[1])}")
            | damaged([f"{key}=1" for key in _KEYS]),
            max_size=2,
        ),
        300,
    ),
    "rows": Parser(
        read_rows,
        st.one_of(
            with_nasty_values(_ROWS).map(dumped_json_lines),
            damaged([dumped_json_lines(_ROWS)]),
            st.text(),
        ),
        300,
    ),
    "table": Parser(
        lambda folder, text: read_rows(folder, text, "rows.csv"),
        st.one_of(damaged([_TABLE]), st.text()),
        150,
    ),
    "task file": Parser(
        read_task,
        st.one_of(with_nasty_values(yaml.safe_load(TASK)).map(dumped_yaml), damaged([TASK])),
        100,
    ),
}
_TOOL_CONFIGS = (
    *(tool_configs.AXOLOTL, tool_configs.LLAMA_FACTORY, tool_configs.TRL, tool_configs.UNSLOTH),
    *(tool_configs.UNSLOTH_COMMAND, tool_configs.ADAPTER_CONFIG),
)
_TRAINERS_FILES = (tool_configs.ADAPTER_CONFIG, tool_configs.CARD, tool_configs.STATE)
PARSERS |= {
    "tool config": Parser(
        read_tool_config,
        st.one_of(
            *(with_nasty_values(yaml.safe_load(text)).map(dumped_yaml) for text in _TOOL_CONFIGS),
            damaged(_TOOL_CONFIGS),
        ),
        300,
    ),
    "trainer folder": Parser(
        read_trainer_folder, st.tuples(*(damaged([text]) for text in _TRAINERS_FILES)), 150
    ),
}
PARSERS |= {name: Parser(*parser) for name, parser in records_parsers.PARSERS.items()}
for module in (answers_parsers, folders_parsers, models_parsers, names_parsers, scores_parsers):
    PARSERS |= {name: Parser(*parser) for name, parser in module.PARSERS.items()}
PARSERS |= {
    name: Parser(lambda _, content, read=read: read(content), inputs, 150)
    for name, (inputs, read) in weights_parsers.PARSERS.items()
}
