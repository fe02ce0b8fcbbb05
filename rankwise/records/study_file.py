"""Reads a study file, YAML with overrides or a preset, and reports all its problems at once."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rankwise.errors import ConfigError, did_you_mean
from rankwise.records.config.methods import PATTERN_TAGS
from rankwise.records.config.own_rows import CHECK_TAGS, ClauseConfig, ContractConfig, hub_data
from rankwise.records.config.study import RecommendationConfig, StudyConfig
from rankwise.records.config.training import RATE_TAGS
from rankwise.records.fields import path_problem
from rankwise.records.p_right import P_RIGHT
from rankwise.records.places import LocalFolders, paths_in
from rankwise.records.study import Unit
from rankwise.records.yaml_reading import (
    PlainLoader,
    YamlError,
    dumped_yaml,
    parse_yaml,
    read_yaml_text,
    shown,
)

M = TypeVar("M", bound=BaseModel)

_PRESETS = Path(__file__).parent / "presets"
_STUDY_FILE = "a study file is a mapping of sections; see `rankwise init`"
_CONTRACT = "a contract maps names to own rows, such as tools: {data: rows.jsonl, judged_by: json}"
# What pydantic says of Python's types, said of a study file.
_IN_WORDS = {
    "string_type": "write text, in quotes if it looks like something else",
    "path_type": "write a path",
    "tuple_type": "write a list",
    "dict_type": "write a mapping of keys to values",
    "too_short": "give at least {min_length}",
    "too_long": "give {max_length} at most",
}


def preset_names() -> tuple[str, ...]:
    """The names of the study files that ship with rankwise."""
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.yaml")))


def preset_text(name: str) -> str:
    """A shipped study file as text, comments included.

    Raises:
        ConfigError: there is no preset of that name.
    """
    if name not in preset_names():
        hint = did_you_mean(name, preset_names()) or f"there are {', '.join(preset_names())}"
        raise ConfigError(name, [f"no preset named {name!r}; {hint}"])
    return (_PRESETS / f"{name}.yaml").read_text("utf-8")


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file, apply ``key=value`` overrides, and check everything at once.

    Args:
        path: the file; None takes the ``quickstart`` preset.
        overrides: dotted key, '=', and a YAML value: ``train.epochs=1``, ``seeds=[0,1,2]``.

    Returns:
        The config, with relative paths of the file resolved against the file's folder.

    Raises:
        ConfigError: with every problem that the file alone can show.
    """
    if path is None:
        source, folder = "quickstart", Path.cwd()
        data = _read(preset_text("quickstart"), source)
    else:
        source = path.name or str(path)
        data, folder = _read(path, source), path.resolve().parent
        data.setdefault("name", study_name(path.stem))
    problems: list[str | None] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            example = "write key=value, for example train.epochs=1"
            problems.append(f"{override!r} is not an override; {example}")
            continue
        try:
            problems.append(_set(data, key, parse_yaml(text, PlainLoader)))
        except YamlError as error:
            problems.append(f"{key}: {shown(text)} is not a YAML value: {error}")
    return _checked(data, source, folder, problems)


def load_contract(path: Path) -> dict[str, ClauseConfig]:
    """Read a contract: sets of own rows by their names, as in ``evaluation.own``.

    Returns:
        The clauses, with relative paths resolved against the file's folder.

    Raises:
        ConfigError: with every problem that the file alone can show.
    """
    source = path.name or str(path)
    return contract_of(_read(path, source, _CONTRACT), source, path.resolve().parent)


def contract_of(settings: Mapping[str, Any], source: str, folder: Path) -> dict[str, ClauseConfig]:
    """Check a contract that is not in a file, as ``load_contract`` checks a file.

    Args:
        settings: name -> keys of a set.
        source: what errors name as their origin.
        folder: relative paths are resolved against it.

    Raises:
        ConfigError: with every problem that the settings alone can show.
    """
    key = "contract"
    data = {key: _plain(settings)}
    try:
        found = ContractConfig.model_validate(data)
    except ValidationError as error:
        problems = problems_of(error, data, ContractConfig)
        # the sets' names begin one level deeper
        raise ConfigError(source, [each.removeprefix(f"{key}.") for each in problems]) from error
    return _with_absolute_paths(found.contract, folder)


def config_of(settings: Mapping[str, Any], source: str, folder: Path) -> StudyConfig:
    """Check settings of a study that are not in a file, as ``load_config`` checks a file.

    Args:
        settings: key, dotted as in an override, -> value; a section is a mapping.
        source: what errors name as their origin.
        folder: relative paths are resolved against it.

    Raises:
        ConfigError: with every problem that the settings alone can show.
    """
    data: dict[str, Any] = {}
    keys = sorted(settings, key=lambda key: key.count("."))  # a section before what is in it
    problems = [_set(data, key, _plain(settings[key]), replace=False) for key in keys]
    return _checked(data, source, folder, problems)


