"""The types of settings in a study file, and the checks behind them."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from rankwise.errors import has_hidden


def rank(value: int) -> int:
    """Accept whole numbers of at least 1; like all checks here, raise ValueError otherwise."""
    if value < 1:
        raise ValueError(f"{value} is not a rank; use a whole number of at least 1")
    return value


def plain_text(value: str) -> str:
    """Refuse text that names nothing, and characters that would garble a terminal or a path."""
    if not value.strip():
        raise ValueError("empty text given; write a name, or leave the key out")
    if has_hidden(value):
        raise ValueError(f"{value!r} has a control character; remove it")
    return value


def path_problem(path: str | os.PathLike[str]) -> str | None:
    """Why a path cannot be worked with, in words: what is recorded must be text, and read back.

    It may lead nowhere yet. Below a folder, there is room for the names of a study's files.
    """
    whole = given = os.fspath(path)
    if not has_hidden(given):  # a NUL is in no path
        whole = os.path.realpath(given)
    if has_hidden(whole):
        return f"{whole!r} has a control character, or is not UTF-8; rename the file or folder"
    try:
        os.lstat(os.path.join(whole, *_ROOM_BELOW))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return f"{whole[:80]!r}... is longer than the system takes; use shorter names"
    return None


def file_name(value: str) -> str:
    """Refuse names that are no plain name of a file or folder."""
    if value.startswith(".") or "/" in value or "\\" in value:
        raise ValueError(f"{value!r} is not a plain name of a file or folder; rename it")
    if len(plain_text(value).encode()) > _LONGEST_NAME:
        raise ValueError(f"{value[:40]!r}... is too long for a file or folder; rename it")
    return value


def place_below(value: str) -> str:
    """Refuse names of files that are not below the folder that they are named in."""
    if value.startswith("/") or ".." in value.split("/") or "\\" in value:
        raise ValueError(f"{value!r} is not below its folder; rename it")
    return plain_text(value)


def place(value: str) -> str:
    """Accept whole paths, and names of files that are below their folder."""
    return value if value.startswith("/") else place_below(value)


def user_path(value: Any) -> Any:
    """Refuse paths that name no place, or the home of a user who does not exist."""
    if isinstance(value, str):
        plain_text(value)
        if "://" in value:
            raise ValueError(f"{value!r} is a URL; download it, and give the file or folder")
        try:
            Path(value).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{value!r} is in no known home folder; correct the name") from error
    return value


def not_tiny(value: float) -> float:
    """Refuse numbers whose squares a float cannot hold."""
    if value < LEAST:
        raise ValueError(f"{value:g} is next to nothing; give at least {LEAST:g}")
    return value


def margin(value: float) -> float:
    """Refuse differences that no study could tell, or that no score can have."""
    if not LEAST_MARGIN <= value <= LARGEST_MARGIN:
        between = f"{LEAST_MARGIN:g} to {LARGEST_MARGIN:g}"
        raise ValueError(f"{value:g} is not a margin; give a number above 0 ({between})")
    return value


def confidence(value: float) -> float:
    """Refuse levels that say nothing, and those in tails that no bound here reaches."""
    if not 0.5 < value <= MOST_CONFIDENCE:
        raise ValueError(
            f"{value:g} is not a confidence; use a number above 0.5 and below 1 "
            f"({MOST_CONFIDENCE:g} at most)"
        )
    return value


def none_or_two(value: int) -> int:
    """Refuse a single item, whose difference between two models has no standard error."""
    if value == 1:
        raise ValueError("1 item gives no standard error; write 0, or 2 and more")
    return value


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse values that are given twice."""
    counts = Counter(map(str, values))
    repeated = sorted(text for text, count in counts.items() if count > 1)
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is given twice; give each value once")
    return values


def exactly_one(**given: object) -> Iterator[str]:
    """What is wrong with settings of which one is to be given, by their names."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        got = "both of" if names else "neither of" if len(given) == 2 else "none of"
        first, *others = map(repr, names or given)
        yield f"{got} {', '.join([first, *others[:-1]])} and {others[-1]} given; give exactly one"


def ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    """Refuse values that are not in order."""
    if any(after <= before for before, after in itertools.pairwise(values)):
        raise ValueError("give the values from small to large, each once")
    return values


_SECONDS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(duration: str) -> float:
    """Seconds of a time such as 90min or 2h; raises ValueError for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|m|h|d)", duration.strip())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"{duration!r} is not a time; write 90min, 2h or 1d")
    return float(found[1]) * _SECONDS[found[2]]


_BYTES = {
    **{"": 1, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"MIB": 2**20, "GIB": 2**30, "TIB": 2**40},
}


def bytes_of(memory: str) -> int:
    """Bytes of a size such as 80GB or 24GiB, or of a plain number from a million on.

    Raises:
        ValueError: it is none, or so small a number that its unit was forgotten.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?) ?([MGT]I?B)?", memory.strip().upper())
    size = 0 if found is None else int(float(found[1]) * _BYTES[found[2] or ""])
    if 0 < size < 10**6 and found is not None and found[2] is None:
        raise ValueError(f"{memory} is bytes; write {memory.strip()}GB")
    if size == 0:
        raise ValueError(f"{memory!r} is not an amount of memory; write 80GB, 24GiB or bytes")
    return size


def duration(value: str) -> str:
    """Refuse text that is not a time."""
    seconds_of(value)
    return value


def run_name(value: str) -> str:
    """Refuse names that cannot be part of a folder's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(
            f"{value!r} cannot name a folder; use letters, digits, '.', '_' and '-' only"
        )
    return value


