"""What a model writes, checked against a row's right answer: JSON by fields, patterns, texts.

A check gives numbers in 0..1 for one answer, by the names of metrics. The first number is the one
that decides. Whatever a model writes gives numbers: an answer that is no JSON is a wrong answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import regex

from rankwise.errors import DataError
from rankwise.records.config.own_rows import (
    CheckConfig,
    JsonCheckConfig,
    JudgeName,
    RegexCheckConfig,
)
from rankwise.records.files import digest_of
from rankwise.tasks.row_files import flat_row

Checker = Callable[[str, str], dict[str, float]]
"""A model's answer and the right one -> numbers by metric."""

MOST_FIELDS = 50
"""Fields of the right answers that have a metric each: more cannot be read."""

PATTERN_SECONDS = 1.0
"""For one pattern on one answer: a pattern that backtracks takes years on a few hundred letters."""

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_NUMBER_PARTS = tuple(map(re.compile, (r"(?s).*####\s*", ",", r"\$", r"\.$")))


def checker(check: JudgeName | CheckConfig, right_answers: Sequence[str], source: str) -> Checker:
    """The function that a check stands for.

    Args:
        check: a name, or settings.
        right_answers: of the rows that are scored.
        source: names the rows in errors.

    Raises:
        DataError: the right answers do not pass it themselves, or its schema cannot be used.
    """
    if isinstance(check, str) and check in _OF_TEXTS:
        return _OF_TEXTS[check]
    if isinstance(check, CheckConfig) and check.regex is not None:
        return _by_pattern(check.regex)
    settings = None if isinstance(check, str) else check.json_fields
    return _by_json(settings or JsonCheckConfig(), right_answers, source)


def content_of(check: JudgeName | CheckConfig) -> str:
    """All that an answer's numbers depend on besides the answers, wherever the schema lies."""
    if isinstance(check, str):
        return check
    file = None if check.json_fields is None else check.json_fields.schema_file
    content = check.model_dump_json(exclude={"json_fields": {"schema_file"}})
    return content if file is None else f"{content} {digest_of(file).sha256}"


def number_of(answer: str) -> str:
    """The number behind ``####`` without separators, as GSM8K's answers are compared."""
    for part in _NUMBER_PARTS:
        answer = part.sub("", answer)
    return answer


def _share(name: str, is_right: Callable[[str, str], bool]) -> Checker:
    return lambda answer, right: {name: float(is_right(answer.strip(), right.strip()))}


_OF_TEXTS: Mapping[str, Checker] = {
    "exact": _share("exact_match", lambda answer, right: answer == right),
    "contains": _share("contains", lambda answer, right: right in answer),
    "number": _share("number", lambda answer, right: number_of(answer) == number_of(right)),
}


def _by_pattern(check: RegexCheckConfig) -> Checker:
    wanted = [(regex.compile(pattern), True) for pattern in check.must]
    wanted += [(regex.compile(pattern), False) for pattern in check.must_not]

    def matches(answer: str, _: str) -> dict[str, float]:
        try:
            found = [
                (pattern.search(answer, timeout=PATTERN_SECONDS) is not None) == is_wanted
                for pattern, is_wanted in wanted
            ]
        except TimeoutError as error:
            raise DataError(
                f"judged_by: a pattern took more than {PATTERN_SECONDS:g} s on one answer. "
                "Write it without nested repeats, such as (a+)+."
            ) from error
        return {"regex": float(all(found))}

    return matches


def _by_json(check: JsonCheckConfig, right_answers: Sequence[str], source: str) -> Checker:
    """All fields right, the share of right ones, valid, as the schema says, and each field."""
    is_valid = _schema(check.schema_file) if check.schema_file is not None else None
    names: dict[str, None] = {}
    fields_of: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(right_answers, start=1):
        right = parsed(text)
        if not isinstance(right, dict):
            raise DataError(
                f"{source}: the right answer of held-out row {number} is no JSON object: "
                f"{text.strip()[:60]!r}. Correct it, or set judged_by: loss."
            )
        if is_valid is not None and not is_valid(right):
            raise DataError(
                f"{source}: the right answer of held-out row {number} does not match "
                f"{check.schema_file}. Correct the row or the schema."
            )
        fields_of[text] = flat_row(right)
        names |= dict.fromkeys(fields_of[text])
    shown = list(names)[:MOST_FIELDS]

    def judged(answer: str, right: str) -> dict[str, float]:
        found, wanted = parsed(answer), fields_of[right]
        written = flat_row(found) if isinstance(found, dict) else {}
        same = {
            name: name in written and _equal(written[name], value, name, check)
            for name, value in wanted.items()
        }
        has_no_more = isinstance(found, dict) and written.keys() <= same.keys()
        numbers = {
            "all_correct": float(has_no_more and all(same.values())),
            "fields_correct": sum(same.values()) / len(same) if same else float(found == {}),
            "json_valid": float(found is not INVALID),
        }
        if is_valid is not None:
            numbers["schema_valid"] = float(found is not INVALID and is_valid(found))
        return numbers | {f"field.{name}": float(same[name]) for name in shown if name in same}

    return judged


class _Invalid:
    pass


INVALID = _Invalid()
"""What is no JSON."""


def parsed(text: str) -> Any:
    """JSON, also in a block of code; ``INVALID`` where it is none."""
    fenced = _FENCED.search(text)
    try:
        return json.loads(fenced[1] if fenced else text.strip())
    except (ValueError, RecursionError):
        return INVALID


def _equal(written: Any, right: Any, name: str, check: JsonCheckConfig) -> bool:
    """Numbers within the tolerance, lists of ``sets`` in any order, all else exactly."""
    if _is_number(written) and _is_number(right):
        return abs(written - right) <= check.tolerance * abs(right)
    if name in check.sets and isinstance(written, list) and isinstance(right, list):
        return sorted(map(_key, written)) == sorted(map(_key, right))
    return _key(written) == _key(right)  # true is not 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _schema(file: Path) -> Callable[[Any], bool]:
    """Whether a value matches a JSON Schema; nothing is fetched, and patterns have a time limit."""
    import jsonschema
    from jsonschema import validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    def pattern(_: Any, wanted: str, value: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
        if isinstance(value, str) and not regex.search(wanted, value, timeout=PATTERN_SECONDS):
            yield jsonschema.ValidationError(f"does not match {wanted}")

    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
        kind = validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (OSError, ValueError, RecursionError, jsonschema.SchemaError) as error:
        raise DataError(f"{file} is no JSON Schema that can be used: {str(error)[:200]}") from error
    if "patternProperties" in json.dumps(schema):
        raise DataError(f"{file}: patternProperties has no time limit; name the properties.")
    validator = validators.extend(kind, {"pattern": pattern})(schema, registry=Registry())

    def is_valid(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except Unresolvable as error:
            raise DataError(f"{file} refers elsewhere ({error}); write that in here.") from error
        except (RecursionError, TimeoutError, regex.error) as error:
            reason = str(error) or type(error).__name__
            raise DataError(f"{file} cannot be checked: {reason}.") from error

    return is_valid
