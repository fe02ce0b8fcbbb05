"""Task files run no Python code and reach no shell before that is allowed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.errors import PlanError, TaskError
from rankwise.records.study_file import load_config
from rankwise.report.facts import training_facts
from rankwise.study.planning.plan import plan_study
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import list_tasks, load_tasks
from rankwise.tasks.task_files import BUNDLED_FOLDER
from tests.planted.results import planted_study
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

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


FUNCTIONS = {
    "custom_dataset": "custom_dataset: !function evil.run\n",
    "process_docs": "process_docs: !function evil.run\n",
    "doc_to_text": "doc_to_text: !function evil.run\n",
    "process_results": "process_results: !function evil.run\n",
    "class": "class: !function evil.run\n",
    "a module of a folder": "process_docs: !function evil.evil.run\n",
    "few-shot samples": "fewshot_config: {samples: !function evil.run}\n",
    "a sampler": "fewshot_config: {sampler: !function evil.run}\n",
    "a filter": "filter_list: [{name: x, filter: [{function: !function evil.run}]}]\n",
    "a filter's function": "filter_list:\n"
    "  - {name: x, filter: [{function: custom, filter_fn: !function evil.run}]}\n",
    "a metric": "metric_list: [{metric: !function evil.run}]\n",
    "an aggregation": "metric_list: [{metric: acc, aggregation: !function evil.run}]\n",
    "an unknown key": "nothing: !function evil.run\n",
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_function_is_refused_before_it_is_imported(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    write(folder, TASK + FUNCTIONS[kind])
    refusal = str(result_of(folder))
    assert "own.yaml, line 1" in refusal
    assert ": !function evil." in refusal
    assert "--allow-task-code" in refusal
    list_tasks([folder])
    assert not (tmp_path / "was_here").exists()
    result_of(folder, allow_code=True)
    assert (tmp_path / "was_here").exists()


@pytest.mark.parametrize("is_installed", [False, True])
def test_a_module_of_the_current_folder_is_not_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_installed: bool
) -> None:
    """Where no such file lies beside the task, lm-eval asks Python, which looks here first."""
    (folder / "evil.py").rename(tmp_path / "evil_here.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evil_here", raising=False)
    write(folder, TASK + "process_docs: !function evil_here.run\n")
    if is_installed:  # by whoever wrote into the folder of lm-eval
        monkeypatch.setattr("rankwise.tasks.code_guard.BUNDLED_FOLDER", folder)
    assert ": !function evil_here.run is code." in str(result_of(folder))
    assert not (tmp_path / "was_here").exists()
    result_of(folder, allow_code=True)
    assert (tmp_path / "was_here").exists()


def linked(folder: Path) -> None:
    """A link to a file whose include is harmless beside the link and code beside the target."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (folder / "base.yaml").write_text("num_fewshot: 0\n")
    (folder / "evil.py").rename(elsewhere / "evil.py")
    (elsewhere / "base.yaml").write_text("process_docs: !function evil.run\n")
    (elsewhere / "own.yaml").write_text("include: base.yaml\n" + (folder / "own.yaml").read_text())
    (folder / "own.yaml").unlink()
    (folder / "own.yaml").symlink_to(elsewhere / "own.yaml")


def imitated(folder: Path) -> None:
    """Tasks below folders of lm-eval's names, from which it makes names of modules."""
    write(folder, TASK + "process_docs: !function evil.run\n")
    below = folder / "site-packages" / "lm_eval" / "tasks" / "hellaswag"
    below.mkdir(parents=True)
    for path in (*folder.glob("*.yaml"), *folder.glob("*.py")):
        path.rename(below / path.name)


def linked_to_code(folder: Path) -> None:
    """A file whose functions lie beside an installed file's link."""
    write(folder, TASK + "process_docs: !function kinship.run\n")
    (folder / "kinship.py").symlink_to(folder / "evil.py")
    (folder / "kinship.yaml").symlink_to(BUNDLED_FOLDER / "kinship.yaml")