def as_list(value: Any) -> Any:
    """Read one value as a list of one."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def as_module_sets(value: Any) -> Any:
    """Read a list of names as one set, and a list that contains a list as several."""
    values = as_list(value)
    several = not values or any(isinstance(value, list | tuple) for value in values)
    return list(map(as_list, values)) if several else [values]


_LONGEST_NAME = 255
"""Bytes of a file's name on the systems in use."""

_ROOM_BELOW = ("x" * _LONGEST_NAME,) * 3
"""The names of a run, its ``eval`` and a task, while the file is written."""

MOST_ENTRIES = 1000
"""The most entries of one list. Each is at least one training, task or layer: more is a slip."""

LARGEST = 2**31 - 1
"""The largest whole number: beyond every data set, and within the 32 bits of any file format."""

# Strict: a switch (yes, true) is not a number, a number is not a switch, and "3" in quotes is text.
Switch = Annotated[bool, Field(strict=True)]

MOST, LEAST = 1e15, 1e-15
"""The largest number, and the smallest above 0. Squares and sums of such numbers stay far from what
a float cannot hold, and no score, rate or weight of anybody's is beyond."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-MOST, le=MOST)]

Positive = Annotated[Number, Field(gt=0), AfterValidator(not_tiny)]

LearningRate = Annotated[
    float,
    Field(strict=True, allow_inf_nan=False, gt=0, le=1e30),  # more overflows float32 in one step
]

# Limits of their own: a number beyond two limits would be told the wider one.
Alpha = Annotated[
    float, Field(strict=True, allow_inf_nan=False, gt=0, le=1e6), AfterValidator(not_tiny)
]
"""Numerator of LoRA's scaling. Twice the largest rank of today's is 8192; more than this overflows
in 16 bits."""

Factor = Annotated[
    float, Field(strict=True, allow_inf_nan=False, gt=0, le=1000), AfterValidator(not_tiny)
]
"""A factor of a rate or an alpha."""

Margin = Annotated[Positive, AfterValidator(margin)]

Points = Annotated[Margin, Field(le=100)]  # between no item right and all

Nats = Annotated[Margin, Field(le=100)]  # chance in a vocabulary of 8 million is 16

Confidence = Annotated[Number, Field(gt=0.5, lt=1), AfterValidator(confidence)]

NotNegative = Annotated[Number, Field(ge=0)]

Fraction = Annotated[Number, Field(ge=0, lt=1)]

Natural = Annotated[int, Field(ge=0, le=LARGEST, strict=True)]

Count = Annotated[int, Field(ge=1, le=LARGEST, strict=True)]

LEAST_MARGIN, LARGEST_MARGIN = 1e-6, 1e9
"""The limits of a margin in points, nats, or the scores' own unit. A millionth of a point is one
item of 10^8, and so many items as it takes to tell it can be written."""

MOST_CONFIDENCE = 0.9999
"""The laws of the bounds are known to some hundreds of items, and say nothing of rarer events."""

LARGEST_RANK = 2**20
"""No layer is so wide."""

MOST_EPOCHS = 10_000
"""More is weeks on any data."""

Rank = Annotated[int, Field(le=LARGEST_RANK, strict=True), AfterValidator(rank)]

Epochs = Annotated[int, Field(ge=1, le=MOST_EPOCHS, strict=True)]

Text = Annotated[str, AfterValidator(plain_text)]

FileName = Annotated[str, AfterValidator(file_name)]

PlaceBelow = Annotated[str, AfterValidator(place_below)]
"""The name of a file below a folder, such as ``eval/capitals.json``."""

Place = Annotated[str, AfterValidator(place)]
"""The same, or a whole path."""

Duration = Annotated[str, AfterValidator(duration)]

UserPath = Annotated[Path, BeforeValidator(user_path)]

T = TypeVar("T")

AnyNumber = Annotated[
    tuple[T, ...],
    BeforeValidator(as_list),
    Field(max_length=MOST_ENTRIES),
    AfterValidator(distinct),
]
"""Distinct values, or none; a single value stands for a list of one."""

Several = Annotated[AnyNumber[T], Field(min_length=1)]
"""The same, at least one."""

Names = AnyNumber[Text]
ModuleSet = Several[Text]


ADDED = "added"
"""Beside the type of a key that the study file has been given since studies were made with it."""


class Section(BaseModel):
    """A part of a study file: frozen, and refusing keys that it does not know.

    Serialised with ``ADDED`` as context, as for a fingerprint, it lacks added keys that have their
    default: so what was made before there was the key keeps its fingerprint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _without_added(
        self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        content: dict[str, Any] = serialise(self)
        for key, field in type(self).model_fields.items() if info.context == ADDED else ():
            if ADDED in field.metadata and getattr(self, key) == field.get_default():
                content.pop(key, None)
        return content

    def _problems(self) -> Iterator[str]:
        """What of its settings does not go together; the first problem is raised."""
        yield from ()

    @model_validator(mode="after")
    def _without_problems(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self
