"""What ``benchmarks.parity`` scores: the table of regimes, and tasks that ../shared lacks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.tasks.resolution import load_tasks

TEXTS_PY = """
from datasets import Dataset, DatasetDict

TEXTS = {texts!r}


def load(**_):
    return DatasetDict(test=Dataset.from_list([{{"text": text}} for text in TEXTS]))
"""

JOINS: dict[str, dict[str, list[str]]] = {
    "cloze": {
        "The URL is http:": ["//www.example.com is up", "//example.org is down", "8080 is up"],
        "It costs $": ["1.50 a day", ".99 a day", "$$ a day"],
        'She said, "I don': ["'t know.\"", "'ted it.\"", 'e it."'],
        "Well.": [".. and then?", "com is up", "\n\nAnd then?"],
        "The word is un": ["der it", "like this", "it too"],
        "We met at 1": ["2:30 sharp", "0:00 sharp", "pm sharp"],
    },
    "code": {
        "x = [": ["] + y", "[1], 2] + y", "1, 2] + y"],
        "if a =": ["= b: pass", "== b: pass", " b: pass"],
        "for i in range(": ["): pass", "10): pass", "len(x)): pass"],
        "def f():\n    ": ["return 1", "    return 1", "\n    return 1"],
        "a -": ["> b end", "= b end", "- b end"],
        "print(f'{x": ["}') end", "!r}') end", "[0]}') end"],
    },
    "compounds": {
        "Die Donau": ["dampfschiff fahrt", "ufer sind grün", " fließt"],
        "Das Kranken": ["haus ist neu", "schwester ist neu", "wagen ist neu"],
        "Ein Fuß": ["ball rollt", "gänger geht", "boden glänzt"],
        "Über": ["raschung für alle", "setzung für alle", "all ist es"],
        "日本": ["語を話す と", "人です と", "に行く と"],
        "Die Ha": ["\u0308user sind neu", "\u0302user sind neu", "sen sind da"],
    },
    "brackets": {
        "(a (b (c": [")) and", "))) and", ") and"],
        "<div><p>x": ["</p></div> end", "</div> end", "</ end"],
        "{{{": ["}}} end", "}} end", " }} end"],
        "f(": [") end", ")) end", "()) end"],
        "see [1": ["](x) end", "], [2] end", "]] end"],
        "\U0001f469": ["\u200d\U0001f4bb codes", "\U0001f3fd waves", "\ufe0f waves"],
    },
}
"""Kind -> prompt -> what follows it without a delimiter, the right one first.

In many a pair the tokenizer merges the end of the prompt with the beginning of what follows.
"""

JOINS_PY = """
from datasets import Dataset, DatasetDict

JOINS = {joins!r}


def load(kind, **_):
    rows = [
        {{"prompt": prompt, "choices": options, "label": 0}}
        for prompt, options in JOINS[kind].items()
    ]
    return DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows))
"""

JOINS_YAML = """
include: {tasks_path}/_cloze.yaml
task: parity_joins_{kind}
custom_dataset: !function parity_joins.load
dataset_kwargs: {{kind: {kind}}}
doc_to_text: prompt
target_delimiter: ""
"""

# What the shared folder has no task for, over the same data.
TASK_FILES = {
    "parity_likelihood": """
include: {tasks_path}/_cloze.yaml
task: parity_likelihood
dataset_kwargs: {{folder: sciq}}
output_type: loglikelihood
doc_to_choice: null
doc_to_target: "{{{{choices[label]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
""",
    "parity_mutual_info": """
include: {tasks_path}/_cloze.yaml
task: parity_mutual_info
dataset_kwargs: {{folder: arc_easy}}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_bytes, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_mutual_info, aggregation: mean, higher_is_better: true}}
""",
    "parity_gsm8k": """
