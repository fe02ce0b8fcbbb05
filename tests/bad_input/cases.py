"""Bad study files, overrides and rows: the input, and where a user is told to look."""

from __future__ import annotations

import json
from typing import NamedTuple

BASE, TRAIN = "base_model: m\n", "train: {task: t}\n"
SMALLEST = BASE + TRAIN
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


class Case(NamedTuple):
    """An input with a name, and where each problem is that is reported: its key and value, ..."""

    name: str
    text: str | bytes
    places: tuple[str, ...]


STUDY_FILES = [
    Case("no base model", TRAIN, ("base_model",)),
    Case("no training", BASE, ("train",)),
    Case("a number as base model", "base_model: 3\n" + TRAIN, ("base_model: 3",)),
    Case("an empty base model", "base_model: ''\n" + TRAIN, ("base_model.name: empty text",)),
    Case("a blank base model", "base_model: '  '\n" + TRAIN, ("base_model.name: empty text",)),
    Case(
        "a control character in the base model",
        'base_model: "a\\x07b"\n' + TRAIN,
        ("base_model.name: 'a\\x07b'",),
    ),
    Case(
        "an unknown key of the base model",
        "base_model: {name: m, revison: x}\n" + TRAIN,
        ("base_model.revison",),
    ),
    Case(
        "an empty revision",
        "base_model: {name: m, revision: ''}\n" + TRAIN,
        ("base_model.revision: empty text",),
    ),
    Case("base model without name", "base_model: {revision: x}\n" + TRAIN, ("base_model.name",)),
    Case("a list of base models", "base_model: [a, b]\n" + TRAIN, ("base_model: ['a', 'b']",)),
    Case("an unknown section", SMALLEST + "evaluaton: {}\n", ("evaluaton",)),
    Case("an unknown key", BASE + "train: {task: t, learning_rat: 1}\n", ("train.learning_rat",)),
    Case("a section that is text", BASE + "train: kinship\n", ("train: 'kinship'",)),
    Case("a section that is a list", BASE + "train: [kinship]\n", ("train: ['kinship']",)),
    Case("a null section", BASE + "train: null\n", ("train: None",)),
    Case("an empty task", BASE + "train: {task: ''}\n", ("train.task: empty text",)),
    Case("a number as task", BASE + "train: {task: 3}\n", ("train.task: 3",)),
    Case("a truth as task", BASE + "train: {task: yes}\n", ("train.task: True",)),
    Case("a null byte in a task", BASE + 'train: {task: "a\\0b"}\n', ("train.task: 'a\\x00b'",)),
    *(
        Case(
            f"U+{ord(hidden):04X} in a task",
            BASE + f'train: {{task: "a\\u{ord(hidden):04x}b"}}\n',
            (f"train.task: 'a\\u{ord(hidden):04x}b'",),
        )
        for hidden in "\u202e\u2066\u200b\u200f\u2060\ufeff"
    ),
    Case(
        "a password",
        BASE + "train: {data: 'https://user:pass/word@host/rows.jsonl'}\n",
        ("train.data: 'https://***@host/rows.jsonl'",),
    ),
    Case("a line break in a task", BASE + 'train: {task: "a\\nb"}\n', ("train.task: 'a\\nb'",)),
    Case("a task twice", BASE + "train: {task: [t, t]}\n", ("train.task: t",)),
    Case("a nested task", BASE + "train: {task: [[t]]}\n", ("train.task[0]: ['t']",)),
    Case(
        "neither task nor data",
        BASE + "train: {}\n",
        ("train: none of 'task', 'data' and 'sequence'",),
    ),
    Case(
        "task and data", BASE + "train: {task: t, data: d}\n", ("train: both of 'task' and 'data'",)
    ),
    Case(
        "no tasks", BASE + "train: {task: []}\n", ("train: none of 'task', 'data' and 'sequence'",)
    ),
    Case("a split of data", BASE + "train: {data: d, split: train}\n", ("train",)),
    Case("a split of another task", BASE + "train: {task: t, split: {u: train}}\n", ("train",)),
    Case(
        "exact match of a task",
        BASE + "train: {data: d, judged_by: [loss, choice]}\n",
        ("train.judged_by",),
    ),
    Case(
        "a choice in a task", BASE + "train: {task: t, judged_by: choice}\n", ("train: judged_by",)
    ),
    Case(
        "judged by nothing known",
        BASE + "train: {data: d, judged_by: luck}\n",
        ("train.judged_by: 'luck'",),
    ),
    Case("columns of a task", BASE + "train: {task: t, columns: {completion: a}}\n", ("train",)),
    Case(
        "no answer among the columns",
        BASE + "train: {data: d, columns: {prompt: q}}\n",
        ("train.columns: neither of 'completion' and 'messages'",),
    ),
    Case(
        "answers twice",
        BASE + "train: {data: d, columns: {messages: m, completion: a}}\n",
        ("train.columns: both of 'completion' and 'messages'",),
    ),
    Case(
        "a prompt beside messages",
        BASE + "train: {data: d, columns: {messages: m, prompt: q}}\n",
        ("train.columns",),
    ),
    Case(
        "one column for two roles",
        BASE + "train: {data: d, columns: {prompt: q, system: a, completion: a}}\n",
        ("train.columns",),
    ),
    Case(
        "an input below nothing",
        BASE + "train: {data: d, columns: {input: i, completion: a}}\n",
        ("train.columns",),
    ),
    Case(
        "a misspelt role",
        BASE + "train: {data: d, columns: {promt: q, completion: a}}\n",
        ("train.columns.promt",),
    ),
    Case("empty data", BASE + "train: {data: ''}\n", ("train.data: empty text",)),
    Case("a null byte in data", BASE + 'train: {data: "a\\0b"}\n', ("train.data: 'a\\x00b'",)),
    Case(
        "nobody's home",
        BASE + "train: {data: ~nosuchuser/rows}\n",
        ("train.data: '~nosuchuser/rows'",),
    ),
    Case("a number as data", BASE + "train: {data: 7}\n", ("train.data: 7",)),
    Case(
        "a held-out share of nothing",
        BASE + "train: {data: d, held_out_fraction: 0}\n",
        ("train.held_out_fraction: 0",),
    ),
    Case(
        "a held-out share of all",
        BASE + "train: {data: d, held_out_fraction: 1}\n",
        ("train.held_out_fraction: 1",),
    ),
    Case(
        "a held-out share that is not a number",
        BASE + "train: {data: d, held_out_fraction: .nan}\n",
        ("train.held_out_fraction: nan",),
    ),
    Case(
        "a held-out share as a truth",
        BASE + "train: {data: d, held_out_fraction: true}\n",
        ("train.held_out_fraction: True",),
    ),
    Case("epochs of nothing", BASE + "train: {task: t, epochs: 0}\n", ("train.epochs: 0",)),
    Case(
        "epochs without end",
        BASE + "train: {task: t, epochs: 1" + "0" * 30 + "}\n",
        ("train.epochs: 1000000000000000000000000000000",),
    ),
    Case("half an epoch", BASE + "train: {task: t, epochs: 0.5}\n", ("train.epochs: 0.5",)),
    Case("epochs as truth", BASE + "train: {task: t, epochs: true}\n", ("train.epochs: True",)),
    Case("epochs as text", BASE + "train: {task: t, epochs: '3'}\n", ("train.epochs: '3'",)),
    Case("no epochs", BASE + "train: {task: t, epochs: []}\n", ("train.epochs: []",)),
    Case("epochs twice", BASE + "train: {task: t, epochs: [3, 3]}\n", ("train.epochs: 3",)),
    Case("5,000 digits", BASE + "train: {task: t, epochs: " + "9" * 5000 + "}\n", ("line 2",)),
    Case(
        "a batch of nothing", BASE + "train: {task: t, batch_size: 0}\n", ("train.batch_size: 0",)
    ),
    Case(
        "a batch beyond all",
        BASE + "train: {task: t, batch_size: 4294967296}\n",
        ("train.batch_size: 4294967296",),
    ),
    Case(
        "a batch as fraction",
        BASE + "train: {task: t, batch_size: 1.0}\n",
        ("train.batch_size: 1.0",),
    ),
    Case(
        "a rate as truth",
        BASE + "train: {task: t, learning_rate: {lora: true}}\n",
        ("train.learning_rate.lora: True",),
    ),
    Case(
        "a rate of nothing",
        BASE + "train: {task: t, learning_rate: {lora: 0}}\n",
        ("train.learning_rate.lora: 0",),
    ),
    Case(
        "a negative rate",
        BASE + "train: {task: t, learning_rate: {full: -1e-4}}\n",
        ("train.learning_rate.full: -0.0001",),
    ),
    Case(
        "an infinite rate",
        BASE + "train: {task: t, learning_rate: {lora: .inf}}\n",
        ("train.learning_rate.lora: inf",),
    ),
    Case(
        "a rate that is not a number",
        BASE + "train: {task: t, learning_rate: {full: .nan}}\n",
        ("train.learning_rate.full: nan",),
    ),
    Case(
        "a rate as text",
        BASE + "train: {task: t, learning_rate: {full: fast}}\n",
        ("train.learning_rate.full: 'fast'",),
    ),
    Case(
        "one rate for all",
        BASE + "train: {task: t, learning_rate: 1e-4}\n",
        ("train.learning_rate: 0.0001",),
    ),
    Case(
        "an unknown rule",
        BASE + "train: {task: t, learning_rate: {lora: {rule: linear, value: 1}}}\n",
        ("train.learning_rate.lora.rule: 'linear'",),
    ),
    Case(
        "a rule without value",
        BASE + "train: {task: t, learning_rate: {lora: {rule: constant}}}\n",
        ("train.learning_rate.lora.value",),
    ),
    Case(
        "a warm-up of all", BASE + "train: {task: t, warmup_ratio: 1}\n", ("train.warmup_ratio: 1",)
    ),
    Case(
        "a warm-up that is not a number",
        BASE + "train: {task: t, warmup_ratio: .nan}\n",
        ("train.warmup_ratio: nan",),
    ),
    Case(
        "an unknown schedule",
        BASE + "train: {task: t, schedule: exponential}\n",
        ("train.schedule: 'exponential'",),
    ),
    Case(
        "a negative weight decay",
        BASE + "train: {task: t, weight_decay: -1}\n",
        ("train.weight_decay: -1",),
    ),
    Case("a dropout of all", BASE + "train: {task: t, dropout: 1.0}\n", ("train.dropout: 1.0",)),
    Case("a dropout as truth", BASE + "train: {task: t, dropout: no}\n", ("train.dropout: False",)),
    Case(
        "a norm of nothing",
        BASE + "train: {task: t, max_grad_norm: 0}\n",
        ("train.max_grad_norm: 0",),
    ),
    Case(
        "an unknown precision",
        BASE + "train: {task: t, precision: float16}\n",
        ("train.precision: 'float16'",),
    ),
    Case(
        "a switch as number",
        BASE + "train: {task: t, drop_overlapping: 1}\n",
        ("train.drop_overlapping: 1",),
    ),
    Case(
        "a switch as text",
        BASE + "train: {task: t, chat_template: 'true'}\n",
        ("train.chat_template: 'true'",),
    ),
    Case(
        "a length of nothing", BASE + "train: {task: t, max_length: 0}\n", ("train.max_length: 0",)
    ),
    Case("no ranks", SMALLEST + "methods: {lora: {ranks: []}}\n", ("methods.lora.ranks: []",)),
    Case("rank 0", SMALLEST + "methods: {lora: {ranks: [8, 0]}}\n", ("methods.lora.ranks[1]: 0",)),
    Case(
        "a rank twice", SMALLEST + "methods: {lora: {ranks: [4, 4]}}\n", ("methods.lora.ranks: 4",)
    ),
    Case(
        "a rank as fraction",
        SMALLEST + "methods: {lora: {ranks: [2.5]}}\n",
        ("methods.lora.ranks[0]: 2.5",),
    ),
    Case(
        "a rank as truth",
        SMALLEST + "methods: {lora: {ranks: [true]}}\n",
        ("methods.lora.ranks[0]: True",),
    ),
    Case(
        "a rank wider than any layer",
        SMALLEST + "methods: {lora: {ranks: [1048577]}}\n",
        ("methods.lora.ranks[0]: 1048577",),
    ),
    Case(
        "more ranks than anybody trains",
        SMALLEST + "methods: {lora: {ranks: [" + ", ".join(map(str, range(1, 1002))) + "]}}\n",
        (
            "methods.lora.ranks: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, ...",
        ),
    ),
    Case(
        "no target modules",
        SMALLEST + "methods: {lora: {target_modules: []}}\n",
        ("methods.lora.target_modules: []",),
    ),
    Case(
        "an empty set of modules",
        SMALLEST + "methods: {lora: {target_modules: [[q_proj], []]}}\n",
        ("methods.lora.target_modules[1]: []",),
    ),
    Case(
        "an empty module",
        SMALLEST + "methods: {lora: {target_modules: ['']}}\n",
        ("methods.lora.target_modules[0]: empty text",),
    ),
    Case(
        "a module twice",
        SMALLEST + "methods: {lora: {target_modules: [q_proj, q_proj]}}\n",
        ("methods.lora.target_modules[0]: q_proj",),
    ),
    Case(
        "a number as module",
        SMALLEST + "methods: {lora: {target_modules: [1]}}\n",
        ("methods.lora.target_modules[0]: 1",),
    ),
    Case(
        "an unknown policy",
        SMALLEST + "methods: {lora: {alpha: {policy: square}}}\n",
        ("methods.lora.alpha.policy: 'square'",),
    ),
    Case(
        "fixed without alpha",
        SMALLEST + "methods: {lora: {alpha: {policy: fixed}}}\n",
        ("methods.lora.alpha",),
    ),
    Case(
        "fixed with ratio",
        SMALLEST + "methods: {lora: {alpha: {policy: fixed, alpha: 4, ratio: 2}}}\n",
        ("methods.lora.alpha",),
    ),
    Case(
        "an infinite alpha",
        SMALLEST + "methods: {lora: {alpha: {policy: fixed, alpha: .inf}}}\n",
        ("methods.lora.alpha.alpha: inf",),
    ),
    Case(
        "alpha as a number",
        SMALLEST + "methods: {lora: {alpha: 16}}\n",
        ("methods.lora.alpha: 16",),
    ),
    Case(
        "pairs of different axes",
        SMALLEST + "methods: {lora: {_: [{rank: 1}, {epochs: 1}]}}\n",
        ("methods.lora",),
    ),
    Case(
        "an axis twice",
        SMALLEST + "methods: {lora: {ranks: [4], _: [{rank: 1}]}}\n",
        ("methods.lora.ranks",),
    ),
    Case("nothing to compare", SMALLEST + "methods: {lora: null, full: null}\n", ("methods",)),
    Case(
        "an import of nothing",
        SMALLEST + "methods: {imported: [{name: x}]}\n",
        ("methods.imported[0]: neither of 'adapter' and 'checkpoint'",),
    ),
    Case(
        "an import of two",
        SMALLEST + "methods: {imported: [{adapter: a, checkpoint: b}]}\n",
        ("methods.imported[0]: both of 'adapter' and 'checkpoint'",),
    ),
    Case(
        "an import with a slash",
        SMALLEST + "methods: {imported: [{adapter: a, name: ../b}]}\n",
        ("methods.imported[0].name",),
    ),
    Case(
        "an import from nobody's home",
        SMALLEST + "methods: {imported: [{adapter: ~nosuchuser/a}]}\n",
        ("methods.imported[0].adapter: '~nosuchuser/a'",),
    ),
    Case(
        "an empty import",
        SMALLEST + "methods: {imported: [{adapter: ''}]}\n",
        ("methods.imported[0].adapter: empty text",),
    ),
    Case(
        "an import for another task",
        SMALLEST + "methods: {imported: [{adapter: a, train_task: u}]}\n",
        ("methods.imported",),
    ),
    Case(
        "an unknown optimizer",
        SMALLEST + "methods: {full: {optimizer: sgd}}\n",
        ("methods.full.optimizer: 'sgd'",),
    ),
    Case("a negative seed", SMALLEST + "seeds: [-1]\n", ("seeds[0]: -1",)),
    Case("no seeds", SMALLEST + "seeds: []\n", ("seeds: []",)),
    Case("one seed that is not a list", SMALLEST + "seeds: 0\n", ("seeds: 0",)),
    Case("a seed twice", SMALLEST + "seeds: [1, 1]\n", ("seeds: 1",)),
    Case("a seed as truth", SMALLEST + "seeds: [true]\n", ("seeds[0]: True",)),
    Case("a seed beyond all", SMALLEST + "seeds: [2147483648]\n", ("seeds[0]: 2147483648",)),
    Case(
        "more seeds than anybody trains",
        SMALLEST + "seeds: [" + ", ".join(map(str, range(1001))) + "]\n",
        (
            "seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 2...",
        ),
    ),
    Case(
        "more runs than anybody trains",
        SMALLEST
        + "seeds: ["
        + ", ".join(map(str, range(900)))
        + "]\nmethods: {lora: {ranks: [1,2,3,4,5,6,7,8,9,10,11]}}\n",
        ("10,800",),
    ),
    Case("a mapping of seeds", SMALLEST + "seeds: {a: 1}\n", ("seeds: {'a': 1}",)),
    Case(
        "a task in two lists",
        SMALLEST + "evaluation: {retention: [x], out_of_domain: [x]}\n",
        ("evaluation",),
    ),
    Case(
        "the trained task as retention",
        SMALLEST + "evaluation: {retention: [t]}\n",
        ("evaluation: 't'",),
    ),
    Case("a limit of nothing", SMALLEST + "evaluation: {limit: 0}\n", ("evaluation.limit: 0",)),
    Case("an endless limit", SMALLEST + "evaluation: {limit: .inf}\n", ("evaluation.limit: inf",)),
    Case(
        "negative few-shot",
        SMALLEST + "evaluation: {num_fewshot: -1}\n",
        ("evaluation.num_fewshot: -1",),
    ),
    Case(
        "a search without ranks",
        SMALLEST + "methods: {lora: null, full: {}}\nsearch: {policy: ladder}\n",
        ("search.policy",),
    ),
    Case(
        "rates to tune and nothing to train",
        SMALLEST.replace("task: t", "task: t, learning_rate: {tune: true}")
        + "methods: {lora: null, full: null, imported: [{adapter: a}]}\n",
        ("train.learning_rate.tune: nothing",),
    ),
    Case(
        "a word for references",
        SMALLEST + "evaluation: {reference: always}\n",
        ("evaluation.reference: 'always'",),
    ),
    Case(
        "one trained item",
        SMALLEST + "evaluation: {num_train_items: 1}\n",
        ("evaluation.num_train_items",),
    ),
    Case(
        "an empty metric",
        SMALLEST + "evaluation: {metric: {t: ''}}\n",
        ("evaluation.metric.t: empty text",),
    ),
    Case(
        "a metric as list",
        SMALLEST + "evaluation: {metric: [acc]}\n",
        ("evaluation.metric: ['acc']",),
    ),
    Case(
        "an empty cluster field",
        SMALLEST + "evaluation: {clusters: {t: ''}}\n",
        ("evaluation.clusters.t: empty text",),
    ),
    Case(
        "a domain as number",
        SMALLEST + "evaluation: {domains: {t: 1}}\n",
        ("evaluation.domains.t: 1",),
    ),
    Case(
        "an empty retention task",
        SMALLEST + "evaluation: {retention: ['']}\n",
        ("evaluation.retention[0]: empty text",),
    ),
    Case(
        "one head prompt", SMALLEST + "analysis: {head_prompts: 1}\n", ("analysis.head_prompts: 1",)
    ),
    Case("negative draws", SMALLEST + "analysis: {null_draws: -1}\n", ("analysis.null_draws: -1",)),
    Case(
        "a confidence in percent",
        SMALLEST + "recommendation: {confidence: 95}\n",
        ("recommendation.confidence: 95",),
    ),
    Case(
        "a confidence that is not a number",
        SMALLEST + "recommendation: {confidence: .nan}\n",
        ("recommendation.confidence: nan",),
    ),
    Case(
        "a negative margin",
        SMALLEST + "recommendation: {delta_points: -1}\n",
        ("recommendation.delta_points: -1",),
    ),
    Case(
        "a margin as truth",
        SMALLEST + "recommendation: {epsilon_points: true}\n",
        ("recommendation.epsilon_points: True",),
    ),
    Case("an empty tasks path", SMALLEST + "tasks_path: ['']\n", ("tasks_path[0]: empty text",)),
    Case(
        "tasks in nobody's home",
        SMALLEST + "tasks_path: [~nosuchuser/tasks]\n",
        ("tasks_path[0]: '~nosuchuser/tasks'",),
    ),
    Case("a tasks path as number", SMALLEST + "tasks_path: 4\n", ("tasks_path: 4",)),
    Case("task code as text", SMALLEST + "allow_task_code: 'yes'\n", ("allow_task_code: 'yes'",)),
    Case("task code as number", SMALLEST + "allow_task_code: 1\n", ("allow_task_code: 1",)),
    Case("a name with a slash", "name: a/b\n" + SMALLEST, ("name",)),
    Case("an empty name", "name: ''\n" + SMALLEST, ("name",)),
    Case("a name of dots", "name: ..\n" + SMALLEST, ("name",)),
    Case("a name as number", "name: 5\n" + SMALLEST, ("name: 5",)),
    Case("a date as name", "name: 2020-01-01\n" + SMALLEST, ("name: datetime.date(2020, 1, 1)",)),
    Case("no such date", "name: 2020-99-99\n" + SMALLEST, ("1..12",)),
    Case("nothing", "", ("",)),
    Case("a list", "- a\n", ("",)),
    Case("a text", "just text\n", ("",)),
    Case("unclosed", "base_model: [\n", ("YAML",)),
    Case("a tab", "base_model: m\n\ttrain: x\n", ("YAML",)),
    Case("a key twice", SMALLEST + "seeds: [1]\nseeds: [2]\n", ("YAML",)),
    Case("an unhashable key", "? [a]\n: b\n", ("YAML",)),
    Case("an unknown alias", "a: *b\n", ("YAML",)),
    Case("a Python object", "a: !!python/object:os.system x\n", ("YAML",)),
    Case("a Python call", "a: !!python/object/apply:os.system ['true']\n", ("YAML",)),
    Case("deep lists", "a: " + "[" * 60 + "]" * 60 + "\n", ("line 1",)),
    Case("deep mappings", "a: " + "{a: " * 60 + "}" * 60 + "\n", ("line 1",)),
    Case("itself", "a: &a [*a]\n", ("line 1",)),
    Case(
        "laughs",
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        ("line 5",),
    ),
    Case("too many values", "a: [" + "1," * 100001 + "]\n", ("line 1",)),
    Case("a null byte", "a: \x00\n", ("YAML",)),
    Case("two documents", SMALLEST + "---\n" + SMALLEST, ("YAML",)),
]

