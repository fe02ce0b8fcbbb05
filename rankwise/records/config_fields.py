"""Types of the fields of a study file, with their checks."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field


def rank(value: int) -> int:
    """Accept whole numbers of at least 1; like all checks here, raise ValueError otherwise."""
    if value < 1:
        raise ValueError(f"{value} is not a rank; use a whole number of at least 1")
    return value


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse values that are given twice."""
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is given twice; give each value once")
    return values


def run_name(value: str) -> str:
    """Refuse names that cannot be part of a folder's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(
            f"{value!r} cannot name a folder; use letters, digits, '.', '_' and '-' only"
        )
    return value


def as_model(value: Any) -> Any:
    """Read a name as the model of this name."""
    return {"name": value} if isinstance(value, str) else value


def as_list(value: Any) -> Any:
    """Read one value as a list of one."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def as_module_sets(value: Any) -> Any:
    """Read a list of names as one set, and a list that contains a list as several."""
    values = as_list(value)
    several = any(isinstance(value, list | tuple) for value in values)
    return list(map(as_list, values)) if several else [values]


PAPER_RANKS = (8, 16, 32, 64, 128)
Rank = Annotated[int, Field(strict=True), AfterValidator(rank)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_list), AfterValidator(distinct)]
ModuleSet = Annotated[Names, Field(min_length=1)]
Counts = Annotated[
    tuple[Count, ...], BeforeValidator(as_list), AfterValidator(distinct), Field(min_length=1)
]
