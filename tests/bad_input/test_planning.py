"""What would fail after hours of training is refused when the study is planned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import PlanError, TaskError
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.tasks.chat_templates import chat_template_fault
from rankwise.tasks.evaluation import ScoredModel, evaluate
from rankwise.tasks.questions import Generation
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import load_tasks
from tests.support import tiny_tasks
from tests.support.sentences import Sentences
from tests.support.studies import run


def problems_of(study_file: Path, *overrides: str) -> str:
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, overrides))
    assert all(caught.value.problems)
    return "\n".join(caught.value.problems)


def changed(folder: Path, task: str, old: str, new: str) -> None:
    path = folder / f"{task}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def added(folder: Path, task: str, text: str, code: str = "") -> None:
    path = folder / f"{task}.yaml"
    path.write_text(path.read_text() + text)
    (folder / "own.py").write_text(code)


# too few items


@pytest.mark.parametrize("num_rows", [2, 9, 14])
def test_one_held_out_row_is_too_few(
    study_file: Path, tmp_path: Path, num_rows: int, sentence: Sentences
) -> None:
    rows = [{"prompt": f"Say {n}:", "completion": f" {n}"} for n in range(num_rows)]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = ("train.task=null", "train.data=few.jsonl", "evaluation.out_of_domain=[]")
    sentence(problems_of(study_file, *own), names=("train.held_out_fraction", "data_few"))
    if num_rows > 2:
        plan_study(load_config(study_file, (*own, "train.held_out_fraction=0.7")))


def test_a_limit_of_one_item_is_too_low(study_file: Path, sentence: Sentences) -> None:
    problems = problems_of(study_file, "evaluation.limit=1").splitlines()
    assert len(problems) == 3
    for problem, task in zip(problems, ("colours", "sums", "small_prose"), strict=True):
        sentence(problem, task, names=("evaluation.limit", "1 item", repr(task)))


def test_a_task_of_one_item_is_too_small(
    study_file: Path, tasks_folder: Path, sentence: Sentences
) -> None:
    code = (tasks_folder / "colours.py").read_text()
    (tasks_folder / "colours.py").write_text(code.replace("rows[16:]", "rows[23:]"))
    sentence(problems_of(study_file), names=("evaluation.out_of_domain", "sums"))


def test_one_trained_row_is_not_scored_and_spoils_no_study(
    study_file: Path, tmp_path: Path
) -> None:
    few = ("train.max_examples=1", "methods.full=null", "evaluation.limit=2", "train.epochs=1")
    outcome, _ = run(study_file, tmp_path / "study", *few)
    assert not outcome.failures
    assert not outcome.results.study.trained_items["colours"]
    assert StudyFolder(tmp_path / "study").read_study().ending_items == {}


# what a task judges by


JUDGING = {
    "aggregation": (
        ("aggregation: mean", "aggregation: meen"),
        "sums.yaml, metric_list[0].aggregation: no aggregation named 'meen'; did you mean 'mean'?",
    ),
    "metric": (
        ("metric: exact_match", "metric: exact_macth"),
        "metric_list: no metric named 'exact_macth'; did you mean 'exact_match'?",
    ),
    "filter": (
        ("metadata:", "filter_list: [{name: x, filter: [{function: regexx}]}]\nmetadata:"),
        "filter_list[0].filter[0].function: no filter named 'regexx'; did you mean 'regex'?",
    ),
    "pattern": (
        (
            "metadata:",
            "filter_list: [{name: x, filter: [{function: regex, regex_pattern: '(['}]}]\nmetadata:",
        ),
        "filter_list[0].filter[0].regex_pattern: '([' is not a regular expression: unterminated "
        "character set at position 1; correct it",
    ),
    "no step": (
        ("metadata:", "filter_list: [{name: x}]\nmetadata:"),
        "filter_list[0]: a filter needs a name and a list of steps; write name and filter",
    ),
}


@pytest.mark.parametrize("kind", JUDGING)
def test_judging_is_tried_when_planning(study_file: Path, tasks_folder: Path, kind: str) -> None:
    (old, new), sentence = JUDGING[kind]
    changed(tasks_folder, "sums", old, new)
    problems = problems_of(study_file)
    assert sentence in problems
    assert "sums" in problems


def test_a_task_whose_metrics_are_of_all_items_only(
    study_file: Path, tasks_folder: Path, sentence: Sentences
) -> None:
    for metric in ("acc", "acc_norm"):
        changed(tasks_folder, "colours", f"metric: {metric}, aggregation: mean", "metric: mcc")
    problems = problems_of(study_file)
    sentence(problems, names=("colours.yaml", "metric_list"))


def test_one_option_is_no_choice(study_file: Path, tasks_folder: Path, sentence: Sentences) -> None:
    changed(tasks_folder, "colours", "doc_to_choice: choices", 'doc_to_choice: "{{choices[:1]}}"')
    changed(tasks_folder, "colours", "doc_to_target: label", "doc_to_target: 0")
    problems = problems_of(study_file)
    sentence(problems, names=("colours.yaml", "doc_to_choice"))


def test_options_that_are_all_the_same_are_no_choice(
    study_file: Path, tasks_folder: Path, sentence: Sentences
) -> None:
    same = "doc_to_choice: \"{{['blue', 'blue', 'blue'][:choices|length]}}\""
    changed(tasks_folder, "colours", "doc_to_choice: choices", same)
    problems = problems_of(study_file)
    sentence(problems, names=("colours.yaml", "doc_to_choice"))


GENERATION = {
    "until: 5": "until: 5",
    "until: [5]": "until: [5]",
    "until: nothing": "until: null",
    "no tokens": 'max_gen_toks: 0, until: ["\\n"]',
}


@pytest.mark.parametrize("kind", GENERATION)
def test_what_ends_no_text(
    study_file: Path, tasks_folder: Path, kind: str, sentence: Sentences
) -> None:
    settings = '{until: ["\\n"], do_sample: false, max_gen_toks: 6}'
    changed(tasks_folder, "sums", settings, f"{{{GENERATION[kind]}}}")
    sentence(problems_of(study_file), names=("max_gen",))


@pytest.mark.parametrize("members", ["[]", "", "[{group: inner, task: []}]"])
@pytest.mark.parametrize("key", ["train.task", "evaluation.retention"])
def test_a_group_of_no_tasks(
    study_file: Path, tasks_folder: Path, members: str, key: str, sentence: Sentences
) -> None:
    (tasks_folder / "none.yaml").write_text(f"group: none\ntask: {members}\n")
    problems = problems_of(study_file, f"{key}=[none]")
    sentence(problems, names=("none", tasks_folder / "none.yaml"))


# code that raises


RAISES = {
    "RuntimeError": "raise RuntimeError('no luck')",
    "ZeroDivisionError": "1 / 0",
    "SystemExit": "raise SystemExit(3)",
    "SyntaxError": "eval('1 +')",
    "RecursionError": "f(*_)",
    "MemoryError": "raise MemoryError('full')",
}
PLACES = {
    "doc_to_text": "doc_to_text: !function own.f\n",
    "doc_to_target": "doc_to_target: !function own.f\n",
    "process_docs": "process_docs: !function own.f\n",
    "process_results": "process_results: !function own.f\n",
    "a filter": "filter_list:\n"
    "  - {name: x, filter: [{function: custom, filter_fn: !function own.f}]}\n",
}


@pytest.mark.parametrize("error", RAISES)
@pytest.mark.parametrize("place", PLACES)
def test_code_that_raises_is_a_problem_of_its_task(
    study_file: Path, tasks_folder: Path, place: str, error: str
) -> None:
    added(tasks_folder, "sums", PLACES[place], f"def f(*_, **__):\n    {RAISES[error]}\n")
    problems = problems_of(study_file)
    assert "sums.yaml" in problems
    assert f": {error}" in problems
    assert problems.endswith(".")


@pytest.mark.parametrize(
    ("code", "error"),
    [("def f(:", "SyntaxError"), ("raise SystemExit", "SystemExit"), ("1 / 0", "ZeroDivision")],
)
def test_code_that_cannot_be_imported(
    study_file: Path, tasks_folder: Path, code: str, error: str
) -> None:
    added(tasks_folder, "sums", "process_docs: !function own.f\n", code)
    problems = problems_of(study_file)
    assert "sums.yaml" in problems
    assert error in problems


class Echo:
    """A scorer that answers every prompt with nothing."""

    def generate(self, adapters: list[Any], prompts: list[Any], advance: Any) -> list[Any]:
        return [[Generation("", is_finished=True) for _ in prompts] for _ in adapters]


def test_code_that_fails_on_one_answer_only_is_a_task_error(
    tasks_folder: Path, tokenizer: Any, sentence: Sentences
) -> None:
    code = "def f(doc, results):\n    return {'exact_match': 1 / len(results[0])}\n"
    added(tasks_folder, "sums", "process_results: !function own.f\n", code)
    (loaded,) = load_tasks(["sums"], [tasks_folder], allow_code=True)["sums"]
    prepared = prepare_task(
        loaded, tokenizer, max_length=64, num_fewshot=0, limit=None, chat_template=False
    )
    with pytest.raises(TaskError) as caught:
        evaluate(Echo(), [ScoredModel("base", "f")], prepared, metric=None)  # type: ignore[arg-type]
    sentence(caught.value, names=("sums", "sums.yaml"))


# task files that lm-eval skips without a word


FILES = {
    "not YAML": ("task: [own\n", ("own.yaml", "YAML", "line 2")),
    "a tab": ("task: own\n\toutput_type: x\n", ("own.yaml", "YAML", "line 2")),
    "empty": ("", ("own.yaml",)),
    "a list": ("- task: own\n", ("own.yaml",)),
    "a number as name": ("task: 3\n", ("own.yaml",)),
    "no name": ("task:\n", ("own.yaml",)),
    "an empty name": ("task: ''\n", ("own.yaml",)),
    "a missing include": ("include: nothing.yaml\ntask: own\n", ("own.yaml", "nothing.yaml")),
    "itself": ("include: own.yaml\ntask: own\n", ("own.yaml",)),
    "not UTF-8": ("task: caf\udce9\n", ("own.yaml", "utf-8")),
    "5,000 digits": (f"task: own\nlimit: {'9' * 5000}\n", ("own.yaml", "line 2", "5,000")),
    "deep": (f"task: own\nx: {'[' * 60}{']' * 60}\n", ("line 2", "50")),
    "a Python object": ("task: !!python/object:os.system own\n", ()),
    "a control character": ('task: "ow\\tn"\n', ("ow\\tn",)),
    "a turn of the line": ('task: "ow\\u202en"\n', ("ow\\u202en",)),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_skipped_file_is_named(
    study_file: Path, tasks_folder: Path, no_index: None, kind: str, sentence: Sentences
) -> None:
    text, names = FILES[kind]
    (tasks_folder / "own.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    problems = problems_of(study_file, "evaluation.retention=[own]")
    sentence(problems, names=("own.yaml", *names))


def test_billions_of_laughs_in_a_task_file(
    study_file: Path, tasks_folder: Path, no_index: None, sentence: Sentences
) -> None:
    lines = ["task: own", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tasks_folder / "own.yaml").write_text("\n".join(lines))
    problems = problems_of(study_file, "evaluation.retention=[own]")
    sentence(problems, names=("own.yaml", "100,000"))


# chat templates


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for", "it fails on a question and an answer: TemplateSyntaxError"),
        ("{{ messages[9].content }}", "it fails on a question and an answer: UndefinedError"),
        ("{{ raise_exception('never') }}", "TemplateError: never"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("nothing", "it leaves out the question of a conversation"),
        ("{{ messages[0].content }}", "it leaves out the answer of a conversation"),
    ],
)
def test_a_broken_chat_template(template: str, sentence: str) -> None:
    tokenizer = tiny_tasks.tiny_tokenizer()
    assert chat_template_fault(tokenizer) is None
    tokenizer.chat_template = template
    assert sentence in str(chat_template_fault(tokenizer))


def test_a_broken_chat_template_is_a_problem_of_the_model(
    study_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "broken")
    (tmp_path / "broken" / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    chat = ("base_model=./broken", "train.chat_template=true")
    assert "chat_template: that of " in problems_of(study_file, *chat)
