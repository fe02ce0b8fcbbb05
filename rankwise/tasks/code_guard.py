"""Task code is refused where lm-eval would run it.

A folder of task files is code. lm-eval 0.4 runs it, or reads what runs it, in these places:

- ``_mk_function_ctor``: ``!function`` imports a Python file beside the YAML, or any module. What
  it gives is called later: ``class``, ``custom_dataset``, ``process_docs``, ``doc_to_*``,
  ``process_results``, metrics, aggregations, filters, few-shot samples and samplers. Nothing else
  in a YAML file can be called: names of aggregations, filters and samplers are looked up, and
  Python's tags, which lm-eval reads where PyYAML has no libyaml, are refused by our own reading.
  Of what may run, the file itself runs, and no compiled code beside it.
- ``get_metric``: a metric that lm-eval does not know, or one with ``hf_evaluate: true``, is a
  script of the evaluate library.
- ``datasets``: the loader ``pandas`` reads pickles (before version 5). Scripts of data sets are
  gone since version 4, and the loader ``sql`` has no name that a file could give.
- ``fsspec``: the files of ``reference://`` hold templates, which early versions
  render outside of the sandbox.
- ``get_prompt``: promptsource renders templates outside of jinja's sandbox. All others are
  rendered in it, see ``confine_task_files``.
- ``transformers``: the tasks of RULER run a tokenizer's own code.
- A function of an installed task that gets the settings of another file, which includes the
  task's or is a group with it: some run what stands in the data.

The files of rankwise and lm-eval are installed, and trusted like any package.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rankwise.errors import TaskError, did_you_mean
from rankwise.tasks.own_code import module_of
from rankwise.tasks.task_files import BUNDLED_FOLDER, config_faults, metric_names, read_task_file

REMEDY = (
    "Read that code, and if you trust it allow it with --allow-task-code or with "
    "allow_task_code: true in the study file."
)
"""What is said of code that is refused."""

# Settings that bring an installed task's function no data, no text and no other function.
_PLAIN_SETTINGS = frozenset({
    *("include", "task", "task_alias", "tag", "group", "group_alias", "num_fewshot", "repeats"),
    *("training_split", "validation_split", "test_split", "fewshot_split", "generation_kwargs"),
})  # fmt: skip


_INSTALLED_PACKAGES = frozenset({"lm_eval", "rankwise"})
"""They are imported already, so that no file of the current folder is taken for them."""


@contextlib.contextmanager
def guarded_task_files(*, allow_code: bool) -> Generator[None]:
    """Within the block, lm-eval refuses task files that run code, and those with faults.

    Args:
        allow_code: whether files that are not installed may run code.

    Raises:
        TaskError: raised in lm-eval, where it reads such a file or builds a task of it.
    """
    from lm_eval.tasks import _factory, _index, _yaml_loader

    guard = _Guard(allow_code)
    factory = _factory.TaskFactory
    places: list[tuple[Any, str, Any]] = [
        *((module, "load_yaml", guard.load_yaml) for module in (_yaml_loader, _index, _factory)),
        (_yaml_loader, "_load_module_with_cache", guard.module),
        (factory, "build", lambda *given, **named: guard.build(*given, **named)),
        (factory, "_load_full_config", lambda *given: guard.full_config(*given)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in places + ([] if allow_code else _refusals(guard)):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield


def _refusals(guard: _Guard) -> list[tuple[Any, str, Any]]:
    """The places outside of lm-eval's factory that run code, and what refuses it there."""
    from datasets.packaged_modules.pandas.pandas import Pandas
    from fsspec.implementations.reference import ReferenceFileSystem
    from lm_eval.api import task
    from lm_eval.tasks import _yaml_loader
    from transformers import dynamic_module_utils

    def refuse(what: str) -> Callable[..., Any]:
        return lambda *_, **__: guard.refuse(what)

    return [
        (_yaml_loader, "_mk_function_ctor", guard.function_constructor),
        (task, "get_metric", guard.metric),
        (task, "get_prompt", guard.prompt),
        (Pandas, "_info", refuse("dataset_path: the loader 'pandas' runs what it reads")),
        (ReferenceFileSystem, "__init__", refuse("dataset_kwargs: references may hold templates")),
        (dynamic_module_utils, "get_class_in_module", refuse("a tokenizer's own code would run")),
    ]