OVERRIDES = [
    Case("train.epochs", "train.epochs", ("train.epochs",)),
    Case("=3", "=3", ("=3",)),
    Case("train..epochs=3", "train..epochs=3", ("train..epochs=3",)),
    Case("train.epochs=[", "train.epochs=[", ("train.epochs: '['",)),
    Case("train.task.name=x", "train.task.name=x", ("train.task.name: 'task'",)),
    Case("train.epoch=3", "train.epoch=3", ("train.epoch",)),
    Case("train.epochs=0", "train.epochs=0", ("train.epochs: 0",)),
    Case("train.epochs=1e30", "train.epochs=1e30", ("train.epochs: 1e+30",)),
    Case("train.epochs=true", "train.epochs=true", ("train.epochs: True",)),
    Case(
        "train.learning_rate.lora=true",
        "train.learning_rate.lora=true",
        ("train.learning_rate.lora: True",),
    ),
    Case(
        "train.learning_rate.lora=.nan",
        "train.learning_rate.lora=.nan",
        ("train.learning_rate.lora: nan",),
    ),
    Case("train.data=~nosuchuser/x", "train.data=~nosuchuser/x", ("train.data: '~nosuchuser/x'",)),
    Case("train.data=''", "train.data=''", ("train.data: empty text",)),
    Case("methods.lora.ranks=[]", "methods.lora.ranks=[]", ("methods.lora.ranks: []",)),
    Case(
        "methods.lora.target_modules=[]",
        "methods.lora.target_modules=[]",
        ("methods.lora.target_modules: []",),
    ),
    Case("seeds=[]", "seeds=[]", ("seeds: []",)),
    Case("seeds=3", "seeds=3", ("seeds: 3",)),
    Case("train.epochs=9999999", "train.epochs=" + "9" * 5000, ("train.epochs",)),
    Case("seeds=[[[[[[[[[[[[[[", "seeds=" + "[" * 60 + "]" * 60, ("seeds",)),
    Case("train=3", "train=3", ("train: 3",)),
    Case("evaluation.limit=a", "evaluation.limit=a", ("evaluation.limit: 'a'",)),
    Case("a.b=1", "a.b=1", ("a",)),
    Case(
        "train.task=!!python/object:os.system x",
        "train.task=!!python/object:os.system x",
        ("train.task: '!!python/object:os.system x'",),
    ),
    Case("tasks_path=''", "tasks_path=''", ("tasks_path: empty text",)),
    Case("base_model=", "base_model=", ("base_model: None",)),
    Case("evaluation.metric.t=", "evaluation.metric.t=", ("evaluation.metric.t: None",)),
    Case("__class__.x=1", "__class__.x=1", ("__class__",)),
    Case("train.epochs=&a [*a]", "train.epochs=&a [*a]", ("train.epochs: '&a [*a]'",)),
]

