"""What a model writes, checked against a row: JSON by fields, patterns, texts, a user's function.

A check gives numbers in 0..1 for one answer, by the names of metrics. The first number is the one
that decides. Whatever a model writes gives numbers: an answer that is no JSON is a wrong answer, as
is one on which a schema or a pattern takes too long. None says that the item is missing: a user's
function gives it, or a row has no such field.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import DataError
from rankwise.records.config.own_rows import (
    CheckConfig,
    JsonCheckConfig,
    JudgeName,
    RegexCheckConfig,
)
from rankwise.records.files import in_words, read_regular
from rankwise.records.results import FIELD, TOKENS_METRIC
from rankwise.tasks import json_answers, limited_checks
from rankwise.tasks.bounded import MOST_BYTES, SECONDS, BeyondLimit, bounded
from rankwise.tasks.code_guard import REMEDY
from rankwise.tasks.json_answers import MOST_COMPARED, answer_json, is_same, num_compared, read_json
from rankwise.tasks.own_code import OwnFunction, own_function
from rankwise.tasks.text_scores import bleu, chrf, rouge
from rankwise.tasks.training_rows import encoded

JUDGING_REVISION = 2
"""Raised when a check of JSON or patterns judges the same answers otherwise."""

Checker = Callable[[str, Mapping[str, str]], dict[str, float | None]]
"""A model's answer and the document, with the right one as ``completion`` -> numbers by metric."""

BASE_ANSWER = "base_answer"
"""The key of a document for what the base wrote, which some functions compare with."""

MOST_FIELDS = 50
"""Fields of the right answers that have a metric each: more cannot be read."""

MOST_SCHEMA_BYTES = 1 << 20
"""A hundred times what a person writes by hand; ``read_json`` bounds the depth."""


@dataclass(frozen=True)
class Check:
    """A way to judge answers, ready to be called.

    Attributes:
        judge: what judges one answer.
        content: all that its numbers depend on besides the answers, wherever its files lie.
        needs_base: whether it compares with the base's answers.
    """

    judge: Checker
    content: str
    needs_base: bool = False

    def __call__(self, answer: str, doc: Mapping[str, str]) -> dict[str, float | None]:
        return self.judge(answer, doc)


def checker(
    check: JudgeName | CheckConfig,
    right_answers: Mapping[str, str],
    source: str,
    *,
    tokenizer: Any = None,
    allow_code: bool = False,
) -> Check:
    """What a check of a study file stands for.

    Args:
        check: a name, or settings.
        right_answers: place of a row -> its right answer, of the rows that are scored.
        source: names the rows in errors.
        tokenizer: the model's own, in whose tokens a length is counted; no other check needs it.
        allow_code: whether the check may be a user's code.

    Raises:
        DataError: the right answers do not pass it themselves, or cannot be judged within the
            limits of one answer; its schema cannot be used; or code is not allowed.
        TaskError: its code fails.
    """
    if isinstance(check, str) and check in _OF_TEXTS:
        return Check(_OF_TEXTS[check], check)
    if check == "length":
        return _by_length(tokenizer)
    if isinstance(check, CheckConfig) and check.regex is not None:
        return _by_pattern(check.regex, right_answers, source)
    if isinstance(check, CheckConfig) and check.code is not None:
        if not allow_code:
            raise DataError(f"judged_by: {check.code} is code. {REMEDY}")
        return _by_code(own_function(check.code))
    settings = None if isinstance(check, str) else check.json_fields
    return _by_json(settings or JsonCheckConfig(), right_answers, source)


