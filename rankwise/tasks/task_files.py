"""lm-eval task files as data, and their faults.

What of them is code is refused by ``code_guard``. Templates need no permission: they are rendered
in jinja's sandbox.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rankwise.errors import RankwiseError, Stopped, TaskError, did_you_mean
from rankwise.records.fields import plain_text
from rankwise.records.lm_eval_samples import LINE_FIELDS
from rankwise.records.patterns import Pattern, kept_pattern
from rankwise.records.yaml_reading import SafeLoader, YamlError, parse_yaml, read_yaml_text, shown

BUNDLED_FOLDER = Path(__file__).parent / "bundled"

_shown = functools.partial(shown, more="")

_TEMPLATES = 1024
"""Compiled templates that are kept: a task has about three, but own rows' may be one a row."""


class _TaskLoader(SafeLoader):
    """Reads ``!function`` as the name that follows it."""


_TaskLoader.add_constructor("!function", SafeLoader.construct_scalar)


def read_task_file(path: Path) -> dict[Any, Any]:
    """A task file's own content; files that it includes are not read.

    Raises:
        TaskError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        content = parse_yaml(read_yaml_text(path), _TaskLoader)
    except YamlError as error:
        raise TaskError(f"{path}: {error}") from error
    if content is None:
        raise TaskError(f"{path} is empty; describe a task in it, or delete it")
    if not isinstance(content, dict):
        raise TaskError(f"{path} is not a mapping; write keys such as task and output_type")
    return cast(dict[Any, Any], content)


def is_bundled(name: str) -> bool:
    """Whether a task, or every task of a group, is ours: made by code, with no data to fetch."""
    files = {path.stem: path for path in task_files([BUNDLED_FOLDER])}
    if name not in files:
        return False
    members: Any = read_task_file(files[name]).get("task", name)
    return isinstance(members, str) or all(map(is_bundled, members))


def task_files(folders: Iterable[Path]) -> Iterator[Path]:
    """The task files that lm-eval finds in folders."""
    for folder in folders:
        yield from sorted(folder.glob("**/*.yaml"))


def file_faults(folders: Iterable[Path]) -> Iterator[str]:
    """What is wrong with each task file that lm-eval would skip without a word."""
    for path in task_files(folders):
        try:
            *_, (_, content) = _with_includes(path)
        except TaskError as error:
            yield str(error)
            continue
        for key in ("task", "group", "tag"):
            names: Any = content.get(key, [])
            for name in names if isinstance(names, list) else [names]:
                if not isinstance(name, str | dict):
                    yield f"{path}: {key} is {_shown(name)}, not a name; write it in quotes"
                elif isinstance(name, str) and (fault := name_fault(name)):
                    yield f"{path}: {key} {fault}"


def name_fault(name: str) -> str | None:
    """What is wrong with a task's name; None if nothing is."""
    try:
        plain_text(name)
    except ValueError as error:
        return str(error)
    return None


def _with_includes(path: Path, _seen: set[Path] | None = None) -> Iterator[tuple[Path, Any]]:
    """The files that a task file includes, then itself: in lm-eval's order, where later ones win.

    Raises:
        TaskError: a file cannot be read, or is included twice, which lm-eval refuses.
    """
    content = read_task_file(path)
    included: Any = content.get("include", [])
    seen = {path.resolve()} if _seen is None else _seen
    for name in included if isinstance(included, list) else [included]:
        if not isinstance(name, str) or "\0" in name:
            raise TaskError(f"{path}: include is {_shown(name)}, not a file; write its path")
        other = path.resolve().parent / name  # lm-eval looks beside a link's target
        if other.resolve() in seen:
            raise TaskError(f"{path}: {name} is included twice; take one include out")
        seen.add(other.resolve())
        try:
            yield from _with_includes(other, seen)
        except TaskError as error:
            raise TaskError(f"{path} includes {name}. {error}") from error
    yield path, content


def config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """What of a task's config lm-eval would fail on in the midst of work, by key."""
    if not callable(config.get("class", dict)):
        yield f"class: {_shown(config['class'])} is not a class; write class: !function FILE.CLASS"
    for key, fault in (*_metric_faults(config), *_filter_faults(config), *_template_faults(config)):
        yield f"{key}: {fault}"


