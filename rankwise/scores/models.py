"""What a model is, by columns or by its name, and what it scored on a task, item by item."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.errors import ConfigError, DataError
from rankwise.records.fields import LARGEST, LARGEST_RANK, MOST_EPOCHS, plain_text
from rankwise.records.quantities import shortened
from rankwise.records.study import LARGEST_SCORE, Unit
from rankwise.records.yaml_reading import shown

BASE_NAMES = ("base", "base_model", "base-model", "pretrained", "untuned")
"""A model of such a name is the base, unless another is said to be."""

_FULL = re.compile(r"(?:^|[^a-z])(?:full|fft|full[ _-]?(?:fine[ _-]?tuning|ft))(?![a-z])", re.I)
"""Words that say, in a name without a rank, that all weights were trained."""

_NUMBER, _WHOLE = r"\d+(?:\.\d+)?(?:e[-+]?\d+)?", r"\d+"
_FIELDS: Mapping[str, str] = {
    "rank": _WHOLE,
    "seed": _WHOLE,
    "alpha": _NUMBER,
    "learning_rate": _NUMBER,
    "epochs": _WHOLE,
    "modules": r"[^_/]+?",
    "name": r".+?",
}
"""The fields of a pattern, and the texts that each fits in a model's name."""

_USUAL: Mapping[str, re.Pattern[str]] = {
    "rank": re.compile(r"(?<![a-z])(?:r|rank)[-_= ]?(\d+)(?![\d.])", re.I),
    "seed": re.compile(r"(?<![a-z])(?:s|seed)[-_= ]?(\d+)(?![\d.])", re.I),
    "alpha": re.compile(r"(?<![a-z])(?:a|alpha)[-_= ]?(\d+(?:\.\d+)?)(?![\d.])", re.I),
    "learning_rate": re.compile(rf"(?<![a-z])lr[-_= ]?({_NUMBER})", re.I),
}
"""How names usually say it: ``r8_s0``, ``rank-16-seed1``, ``lora_r8_a16_lr2e-4``."""


def names_a_setting(name: str) -> bool:
    """Whether a name says a rank, or that all weights were trained."""
    return _USUAL["rank"].search(name) is not None or _FULL.search(name) is not None


class TableModel(NamedTuple):
    """A model of a table: its name, and what is known of it; ``rank`` None: nothing says it.

    ``is_full`` says that all weights were trained.
    """

    name: str
    rank: int | None = None
    seed: int | None = None
    alpha: float | None = None
    learning_rate: float | None = None
    modules: tuple[str, ...] = ()
    epochs: int | None = None
    is_full: bool = False

    @property
    def label(self) -> str:
        """How errors call it: its name, and the columns that tell it from others of that name."""
        said = {"rank": self.rank, "seed": self.seed}
        parts = [f"{name} {value}" for name, value in said.items() if value is not None]
        name = shortened(self.name)
        return f"{name} ({', '.join(parts)})" if parts else name


def _number(text: str) -> float:
    """A finite number; Python's own reading takes 1_000 too, which no other tool does."""
    value = float(text)
    if "_" in text or not math.isfinite(value):
        raise ValueError
    return value


def _whole(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = _number(text)
        if value != int(value) or not 0 <= value <= most:
            raise ValueError
        return int(value)

    return read


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise ValueError
    return value


def _modules(text: str) -> tuple[str, ...]:
    return tuple(map(plain_text, re.findall(r"[^\s,;/+\[\]'\"]+", text)))


READ: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "rank": (_whole(LARGEST_RANK), f"a whole number up to {LARGEST_RANK:,}"),
    "seed": (_whole(LARGEST), f"a whole number up to {LARGEST:,}"),
    "alpha": (_positive, "a number above 0"),
    "learning_rate": (_positive, "a number above 0"),
    "epochs": (_whole(MOST_EPOCHS), f"a whole number up to {MOST_EPOCHS:,}"),
    "modules": (_modules, "names of layers"),
}
"""Setting -> how its text is read, and what it has to be."""

_YES_AND_NO = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "correct": 1.0, "incorrect": 0.0}


