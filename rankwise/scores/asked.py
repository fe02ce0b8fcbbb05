"""A user's settings for tables of scores: columns, the base, the relations of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rankwise.errors import ConfigError
from rankwise.records.fields import confidence, margin, plain_text
from rankwise.records.study import Relation


class Asked(NamedTuple):
    """How tables are read, and how their models are judged; None: as it is found, or by default.

    Attributes:
        item: the column that names an item, ``meta.id`` if it is nested; as the next three.
        score: the column of the score.
        model: the column that names a model.
        task: the column that names a task.
        base: the model that the others are compared with.
        name: what a model's name says of it, such as ``r{rank}_s{seed}``.
        in_domain: the tasks to gain on; empty: those that are named nowhere.
        retention: the tasks that should not be forgotten.
        out_of_domain: the tasks that are shown besides.
        cluster: a column; items of equal value belong together.
        slice: a column; changes are shown for each of its values.
        lower_is_better: of the scores, as of losses.
        missing: what an item counts that a model has no score on: "left-out" in all models, or
            "wrong", a score of 0.
        metric: of lm-eval, HELM or a scorer of Inspect.
        filter: of lm-eval.
        delta: in the unit of the scores, points for shares.
        epsilon: points.
        worst_task: points.
        confidence: that nothing wrong is recommended.
    """

    item: str | None = None
    score: str | None = None
    model: str | None = None
    task: str | None = None
    base: str | None = None
    name: str | None = None
    in_domain: tuple[str, ...] = ()
    retention: tuple[str, ...] = ()
    out_of_domain: tuple[str, ...] = ()
    cluster: str | None = None
    slice: str | None = None
    lower_is_better: bool = False
    missing: str = "left-out"
    metric: str | None = None
    filter: str | None = None
    delta: float | None = None
    epsilon: float | None = None
    worst_task: float | None = None
    confidence: float | None = None

    @property
    def columns(self) -> dict[str, str]:
        """Role -> the column that the user names for it."""
        said = {"item": self.item, "score": self.score, "model": self.model, "task": self.task}
        return {role: column for role, column in said.items() if column is not None}

    @property
    def relations(self) -> Mapping[Relation, tuple[str, ...]]:
        """Every relation, with the tasks that are named for it."""
        return {
            "in_domain": self.in_domain,
            "out_of_domain": self.out_of_domain,
            "retention": self.retention,
            "held_out_text": (),
        }

    def check(self) -> None:
        """Refuse margins and levels that are none, and names that cannot be.

        Raises:
            ConfigError: with every problem.
        """
        checks: Mapping[str, Callable[[Any], object]] = {
            **dict.fromkeys(("delta", "epsilon", "worst_task"), margin),
            "confidence": confidence,
            **dict.fromkeys(("cluster", "slice", "name", "metric", "filter"), plain_text),
            "missing": _missing,
        }
        problems: list[str] = []
        for field, check in checks.items():
            value = getattr(self, field)
            try:
                if value is not None:
                    check(value)
            except ValueError as error:
                problems.append(f"--{field.replace('_', '-')} {error}")
        if problems:
            raise ConfigError("verdict", problems)


def _missing(value: str) -> str:
    if value not in ("left-out", "wrong"):
        raise ValueError(f"is {value!r}; write left-out or wrong")
    return value