ROWS = [
    Case("nothing", "", ("rows.jsonl",)),
    Case("blank lines", "\n \n", ("rows.jsonl",)),
    Case("one row", '{"prompt": "a", "completion": "b"}', ("rows.jsonl",)),
    Case("the same row twice", '{"prompt": "a", "completion": "b"}\n' * 2, ("rows.jsonl",)),
    Case("no JSON", "prompt,completion\na,b", ("line 1", "line 2")),
    Case("half a row", '{"prompt": "a"', ("line 1",)),
    Case("a list of one row", '[{"prompt": "a", "completion": "b"}]', ("rows.jsonl",)),
    Case("a list in a list", "[[1], 2]", ("row 1", "row 2")),
    Case("lists, one a line", "[1]\n[2]", ("line 1", "line 2")),
    Case("half a list", '[{"prompt": "a"},', ("rows.jsonl",)),
    Case(
        "an object over lines",
        '{\n"prompt": "a",\n"completion": "b"}',
        ("rows.jsonl",),
    ),
    Case("a deep list", "[" * 100000, ("rows.jsonl",)),
    Case("a number", "3", ("line 1",)),
    Case("a text", '"a"', ("line 1",)),
    Case("null", "null", ("line 1",)),
    Case("no fields", "{}", ("line 1",)),
    Case("other fields", '{"query": "a", "reply": "b"}', ("line 1",)),
    Case("no completion", '{"prompt": "a"}', ("line 1",)),
    Case(
        "an empty completion",
        '{"prompt": "a", "completion": " "}',
        ('line 1: column "completion"',),
    ),
    Case(
        "a null completion", '{"prompt": "a", "completion": null}', ('line 1: column "completion"',)
    ),
    Case(
        "a fraction as prompt", '{"prompt": 1.5, "completion": "b"}', ('line 1: column "prompt"',)
    ),
    Case("half a surrogate pair", '{"prompt": "\\ud800", "completion": "b"}', ("line 1",)),
    Case("deep", '{"prompt": ' + "[" * 100000 + "]" * 100000 + "}", ("line 1",)),
    Case("5,000 digits", '{"prompt": ' + "9" * 5000 + "}", ("line 1",)),
    Case("no messages", '{"messages": []}', ('line 1: column "messages"',)),
    Case("messages as text", '{"messages": "q"}', ('line 1: column "messages"',)),
    Case(
        "a message without a role",
        json.dumps({"messages": [{"content": "q"}, ANSWER]}),
        ("line 1: messages[0]",),
    ),
    Case(
        "a message without content",
        json.dumps({"messages": [USER, {"role": "assistant"}]}),
        ("line 1: messages[1]",),
    ),
    Case(
        "content of parts",
        json.dumps(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]}
        ),
        ("line 1: messages[0]",),
    ),
    Case(
        "null content",
        json.dumps({"messages": [USER, {"role": "assistant", "content": None}]}),
        ("line 1: messages[1]",),
    ),
    Case("only a question", json.dumps({"messages": [USER]}), ("line 1",)),
    Case("only an answer", json.dumps({"messages": [ANSWER]}), ("line 1",)),
    Case(
        "an empty answer",
        json.dumps({"messages": [USER, {"role": "assistant", "content": ""}]}),
        ("line 1",),
    ),
    Case(
        "a tool call",
        json.dumps(
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": "a", "tool_calls": [{"name": "f"}]},
                ]
            }
        ),
        ("line 1: messages[1]",),
    ),
    Case(
        "a tool's answer",
        json.dumps(
            {"messages": [USER, {"role": "tool", "content": "r", "tool_call_id": "1"}, ANSWER]}
        ),
        ("line 1: messages[1]",),
    ),
    Case("tools", json.dumps({"messages": [USER, ANSWER], "tools": [{"name": "f"}]}), ("line 1",)),
    Case(
        "a weight",
        json.dumps(
            {"messages": [{"role": "assistant", "content": "x", "weight": 0}, USER, ANSWER]}
        ),
        ("line 1: messages[0]",),
    ),
    Case(
        "a prompt of messages and a text",
        json.dumps({"prompt": [USER], "completion": "b"}),
        ('line 1: column "completion"',),
    ),
    Case(
        "a completion of messages and a text",
        json.dumps({"prompt": "a", "completion": [ANSWER]}),
        ('line 1: column "prompt"',),
    ),
    Case("Cyrillic", '{"prompt": "вопрос и ответ"}'.encode("cp1251"), ("rows.jsonl",)),
    Case("UTF-16 cut", '{"prompt": "a", "completion": "b"}'.encode("utf-16")[:-1], ("rows.jsonl",)),
    Case("Parquet", b"PAR1\x15\x04\x15\xff\xfe\x00PAR1", ("rows.jsonl",)),
    Case("gzip", b"\x1f\x8b\x08\x00\x00", ("rows.jsonl",)),
]