def score_of(value: Any) -> float:
    """A score as a table or a log has it: a number, also as text, or yes and no.

    Raises:
        ValueError: it is none; in words.
    """
    known = _YES_AND_NO.get(value.strip().lower()) if isinstance(value, str) else None
    try:
        number = float(value) if known is None else known
        if isinstance(value, str) and "_" in value:
            raise ValueError
    except (TypeError, ValueError) as error:
        remedy = _remedy_of_comma(value) if isinstance(value, str) else ""
        raise ValueError(f"{shown(value)} is not a number{remedy}") from error
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{shown(value)} is not a finite number")
    if abs(number) > LARGEST_SCORE:
        raise ValueError(f"{shown(value)} is beyond every score, which go to {LARGEST_SCORE:g}")
    return number


_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
_THOUSANDS = re.compile(r"\s*-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?\s*")


def with_decimal_point(text: str) -> str:
    """A number with its decimals behind a point; other texts as they are."""
    return text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else text


def has_decimal_commas(cells: Iterable[Any]) -> bool:
    """Whether the commas of a column's numbers can be nothing but decimal ones.

    No number has a point, and one at least has no three digits behind its comma.
    """
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    commas = [text for text in texts if "," in text]
    return (
        all(_DECIMAL_COMMA.fullmatch(text) for text in commas)
        and any(not _THOUSANDS.fullmatch(text) for text in commas)
        and not any("." in text for text in texts)
    )


def _remedy_of_comma(text: str) -> str:
    """What to do about a comma: in one country it begins the decimals, in another thousands."""
    if _THOUSANDS.fullmatch(text):
        return ", for its commas; write thousands without one, and decimals with a point"
    if _DECIMAL_COMMA.fullmatch(text):
        return ", but for its comma, which has to be a point"
    return ""


def settings_of(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings that a row has, by their names; empty cells say nothing.

    Args:
        values: setting -> cell.
        where: the row, for errors.

    Raises:
        DataError: a cell is no such setting.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list | tuple):
            value = " ".join(map(str, value))
        if value is None or value != value or not str(value).strip():  # NaN is an empty cell
            continue
        read, kind = READ[name]
        try:
            found[name] = read(str(value).strip())
        except ValueError as error:
            raise DataError(f"{where}: {name} is {shown(value)}; write {kind}.") from error
    return found


def with_names_read(
    models: Sequence[TableModel], pattern: str | None, base: str | None = None
) -> tuple[dict[TableModel, TableModel], tuple[str, ...]]:
    """Each model with what its name says, and what is worth knowing.

    Without a pattern names are read by ``_USUAL``, and only where all of them but full fine-tuning
    have a rank: one model called R1 has none. What is in the base's name, or in every name, says
    nothing of a model that has another rank in its name. What columns say stays.

    Args:
        models: all but the base.
        pattern: such as ``r{rank}_s{seed}``; found anywhere in a name.
        base: the base's name, if there is one.

    Raises:
        ConfigError: the pattern cannot be read, or a name does not have it, or two ranks stand in a
            name.
    """
    if pattern is not None:
        return {model: _by_pattern(model, pattern) for model in models}, ()
    names = {model: _without_base(model.name, base) for model in models}
    ranks = [{match[1] for match in _USUAL["rank"].finditer(name)} for name in names.values()]
    in_all = set[str].intersection(*ranks) if len(models) > 1 else set[str]()
    read: dict[TableModel, TableModel] = {}
    for (model, name), own in zip(names.items(), ranks, strict=True):
        said = _said_by(name)
        if len(own) > 1 and model.rank is None:
            if len(own - in_all) != 1:
                problem = f"model {model.name!r} has several ranks in its name"
                remedy = "say which it is with --name, such as 'r{rank}_s{seed}'"
                raise ConfigError("verdict", [f"{problem}; {remedy}"])
            said |= _said_by(f"r{(own - in_all).pop()}")
        read[model] = _merged(model, said)
    lacking = [each for each in read.values() if each.rank is None and not each.is_full]
    if not lacking:
        return read, ()
    some = [each.name for each in read.values() if each.rank is not None]
    has_column = any(model.rank is not None for model in models)
    if has_column or not some:
        return {model: _as_full(model) if has_column else model for model in models}, ()
    note = (
        f"{some[0]} looks like a rank, and {lacking[0].name} has none, so no rank is taken from "
        "the names; say what they mean with --name, such as 'r{rank}_s{seed}'"
    )
    return {model: model for model in models}, (note,)


def _without_base(name: str, base: str | None) -> str:
    """A model's name behind that of its base: the R1 of DeepSeek-R1-r8 is no rank."""
    for of_base in (base, base and base.rpartition("/")[2]):
        if of_base and name.lower().startswith(of_base.lower()):
            return name[len(of_base) :]
    return name


