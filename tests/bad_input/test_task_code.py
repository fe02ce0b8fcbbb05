"""Task files run no Python code and reach no shell before that is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import PlanError, TaskError
from rankwise.records.study_file import load_config
from rankwise.report.facts import training_facts
from rankwise.study.planning.plan import plan_study
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import list_tasks, load_tasks
from tests.planted.results import planted_study
from tests.support.command_line import rankwise, words

ROWS = '{"question": "Is it?", "options": ["yes", "no"], "label": 1}\n' * 3
TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {train: ROWS, test: ROWS}}
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: options
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one task without code, and of Python files that leave a file when imported."""
    folder = tmp_path / "own_tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(ROWS)
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'was_here')!r}, 'w').close()\n\ndef run(*_, **__):\n    return []\n"
    )
    (folder / "evil").mkdir()
    (folder / "evil" / "evil.py").write_text((folder / "evil.py").read_text())
    write(folder, TASK)
    return folder


def write(folder: Path, text: str, name: str = "own.yaml") -> None:
    (folder / name).write_text(text.replace("ROWS", str(folder / "rows.jsonl")))


def result_of(folder: Path, name: str = "own", *, allow_code: bool = False) -> Any:
    return load_tasks([name], [folder], allow_code=allow_code)[name]


CODE = {
    "custom_dataset": ("custom_dataset: !function evil.run\n", "custom_dataset is !function evil"),
    "process_docs": ("process_docs: !function evil.run\n", "line 14: process_docs is !function"),
    "class": ("class: !function evil.run\n", "class is !function evil.run"),
    "a name of a class": ("class: evil.Task\n", "class makes an object of 'evil.Task'"),
    "a module of Python": ("process_results: !function os.system\n", "is !function os.system"),
    "few-shot samples": (
        "fewshot_config: {samples: !function evil.run}\n",
        "fewshot_config.samples is !function evil.run",
    ),
    "a filter": (
        "filter_list: [{name: x, filter: [{function: !function evil.run}]}]\n",
        "filter_list[0].filter[0].function is !function evil.run",
    ),
    "pickles": ("dataset_path: pandas\n", "dataset_path: the loader 'pandas' runs what it reads"),
    "a script as metric": (
        "metric_list: [{metric: ./evil, aggregation: mean}]\n",
        "metric_list[0].metric: lm-eval has no metric './evil'",
    ),
    "a metric of evaluate": (
        "metric_list: [{metric: acc, hf_evaluate: true}]\n",
        "metric_list[0].hf_evaluate: a metric of the evaluate library is a script",
    ),
}


@pytest.mark.parametrize("kind", CODE)
def test_code_is_refused_before_it_runs(folder: Path, tmp_path: Path, kind: str) -> None:
    addition, place = CODE[kind]
    write(folder, TASK + addition)
    refusal = str(result_of(folder))
    assert place in refusal
    assert "own.yaml" in refusal
    assert "--allow-task-code" in refusal
    list_tasks([folder])
    assert not (tmp_path / "was_here").exists()


def test_the_same_code_runs_where_it_is_allowed(folder: Path, tmp_path: Path) -> None:
    write(folder, TASK + "process_docs: !function evil.run\n")
    assert isinstance(result_of(folder, allow_code=True), TaskError)  # it leaves no rows
    assert (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own", "include: base.yaml\ntask: own\n"),
        ("both", "group: both\ntask: [kinship, coded]\n"),
        ("both", "group: both\ntask: [{group: inner, task: [coded]}]\n"),
        ("both", "group: both\ntask: [{task: kinship, process_docs: !function evil.run}]\n"),
        ("marked", "include: base.yaml\ntask: own\ntag: [marked]\n"),
    ],
)
def test_code_of_included_files_groups_and_tags(
    folder: Path, tmp_path: Path, name: str, text: str
) -> None:
    write(folder, TASK.replace("task: own", "task: coded") + "process_docs: !function evil.run\n",
          "base.yaml")  # fmt: skip
    write(folder, text)
    assert "process_docs is !function evil.run" in str(result_of(folder, name))
    assert not (tmp_path / "was_here").exists()


def test_a_task_without_code_needs_no_permission(folder: Path, tokenizer: Any) -> None:
    (task,) = result_of(folder)
    prepared = prepare_task(
        task, tokenizer, max_length=64, num_fewshot=0, limit=None, chat_template=False
    )
    assert prepared.num_items == 3


SHELL = "{{ cycler.__init__.__globals__.os.popen('touch WAS_HERE').read() }}"
TEMPLATES = {
    "doc_to_text": f'doc_to_text: "{SHELL}"\n',
    "doc_to_target": f'doc_to_target: "{SHELL}"\n',
    "doc_to_choice": f'doc_to_choice: "{SHELL}"\n',
    "description": f'description: "{SHELL}"\n',
    "gen_prefix": f'gen_prefix: "{SHELL}"\n',
    "few-shot": "fewshot_split: train\nnum_fewshot: 1\n"
    f'fewshot_config: {{doc_to_text: "{SHELL}"}}\n',
}


@pytest.mark.parametrize("key", TEMPLATES)
@pytest.mark.parametrize("allow_code", [False, True])
def test_a_template_reaches_no_shell(
    folder: Path, tmp_path: Path, tokenizer: Any, key: str, allow_code: bool
) -> None:
    write(folder, TASK + TEMPLATES[key].replace("WAS_HERE", str(tmp_path / "was_here")))
    with pytest.raises(TaskError, match="SecurityError: access to attribute"):  # noqa: PT012
        tasks = result_of(folder, allow_code=allow_code)
        if isinstance(tasks, TaskError):
            raise tasks
        prepare_task(
            tasks[0], tokenizer, max_length=64, num_fewshot=None, limit=None, chat_template=False
        )
    assert not (tmp_path / "was_here").exists()


def test_a_chat_template_reaches_no_shell(tokenizer: Any, tmp_path: Path) -> None:
    """transformers renders it in the sandbox."""
    import jinja2.exceptions

    template = SHELL.replace("WAS_HERE", str(tmp_path / "was_here"))
    with pytest.raises(jinja2.exceptions.SecurityError):
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "?"}], tokenize=False, chat_template=template
        )
    assert not (tmp_path / "was_here").exists()


def test_a_study_needs_its_key(study_file: Path) -> None:
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, ["allow_task_code=false"]))
    assert {problem.partition(":")[0] for problem in caught.value.problems} == {
        "train.task",
        "evaluation.out_of_domain[0]",
        "evaluation.held_out_text[0]",
    }
    record = plan_study(load_config(study_file)).record
    assert record.config.allow_task_code
    assert record.fingerprint == plan_study(load_config(study_file)).record.fingerprint


def test_an_audit_needs_its_flag(tmp_path: Path, tiny_model_folder: Path, folder: Path) -> None:
    write(folder, TASK + "process_docs: !function evil.run\n")
    named = ("--tasks", "own", "--tasks-path", folder)
    result = rankwise(
        "audit", tiny_model_folder, tiny_model_folder, "--output", tmp_path / "a", *named
    )
    assert result.exit_code == 2
    assert "process_docs is !function evil.run" in words(result.stderr)
    assert not (tmp_path / "was_here").exists()


def test_the_report_says_where_task_code_was_allowed() -> None:
    results = planted_study()
    study = results.study
    allowed = study.model_copy(
        update={"config": study.config.model_copy(update={"allow_task_code": True})}
    )
    line = "Task code"
    assert line not in training_facts(results)
    assert line in training_facts(results.model_copy(update={"study": allowed}))