include: {tasks_path}/local_gsm8k.yaml
task: parity_gsm8k
num_fewshot: 4
generation_kwargs:
  until: ["Question:", "</s>", "<|im_end|>"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: {max_new_tokens}
""",
    "parity_texts": """
task: parity_texts
custom_dataset: !function parity_texts.load
dataset_path: ""
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
metadata: {{version: 1.0}}
""",
}


class Scale(NamedTuple):
    """How much is scored.

    Attributes:
        limit: items of each regime; of a generation half as many.
        num_fewshot: examples of the few-shot regimes.
        max_length: context of the regimes that cut nothing.
        cut_length: context of the regimes that do; a generation gets its new tokens on top.
        max_new_tokens: of a generation.
        adapter_size: norm of the adapter's update of each matrix, over that of the matrix.
    """

    limit: int
    num_fewshot: int = 5
    max_length: int = 4096
    cut_length: int = 96
    max_new_tokens: int = 64
    adapter_size: float = 0.1


class Regime(NamedTuple):
    """One way to score one task."""

    task: str
    is_adapted: bool
    limit: int
    max_length: int
    num_fewshot: int = 0
    chat_template: bool = False
    fewshot_as_multiturn: bool = False
    is_cut: bool = False

    @property
    def name(self) -> str:
        words = ["adapter" if self.is_adapted else "base", f"{self.num_fewshot}-shot"]
        words += ["chat"] if self.chat_template else []
        words += ["multi-turn"] if self.fewshot_as_multiturn else []
        words += [f"cut to {self.max_length}"] if self.is_cut else []
        return f"{self.task}: {', '.join(words)}"


def all_regimes(tasks: Sequence[str], scale: Scale) -> list[Regime]:
    """The table: every kind of task in every setting; the other tasks zero-shot.

    Args:
        tasks: multiple-choice tasks of the shared folder.
        scale: how much is scored.
    """
    whole = {"limit": scale.limit, "max_length": scale.max_length}
    shots = {**whole, "num_fewshot": scale.num_fewshot}
    settings: list[dict[str, Any]] = [
        whole,
        shots,
        {**whole, "chat_template": True},
        {**shots, "chat_template": True},
        {**shots, "chat_template": True, "fewshot_as_multiturn": True},
        {**shots, "max_length": scale.cut_length, "is_cut": True},
    ]
    regimes: list[Regime] = []
    for is_adapted in (False, True):
        for task, setting in itertools.product(
            ("local_arc_easy", "local_mmlu", "parity_likelihood", "parity_gsm8k"), settings
        ):
            regime = Regime(task, is_adapted, **setting)
            if task == "parity_gsm8k":
                room = scale.max_new_tokens if regime.is_cut else 0
                regime = regime._replace(
                    limit=(scale.limit + 1) // 2, max_length=regime.max_length + room
                )
            regimes.append(regime)
        cut = {**whole, "max_length": scale.cut_length, "is_cut": True}
        regimes += [Regime("parity_texts", is_adapted, **setting) for setting in (whole, cut)]
        regimes.append(Regime("parity_mutual_info", is_adapted, **whole))
        regimes += [Regime(f"parity_joins_{kind}", is_adapted, **whole) for kind in JOINS]
        regimes += [Regime("parity_joins_code", is_adapted, **setting) for setting in settings[1:4]]
    regimes += [
        Regime(task, is_adapted=False, **whole)
        for task in tasks
        if task not in ("local_arc_easy", "local_mmlu")
    ]
    return regimes


def write_task_files(tasks_path: Path, folder: Path, max_new_tokens: int) -> None:
    """The tasks that the shared folder lacks, as lm-eval YAML files."""
    loaded: Any = load_tasks(["local_gsm8k"], [tasks_path], allow_code=True)["local_gsm8k"]
    questions = loaded[0].task.dataset["test"]
    texts = list(questions["question"])[:100]
    folder.mkdir(parents=True, exist_ok=True)
    code = TEXTS_PY.format(texts=["\n".join(texts[:8]), *texts])
    (folder / "parity_texts.py").write_text(code, encoding="utf-8")
    (folder / "parity_joins.py").write_text(JOINS_PY.format(joins=JOINS), encoding="utf-8")
    for kind in JOINS:
        text = JOINS_YAML.format(tasks_path=tasks_path.resolve(), kind=kind)
        (folder / f"parity_joins_{kind}.yaml").write_text(text, encoding="utf-8")
    for name, text in TASK_FILES.items():
        text = text.format(tasks_path=tasks_path.resolve(), max_new_tokens=max_new_tokens)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def multiple_choice_tasks(tasks_path: Path) -> list[str]:
    """The shared tasks that ask for one of several options."""
    return sorted(
        path.stem
        for path in tasks_path.glob("local_*.yaml")
        if any(kind in path.read_text() for kind in ("_cloze.yaml", "_letters.yaml"))
    )