def _said_by(name: str) -> dict[str, Any]:
    """What a name says as names usually do; an alpha of 0 or a rank of 400 digits is none."""
    said: dict[str, Any] = {}
    for key, pattern in _USUAL.items():
        match = pattern.search(name)
        if match is not None:
            with contextlib.suppress(ValueError):
                said[key] = READ[key][0](match[1])
    return said


def _by_pattern(model: TableModel, pattern: str) -> TableModel:
    match = _compiled(pattern).search(model.name)
    if match is None:
        as_full = _as_full(model)
        if as_full.is_full:
            return as_full
        problem = f"--name {pattern!r} does not fit model {model.name!r}"
        raise ConfigError("verdict", [f"{problem}; write what all names have in common"])
    said: dict[str, Any] = {}
    for key, text in match.groupdict().items():
        if key not in READ:  # {name} is what may stand there
            continue
        read, kind = READ[key]
        try:
            said[key] = read(text)
        except ValueError as error:
            problem = f"--name {pattern!r} makes {shown(text)} the {key} of model {model.name!r}"
            raise ConfigError("verdict", [f"{problem}; it has to be {kind}"]) from error
    return _merged(model, said)


def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w*)\}", pattern)
    fields = parts[1::2]
    problems = [
        f"--name {pattern!r}: {{{field}}} is nothing that a name says; there is "
        f"{', '.join(f'{{{known}}}' for known in _FIELDS)}"
        for field in fields
        if field not in _FIELDS
    ]
    if not fields or len({*fields}) < len(fields):
        problems.append(f"--name {pattern!r}: name each field once, such as 'r{{rank}}_s{{seed}}'")
    if problems:
        raise ConfigError("verdict", problems)
    text = "".join(
        f"(?P<{part}>{_FIELDS[part]})" if place % 2 else re.escape(part)
        for place, part in enumerate(parts)
    )
    # a number ends where its digits do, and a text at the end of the name
    return re.compile(f"{text}(?!\\d)" if fields[-1] in READ and parts[-1] == "" else text)


def _merged(model: TableModel, read: Mapping[str, Any]) -> TableModel:
    """The model with what its name says; what columns say stays."""
    new = {key: value for key, value in read.items() if getattr(model, key) in (None, ())}
    return _as_full(model._replace(**new))


def _as_full(model: TableModel) -> TableModel:
    is_full = model.rank is None and _FULL.search(model.name) is not None
    return model._replace(is_full=model.is_full or is_full)


class Item(NamedTuple):
    """One answer: where it stands, and a line as lm-eval logs it, with the score in it."""

    place: str
    line: dict[str, Any]


def answered(
    metric: str, value: float, *, prompt: Any = None, target: Any = None, answer: Any = None
) -> dict[str, Any]:
    """An answer as lm-eval would log it, without its document; what is None is not in it."""
    line: dict[str, Any] = {"filter": "none", "metrics": [metric], metric: value}
    if prompt is not None:
        line["arguments"] = {"gen_args_0": {"arg_0": str(prompt)}}
    if target is not None:
        line["target"] = str(target)
    if answer is not None:
        line |= {"resps": [[str(answer)]], "filtered_resps": [str(answer)]}
    return line


class TableScores(NamedTuple):
    """One model on one task.

    Attributes:
        model: with what columns say of it.
        task: its name.
        metric: under which the score stands in a line.
        items: by what identifies them in all models; ``Item.line`` lacks ``doc_id``.
        unit: of the score; None: by the values of all models.
        higher_is_better: None: nobody says.
        filter: of the lines.
        output_type: lm-eval's name for the kind of request.
        decides: the metric that decides, if not ``metric``; None: that, or p(right) with options.
    """

    model: TableModel
    task: str
    metric: str
    items: dict[Any, Item]
    unit: Unit | None = None
    higher_is_better: bool | None = None
    filter: str = "none"
    output_type: str = "generate_until"
    decides: str | None = None


class Given(NamedTuple):
    """Everything that was read.

    Attributes:
        scorings: in the order in which they were found.
        files: name -> sha256.
        columns: role -> column of the tables among them.
        base: the model that stands first where the first is the base; None: its name says it.
        notes: what is worth knowing.
    """

    scorings: list[TableScores]
    files: Mapping[str, str]
    columns: Mapping[str, str] = {}
    base: str | None = None
    notes: tuple[str, ...] = ()