def _metric_faults(config: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    from lm_eval.api.registry import aggregation_registry

    metrics = metric_names()  # the first call registers the aggregations, too
    for place, metric in _entries(config, "metric_list"):
        if not isinstance(metric, dict) or "metric" not in metric:
            yield place, f"{_shown(metric)} names no metric; write metric: acc"
            continue
        name, aggregation = metric["metric"], metric.get("aggregation")
        if isinstance(name, str) and name in LINE_FIELDS:
            yield place, f"{name!r} is a field of every item; call the metric otherwise"
        yield from _pattern_faults(f"{place}.regexes_to_ignore", metric.get("regexes_to_ignore"))
        if isinstance(aggregation, str) and aggregation not in aggregation_registry:
            near = did_you_mean(aggregation, aggregation_registry) or "write mean"
            yield f"{place}.aggregation", f"no aggregation named {aggregation!r}; {near}"
        if aggregation is None and name not in metrics:
            yield place, f"{_shown(name)} has no aggregation of its own; add aggregation: mean"


def _filter_faults(config: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    from lm_eval.filters import filter_registry  # imports the filters, which register themselves

    for place, pipeline in _entries(config, "filter_list"):
        if not isinstance(pipeline, dict) or not {"name", "filter"} <= pipeline.keys():
            yield place, "a filter needs a name and a list of steps; write name and filter"
            continue
        for step_place, step in _entries(pipeline, "filter"):
            where, step = f"{place}.{step_place}", step if isinstance(step, dict) else {}
            name, pattern = step.get("function"), step.get("regex_pattern")
            if callable(name):
                continue
            if not isinstance(name, str) or name not in filter_registry:
                near = did_you_mean(str(name), filter_registry) or "write one of lm-eval's"
                yield f"{where}.function", f"no filter named {_shown(name)}; {near}"
            if pattern is not None:
                yield from _pattern_faults(f"{where}.regex_pattern", [pattern])
            yield from _pattern_faults(f"{where}.regexes_to_ignore", step.get("regexes_to_ignore"))


def _pattern_faults(place: str, patterns: Any) -> Iterator[tuple[str, str]]:
    for pattern in patterns if isinstance(patterns, list) else []:
        try:
            Pattern(pattern)
        except TypeError:
            yield place, f"{_shown(pattern)} is not a regular expression; write a text"
        except ValueError as error:
            yield place, str(error)


def _template_faults(config: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    import lm_eval.utils
    from jinja2 import TemplateSyntaxError

    for key in ("description", "doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix"):
        if isinstance(template := config.get(key), str):
            try:
                lm_eval.utils.env.parse(template)
            except TemplateSyntaxError as error:
                yield key, f"line {error.lineno} of the template: {error.message}; correct it"
            except RecursionError:
                yield key, "the template is nested too deep; write it flatter"


def _entries(config: Mapping[Any, Any], key: str) -> Iterator[tuple[str, Any]]:
    entries = config.get(key) or []
    if callable(entries):
        return
    for index, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        yield f"{key}[{index}]", entry


@functools.cache
def metric_names() -> tuple[str, ...]:
    """The metrics that lm-eval itself has."""
    from lm_eval.api.registry import get_metric, metric_registry

    get_metric("acc")  # the first call registers all
    return tuple(metric_registry)


def confine_task_files() -> None:
    """Let lm-eval render templates in a sandbox, and match patterns in bounded time."""
    _sandbox_templates()
    _bound_patterns()


def _bound_patterns() -> None:
    """Give lm-eval's filters and metrics bounded patterns in place of ``re``'s.

    Patterns that are too large for it stay ``re``'s: those that lm-eval makes of a row's options.
    In task files that are not installed, ``config_faults`` names such patterns.
    """
    from lm_eval.api import metrics
    from lm_eval.filters import extraction

    def compiled(text: str) -> Pattern | re.Pattern[str]:
        try:
            return kept_pattern(text)
        except ValueError:
            return re.compile(text)

    def sub(pattern: str, replacement: str, text: str, count: int = 0) -> str:
        return compiled(pattern).sub(replacement, text, count)

    places: tuple[Any, ...] = (extraction, metrics)
    for module in places:
        module.re = SimpleNamespace(compile=compiled, sub=sub, escape=re.escape, findall=re.findall)


def _sandbox_templates() -> None:
    """Let lm-eval render the templates of task files in jinja's sandbox, each compiled once.

    lm-eval renders them in a plain environment, in which a template reaches every Python object
    and so the shell. Its own templates need no more than the sandbox gives. It also compiles a
    template anew for every item, which takes longer than all else that is done to plan a task.
    """
    import lm_eval.utils
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    plain = lm_eval.utils.env
    if isinstance(plain, ImmutableSandboxedEnvironment):
        return
    sandbox = ImmutableSandboxedEnvironment(
        loader=plain.loader,
        undefined=plain.undefined,
        keep_trailing_newline=plain.keep_trailing_newline,
    )
    sandbox.filters.update(plain.filters)
    filters: dict[str, Any] = sandbox.filters
    filters["regex_replace"] = _regex_replace
    sandbox.from_string = functools.lru_cache(_TEMPLATES)(sandbox.from_string)  # type: ignore[method-assign]
    lm_eval.utils.env = sandbox


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    """lm-eval's own filter for templates, in bounded time."""
    return kept_pattern(pattern).sub(replacement, text, count)


@contextlib.contextmanager
def task_code(what: str, remedy: str) -> Generator[None]:
    """Within the block, whatever a task's file, functions or data raise is a ``TaskError``.

    They are other people's code, which may raise anything and even exit. Ctrl-C, and the signals
    that stop a study, go on.

    Args:
        what: what could not be done, with the task's name and file.
        remedy: what to do about it, as a sentence.
    """
    try:
        yield
    except (RankwiseError, Stopped):
        raise
    except BaseException as error:
        if type(error) is KeyboardInterrupt:
            raise
        reason = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())[:300]]))
        raise TaskError(f"{what}: {reason}. {remedy}".rstrip()) from error
