"""From a name in a study file to lm-evaluation-harness tasks."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import os
import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import TaskError, closest, did_you_mean
from rankwise.records.yaml_reading import read_yaml_text
from rankwise.tasks.code_guard import guarded_task_files
from rankwise.tasks.task_files import (
    BUNDLED_FOLDER,
    confine_task_files,
    file_faults,
    metric_names,
    name_fault,
    read_task_file,
    task_code,
)


class LoadedTask(NamedTuple):
    """A leaf task.

    Attributes:
        name: lm-eval's name.
        task: the ``lm_eval.api.task.Task``.
        is_rendered: its texts contain the chat template, which must not be applied again.
        has_pairs: each item asks for two answers, whose odds are compared with the base's.
        groups: names of the groups and tags that contain it.
        compares_with_base: what is written is judged beside what the base wrote.
        cluster: column of own rows by which they belong together.
        warning: what a user should know before it is asked.
    """

    name: str
    task: Any
    is_rendered: bool = False
    groups: tuple[str, ...] = ()
    compares_with_base: bool = False
    has_pairs: bool = False
    cluster: str | None = None
    warning: str | None = None

    @property
    def is_against_base(self) -> bool:
        """Whether the base's answers are needed to judge others."""
        return self.has_pairs or self.compares_with_base

    def changed(self, name: str | None = None, **config: Any) -> LoadedTask:
        """A copy under another name, and with other entries in its config."""
        task = copy.copy(self.task)
        task._config = copy.copy(self.task.config)
        name = name or self.name
        for key, value in {"task": name, **config}.items():
            task.set_config(key=key, value=value)
        return self._replace(name=name, task=task)

    @property
    def domain(self) -> str | None:
        """``metadata.domain`` of the task's YAML; None if it has none."""
        metadata = self.task.get_config("metadata")
        return metadata.get("domain") if isinstance(metadata, dict) else None

    @property
    def where(self) -> str:
        """The task's name and, where it has one, its file."""
        metadata = self.task.get_config("metadata")
        source = metadata.get("config_source") if isinstance(metadata, dict) else None
        file = f" ({source})" if source not in (None, "inline") else ""
        return f"task {self.name!r}{file}"

    @property
    def version(self) -> str:
        return str(self.task.VERSION)

    @property
    def output_type(self) -> str:
        return str(self.task.OUTPUT_TYPE)


class TaskNotFound(NamedTuple):
    """A name without a task, group or tag.

    Attributes:
        name: that was looked for.
        suggestion: the name that was probably meant.
        faults: task files that lm-eval skipped, and what is wrong with them.
    """

    name: str
    suggestion: str | None
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        hint = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        skipped = "".join(f"; a task file is skipped: {fault}" for fault in self.faults)
        return f"no task named {self.name!r}{hint}{skipped}"


Unloaded = TaskNotFound | TaskError
"""Why a name has no tasks."""

GENERAL = "general"
"""A bundled group of which a study takes what can be loaded, and what its base can do."""


def tasks_of_general() -> list[str]:
    """The names in that group."""
    return read_task_file(BUNDLED_FOLDER / f"{GENERAL}.yaml")["task"]


@contextlib.contextmanager
def quiet_lm_eval() -> Generator[None]:
    """Keep lm-eval's remarks on defaults off the terminal; its errors still show."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    if level == logging.ERROR:  # within another such block: each change clears all loggers' caches
        yield
        return
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _manager(tasks_path: Sequence[Path], *, everything: bool) -> Any:
    from lm_eval.tasks import TaskManager

    for folder in tasks_path:
        if not os.path.isdir(folder):  # unlike Path.is_dir, raises nothing
            raise TaskError(f"tasks_path: {folder} is not a folder; check the path.")
    confine_task_files()
    try:
        with quiet_lm_eval(), guarded_task_files(allow_code=True):  # the index runs none
            folders: list[str | Path] = [BUNDLED_FOLDER, *tasks_path]
            manager = TaskManager(include_path=folders, include_defaults=False)
    except TypeError as error:  # names that are no text cannot be sorted
        faults = "; ".join(file_faults(tasks_path)) or str(error)
        raise TaskError(f"tasks_path: {faults}.") from error
    if everything:
        index = manager.task_index
        index.update({**lm_evals_own(), **index})
    return manager


@functools.cache
def lm_evals_own() -> dict[str, Any]:
    """Name -> entry of lm-eval's own index, which takes 7-10 s: once in a process."""
    from lm_eval.tasks import TaskManager

    with quiet_lm_eval():
        return TaskManager().task_index


