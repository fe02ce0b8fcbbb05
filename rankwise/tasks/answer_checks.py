"""What a model writes, checked against a row: JSON by fields, patterns, texts, a user's function.

A check gives numbers in 0..1 for one answer, by the names of metrics. The first number is the one
that decides. Whatever a model writes gives numbers: an answer that is no JSON is a wrong answer.
None says that the item is missing: a user's function gives it, or a row has no such field.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rankwise.errors import DataError, TaskError
from rankwise.records.config.own_rows import (
    CODE,
    CheckConfig,
    JsonCheckConfig,
    JudgeName,
    RegexCheckConfig,
)
from rankwise.records.files import digest_of
from rankwise.records.patterns import SECONDS, Pattern, kept_pattern
from rankwise.records.results import FIELD
from rankwise.tasks.code_guard import REMEDY
from rankwise.tasks.row_files import flat_row
from rankwise.tasks.task_files import task_code

Checker = Callable[[str, Mapping[str, str]], dict[str, float | None]]
"""A model's answer and the document, with the right one as ``completion`` -> numbers by metric."""

BASE_ANSWER = "base_answer"
"""The key of a document for what the base wrote, which some functions compare with."""

MOST_FIELDS = 50
"""Fields of the right answers that have a metric each: more cannot be read."""

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_NUMBER_PARTS = tuple(map(re.compile, (r"(?s).*####\s*", ",", r"\$", r"\.$")))


def checker(
    check: JudgeName | CheckConfig,
    right_answers: Mapping[str, str],
    source: str,
    *,
    allow_code: bool = False,
) -> Checker:
    """The function that a check stands for.

    Args:
        check: a name, or settings.
        right_answers: place of a row -> its right answer, of the rows that are scored.
        source: names the rows in errors.
        allow_code: whether the check may be a user's code.

    Raises:
        DataError: the right answers do not pass it themselves, its schema cannot be used, or code
            is not allowed.
        TaskError: its code fails.
    """
    if isinstance(check, str) and check in _OF_TEXTS:
        return _OF_TEXTS[check]
    if check == "rouge":
        return _by_rouge()
    if isinstance(check, CheckConfig) and check.regex is not None:
        return _by_pattern(check.regex)
    if isinstance(check, CheckConfig) and check.code is not None:
        if not allow_code:
            raise DataError(f"judged_by: {check.code} is code. {REMEDY}")
        return _by_code(check.code)
    settings = None if isinstance(check, str) else check.json_fields
    return _by_json(settings or JsonCheckConfig(), right_answers, source)


def content_of(check: JudgeName | CheckConfig) -> str:
    """All that an answer's numbers depend on besides the answers, wherever the schema lies."""
    if isinstance(check, str):
        return check
    if check.code is not None:
        file, function = _file_of(check.code)
        return f"{function} of {digest_of(file).sha256}"
    file = None if check.json_fields is None else check.json_fields.schema_file
    content = check.model_dump_json(exclude={"json_fields": {"schema_file"}, "code": True})
    return content if file is None else f"{content} {digest_of(file).sha256}"


def needs_base(checkers: Iterable[Checker]) -> bool:
    """Whether one of them compares with the base's answers."""
    return any(isinstance(check, _Code) and check.needs_base for check in checkers)


