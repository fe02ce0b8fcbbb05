"""Users' own rows in a study file: a file, or a data set of the Hub, and its columns."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag

from rankwise.records.fields import (
    AnyNumber,
    Count,
    Margin,
    Names,
    NotNegative,
    Section,
    Several,
    Text,
    UserPath,
    exactly_one,
    run_name,
)
from rankwise.records.patterns import MAX_UNROLLED, Pattern

FILE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files with rows; a file of another name is read as JSON Lines."""

JudgeName = Literal[
    "loss",
    "choice",
    "preference",
    "number",
    "exact",
    "contains",
    "json",
    "rouge",
    "bleu",
    "chrf",
    "length",
]
"""Ways to score held-out rows without settings: by the loss of their answers; as a choice among all
answers; by which of a row's two answers became likelier, against the base; or by what a model
writes: the number behind ``####``, the answer itself, a text with the answer in it, JSON field by
field, how much of the answer's words or letters it has, or how long it is."""


def pattern(value: str) -> str:
    """Refuse what is no regular expression, or too large a one."""
    Pattern(value)
    return value


Patterns = Annotated[
    AnyNumber[Annotated[str, Field(min_length=1), AfterValidator(pattern)]], Field(max_length=100)
]


class JsonCheckConfig(Section):
    """What a model writes is JSON, compared with the right answer field by field."""

    model_config = ConfigDict(serialize_by_alias=True)

    schema_file: Annotated[UserPath | None, Field(alias="schema")] = None
    """A JSON Schema that answers must match."""
    tolerance: NotNegative = 0.0
    """The relative difference from the right number up to which a number counts as equal."""
    sets: Names = ()
    """Fields whose lists may be in any order."""


class RegexCheckConfig(Section):
    """What a model writes matches patterns, and does not match others."""

    must: Patterns = ()
    must_not: Patterns = ()

    def _problems(self) -> Iterator[str]:
        if not self.must and not self.must_not:
            yield "no pattern given; give must, must_not, or both"
        if sum(Pattern(each).size for each in (*self.must, *self.must_not)) > 2 * MAX_UNROLLED:
            yield "the patterns are too large together; write smaller repeats, or fewer patterns"


CODE = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")


def code_place(value: str) -> str:
    """Refuse what names no function of a Python file."""
    if CODE.fullmatch(value) is None:
        raise ValueError(f"{value!r} is no function; write FILE.py:FUNCTION")
    return value


class CheckConfig(Section):
    """A check with settings of its own."""

    model_config = ConfigDict(serialize_by_alias=True)

    json_fields: Annotated[JsonCheckConfig | None, Field(alias="json")] = None
    regex: RegexCheckConfig | None = None
    code: Annotated[Text, AfterValidator(code_place)] | None = None
    """A function of (row, answer), or of (row, answer, base_answer), that gives 0 to 1 or None."""

    def _problems(self) -> Iterator[str]:
        if len(self.model_dump(exclude_none=True)) != 1:
            yield "name one check with its settings: json, regex or code"


CHECK_TAGS = ("a name", "a check")

Judge = Annotated[
    Annotated[JudgeName, Tag(CHECK_TAGS[0])] | Annotated[CheckConfig, Tag(CHECK_TAGS[1])],
    Discriminator(lambda value: CHECK_TAGS[isinstance(value, dict | CheckConfig)]),
]
"""How held-out rows are scored."""

_HUB = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w.-]+))?(?:/(?P<split>[\w.-]+))?"
)


class HubData(NamedTuple):
    """A data set of the Hugging Face Hub: ``org/name[:config][@revision][/split]``."""

    repository: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        parts = (("", self.repository), (":", self.config), ("@", self.revision), ("/", self.split))
        return "".join(f"{mark}{part}" for mark, part in parts if part is not None)

    @property
    def name(self) -> str:
        """The name without the organisation."""
        return self.repository.partition("/")[2]


def hub_data(data: Path) -> HubData | None:
    """The data set of the Hub that a path names; None if it names a file.

    Whether there is a file of that name is not asked: a relative path of a study file is made
    absolute where there is, and then it names a file.
    """
    found = _HUB.fullmatch(str(data))
    if found is None or data.name.lower().endswith(FILE_ENDINGS):
        return None
    return HubData(**found.groupdict())


def data_name(data: Path) -> str:
    """What rows are called after: the file's name without its ending, or that of the data set."""
    hub = hub_data(data)
    return data.stem if hub is None else hub.name


