"""Bad study files, overrides and rows: the input, and what a user is told."""

from __future__ import annotations

import json
from typing import NamedTuple

BASE, TRAIN = "base_model: m\n", "train: {task: t}\n"
SMALLEST = BASE + TRAIN
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


class Case(NamedTuple):
    """An input with a name, and each problem that is reported, or its distinctive beginning."""

    name: str
    text: str | bytes
    problems: tuple[str, ...]


STUDY_FILES = [
    Case("no base model", TRAIN, ("base_model: is missing; add it",)),
    Case("no training", BASE, ("train: is missing; add it",)),
    Case(
        "a number as base model",
        "base_model: 3\n" + TRAIN,
        ("base_model: 3 given; a section is needed here, with keys: name, revision",),
    ),
    Case(
        "an empty base model",
        "base_model: ''\n" + TRAIN,
        ("base_model.name: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "a blank base model",
        "base_model: '  '\n" + TRAIN,
        ("base_model.name: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "a control character in the base model",
        'base_model: "a\\x07b"\n' + TRAIN,
        ("base_model.name: 'a\\x07b' has a control character; remove it",),
    ),
    Case(
        "an unknown key of the base model",
        "base_model: {name: m, revison: x}\n" + TRAIN,
        ("base_model.revison: unknown key; did you mean 'revision'?",),
    ),
    Case(
        "an empty revision",
        "base_model: {name: m, revision: ''}\n" + TRAIN,
        ("base_model.revision: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "base model without name",
        "base_model: {revision: x}\n" + TRAIN,
        ("base_model.name: is missing; add it",),
    ),
    Case(
        "a list of base models",
        "base_model: [a, b]\n" + TRAIN,
        ("base_model: ['a', 'b'] given; a section is needed here, with keys: name, revision",),
    ),
    Case(
        "an unknown section",
        SMALLEST + "evaluaton: {}\n",
        ("evaluaton: unknown key; did you mean 'evaluation'?",),
    ),
    Case(
        "an unknown key",
        BASE + "train: {task: t, learning_rat: 1}\n",
        ("train.learning_rat: unknown key; did you mean 'learning_rate'?",),
    ),
    Case(
        "a section that is text",
        BASE + "train: kinship\n",
        (
            "train: 'kinship' given; a section is needed here, with keys: task, split, data, columns, objective, held_out_fraction, judged_by, max_new_tokens, max_examples, drop_overlapping,",
        ),
    ),
    Case(
        "a section that is a list",
        BASE + "train: [kinship]\n",
        (
            "train: ['kinship'] given; a section is needed here, with keys: task, split, data, columns, objective, held_out_fraction, judged_by, max_new_tokens, max_examples, drop_overlapping,",
        ),
    ),
    Case(
        "a null section",
        BASE + "train: null\n",
        (
            "train: None given; a section is needed here, with keys: task, split, data, columns, objective, held_out_fraction, judged_by, max_new_tokens, max_examples, drop_overlapping, epochs,",
        ),
    ),
    Case(
        "an empty task",
        BASE + "train: {task: ''}\n",
        ("train.task: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "a number as task",
        BASE + "train: {task: 3}\n",
        ("train.task: 3 given; write text, in quotes if it looks like something else",),
    ),
    Case(
        "a truth as task",
        BASE + "train: {task: yes}\n",
        ("train.task: True given; write text, in quotes if it looks like something else",),
    ),
    Case(
        "a null byte in a task",
        BASE + 'train: {task: "a\\0b"}\n',
        ("train.task: 'a\\x00b' has a control character; remove it",),
    ),
    *(
        Case(
            f"U+{ord(hidden):04X} in a task",
            BASE + f'train: {{task: "a\\u{ord(hidden):04x}b"}}\n',
            (f"train.task: 'a\\u{ord(hidden):04x}b' has a control character; remove it",),
        )
        for hidden in "\u202e\u2066\u200b\u200f\u2060\ufeff"
    ),
    Case(
        "a password",
        BASE + "train: {data: 'https://user:pass/word@host/rows.jsonl'}\n",
        ("train.data: 'https://***@host/rows.jsonl' is a URL; download it, and give the file",),
    ),
    Case(
        "a line break in a task",
        BASE + 'train: {task: "a\\nb"}\n',
        ("train.task: 'a\\nb' has a control character; remove it",),
    ),
    Case(
        "a task twice",
        BASE + "train: {task: [t, t]}\n",
        ("train.task: t is given twice; give each value once",),
    ),
    Case(
        "a nested task",
        BASE + "train: {task: [[t]]}\n",
        ("train.task[0]: ['t'] given; write text, in quotes if it looks like something else",),
    ),
    Case(
        "neither task nor data",
        BASE + "train: {}\n",
        ("train: neither of 'task' and 'data' given; give exactly one",),
    ),
    Case(
        "task and data",
        BASE + "train: {task: t, data: d}\n",
        ("train: both of 'task' and 'data' given; give exactly one",),
    ),
    Case(
        "no tasks",
        BASE + "train: {task: []}\n",
        ("train: neither of 'task' and 'data' given; give exactly one",),
    ),
    Case(
        "a split of data",
        BASE + "train: {data: d, split: train}\n",
        ("train: split is for 'task'; your own data has no splits",),
    ),
    Case(
        "a split of another task",
        BASE + "train: {task: t, split: {u: train}}\n",
        ("train: split: 'u' is not trained on; there is t",),
    ),
    Case(
        "exact match of a task",
        BASE + "train: {data: d, judged_by: [loss, choice]}\n",
        ("train.judged_by: loss, choice and preference score the same answers; name one",),
    ),
    Case(
        "a choice in a task",
        BASE + "train: {task: t, judged_by: choice}\n",
        ("train: judged_by is for 'data'; a task brings its own metrics",),
    ),
    Case(
        "judged by nothing known",
        BASE + "train: {data: d, judged_by: luck}\n",
        (
            "train.judged_by: 'luck' given; input should be 'loss', 'choice', 'preference', 'number', 'exact', 'contains', 'json', 'rouge', 'bleu', 'chrf' or 'length'",
        ),
    ),
    Case(
        "columns of a task",
        BASE + "train: {task: t, columns: {completion: a}}\n",
        ("train: columns are for 'data'; a task knows its own",),
    ),
    Case(
        "no answer among the columns",
        BASE + "train: {data: d, columns: {prompt: q}}\n",
        ("train.columns: neither of 'completion' and 'messages' given; give exactly one",),
    ),
    Case(
        "answers twice",
        BASE + "train: {data: d, columns: {messages: m, completion: a}}\n",
        ("train.columns: both of 'completion' and 'messages' given; give exactly one",),
    ),
    Case(
        "a prompt beside messages",
        BASE + "train: {data: d, columns: {messages: m, prompt: q}}\n",
        ("train.columns: 'messages' hold the prompt; leave 'prompt' and 'input' out",),
    ),
    Case(
        "one column for two roles",
        BASE + "train: {data: d, columns: {prompt: q, system: a, completion: a}}\n",
        ("train.columns: 'system' and 'completion' are both column 'a'; name two columns",),
    ),
    Case(
        "an input below nothing",
        BASE + "train: {data: d, columns: {input: i, completion: a}}\n",
        ("train.columns: 'input' goes below a prompt; give 'prompt'",),
    ),
    Case(
        "a misspelt role",
        BASE + "train: {data: d, columns: {promt: q, completion: a}}\n",
        ("train.columns.promt: unknown key; did you mean 'prompt'?",),
    ),
    Case(
        "empty data",
        BASE + "train: {data: ''}\n",
        ("train.data: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "a null byte in data",
        BASE + 'train: {data: "a\\0b"}\n',
        ("train.data: 'a\\x00b' has a control character; remove it",),
    ),
    Case(
        "nobody's home",
        BASE + "train: {data: ~nosuchuser/rows}\n",
        ("train.data: '~nosuchuser/rows' is in no known home folder; correct the name",),
    ),
    Case("a number as data", BASE + "train: {data: 7}\n", ("train.data: 7 given; write a path",)),
    Case(
        "a held-out share of nothing",
        BASE + "train: {data: d, held_out_fraction: 0}\n",
        ("train.held_out_fraction: 0 given; input should be greater than 0",),
    ),
    Case(
        "a held-out share of all",
        BASE + "train: {data: d, held_out_fraction: 1}\n",
        ("train.held_out_fraction: 1 given; input should be less than 1",),
    ),
    Case(
        "a held-out share that is not a number",
        BASE + "train: {data: d, held_out_fraction: .nan}\n",
        ("train.held_out_fraction: nan given; input should be a finite number",),
    ),
    Case(
        "a held-out share as a truth",
        BASE + "train: {data: d, held_out_fraction: true}\n",
        ("train.held_out_fraction: True given; input should be a valid number",),
    ),
    Case(
        "epochs of nothing",
        BASE + "train: {task: t, epochs: 0}\n",
        ("train.epochs: 0 given; input should be greater than or equal to 1",),
    ),
    Case(
        "epochs without end",
        BASE + "train: {task: t, epochs: 1" + "0" * 30 + "}\n",
        (
            "train.epochs: 1000000000000000000000000000000 given; input should be less than or equal to 10000",
        ),
    ),
    Case(
        "half an epoch",
        BASE + "train: {task: t, epochs: 0.5}\n",
        ("train.epochs: 0.5 given; input should be a valid integer",),
    ),
    Case(
        "epochs as truth",
        BASE + "train: {task: t, epochs: true}\n",
        ("train.epochs: True given; input should be a valid integer",),
    ),
    Case(
        "epochs as text",
        BASE + "train: {task: t, epochs: '3'}\n",
        ("train.epochs: '3' given; input should be a valid integer",),
    ),
    Case(
        "no epochs",
        BASE + "train: {task: t, epochs: []}\n",
        ("train.epochs: [] given; give at least 1",),
    ),
    Case(
        "epochs twice",
        BASE + "train: {task: t, epochs: [3, 3]}\n",
        ("train.epochs: 3 is given twice; give each value once",),
    ),
    Case(
        "5,000 digits",
        BASE + "train: {task: t, epochs: " + "9" * 5000 + "}\n",
        ("line 2: a number of 5,000 digits; correct it or quote it",),
    ),
    Case(
        "a batch of nothing",
        BASE + "train: {task: t, batch_size: 0}\n",
        ("train.batch_size: 0 given; input should be greater than or equal to 1",),
    ),
    Case(
        "a batch beyond all",
        BASE + "train: {task: t, batch_size: 4294967296}\n",
        ("train.batch_size: 4294967296 given; input should be less than or equal to 2147483647",),
    ),
    Case(
        "a batch as fraction",
        BASE + "train: {task: t, batch_size: 1.0}\n",
        ("train.batch_size: 1.0 given; input should be a valid integer",),
    ),
    Case(
        "a rate as truth",
        BASE + "train: {task: t, learning_rate: {lora: true}}\n",
        ("train.learning_rate.lora: True given; input should be a valid number",),
    ),
    Case(
        "a rate of nothing",
        BASE + "train: {task: t, learning_rate: {lora: 0}}\n",
        ("train.learning_rate.lora: 0 given; input should be greater than 0",),
    ),
    Case(
        "a negative rate",
        BASE + "train: {task: t, learning_rate: {full: -1e-4}}\n",
        ("train.learning_rate.full: -0.0001 given; input should be greater than 0",),
    ),
    Case(
        "an infinite rate",
        BASE + "train: {task: t, learning_rate: {lora: .inf}}\n",
        ("train.learning_rate.lora: inf given; input should be a finite number",),
    ),
    Case(
        "a rate that is not a number",
        BASE + "train: {task: t, learning_rate: {full: .nan}}\n",
        ("train.learning_rate.full: nan given; input should be a finite number",),
    ),
    Case(
        "a rate as text",
        BASE + "train: {task: t, learning_rate: {full: fast}}\n",
        ("train.learning_rate.full: 'fast' given; input should be a valid number",),
    ),
    Case(
        "one rate for all",
        BASE + "train: {task: t, learning_rate: 1e-4}\n",
        (
            "train.learning_rate: 0.0001 given; a section is needed here, with keys: lora, full, tune",
        ),
    ),
    Case(
        "an unknown rule",
        BASE + "train: {task: t, learning_rate: {lora: {rule: linear, value: 1}}}\n",
        (
            "train.learning_rate.lora.rule: 'linear' given; input should be 'constant', 'r^-1/2' or 'r^-1/4'",
        ),
    ),
    Case(
        "a rule without value",
        BASE + "train: {task: t, learning_rate: {lora: {rule: constant}}}\n",
        ("train.learning_rate.lora.value: is missing; add it",),
    ),
    Case(
        "a warm-up of all",
        BASE + "train: {task: t, warmup_ratio: 1}\n",
        ("train.warmup_ratio: 1 given; input should be less than 1",),
    ),
    Case(
        "a warm-up that is not a number",
        BASE + "train: {task: t, warmup_ratio: .nan}\n",
        ("train.warmup_ratio: nan given; input should be a finite number",),
    ),
    Case(
        "an unknown schedule",
        BASE + "train: {task: t, schedule: exponential}\n",
        ("train.schedule: 'exponential' given; input should be 'linear', 'cosine' or 'constant'",),
    ),
    Case(
        "a negative weight decay",
        BASE + "train: {task: t, weight_decay: -1}\n",
        ("train.weight_decay: -1 given; input should be greater than or equal to 0",),
    ),
    Case(
        "a dropout of all",
        BASE + "train: {task: t, dropout: 1.0}\n",
        ("train.dropout: 1.0 given; input should be less than 1",),
    ),
    Case(
        "a dropout as truth",
        BASE + "train: {task: t, dropout: no}\n",
        ("train.dropout: False given; input should be a valid number",),
    ),
    Case(
        "a norm of nothing",
        BASE + "train: {task: t, max_grad_norm: 0}\n",
        ("train.max_grad_norm: 0 given; input should be greater than 0",),
    ),
    Case(
        "an unknown precision",
        BASE + "train: {task: t, precision: float16}\n",
        ("train.precision: 'float16' given; input should be 'auto', 'float32' or 'bfloat16'",),
    ),
    Case(
        "a switch as number",
        BASE + "train: {task: t, drop_overlapping: 1}\n",
        ("train.drop_overlapping: 1 given; input should be a valid boolean",),
    ),
    Case(
        "a switch as text",
        BASE + "train: {task: t, chat_template: 'true'}\n",
        ("train.chat_template: 'true' given; input should be a valid boolean",),
    ),
    Case(
        "a length of nothing",
        BASE + "train: {task: t, max_length: 0}\n",
        ("train.max_length: 0 given; input should be greater than or equal to 1",),
    ),
    Case(
        "no ranks",
        SMALLEST + "methods: {lora: {ranks: []}}\n",
        ("methods.lora.ranks: [] given; give at least 1",),
    ),
    Case(
        "rank 0",
        SMALLEST + "methods: {lora: {ranks: [8, 0]}}\n",
        ("methods.lora.ranks[1]: 0 is not a rank; use a whole number of at least 1",),
    ),
    Case(
        "a rank twice",
        SMALLEST + "methods: {lora: {ranks: [4, 4]}}\n",
        ("methods.lora.ranks: 4 is given twice; give each value once",),
    ),
    Case(
        "a rank as fraction",
        SMALLEST + "methods: {lora: {ranks: [2.5]}}\n",
        ("methods.lora.ranks[0]: 2.5 given; input should be a valid integer",),
    ),
    Case(
        "a rank as truth",
        SMALLEST + "methods: {lora: {ranks: [true]}}\n",
        ("methods.lora.ranks[0]: True given; input should be a valid integer",),
    ),
    Case(
        "a rank wider than any layer",
        SMALLEST + "methods: {lora: {ranks: [1048577]}}\n",
        ("methods.lora.ranks[0]: 1048577 given; input should be less than or equal to 1048576",),
    ),
    Case(
        "more ranks than anybody trains",
        SMALLEST + "methods: {lora: {ranks: [" + ", ".join(map(str, range(1, 1002))) + "]}}\n",
        (
            "methods.lora.ranks: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, ... given; give 1000 at most",
        ),
    ),
    Case(
        "no target modules",
        SMALLEST + "methods: {lora: {target_modules: []}}\n",
        ("methods.lora.target_modules: [] given; give at least 1",),
    ),
    Case(
        "an empty set of modules",
        SMALLEST + "methods: {lora: {target_modules: [[q_proj], []]}}\n",
        ("methods.lora.target_modules[1]: [] given; give at least 1",),
    ),
    Case(
        "an empty module",
        SMALLEST + "methods: {lora: {target_modules: ['']}}\n",
        ("methods.lora.target_modules[0]: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "a module twice",
        SMALLEST + "methods: {lora: {target_modules: [q_proj, q_proj]}}\n",
        ("methods.lora.target_modules[0]: q_proj is given twice; give each value once",),
    ),
    Case(
        "a number as module",
        SMALLEST + "methods: {lora: {target_modules: [1]}}\n",
        (
            "methods.lora.target_modules[0]: 1 given; write text, in quotes if it looks like something else",
        ),
    ),
    Case(
        "an unknown policy",
        SMALLEST + "methods: {lora: {alpha: {policy: square}}}\n",
        (
            "methods.lora.alpha.policy: 'square' given; input should be 'proportional', 'fixed' or 'rslora'",
        ),
    ),
    Case(
        "fixed without alpha",
        SMALLEST + "methods: {lora: {alpha: {policy: fixed}}}\n",
        ("methods.lora.alpha: policy 'fixed' needs 'alpha'",),
    ),
    Case(
        "fixed with ratio",
        SMALLEST + "methods: {lora: {alpha: {policy: fixed, alpha: 4, ratio: 2}}}\n",
        ("methods.lora.alpha: policy 'fixed' takes 'alpha' only",),
    ),
    Case(
        "an infinite alpha",
        SMALLEST + "methods: {lora: {alpha: {policy: fixed, alpha: .inf}}}\n",
        ("methods.lora.alpha.alpha: inf given; input should be a finite number",),
    ),
    Case(
        "alpha as a number",
        SMALLEST + "methods: {lora: {alpha: 16}}\n",
        (
            "methods.lora.alpha: 16 given; a section is needed here, with keys: policy, ratio, alpha",
        ),
    ),
    Case(
        "pairs of different axes",
        SMALLEST + "methods: {lora: {_: [{rank: 1}, {epochs: 1}]}}\n",
        ("methods.lora: every entry of '_' sets the same axes, at least one",),
    ),
    Case(
        "an axis twice",
        SMALLEST + "methods: {lora: {ranks: [4], _: [{rank: 1}]}}\n",
        ("methods.lora.ranks: given here and in methods.lora._ as 'rank'; give it in one of them",),
    ),
    Case(
        "nothing to compare",
        SMALLEST + "methods: {lora: null, full: null}\n",
        ("methods: 'lora' and 'full' are null and nothing is imported; give one of them",),
    ),
    Case(
        "an import of nothing",
        SMALLEST + "methods: {imported: [{name: x}]}\n",
        ("methods.imported[0]: neither of 'adapter' and 'checkpoint' given; give exactly one",),
    ),
    Case(
        "an import of two",
        SMALLEST + "methods: {imported: [{adapter: a, checkpoint: b}]}\n",
        ("methods.imported[0]: both of 'adapter' and 'checkpoint' given; give exactly one",),
    ),
    Case(
        "an import with a slash",
        SMALLEST + "methods: {imported: [{adapter: a, name: ../b}]}\n",
        (
            "methods.imported[0].name: '../b' cannot name a folder; use letters, digits, '.', '_' and '-' only",
        ),
    ),
    Case(
        "an import from nobody's home",
        SMALLEST + "methods: {imported: [{adapter: ~nosuchuser/a}]}\n",
        (
            "methods.imported[0].adapter: '~nosuchuser/a' is in no known home folder; correct the name",
        ),
    ),
    Case(
        "an empty import",
        SMALLEST + "methods: {imported: [{adapter: ''}]}\n",
        ("methods.imported[0].adapter: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "an import for another task",
        SMALLEST + "methods: {imported: [{adapter: a, train_task: u}]}\n",
        ("methods.imported: train_task 'u' is not trained on; there is t",),
    ),
    Case(
        "an unknown optimizer",
        SMALLEST + "methods: {full: {optimizer: sgd}}\n",
        ("methods.full.optimizer: 'sgd' given; input should be 'auto', 'adamw' or 'adamw_8bit'",),
    ),
    Case(
        "a negative seed",
        SMALLEST + "seeds: [-1]\n",
        ("seeds[0]: -1 given; input should be greater than or equal to 0",),
    ),
    Case("no seeds", SMALLEST + "seeds: []\n", ("seeds: [] given; give at least 1",)),
    Case("one seed that is not a list", SMALLEST + "seeds: 0\n", ("seeds: 0 given; write a list",)),
    Case(
        "a seed twice",
        SMALLEST + "seeds: [1, 1]\n",
        ("seeds: 1 is given twice; give each value once",),
    ),
    Case(
        "a seed as truth",
        SMALLEST + "seeds: [true]\n",
        ("seeds[0]: True given; input should be a valid integer",),
    ),
    Case(
        "a seed beyond all",
        SMALLEST + "seeds: [2147483648]\n",
        ("seeds[0]: 2147483648 given; input should be less than or equal to 2147483647",),
    ),
    Case(
        "more seeds than anybody trains",
        SMALLEST + "seeds: [" + ", ".join(map(str, range(1001))) + "]\n",
        (
            "seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 2... given; give 1000 at most",
        ),
    ),
    Case(
        "more runs than anybody trains",
        SMALLEST
        + "seeds: ["
        + ", ".join(map(str, range(900)))
        + "]\nmethods: {lora: {ranks: [1,2,3,4,5,6,7,8,9,10,11]}}\n",
        ("10,800 runs are more than 10,000; shorten the lists of ranks, seeds and the other axes",),
    ),
    Case(
        "a mapping of seeds", SMALLEST + "seeds: {a: 1}\n", ("seeds: {'a': 1} given; write a list",)
    ),
    Case(
        "a task in two lists",
        SMALLEST + "evaluation: {retention: [x], out_of_domain: [x]}\n",
        ("evaluation: task 'x' is in out_of_domain and retention; name it once",),
    ),
    Case(
        "the trained task as retention",
        SMALLEST + "evaluation: {retention: [t]}\n",
        (
            "evaluation: 't' is trained on, so it is in_domain; take it out of out_of_domain and retention",
        ),
    ),
    Case(
        "a limit of nothing",
        SMALLEST + "evaluation: {limit: 0}\n",
        ("evaluation.limit: 0 given; input should be greater than or equal to 1",),
    ),
    Case(
        "an endless limit",
        SMALLEST + "evaluation: {limit: .inf}\n",
        ("evaluation.limit: inf given; input should be a valid integer",),
    ),
    Case(
        "negative few-shot",
        SMALLEST + "evaluation: {num_fewshot: -1}\n",
        ("evaluation.num_fewshot: -1 given; input should be greater than or equal to 0",),
    ),
    Case(
        "a search without ranks",
        SMALLEST + "methods: {lora: null, full: {}}\nsearch: {policy: ladder}\n",
        (
            "search.policy: it chooses among LoRA's ranks; give methods.lora, or leave search.policy out",
        ),
    ),
    Case(
        "rates to tune and nothing to train",
        SMALLEST.replace("task: t", "task: t, learning_rate: {tune: true}")
        + "methods: {lora: null, full: null, imported: [{adapter: a}]}\n",
        ("train.learning_rate.tune: nothing is trained; leave it out, or give methods.lora",),
    ),
    Case(
        "a word for references",
        SMALLEST + "evaluation: {reference: always}\n",
        ("evaluation.reference: 'always' given; write auto, or a section such as {share: 0.2}",),
    ),
    Case(
        "one trained item",
        SMALLEST + "evaluation: {num_train_items: 1}\n",
        ("evaluation.num_train_items: 1 item gives no standard error; write 0, or 2 and more",),
    ),
    Case(
        "an empty metric",
        SMALLEST + "evaluation: {metric: {t: ''}}\n",
        ("evaluation.metric.t: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "a metric as list",
        SMALLEST + "evaluation: {metric: [acc]}\n",
        ("evaluation.metric: ['acc'] given; write a mapping of keys to values",),
    ),
    Case(
        "an empty cluster field",
        SMALLEST + "evaluation: {clusters: {t: ''}}\n",
        ("evaluation.clusters.t: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "a domain as number",
        SMALLEST + "evaluation: {domains: {t: 1}}\n",
        ("evaluation.domains.t: 1 given; write text, in quotes if it looks like something else",),
    ),
    Case(
        "an empty retention task",
        SMALLEST + "evaluation: {retention: ['']}\n",
        ("evaluation.retention[0]: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "one head prompt",
        SMALLEST + "analysis: {head_prompts: 1}\n",
        ("analysis.head_prompts: 1 given; input should be greater than or equal to 2",),
    ),
    Case(
        "negative draws",
        SMALLEST + "analysis: {null_draws: -1}\n",
        ("analysis.null_draws: -1 given; input should be greater than or equal to 0",),
    ),
    Case(
        "a confidence in percent",
        SMALLEST + "recommendation: {confidence: 95}\n",
        ("recommendation.confidence: 95 given; input should be less than 1",),
    ),
    Case(
        "a confidence that is not a number",
        SMALLEST + "recommendation: {confidence: .nan}\n",
        ("recommendation.confidence: nan given; input should be a finite number",),
    ),
    Case(
        "a negative margin",
        SMALLEST + "recommendation: {delta_points: -1}\n",
        ("recommendation.delta_points: -1 given; input should be greater than 0",),
    ),
    Case(
        "a margin as truth",
        SMALLEST + "recommendation: {epsilon_points: true}\n",
        ("recommendation.epsilon_points: True given; input should be a valid number",),
    ),
    Case(
        "an empty tasks path",
        SMALLEST + "tasks_path: ['']\n",
        ("tasks_path[0]: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "tasks in nobody's home",
        SMALLEST + "tasks_path: [~nosuchuser/tasks]\n",
        ("tasks_path[0]: '~nosuchuser/tasks' is in no known home folder; correct the name",),
    ),
    Case(
        "a tasks path as number",
        SMALLEST + "tasks_path: 4\n",
        ("tasks_path: 4 given; write a path",),
    ),
    Case(
        "task code as text",
        SMALLEST + "allow_task_code: 'yes'\n",
        ("allow_task_code: 'yes' given; input should be a valid boolean",),
    ),
    Case(
        "task code as number",
        SMALLEST + "allow_task_code: 1\n",
        ("allow_task_code: 1 given; input should be a valid boolean",),
    ),
    Case(
        "a name with a slash",
        "name: a/b\n" + SMALLEST,
        ("name: 'a/b' cannot name a folder; use letters, digits, '.', '_' and '-' only",),
    ),
    Case(
        "an empty name",
        "name: ''\n" + SMALLEST,
        ("name: '' cannot name a folder; use letters, digits, '.', '_' and '-' only",),
    ),
    Case(
        "a name of dots",
        "name: ..\n" + SMALLEST,
        ("name: '..' cannot name a folder; use letters, digits, '.', '_' and '-' only",),
    ),
    Case(
        "a name as number",
        "name: 5\n" + SMALLEST,
        ("name: 5 given; write text, in quotes if it looks like something else",),
    ),
    Case(
        "a date as name",
        "name: 2020-01-01\n" + SMALLEST,
        (
            "name: datetime.date(2020, 1, 1) given; write text, in quotes if it looks like something else",
        ),
    ),
    Case(
        "no such date",
        "name: 2020-99-99\n" + SMALLEST,
        ("a value cannot be read: month must be in 1..12; correct it or quote it",),
    ),
    Case("nothing", "", ("a study file is a mapping of sections; see `rankwise init`",)),
    Case("a list", "- a\n", ("a study file is a mapping of sections; see `rankwise init`",)),
    Case("a text", "just text\n", ("a study file is a mapping of sections; see `rankwise init`",)),
    Case(
        "unclosed",
        "base_model: [\n",
        (
            "not valid YAML: line 2, column 1: while parsing a flow node did not find expected node content; correct it",
        ),
    ),
    Case(
        "a tab",
        "base_model: m\n\ttrain: x\n",
        (
            "not valid YAML: line 2, column 1: while scanning a plain scalar found a tab character that violates indentation; correct it",
        ),
    ),
    Case(
        "a key twice",
        SMALLEST + "seeds: [1]\nseeds: [2]\n",
        ("not valid YAML: line 4, column 1: key 'seeds' is given twice; correct it",),
    ),
    Case(
        "an unhashable key",
        "? [a]\n: b\n",
        (
            "not valid YAML: line 1, column 3: while constructing a mapping found unhashable key; correct it",
        ),
    ),
    Case(
        "an unknown alias",
        "a: *b\n",
        ("not valid YAML: line 1, column 4: found undefined alias; correct it",),
    ),
    Case(
        "a Python object",
        "a: !!python/object:os.system x\n",
        (
            "not valid YAML: line 1, column 4: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'; correct it",
        ),
    ),
    Case(
        "a Python call",
        "a: !!python/object/apply:os.system ['true']\n",
        (
            "not valid YAML: line 1, column 4: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'; correct it",
        ),
    ),
    Case(
        "deep lists",
        "a: " + "[" * 60 + "]" * 60 + "\n",
        ("line 1: nested more than 50 deep; write it flatter",),
    ),
    Case(
        "deep mappings",
        "a: " + "{a: " * 60 + "}" * 60 + "\n",
        ("line 1: nested more than 50 deep; write it flatter",),
    ),
    Case("itself", "a: &a [*a]\n", ("line 1: *a contains itself; write it out",)),
    Case(
        "laughs",
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        ("line 5: more than 100,000 values; shorten its lists",),
    ),
    Case(
        "too many values",
        "a: [" + "1," * 100001 + "]\n",
        ("line 1: more than 100,000 values; shorten its lists",),
    ),
    Case(
        "a null byte",
        "a: \x00\n",
        (
            'not valid YAML: unacceptable character #x0000: control characters are not allowed in "<unicode string>", position 3; correct it',
        ),
    ),
    Case(
        "two documents",
        SMALLEST + "---\n" + SMALLEST,
        (
            "not valid YAML: line 3, column 1: expected a single document in the stream but found another document; correct it",
        ),
    ),
]

OVERRIDES = [
    Case(
        "train.epochs",
        "train.epochs",
        ("'train.epochs' is not an override; write key=value, for example train.epochs=1",),
    ),
    Case("=3", "=3", ("'=3' is not an override; write key=value, for example train.epochs=1",)),
    Case(
        "train..epochs=3",
        "train..epochs=3",
        ("'train..epochs=3' is not an override; write key=value, for example train.epochs=1",),
    ),
    Case(
        "train.epochs=[",
        "train.epochs=[",
        (
            "train.epochs: '[' is not a YAML value: not valid YAML: line 2, column 1: while parsing a flow node did not find expected node content; correct it",
        ),
    ),
    Case(
        "train.task.name=x",
        "train.task.name=x",
        ("train.task.name: 'task' is not a section; set task itself",),
    ),
    Case("train.epoch=3", "train.epoch=3", ("train.epoch: unknown key; did you mean 'epochs'?",)),
    Case(
        "train.epochs=0",
        "train.epochs=0",
        ("train.epochs: 0 given; input should be greater than or equal to 1",),
    ),
    Case(
        "train.epochs=1e30",
        "train.epochs=1e30",
        ("train.epochs: 1e+30 given; input should be a valid integer",),
    ),
    Case(
        "train.epochs=true",
        "train.epochs=true",
        ("train.epochs: True given; input should be a valid integer",),
    ),
    Case(
        "train.learning_rate.lora=true",
        "train.learning_rate.lora=true",
        ("train.learning_rate.lora: True given; input should be a valid number",),
    ),
    Case(
        "train.learning_rate.lora=.nan",
        "train.learning_rate.lora=.nan",
        ("train.learning_rate.lora: nan given; input should be a finite number",),
    ),
    Case(
        "train.data=~nosuchuser/x",
        "train.data=~nosuchuser/x",
        ("train.data: '~nosuchuser/x' is in no known home folder; correct the name",),
    ),
    Case(
        "train.data=''",
        "train.data=''",
        ("train.data: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "methods.lora.ranks=[]",
        "methods.lora.ranks=[]",
        ("methods.lora.ranks: [] given; give at least 1",),
    ),
    Case(
        "methods.lora.target_modules=[]",
        "methods.lora.target_modules=[]",
        ("methods.lora.target_modules: [] given; give at least 1",),
    ),
    Case("seeds=[]", "seeds=[]", ("seeds: [] given; give at least 1",)),
    Case("seeds=3", "seeds=3", ("seeds: 3 given; write a list",)),
    Case(
        "train.epochs=9999999",
        "train.epochs=" + "9" * 5000,
        (
            "train.epochs: '9999999999999999999999999999999999999999999999999999999999999999999999999999999... is not a YAML value: line 1: a number of 5,000 digits",
        ),
    ),
    Case(
        "seeds=[[[[[[[[[[[[[[",
        "seeds=" + "[" * 60 + "]" * 60,
        (
            "seeds: '[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]... is not a YAML value: line 1: nested more than 50 deep;",
        ),
    ),
    Case(
        "train=3",
        "train=3",
        (
            "train: 3 given; a section is needed here, with keys: task, split, data, columns, objective, held_out_fraction, judged_by, max_new_tokens, max_examples, drop_overlapping, epochs,",
        ),
    ),
    Case(
        "evaluation.limit=a",
        "evaluation.limit=a",
        ("evaluation.limit: 'a' given; input should be a valid integer",),
    ),
    Case(
        "a.b=1",
        "a.b=1",
        (
            "a: unknown key; known here: name, base_model, tasks_path, allow_task_code, train, methods, mitigations, seeds, evaluation, search, analysis, recommendation, deploy, tracking",
        ),
    ),
    Case(
        "train.task=!!python/object:os.system x",
        "train.task=!!python/object:os.system x",
        (
            "train.task: '!!python/object:os.system x' is not a YAML value: not valid YAML: line 1, column 1: could not determine a constructor for the tag",
        ),
    ),
    Case(
        "tasks_path=''",
        "tasks_path=''",
        ("tasks_path: empty text given; write a name, or leave the key out",),
    ),
    Case(
        "base_model=",
        "base_model=",
        ("base_model: None given; a section is needed here, with keys: name, revision",),
    ),
    Case(
        "evaluation.metric.t=",
        "evaluation.metric.t=",
        ("evaluation.metric.t: None given; write text, in quotes if it looks like something else",),
    ),
    Case(
        "__class__.x=1",
        "__class__.x=1",
        (
            "__class__: unknown key; known here: name, base_model, tasks_path, allow_task_code, train, methods, mitigations, seeds, evaluation, search, analysis, recommendation, deploy, tracking",
        ),
    ),
    Case(
        "train.epochs=&a [*a]",
        "train.epochs=&a [*a]",
        ("train.epochs: '&a [*a]' is not a YAML value: line 1: *a contains itself; write it out",),
    ),
]

ROWS = [
    Case("nothing", "", ("rows.jsonl has 0 distinct rows; at least 2 are needed.",)),
    Case("blank lines", "\n \n", ("rows.jsonl has 0 distinct rows; at least 2 are needed.",)),
    Case(
        "one row",
        '{"prompt": "a", "completion": "b"}',
        ("rows.jsonl has 1 distinct rows; at least 2 are needed.",),
    ),
    Case(
        "the same row twice",
        '{"prompt": "a", "completion": "b"}\n' * 2,
        ("rows.jsonl has 1 distinct rows; at least 2 are needed.",),
    ),
    Case(
        "no JSON",
        "prompt,completion\na,b",
        (
            "line 1: Expecting value: line 1 column 1 (char 0); write a JSON object there, or drop the row",
            "line 2: Expecting value: line 1 column 1 (char 0); write a JSON object there, or drop the row",
        ),
    ),
    Case(
        "half a row",
        '{"prompt": "a"',
        (
            "line 1: Expecting ',' delimiter: line 1 column 15 (char 14); write a JSON object there, or drop the row",
        ),
    ),
    Case(
        "a list of one row",
        '[{"prompt": "a", "completion": "b"}]',
        ("rows.jsonl has 1 distinct rows; at least 2 are needed.",),
    ),
    Case("a list in a list", "[[1], 2]", ("row 1: not a JSON object; write one", "row 2: not a")),
    Case("lists, one a line", "[1]\n[2]", ("line 1: not a JSON object", "line 2: not a JSON ob")),
    Case(
        "half a list",
        '[{"prompt": "a"},',
        (
            "rows.jsonl is a JSON list that breaks off at line 1, column 18: Expecting value. Correct it there, or write one object a line.",
        ),
    ),
    Case(
        "an object over lines",
        '{\n"data": [\n{"prompt": "a", "completion": "b"}]}',
        (
            "rows.jsonl is one JSON object over 3 lines. Write a list of rows, [...], or one object a line.",
        ),
    ),
    Case("a deep list", "[" * 100000, ("rows.jsonl: nested too deep; flatten it.",)),
    Case("a number", "3", ("line 1: not a JSON object",)),
    Case("a text", '"a"', ("line 1: not a JSON object",)),
    Case("null", "null", ("line 1: not a JSON object",)),
    Case("no fields", "{}", ("line 1: has no columns; needs prompt and completion, messages, ",)),
    Case(
        "other fields",
        '{"query": "a", "reply": "b"}',
        (
            "line 1: has query, reply; needs prompt and completion, messages, instruction and output (and input), conversations, question and answer, or text. If others hold them, say columns: {prompt: ..., completion: ...}",
        ),
    ),
    Case(
        "no completion",
        '{"prompt": "a"}',
        ("line 1: has prompt; needs prompt and completion, messages, ",),
    ),
    Case(
        "an empty completion",
        '{"prompt": "a", "completion": " "}',
        ('line 1: column "completion" is empty; give an answer or drop the row',),
    ),
    Case(
        "a null completion",
        '{"prompt": "a", "completion": null}',
        ('line 1: column "completion" is empty; give an answer or drop the row',),
    ),
    Case(
        "a fraction as prompt",
        '{"prompt": 1.5, "completion": "b"}',
        ('line 1: column "prompt" is a number with a fraction; write it as text, or drop the row',),
    ),
    Case(
        "half a surrogate pair",
        '{"prompt": "\\ud800", "completion": "b"}',
        ("line 1: half a surrogate pair; correct the character",),
    ),
    Case(
        "deep",
        '{"prompt": ' + "[" * 100000 + "]" * 100000 + "}",
        ("line 1: nested too deep; flatten it",),
    ),
    Case(
        "5,000 digits",
        '{"prompt": ' + "9" * 5000 + "}",
        ("line 1: a number has thousands of digits; shorten it",),
    ),
    Case(
        "no messages",
        '{"messages": []}',
        (
            'line 1: column "messages" must be a list of objects with role and content, or with from and value; write it so, or drop the row',
        ),
    ),
    Case(
        "messages as text",
        '{"messages": "q"}',
        (
            'line 1: column "messages" must be a list of objects with role and content, or with from and value; write it so, or drop the row',
        ),
    ),
    Case(
        "a message without a role",
        json.dumps({"messages": [{"content": "q"}, ANSWER]}),
        (
            "line 1: messages[0] must be an object with the texts role and content, or from and value; write it so, or drop the row",
        ),
    ),
    Case(
        "a message without content",
        json.dumps({"messages": [USER, {"role": "assistant"}]}),
        (
            "line 1: messages[1] must be an object with the texts role and content, or from and value; write it so, or drop the row",
        ),
    ),
    Case(
        "content of parts",
        json.dumps(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]}
        ),
        (
            "line 1: messages[0] must be an object with the texts role and content, or from and value; write it so, or drop the row",
        ),
    ),
    Case(
        "null content",
        json.dumps({"messages": [USER, {"role": "assistant", "content": None}]}),
        (
            "line 1: messages[1] must be an object with the texts role and content, or from and value; write it so, or drop the row",
        ),
    ),
    Case(
        "only a question",
        json.dumps({"messages": [USER]}),
        (
            'line 1: the last turn of column "messages" must be the assistant\'s, and not empty; add its answer, or drop the row',
        ),
    ),
    Case(
        "only an answer",
        json.dumps({"messages": [ANSWER]}),
        ("line 1: there is no turn before the assistant's answer; add one, or drop the row",),
    ),
    Case(
        "an empty answer",
        json.dumps({"messages": [USER, {"role": "assistant", "content": ""}]}),
        (
            'line 1: the last turn of column "messages" must be the assistant\'s, and not empty; add its answer, or drop the row',
        ),
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
        (
            "line 1: messages[1] has tool_calls, which would be lost; write it into content, or leave the row out",
        ),
    ),
    Case(
        "a tool's answer",
        json.dumps(
            {"messages": [USER, {"role": "tool", "content": "r", "tool_call_id": "1"}, ANSWER]}
        ),
        (
            "line 1: messages[1] has tool_call_id, which would be lost; write it into content, or leave the row out",
        ),
    ),
    Case(
        "tools",
        json.dumps({"messages": [USER, ANSWER], "tools": [{"name": "f"}]}),
        ("line 1: has tools, which would be lost; write them into a system message",),
    ),
    Case(
        "a weight",
        json.dumps(
            {"messages": [{"role": "assistant", "content": "x", "weight": 0}, USER, ANSWER]}
        ),
        (
            "line 1: messages[0] has weight, which would be lost; write it into content, or leave the row out",
        ),
    ),
    Case(
        "a prompt of messages and a text",
        json.dumps({"prompt": [USER], "completion": "b"}),
        (
            'line 1: column "completion" must be a list of objects with role and content, or with from and value; write it so, or drop the row',
        ),
    ),
    Case(
        "a completion of messages and a text",
        json.dumps({"prompt": "a", "completion": [ANSWER]}),
        (
            'line 1: column "prompt" must be a list of objects with role and content, or with from and value; write it so, or drop the row',
        ),
    ),
    Case(
        "Latin-1",
        '{"prompt": "é", "completion": "b"}'.encode("latin-1"),
        (
            "rows.jsonl cannot be read: line 1 is not UTF-8 ('utf-8' codec can't decode byte 0xe9 in position 12: invalid continuation byte). Save it in UTF-8.",
        ),
    ),
    Case(
        "UTF-16",
        '{"prompt": "a", "completion": "b"}'.encode("utf-16"),
        (
            "rows.jsonl cannot be read: line 1 is not UTF-8 ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte). Save it in UTF-8.",
        ),
    ),
    Case(
        "Parquet",
        b"PAR1\x15\x04\x15\xff\xfe\x00PAR1",
        ("rows.jsonl is a Parquet file; give it the ending .parquet.",),
    ),
    Case(
        "gzip",
        b"\x1f\x8b\x08\x00\x00",
        ("rows.jsonl is packed by gzip; unpack it (gunzip), and give that.",),
    ),
]