def metrics_of(checks: Iterable[Check], docs: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The names of their numbers, as a right answer gets them; a user's function has one number."""
    names: dict[str, None] = {}
    for check in checks:
        is_code = isinstance(check.judge, _Code)
        names |= dict.fromkeys(["code"] if is_code else check(docs[0]["completion"], docs[0]))
    return tuple(names)


def number_of(answer: str) -> str:
    """The number behind ``####`` without separators, as GSM8K's answers are compared."""
    _, _, number = answer.rpartition("####")
    return number.lstrip().replace(",", "").replace("$", "").removesuffix(".")


def _share(name: str, is_right: Callable[[str, str], bool]) -> Checker:
    return lambda answer, doc: {name: float(is_right(answer.strip(), doc["completion"].strip()))}


_OF_TEXTS: Mapping[str, Checker] = {
    "bleu": lambda answer, doc: {"bleu": bleu(answer, doc["completion"])},
    "chrf": lambda answer, doc: {"chrf": chrf(answer, doc["completion"])},
    "rouge": lambda answer, doc: {**rouge(answer, doc["completion"])},
    "exact": _share("exact_match", lambda answer, right: answer == right),
    "contains": _share("contains", lambda answer, right: right in answer),
    "number": _share("number", lambda answer, right: number_of(answer) == number_of(right)),
}


def _by_length(tokenizer: Any) -> Check:
    """The length of an answer, in tokens of the model's own tokenizer and in words."""

    def lengths(answer: str, _: Mapping[str, str]) -> dict[str, float | None]:
        tokens = encoded(tokenizer, answer, add_special_tokens=False)
        return {TOKENS_METRIC: float(len(tokens)), "words": float(len(answer.split()))}

    return Check(lengths, "length")


_LIMITS = f"{SECONDS:g} seconds or {in_words(MOST_BYTES)}"


def _within_limits(function: Callable[..., Any], *arguments: Any) -> bool | None:
    """What it says of an answer; None where that takes too long, or has no end."""
    try:
        return bounded(function, *arguments)
    except BeyondLimit:
        return None


def _no_verdict(source: str, place: str, what: str) -> DataError:
    return DataError(
        f"{source}: the right answer of {place} cannot be checked by {what}: that takes more than "
        f"{_LIMITS}, or has no end. Write it without nested repeats, such as (a+)+, and without "
        "references in circles."
    )


def _by_pattern(check: RegexCheckConfig, right_answers: Mapping[str, str], source: str) -> Check:
    def judged(answer: str, _: Mapping[str, str]) -> dict[str, float | None]:
        is_right = _within_limits(limited_checks.matches, check.must, check.must_not, answer)
        return {"regex": float(is_right or False)}

    for place, text in right_answers.items():
        if _within_limits(limited_checks.matches, check.must, check.must_not, text) is None:
            raise _no_verdict(source, place, "its patterns")
    return Check(judged, f"{JUDGING_REVISION} {check.model_dump_json()}")


@dataclass(frozen=True)
class _Code:
    function: OwnFunction

    def __call__(self, answer: str, doc: Mapping[str, str]) -> dict[str, float | None]:
        # an answer like the base's, as its own is, is a tie without a call
        if self.function.needs_base and doc[BASE_ANSWER] == answer:
            return {"code": 0.5}
        of_base = (doc[BASE_ANSWER],) if self.function.needs_base else ()
        row = json.loads(doc["row"])
        return {"code": self.function.share(doc["place"], row, answer, *of_base)}


def _by_code(function: OwnFunction) -> Check:
    return Check(_Code(function), function.content, function.needs_base)


def _no_schema(file: Path, why: str) -> DataError:
    return DataError(f"{file} is no JSON Schema that can be used: {why}. Correct it.")


@dataclass(frozen=True)
class _Schema:
    """A JSON Schema of a user's, as text that can be used; ``sha256`` is its file's."""

    file: Path
    text: str
    sha256: str

    @classmethod
    def of(cls, file: Path) -> _Schema:
        """Read it; nothing that it refers to is fetched."""
        try:
            content = read_regular(file, MOST_SCHEMA_BYTES)
            text = content.decode()
            read_json(text)
        except (OSError, ValueError) as error:
            raise _no_schema(file, str(error)) from error
        try:
            fault = bounded(limited_checks.schema_fault, text)
        except BeyondLimit as error:
            raise _no_schema(file, f"to read it takes more than {_LIMITS}") from error
        if fault is not None:
            raise _no_schema(file, fault[:200])
        return cls(file, text, hashlib.sha256(content).hexdigest())

    def is_met(self, value: Any) -> bool | None:
        """Whether a value matches; None where that takes too long, or has no end."""
        return _within_limits(limited_checks.meets_schema, self.text, value)

    def require(self, right: Any, source: str, place: str) -> None:
        """Raises DataError where a right answer does not match."""
        is_met = self.is_met(right)
        if is_met is None:
            raise _no_verdict(source, place, str(self.file))
        if not is_met:
            raise DataError(
                f"{source}: the right answer of {place} does not match {self.file}. Correct the "
                "row or the schema."
            )


def _by_json(check: JsonCheckConfig, right_answers: Mapping[str, str], source: str) -> Check:
    """All fields right, the share of right ones, valid, as the schema says, and each field."""
    schema = None if check.schema_file is None else _Schema.of(check.schema_file)
    names: dict[str, None] = {}
    fields_of: dict[str, dict[json_answers.Keys, Any]] = {}
    for place, text in right_answers.items():
        right = _right_object(text, check, f"{source}: the right answer of {place}")
        if schema is not None:
            schema.require(right, source, place)
        fields_of[text] = json_answers.fields(right)
        names |= dict.fromkeys(map(json_answers.called, fields_of[text]))
    shown = list(names)[:MOST_FIELDS]
    content = f"{JUDGING_REVISION} {check.model_dump_json(exclude={'schema_file'})}"

    def judged(answer: str, doc: Mapping[str, str]) -> dict[str, float | None]:
        wanted = fields_of[doc["completion"]]
        try:
            found = answer_json(answer)
        except ValueError:
            found = _INVALID
        written = json_answers.fields(found) if isinstance(found, dict) else {}
        same = {
            path: path in written and _is_same(written[path], value, path, check)
            for path, value in wanted.items()
        }
        has_no_more = isinstance(found, dict) and written.keys() <= same.keys()
        numbers: dict[str, float | None] = {
            "all_correct": float(has_no_more and all(same.values())),
            "fields_correct": sum(same.values()) / len(same) if same else float(found == {}),
            "json_valid": float(found is not _INVALID),
        }
        if schema is not None:
            is_met = found is not _INVALID and schema.is_met(found)
            numbers["schema_valid"] = float(is_met or False)
        by_name: dict[str, list[bool]] = defaultdict(list)  # "a.b" may be a key, and a b in an a
        for path, is_right in same.items():
            by_name[json_answers.called(path)].append(is_right)
        for name in shown:
            numbers[f"{FIELD}{name}"] = float(all(by_name[name])) if name in by_name else None
        return numbers

    return Check(judged, content if schema is None else f"{content} {schema.sha256}")


_INVALID: Any = object()
"""What is no JSON."""


def _is_same(written: Any, right: Any, path: json_answers.Keys, check: JsonCheckConfig) -> bool:
    in_any_order = json_answers.called(path) in check.sets
    return is_same(written, right, check.tolerance, in_any_order=in_any_order)


def _right_object(text: str, check: JsonCheckConfig, where: str) -> dict[str, Any]:
    """A right answer, which an answer can equal."""
    try:
        right = answer_json(text)
    except ValueError as error:
        right, why = None, f" ({error})"
    else:
        why = ""
    if not isinstance(right, dict):
        raise DataError(
            f"{where} is no JSON object: {text.strip()[:60]!r}{why}. Correct it, or "
            "take another check."
        )
    if not json_answers.is_finite(right):
        raise DataError(f"{where} has a number beyond every float. Correct it.")
    for path, value in json_answers.fields(right).items():
        is_set = check.tolerance > 0 and json_answers.called(path) in check.sets
        if is_set and num_compared(value) > MOST_COMPARED:
            raise DataError(
                f"{where} has {len(value)} values in {json_answers.called(path)!r}, too many to be "
                "compared in any order within a tolerance. Leave one of both out."
            )
    return right