def study_name(text: str) -> str:
    """The name of a study whose file or folder is called so."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "study"


def _checked(
    data: dict[str, Any], source: str, folder: Path, problems: Sequence[str | None]
) -> StudyConfig:
    found = [*filter(None, problems), *_given_twice(data)]
    config = _with_absolute_paths(validated(StudyConfig, data, source, found), folder)
    # A base in a folder is named by its whole path. A folder of the current one is meant from
    # wherever the study goes on; a plain name may be an embedded model's.
    name = config.base_model.name
    is_beside = name.startswith(("./", "../")) or os.path.isdir(folder / name)
    if is_beside or ("/" in name and os.path.isdir(name)):
        place = str((folder / name if is_beside else Path(name)).resolve())
        base = config.base_model.model_copy(update={"name": place})
        config = config.model_copy(update={"base_model": base})
    return config


def _plain(value: Any) -> Any:
    """A value of Python as a study file would have it."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in cast(Mapping[str, Any], value).items()}
    if isinstance(value, list | tuple | range):
        return [_plain(part) for part in cast(Iterable[Any], value)]
    if hasattr(value, "tolist"):  # numbers and arrays of numpy
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def study_file_text(config: StudyConfig) -> str:
    """A study file that gives the same config, without what is by default.

    Folders of paths are left out: a file or a model is named as if it lay beside the study file.
    """
    content = config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    content = LocalFolders(paths_in(content)).out_of_settings(content)
    return dumped_yaml(content, default_flow_style=None)


def margins_text(unit: Unit, metric: str) -> str:
    """The section of a new study file that says which differences matter: the defaults, in words.

    Args:
        unit: in which the trained task is scored.
        metric: that decides on it; on the retention tasks it is p(right).
    """
    margins = RecommendationConfig()
    delta = margins.delta_nats if unit == "nats" else margins.delta_for([metric])
    kept = [P_RIGHT]
    lines = {
        f"delta_{unit}: {delta:g}": "in-domain, ranks that differ by less count as equal",
        f"epsilon_points: {margins.epsilon_for(kept):g}": "losing less than this on the retention "
        "tasks, on average, is fine",
        f"worst_task_points: {margins.ceiling_for(kept):g}": "if no task loses more than this",
    }
    return "recommendation:\n" + "".join(
        f"  {setting:<30}# {meaning}\n" for setting, meaning in lines.items()
    )