def rows_name(data: Path) -> str:
    """The name of the task that scores held-out rows."""
    return f"data_{data_name(data)}"


def data_place(data: Path) -> str:
    """Where rows are, for readers: the file's name, or the data set."""
    hub = hub_data(data)
    return data.name if hub is None else str(hub)


class ColumnsConfig(Section):
    """Which column is what; without it, columns are recognised by their names."""

    prompt: Text | None = None
    """The question, as it is."""
    input: Text | None = None
    """The rest of the question, below the prompt."""
    system: Text | None = None
    """The system's turn."""
    completion: Text | None = None
    """The answer; in a pair the chosen one. Without a prompt it is a text."""
    messages: Text | None = None
    """A whole conversation; in a pair the chosen one."""
    rejected: Text | None = None
    """The worse answer or conversation of a pair, for ``objective: dpo``."""
    cluster: Text | None = None
    """The column by which rows belong together; None: ``conversation_id``, where rows have it."""

    def _problems(self) -> Iterator[str]:
        yield from exactly_one(completion=self.completion, messages=self.messages)
        if self.messages is not None and (self.prompt or self.input):
            yield "'messages' hold the prompt; leave 'prompt' and 'input' out"
        if self.input is not None and self.prompt is None:
            yield "'input' goes below a prompt; give 'prompt'"
        # a text that several rows share may be their cluster too
        roles = [role for role in self.by_role if role != "cluster"]
        for one, other in itertools.combinations(roles, 2):
            if (name := self.by_role[one]) == self.by_role[other]:
                yield f"{one!r} and {other!r} are both column {name!r}; name two columns"

    @property
    def by_role(self) -> dict[str, str]:
        """Role -> column."""
        return self.model_dump(exclude_none=True)


def judges_of_texts(judged_by: Iterable[Judge]) -> list[Judge]:
    """Those that judge what a model writes."""
    return [judge for judge in judged_by if judge not in ("loss", "choice", "preference")]


def checked_judges(judged_by: tuple[Judge, ...]) -> tuple[Judge, ...]:
    """Refuse two ways to score the same answers."""
    if sum(name in judged_by for name in ("loss", "choice", "preference")) > 1:
        raise ValueError("loss, choice and preference score the same answers; name one")
    return judged_by


def writes_nothing(judged_by: Iterable[Judge], max_new_tokens: int | None) -> Iterator[str]:
    """What is wrong with a limit of what a model writes where nothing is written."""
    if max_new_tokens is not None and not judges_of_texts(judged_by):
        yield "max_new_tokens is for what a model writes, and judged_by reads nothing of it"


Judges = Annotated[Several[Judge], AfterValidator(checked_judges)]
"""Several give several scores; the first decides."""

OwnName = Annotated[str, AfterValidator(run_name)]
"""The name of a set of own rows, and of its task."""

OwnRole = Literal["in_domain", "out_of_domain", "retention"]


TEXTS_SUFFIX = "_texts"
"""Behind the name of own rows, where a model's own answers are judged beside likelihoods."""


class OwnSetConfig(Section):
    """Own rows that are scored and not trained on."""

    data: UserPath
    """A file or a data set of the Hub, as ``train.data``; every row is scored."""
    judged_by: Judges
    role: OwnRole = "retention"
    """What the rows are to the trained task."""
    columns: ColumnsConfig | None = None
    """The columns by their roles; None: the names of the columns say it."""
    max_new_tokens: Count | None = None
    """The most tokens that a model may write in an answer; None: as many as the right answers need.
    """

    def _problems(self) -> Iterator[str]:
        yield from writes_nothing(self.judged_by, self.max_new_tokens)
        if self.judged_by[0] == "length" and self.role != "out_of_domain":
            yield "a longer answer is neither gain nor loss; set role: out_of_domain"


class ClauseConfig(OwnSetConfig):
    """A set of a contract: what an adapter may lose of it."""

    max_loss: Margin | None = None
    """The largest acceptable loss, in points, or in nats per token where a loss decides; None: the
    command gives it."""

    def _problems(self) -> Iterator[str]:
        yield from writes_nothing(self.judged_by, self.max_new_tokens)
        if self.judged_by[0] == "length":
            yield "a longer answer is neither gain nor loss; name another judge first"


class ContractConfig(Section):
    """A contract's file, whose keys are the names of the clauses."""

    contract: Annotated[Mapping[OwnName, ClauseConfig], Field(min_length=1)]