def load_tasks(
    names: Sequence[str], tasks_path: Sequence[Path] = (), *, allow_code: bool = False
) -> dict[str, tuple[LoadedTask, ...] | Unloaded]:
    """Load tasks, groups and tags: name -> its leaf tasks, or why it has none.

    The bundled tasks and ``tasks_path`` are searched first. lm-eval's own index is
    built only for a name that is not found there.

    Args:
        names: as in a study file.
        tasks_path: folders with task files.
        allow_code: whether these files may run Python code. Without it, a task that would is
            refused before anything of it runs.

    Raises:
        TaskError: a folder of ``tasks_path`` is missing, or has a file that spoils the index.
    """
    manager = _manager(tasks_path, everything=False)
    if not all(_is_known(manager.task_index, name) for name in names):
        manager = _manager(tasks_path, everything=True)
    loaded: dict[str, tuple[LoadedTask, ...] | Unloaded] = {}
    with guarded_task_files(allow_code=allow_code):
        for name in names:
            if name not in manager.task_index:
                near = closest(name, sorted(manager.task_index))
                loaded[name] = TaskNotFound(name, near, tuple(file_faults(tasks_path)))
                continue
            try:
                loaded[name] = _leaves(manager, name)
            except TaskError as error:
                loaded[name] = error
    return loaded


def _is_known(index: dict[str, Any], name: str) -> bool:
    """Whether a name is there, and what it is a group of; a bundled one may be of lm-eval's."""
    entry = index.get(name)
    members: Any = () if entry is None else (entry.cfg or {}).get("task", ())
    named = [each for each in members if isinstance(each, str)] if isinstance(members, list) else []
    return entry is not None and all(each in index for each in named)


def _leaves(manager: Any, name: str) -> tuple[LoadedTask, ...]:
    path = manager.task_index[name].yaml_path
    where = f"task {name!r}" + ("" if path is None else f" ({path})")
    with task_code(
        f"{where} exists but cannot be loaded",
        "Check its data (a hub name needs the network; a local file must exist and not be empty) "
        "and its YAML.",
    ):
        with quiet_lm_eval():
            found = manager.load([name])
        tasks, groups = found["tasks"], found["groups"]
        members = {
            name: {task.task_name for task in group.get_all_tasks()}
            for name, group in groups.items()
        }
    if name not in tasks:
        members[name] = set(tasks)  # a tag is not a group
    leaves = tuple(
        LoadedTask(leaf, task, groups=tuple(g for g, leaves in members.items() if leaf in leaves))
        for leaf, task in tasks.items()
    )
    if not leaves:
        raise TaskError(f"{where} has no tasks. Name some in it.")
    for leaf in leaves:
        _check_config(leaf)
    return leaves


def _check_config(loaded: LoadedTask) -> None:
    """Refuse what lm-eval takes without a word and fails on after the scoring."""
    task, config = loaded.task, loaded.task.config
    if fault := name_fault(loaded.name):
        raise TaskError(f"{loaded.where}: task {fault}.")
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise TaskError(
            f"{loaded.where} runs generated code or needs images or audio; rankwise scores text "
            "only. Leave it out."
        )
    for metric, function in getattr(task, "_metric_fn_list", {}).items():
        if function is None and config.process_results is None:
            hint = did_you_mean(str(metric), metric_names()) or "name one of lm-eval's, such as acc"
            raise TaskError(f"{loaded.where}, metric_list: no metric named {metric!r}; {hint}")


class TaskListing(NamedTuple):
    """One line of ``rankwise tasks``; the description is empty where its files have none."""

    name: str
    kind: str
    source: str
    description: str


def list_tasks(
    tasks_path: Sequence[Path] = (), *, everything: bool = False, search: str = ""
) -> list[TaskListing]:
    """Tasks, groups and tags that can be named: bundled, in ``tasks_path``, and lm-eval's.

    Args:
        tasks_path: folders with task files.
        everything: lm-eval's own too.
        search: only those whose name or description has all of these words.
    """
    manager = _manager(tasks_path, everything=everything)
    listing: list[TaskListing] = []
    for name, entry in sorted(manager.task_index.items()):
        path = None if entry.yaml_path is None else Path(entry.yaml_path)  # a tag has no file
        parents = () if path is None else path.parents
        if BUNDLED_FOLDER in parents:
            source = "rankwise"
        elif any(folder in parents for folder in tasks_path):
            source = "tasks_path"
        else:
            source = "lm-eval"
        described = ""
        if path is not None and source == "lm-eval":
            described = _title(path.parent)
        elif path is not None:  # what a task file says of itself, above its content
            lines = read_yaml_text(path).split("\n")
            comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
            described = " ".join(line.lstrip("# ") for line in comment)
        line = TaskListing(name, entry.kind.name.lower(), source, described)
        text = f"{name} {described}".lower()
        if all(word in text for word in search.lower().split()):
            listing.append(line)
    return listing


@functools.cache
def _title(folder: Path) -> str:
    """Title of the paper behind a folder of lm-eval's tasks, else the heading of its page.

    A folder without a page has that of the one around it; the page of all tasks says nothing.
    """
    below = itertools.takewhile(lambda place: place.name != "tasks", (folder, *folder.parents))
    pages = (place / "README.md" for place in below)
    page = next((page for page in pages if page.is_file()), None)
    if page is None:
        return ""
    text = page.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^\**Title:?\**:?\s*(.+)", text, re.MULTILINE) or re.search(
        r"^# +(.+)", text, re.MULTILINE
    )
    return "" if found is None else found[1].strip('`* "')