def _read(given: Path | str, source: str, wanted: str = _STUDY_FILE) -> dict[str, Any]:
    """The sections of a file, or of a text."""
    try:
        if isinstance(given, Path):
            given.resolve()  # refuses a NUL, and links that lead to themselves
            if problem := path_problem(given):
                raise ValueError(problem)
            given = read_yaml_text(given)
        data = parse_yaml(given, PlainLoader)
    except (YamlError, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(source, [str(error)]) from error
    if not isinstance(data, dict):
        raise ConfigError(source, [wanted])
    return cast(dict[str, Any], data)


def _set(data: dict[str, Any], key: str, value: Any, *, replace: bool = True) -> str | None:
    """Set one dotted key in place; returns why it cannot be set, if so."""
    *parents, last = key.split(".")
    section = data
    for parent in parents:
        below = section.get(parent)
        if below is None:
            below = section[parent] = {}
        elif parent == "base_model" and isinstance(below, str):
            below = section[parent] = {"name": below}
        if not isinstance(below, dict):
            return f"{key}: {parent!r} is not a section; set {parent} itself"
        section = cast(dict[str, Any], below)
    if not replace and last in section:
        return f"{key}: it is given twice; give it once"
    section[last] = value
    return None


def found_again(config: StudyConfig, folder: Path, file: Path) -> StudyConfig:
    """The config of a study in a folder that may have been moved since it was planned.

    Args:
        config: as the study was planned.
        folder: where the study is now; relative paths are resolved against it.
        file: a study file in it, which may say where the rows are now.
    """
    config = _with_absolute_paths(config, folder)
    places = [config.train.data, *(own.data for own in config.evaluation.own.values())]
    files = [data for data in places if data is not None and hub_data(data) is None]
    if file.exists() and not all(data.exists() for data in files):
        with contextlib.suppress(ConfigError):
            moved = load_config(file)
            train = config.train.model_copy(update={"data": moved.train.data})
            evaluation = config.evaluation.model_copy(update={"own": moved.evaluation.own})
            return config.model_copy(update={"train": train, "evaluation": evaluation})
    return config


def _with_absolute_paths(value: Any, folder: Path, key: str = "") -> Any:
    """A section, or a part of one under a key, whose paths are whole and without ``..``.

    They may be links themselves. ``data`` and ``start`` may also name what is on the Hub, and then
    stay as they are.
    """
    if key == "code" and isinstance(value, str):
        file, _, function = value.rpartition(":")
        return f"{_with_absolute_paths(Path(file), folder)}:{function}"
    if isinstance(value, Path):
        place = folder / value.expanduser()
        path = Path(os.path.realpath(place.parent), place.name)
        if place.name == "..":
            path = Path(os.path.realpath(place))
        if problem := path_problem(path):
            raise ConfigError(key or str(folder), [problem])
        may_be_hub = key in ("data", "start") and hub_data(value) is not None
        return value if may_be_hub and not os.path.exists(path) else path
    if isinstance(value, tuple):
        return tuple(_with_absolute_paths(part, folder, key) for part in value)
    if isinstance(value, Mapping):
        return {name: _with_absolute_paths(part, folder, key) for name, part in value.items()}
    if not isinstance(value, BaseModel):
        return value
    parts = {name: _with_absolute_paths(part, folder, name) for name, part in value}
    changed = {name: part for name, part in parts.items() if part != getattr(value, name)}
    return value.model_copy(update=changed)


_TAGS = (*RATE_TAGS, *CHECK_TAGS, *PATTERN_TAGS)
"""Parts of an error's place that are no keys."""

_PAIRED = {
    "rank": ("methods", "lora", "ranks"),
    "alpha": ("methods", "lora", "alpha"),
    "target_modules": ("methods", "lora", "target_modules"),
    "learning_rate": ("train", "learning_rate", "lora"),
    "epochs": ("train", "epochs"),
}


def _given_twice(data: dict[str, Any]) -> Iterable[str]:
    """Problems of axes that ``methods.lora._`` pairs and that the file also lists."""
    entries = _at(data, ("methods", "lora", "_"))
    if not isinstance(entries, list):
        return
    paired = {key for entry in entries if isinstance(entry, dict) for key in entry}
    for axis, location in _PAIRED.items():
        if axis in paired and _at(data, location) is not None:
            key = ".".join(location)
            yield f"{key}: given here and in methods.lora._ as {axis!r}; give it in one of them"


def _at(data: Any, location: tuple[str, ...]) -> Any:
    for part in location:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def validated(model: type[M], data: dict[str, Any], source: str, problems: Sequence[str] = ()) -> M:
    """Data of this kind, checked; ``problems`` were found before.

    Raises:
        ConfigError: with every problem found.
    """
    try:
        checked = model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(source, [*problems, *problems_of(error, data, model)]) from error
    if problems:
        raise ConfigError(source, problems)
    return checked


def problems_of(
    error: ValidationError, data: dict[str, Any], model: type[BaseModel]
) -> Iterable[str]:
    """One sentence for each problem that pydantic found: the key, what was given, what to do."""
    for detail in error.errors(include_url=False):
        key = _key_of(detail["loc"], data)
        if detail["type"] == "extra_forbidden":
            known = _known_keys(model, detail["loc"][:-1])
            hint = did_you_mean(str(detail["loc"][-1]), known) or f"known here: {', '.join(known)}"
            yield f"{key}: unknown key; {hint}"
        elif detail["type"] == "missing":
            yield f"{key}: is missing; add it"
        elif detail["type"] == "value_error":
            message = str(detail["msg"]).removeprefix("Value error, ")
            yield f"{key}: {message}" if key else message
        elif detail["type"] == "model_type":
            known = ", ".join(_known_keys(model, detail["loc"])) or "none"
            given = shown(detail["input"])
            yield f"{key}: {given} given; a section is needed here, with keys: {known}"
        else:
            message = _IN_WORDS.get(detail["type"], str(detail["msg"]))
            message = message.format(**detail.get("ctx", {}))
            yield f"{key}: {shown(detail['input'])} given; {message[:1].lower()}{message[1:]}"


def _key_of(location: tuple[int | str, ...], data: dict[str, Any]) -> str:
    """A place in the file, dotted, without the index 0 of a single value that stands for a list."""
    key = ""
    here: Any = data
    for part in location:
        is_index = isinstance(part, int)
        is_key = isinstance(here, dict) and part in here
        if part in _TAGS or (is_index and not isinstance(here, list) and not is_key):
            continue
        key += f"[{part}]" if is_index else f".{part}" if key else str(part)
        if isinstance(here, dict):
            here = here.get(part)
        else:
            here = here[part] if isinstance(here, list) and is_index else None
    return key


def _known_keys(model: Any, location: tuple[int | str, ...]) -> list[str]:
    is_users_name = False
    for part in location:
        if is_users_name or isinstance(part, int) or part in _TAGS:
            is_users_name = False
            continue
        fields = model.model_fields.items()
        field = next(field for name, field in fields if part in (name, field.alias))
        model = next(_sections(field.annotation))
        is_users_name = get_origin(field.annotation) is Mapping
    return [field.alias or name for name, field in model.model_fields.items()]


def _sections(annotation: Any) -> Iterator[Any]:
    """The sections in an annotation, outermost first."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)