CODED = TASK.replace("task: own", "task: coded") + "process_docs: !function evil.run\n"
WAYS: dict[str, tuple[str, str | Callable[[Path], None]]] = {
    "an included file": ("own", "include: coded.yaml\ntask: own\n"),
    "included twice over": ("own", "include: [plain.yaml, more.yaml]\ntask: own\n"),
    "a member": ("both", "group: both\ntask: [kinship, coded]\n"),
    "an inner group": ("both", "group: both\ntask: [{group: inner, task: [coded]}]\n"),
    "a task as a group": ("both", "group: both\ntask: [{group: coded, task: []}]\n"),
    "a tag as a group": ("both", "group: both\ntask: [{group: marked, task: []}]\n"),
    "a member's settings": ("both", "group: both\ntask: [{task: kinship, process_docs: RUN}]\n"),
    "a group's settings": ("both", "group: both\ntask: [kinship]\nprocess_docs: RUN\n"),
    "a task within a group": ("both", "group: both\ntask: [{task: new, process_docs: RUN}]\n"),
    "a group's aggregation": (
        "both",
        "group: both\ntask: [kinship]\naggregate_metric_list: [{metric: acc, aggregation: RUN}]\n",
    ),
    "a tag": ("marked", "task: other\n"),
    "an installed task's name": ("own", "group: own\ntask: [arc_challenge]\n"),
    "a link": ("own", linked),
    "folders like lm-eval's": ("own", imitated),
    "a link to an installed file": ("own", linked_to_code),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_to_code(folder: Path, tmp_path: Path, way: str, sentence: Sentences) -> None:
    name, text = WAYS[way]
    write(folder, CODED + "tag: [marked]\n", "coded.yaml")
    write(folder, CODED.replace("coded", "arc_challenge"), "arc.yaml")
    write(folder, "include: coded.yaml\ntask: third\n", "more.yaml")
    write(folder, "num_fewshot: 0\n", "plain.yaml")
    if isinstance(text, str):
        write(folder, text.replace("RUN", "!function evil.run"))
    else:
        text(folder)
    refusal = result_of(folder, name)
    assert isinstance(refusal, TaskError)
    sentence(refusal)
    assert not (tmp_path / "was_here").exists()
    result_of(folder, name, allow_code=True)
    assert (tmp_path / "was_here").exists()
    (tmp_path / "was_here").unlink()  # it is loaded now, and must not be used
    sentence(result_of(folder, name))


OTHERS = {
    "a module of Python": ("process_results: !function os.system\n", ("os.system",)),
    "a name of a class": ("class: evil.Task\n", ("class", "evil.Task")),
    "pickles": ("dataset_path: pandas\n", ("dataset_path", "pandas")),
    "statements": ("dataset_path: sql\n", ()),
    "references": (
        "dataset_kwargs: {data_files: {train: 'reference://x::FOLDER/rows.jsonl', test: ROWS}}\n",
        ("dataset_kwargs",),
    ),
    "a script of a data set": ("dataset_path: FOLDER/evil\n", ()),
    "a script as metric": ("metric_list: [{metric: FOLDER/evil, aggregation: mean}]\n", ()),
    "a mistaken metric": (
        "metric_list: [{metric: accc, aggregation: mean}]\n",
        ("metric_list", "accc", "acc"),
    ),
    "a metric of evaluate": (
        "metric_list: [{metric: acc, hf_evaluate: true}]\n",
        ("metric_list", "hf_evaluate", "acc"),
    ),
    "a prompt of promptsource": (
        "use_prompt: 'promptsource:x'\n",
        ("use_prompt", "promptsource:x"),
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_else_runs_code_is_refused(
    folder: Path, tmp_path: Path, kind: str, sentence: Sentences
) -> None:
    addition, names = OTHERS[kind]
    write(folder, TASK + addition.replace("FOLDER", str(folder)))
    library = r"(?<=loaded: ).*(?=\. Check its)"
    sentence(result_of(folder), names=("own.yaml", *names), LIBRARY=library)
    assert not (tmp_path / "was_here").exists()


def test_python_s_own_tags_are_refused_without_libyaml(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr("lm_eval.tasks._yaml_loader._Base", yaml.FullLoader)
    write(folder, TASK + "process_docs: !!python/name:os.system\n")
    sentence(str(result_of(folder)))


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        (f"include: {BUNDLED_FOLDER}/kinship.yaml\ntask: own\nmetadata: {{num: 3}}\n", "metadata"),
        ("group: own\ntask: [{task: kinship, dataset_kwargs: {x: 1}}]\n", "dataset_kwargs"),
        ("group: own\ntask: [kinship]\nunsafe_code: false\n", "unsafe_code"),
        (
            "group: own\ntask: [{group: inner, task: [kinship], dataset_kwargs: {}}]\n",
            "dataset_kwargs",
        ),
        ("group: own\ntask: [{group: inner, task: [kinship]}]\n", None),
        ("group: own\ntask: [{task: kinship, num_fewshot: 1}]\n", None),
        (f"include: {BUNDLED_FOLDER}/kinship.yaml\ntask: own\nnum_fewshot: 2\n", None),
    ],
    ids=["include", "member", "group", "inner group", "inner", "shots of a member", "shots"],
)
def test_installed_functions_get_no_settings_of_other_files(
    folder: Path, text: str, setting: str | None, sentence: Sentences
) -> None:
    write(folder, text)
    found = result_of(folder)
    if setting is None:
        assert isinstance(found, tuple), found
    else:
        sentence(found, names=(folder / "own.yaml", setting, "custom_dataset"))
    assert isinstance(result_of(folder, allow_code=True), tuple | TaskError)


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
    folder: Path, tmp_path: Path, tokenizer: Any, key: str, allow_code: bool, sentence: Sentences
) -> None:
    write(folder, TASK + TEMPLATES[key].replace("WAS_HERE", str(tmp_path / "was_here")))
    with pytest.raises(TaskError) as caught:  # noqa: PT012
        tasks = result_of(folder, allow_code=allow_code)
        if isinstance(tasks, TaskError):
            raise tasks
        prepare_task(
            tasks[0], tokenizer, max_length=64, num_fewshot=None, limit=None, chat_template=False
        )
    sentence(caught.value)
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
    assert "line 14: !function evil.run is code" in words(result.stderr)
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
