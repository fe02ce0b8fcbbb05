"""From a name in a study file to lm-evaluation-harness tasks."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import TaskError, closest

BUNDLED_FOLDER = Path(__file__).parent / "bundled"


class LoadedTask(NamedTuple):
    """A leaf task.

    Attributes:
        name: lm-eval's name.
        task: the ``lm_eval.api.task.Task``.
        is_rendered: its texts contain the chat template, which must not be applied again.
        groups: names of the groups and tags that contain it.
    """

    name: str
    task: Any
    is_rendered: bool = False
    groups: tuple[str, ...] = ()

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
    def version(self) -> str:
        return str(self.task.VERSION)

    @property
    def output_type(self) -> str:
        return str(self.task.OUTPUT_TYPE)


class TaskNotFound(NamedTuple):
    """A name without a task, group or tag, and the name that was probably meant."""

    name: str
    suggestion: str | None

    def __str__(self) -> str:
        hint = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        return f"no task named {self.name!r}{hint}"


@contextlib.contextmanager
def quiet_lm_eval() -> Generator[None]:
    """Keep lm-eval's remarks on defaults off the terminal; its errors still show."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _manager(tasks_path: Sequence[Path], *, everything: bool) -> Any:
    from lm_eval.tasks import TaskManager

    for folder in tasks_path:
        if not folder.is_dir():
            raise TaskError(f"tasks_path: {folder} is not a folder. Check the path.")
    with quiet_lm_eval():
        return TaskManager(include_path=[BUNDLED_FOLDER, *tasks_path], include_defaults=everything)


def load_tasks(
    names: Sequence[str], tasks_path: Sequence[Path] = ()
) -> dict[str, tuple[LoadedTask, ...] | TaskNotFound]:
    """Load tasks, groups and tags: name -> its leaf tasks, or why it has none.

    The bundled tasks and ``tasks_path`` are searched first. lm-eval's own index takes 7-10 s to
    build, and is built only for a name that is not found there.

    Raises:
        TaskError: a folder of ``tasks_path`` is missing, or a task's data cannot be loaded.
    """
    manager = _manager(tasks_path, everything=False)
    if any(name not in manager.task_index for name in names):
        manager = _manager(tasks_path, everything=True)
    found: dict[str, tuple[LoadedTask, ...] | TaskNotFound] = {}
    for name in names:
        if name in manager.task_index:
            found[name] = _leaves(manager, name)
        else:
            found[name] = TaskNotFound(name, closest(name, manager.all_tasks))
    return found


def task_file_errors() -> tuple[type[Exception], ...]:
    """The errors that a task's faulty YAML, functions or data can raise."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError

    return (
        *(OSError, ValueError, LookupError, ImportError, TypeError, AttributeError, AssertionError),
        *(TemplateError, DatasetsError),
    )


def _leaves(manager: Any, name: str) -> tuple[LoadedTask, ...]:
    try:
        with quiet_lm_eval():
            found = manager.load([name])
    except task_file_errors() as error:
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise TaskError(
            f"task {name!r} exists but cannot be loaded: {reason}. Check its data (a hub name "
            "needs the network; a local file must exist and not be empty) and its YAML."
        ) from error
    tasks = found["tasks"]
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise TaskError(
                f"task {name!r} runs generated code or needs images or audio; rankwise scores text "
                "only. Leave it out."
            )
    members = {
        name: {task.task_name for task in group.get_all_tasks()}
        for name, group in found["groups"].items()
    }
    if name not in tasks:
        members[name] = set(tasks)  # a tag is not a group
    return tuple(
        LoadedTask(leaf, task, groups=tuple(g for g, leaves in members.items() if leaf in leaves))
        for leaf, task in tasks.items()
    )


class TaskListing(NamedTuple):
    """One line of ``rankwise tasks``."""

    name: str
    kind: str
    source: str


def list_tasks(tasks_path: Sequence[Path] = (), *, everything: bool = False) -> list[TaskListing]:
    """Every task, group and tag that can be named: bundled, in ``tasks_path``, and lm-eval's."""
    manager = _manager(tasks_path, everything=everything)
    listing: list[TaskListing] = []
    for name, entry in sorted(manager.task_index.items()):
        parents = Path(entry.yaml_path or "").parents
        if BUNDLED_FOLDER in parents:
            source = "rankwise"
        elif any(folder in parents for folder in tasks_path):
            source = "tasks_path"
        else:
            source = "lm-eval"
        listing.append(TaskListing(name, entry.kind.name.lower(), source))
    return listing