def metrics_of(checkers: Iterable[Checker], docs: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The names of their numbers, as right answers get them; a user's function has one number."""
    names: dict[str, None] = {}
    for check in checkers:
        if isinstance(check, _Code):
            names["code"] = None
            continue
        for doc in docs:
            names |= dict.fromkeys(check(doc["completion"], doc))
    return tuple(names)


def number_of(answer: str) -> str:
    """The number behind ``####`` without separators, as GSM8K's answers are compared."""
    for part in _NUMBER_PARTS:
        answer = part.sub("", answer)
    return answer


def _share(name: str, is_right: Callable[[str, str], bool]) -> Checker:
    return lambda answer, doc: {name: float(is_right(answer.strip(), doc["completion"].strip()))}


def _by_sacrebleu(name: str, answer: str, doc: Mapping[str, str]) -> dict[str, float | None]:
    """The score of one sentence; lm-eval's corpus score is 0 for answers of three words."""
    import sacrebleu

    score = {"bleu": sacrebleu.sentence_bleu, "chrf": sacrebleu.sentence_chrf}[name]
    return {name: score(answer, [doc["completion"]]).score / 100}


def _by_rouge() -> Checker:
    """F1 of words in the longest common subsequence, of words, and of pairs of words."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rougeL", "rouge1", "rouge2")
    scorer = RougeScorer(names, use_stemmer=True)

    def judged(answer: str, doc: Mapping[str, str]) -> dict[str, float | None]:
        scores: Any = scorer.score(doc["completion"], answer)
        return {name: float(scores[name].fmeasure) for name in names}

    return judged


_OF_TEXTS: Mapping[str, Checker] = {
    "bleu": partial(_by_sacrebleu, "bleu"),
    "chrf": partial(_by_sacrebleu, "chrf"),
    "exact": _share("exact_match", lambda answer, right: answer == right),
    "contains": _share("contains", lambda answer, right: right in answer),
    "number": _share("number", lambda answer, right: number_of(answer) == number_of(right)),
}


def _by_pattern(check: RegexCheckConfig) -> Checker:
    wanted = [(Pattern(pattern), True) for pattern in check.must]
    wanted += [(Pattern(pattern), False) for pattern in check.must_not]

    def matches(answer: str, _: Mapping[str, str]) -> dict[str, float | None]:
        try:
            found = [pattern.is_in(answer) == is_wanted for pattern, is_wanted in wanted]
        except TimeoutError as error:
            raise DataError(
                f"judged_by: a pattern took more than {SECONDS:g} s on one answer. "
                "Write it without nested repeats, such as (a+)+."
            ) from error
        return {"regex": float(all(found))}

    return matches


@dataclass(frozen=True)
class _Code:
    """A user's function as a check; ``where`` names it."""

    function: Callable[..., Any]
    where: str
    needs_base: bool

    def __call__(self, answer: str, doc: Mapping[str, str]) -> dict[str, float | None]:
        # an answer like the base's, as its own is, is a tie without a call
        if self.needs_base and doc[BASE_ANSWER] == answer:
            return {"code": 0.5}
        row = json.loads(doc["row"])
        given = (row, answer, doc[BASE_ANSWER]) if self.needs_base else (row, answer)
        where = f"{self.where} on {doc['place']}"
        with task_code(f"{where} fails", "Correct it."):
            value = self.function(*given)
        if value is None:
            return {"code": None}
        is_number = isinstance(value, int | float)  # also true and false
        if not is_number or not 0 <= value <= 1:
            raise TaskError(f"{where} gives {value!r:.60}; give a number from 0 to 1, or None.")
        return {"code": float(value)}


def _by_code(place: str) -> _Code:
    file, function = _file_of(place)
    where = f"judged_by: {file.name}:{function}"
    with task_code(f"{where} cannot be loaded", "Correct the file."):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, function)
        num_parameters = len(inspect.signature(found).parameters)
    if num_parameters not in (2, 3):
        raise TaskError(
            f"{where} takes {num_parameters} arguments; take (row, answer), or (row, answer, "
            "base_answer)."
        )
    return _Code(found, where, num_parameters == 3)


def _file_of(code: str) -> tuple[Path, str]:
    parts = CODE.fullmatch(code)
    assert parts is not None
    return Path(parts["file"]), parts["function"]


def _by_json(check: JsonCheckConfig, right_answers: Mapping[str, str], source: str) -> Checker:
    """All fields right, the share of right ones, valid, as the schema says, and each field."""
    is_valid = _schema(check.schema_file) if check.schema_file is not None else None
    names: dict[str, None] = {}
    fields_of: dict[str, dict[str, Any]] = {}
    for place, text in right_answers.items():
        right = parsed(text)
        if not isinstance(right, dict):
            raise DataError(
                f"{source}: the right answer of {place} is no JSON object: "
                f"{text.strip()[:60]!r}. Correct it, or set judged_by: loss."
            )
        if is_valid is not None and not is_valid(right):
            raise DataError(
                f"{source}: the right answer of {place} does not match "
                f"{check.schema_file}. Correct the row or the schema."
            )
        fields_of[text] = flat_row(right)
        names |= dict.fromkeys(fields_of[text])
    shown = list(names)[:MOST_FIELDS]

    def judged(answer: str, doc: Mapping[str, str]) -> dict[str, float | None]:
        found, wanted = parsed(answer), fields_of[doc["completion"]]
        written = flat_row(found) if isinstance(found, dict) else {}
        same = {
            name: name in written and _equal(written[name], value, name, check)
            for name, value in wanted.items()
        }
        has_no_more = isinstance(found, dict) and written.keys() <= same.keys()
        numbers: dict[str, float | None] = {
            "all_correct": float(has_no_more and all(same.values())),
            "fields_correct": sum(same.values()) / len(same) if same else float(found == {}),
            "json_valid": float(found is not INVALID),
        }
        if is_valid is not None:
            numbers["schema_valid"] = float(found is not INVALID and is_valid(found))
        for name in shown:
            numbers[f"{FIELD}{name}"] = float(same[name]) if name in same else None
        return numbers

    return judged


INVALID: Any = object()
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
    both = (written, right)
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in both):
        return abs(written - right) <= check.tolerance * abs(right)
    if name in check.sets and isinstance(written, list) and isinstance(right, list):
        return sorted(map(_key, written)) == sorted(map(_key, right))
    return _key(written) == _key(right)  # true is not 1


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _schema(file: Path) -> Callable[[Any], bool]:
    """Whether a value matches a JSON Schema; nothing is fetched, and patterns have a time limit."""
    import jsonschema
    from jsonschema import validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    def pattern(_: Any, wanted: str, value: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
        if isinstance(value, str) and not kept_pattern(wanted).is_in(value):
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
        except (RecursionError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise DataError(f"{file} cannot be checked: {reason}.") from error

    return is_valid