class _Guard:
    """What lm-eval is reading and building, and which files of the user's have a say in it."""

    def __init__(self, allow_code: bool) -> None:
        from lm_eval.api import task
        from lm_eval.tasks import _factory, _yaml_loader

        reader: Any = _yaml_loader
        factory: Any = _factory.TaskFactory
        self._allow_code = allow_code
        self._installed = (BUNDLED_FOLDER.resolve(), Path(reader.__file__).resolve().parent)
        self._load_yaml, self._function_constructor = reader.load_yaml, reader._mk_function_ctor
        self._load_module = reader._load_module_with_cache
        self._modules: dict[Path, ModuleType] = {}
        self._build, self._full_config = factory.build, factory._load_full_config
        self._metric, self._prompt = task.get_metric, task.get_prompt
        self._file = ""
        self._is_own = False
        # file -> what it sets: the files just read, and those of groups around what is built
        self._read: dict[str, set[str]] = {}
        self._handed_down: dict[str, set[str]] = {}

    def refuse(self, what: str) -> None:
        """Refuse code of the task that is being built."""
        raise TaskError(f"{self._file}, {what}. {REMEDY}")

    def _is_installed(self, path: Path) -> bool:
        return any(path.resolve().is_relative_to(folder) for folder in self._installed)

    def load_yaml(self, path: str | Path, *, _seen: Any = None, **options: Any) -> dict[str, Any]:
        """A file with what it includes. Links are followed first, as lm-eval does."""
        path = Path(path).expanduser().resolve()
        if not path.is_file():  # a pipe would block
            raise TaskError(f"{path} is not a file that can be read. Check the path.")
        if _seen is None:
            self._read = {}
        if options.get("resolve_func", True) and not self._is_installed(path):
            self._read[str(path)] = _settings(read_task_file(path))
        config: dict[str, Any] = self._load_yaml(path, _seen=_seen, **options)
        if _seen is None:
            self._refuse_mixed(config, self._read)
        return config

    def build(self, factory: Any, entry: Any, *, registry: Any, overrides: Any = None) -> Any:
        """A task, a group or a tag; ``overrides`` come from the groups around it."""
        before = self._file, self._is_own, self._handed_down
        given = _settings(overrides or {})
        self._handed_down = {self._file: given} if self._is_own and given else {}
        try:
            return self._build(factory, entry, overrides=overrides, registry=registry)
        finally:
            self._file, self._is_own, self._handed_down = before

    def full_config(self, factory: Any, entry: Any, overrides: Any = None) -> dict[str, Any]:
        """What a task is built from, or a group."""
        self._read = {}
        config = self._full_config(factory, entry, overrides)
        self._file = str(entry.yaml_path or f"task {entry.name!r}")
        self._is_own = bool(self._read or self._handed_down or entry.yaml_path is None)
        self._refuse_mixed(config, self._read | self._handed_down)
        if self._is_own and (faults := list(config_faults(config))):
            places = "; ".join(f"{self._file}, {fault}" for fault in faults)
            raise TaskError(f"task {entry.name!r} cannot be used: {places}.")
        return config

    def _refuse_mixed(self, config: Mapping[str, Any], given: Mapping[str, set[str]]) -> None:
        """Refuse a function of an installed task that would get settings of files of the user's."""
        for file, settings in given.items():
            if settings and not self._allow_code and (place := next(_functions(config), None)):
                names = ", ".join(sorted(settings))
                raise TaskError(
                    f"{file} sets {names} for a function of an installed task: {place}. {REMEDY}"
                )

    def function_constructor(self, folder: Path, resolve: bool) -> Callable[..., Any]:
        """What reads ``!function`` in a YAML file of a folder, in which links are followed."""
        construct = self._function_constructor(folder, resolve)

        def constructor(loader: Any, node: Any) -> Any:
            name = str(node.value).rpartition(".")[0]
            module = folder / f"{name.replace('.', '/')}.py"
            # what is not beside the file, lm-eval imports from wherever Python finds it first
            is_ours = module.exists() or name.partition(".")[0] in _INSTALLED_PACKAGES
            known = is_ours and self._is_installed(folder) and self._is_installed(module)
            if resolve and not known:
                mark = node.start_mark
                raise TaskError(
                    f"{mark.name}, line {mark.line + 1}: !function {node.value} is code. {REMEDY}"
                )
            return construct(loader, node)

        return constructor

    def module(self, path: Path) -> ModuleType:
        """A Python file beside a YAML file, once for all its functions."""
        if self._is_installed(path):
            return self._load_module(path)
        if path not in self._modules:
            name = str(path.with_suffix(""))
            self._modules[path] = sys.modules[name] = module_of(path, name)[0]
        return self._modules[path]

    def metric(self, name: Any, hf_evaluate_metric: bool = False) -> Any:
        """A metric by its name; where the evaluate library is asked, it runs a script."""
        is_script = hf_evaluate_metric or name not in metric_names()
        if is_script and (self._is_own or os.path.isfile(f"{name}/{name}.py")):
            near = did_you_mean(str(name), metric_names())
            what = f"lm-eval has no metric {name!r}{f' ({near})' if near else ''}"
            if hf_evaluate_metric:
                what = f"hf_evaluate is set for {name!r}"
            self.refuse(f"metric_list: {what}; a script of that name would run")
        return self._metric(name, hf_evaluate_metric)

    def prompt(self, prompt_id: str, *names: Any) -> Any:
        """A prompt for ``use_prompt``."""
        if prompt_id.startswith("promptsource"):
            self.refuse(f"use_prompt: {prompt_id!r} is rendered outside of the sandbox")
        file = prompt_id.rpartition(":")[0]
        if ".yaml" in file and not os.path.isfile(file):
            raise TaskError(f"{self._file}, use_prompt: {file} is not a file. Check the path.")
        return self._prompt(prompt_id, *names)


def _settings(config: Mapping[str, Any]) -> set[str]:
    """What a file or a group sets, but for plain settings; a list of tasks is none of these."""
    return {
        str(key)
        for key, value in config.items()
        if key not in _PLAIN_SETTINGS or (key == "task" and not isinstance(value, str))
    }


def _functions(value: Any, place: str = "") -> Iterator[str]:
    """Each place of a config that holds a function, and which."""
    if callable(value):
        yield f"{place} is {value.__module__}.{value.__qualname__}"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _functions(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _functions(inner, f"{place}[{index}]")
