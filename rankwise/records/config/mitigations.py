"""Mitigations of forgetting in training: each arm trains every LoRA run once more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from rankwise.records.config.own_rows import data_name
from rankwise.records.fields import (
    Factor,
    NotNegative,
    Number,
    Positive,
    Section,
    Switch,
    Text,
    UserPath,
    exactly_one,
)

KLRows = Literal["own_texts", "prompts", "completions", "rows"]
"""Where a run is held to the base: on texts that the base wrote, on the prompts or the answers of
the training rows, or on other rows."""

Share = Annotated[Number, Field(gt=0, lt=1)]


class RowsConfig(Section):
    """Rows beside those of the trained task: another task's training split, or users' own."""

    task: Text | None = None
    split: Text | None = None
    """The split of the task; None: its training split."""
    data: UserPath | None = None
    """A file or a data set, as ``train.data`` takes it."""

    def _problems(self) -> Iterator[str]:
        yield from exactly_one(task=self.task, data=self.data)
        if self.split is not None and self.task is None:
            yield "split is for 'task'; your own data has no splits"

    @property
    def name(self) -> str:
        """The task, or the file's name without its ending."""
        return self.task or (data_name(self.data) if self.data is not None else "")


class KLConfig(Section):
    """A penalty on KL(base || adapted), over the whole vocabulary."""

    at: KLRows = "own_texts"
    weight: Positive = 1.0
    """The factor of the mean KL per token in the loss, beside the mean loss per learned token."""
    share: Share | None = None
    """The share of a step's rows that are read for the KL, with own_texts and rows; None: a
    quarter."""
    mask_target: Switch = False
    """On completions, whether the right token is left out of the comparison."""
    rows: RowsConfig | None = None
    """The rows on which ``at: rows`` compares the models."""

    def _problems(self) -> Iterator[str]:
        if (self.rows is not None) != (self.at == "rows"):
            yield "'rows' goes with at: rows, and only with it; give both or neither"
        if self.share is not None and not self.has_rows:
            yield f"at: {self.at} reads no rows of its own; leave 'share' out"
        if self.mask_target and self.at != "completions":
            yield "mask_target is for at: completions; leave it out"

    @property
    def has_rows(self) -> bool:
        """Whether it reads rows beside those of the trained task."""
        return self.at in ("own_texts", "rows")

    @property
    def share_of_rows(self) -> float:
        """The share of a step's rows that are read for the KL."""
        return 0.0 if not self.has_rows else 0.25 if self.share is None else self.share

    @property
    def label(self) -> str:
        """What it is called in tables: KL on own texts × 2."""
        where = {"own_texts": "own texts", "rows": self.rows.name if self.rows else "rows"}
        text = f"KL on {where.get(self.at, self.at)}"
        text += " without targets" if self.mask_target else ""
        return text if self.weight == 1.0 else f"{text} × {self.weight:g}"


class ReplayConfig(Section):
    """Rows that are learned beside those of the trained task."""

    share: Share = 0.1
    """The share of a step's rows that are replayed."""
    rows: RowsConfig | None = None
    """The rows that are replayed; None: texts that the base wrote."""


class MitigationConfig(Section):
    """One arm: what it changes in a run. Several keys act together."""

    name: Text | None = None
    """The arm's name in the report; None: what it changes."""
    learning_rate_factor: Factor | None = None
    """The factor of the run's peak rate."""
    alpha_factor: Factor | None = None
    """The factor of the run's alpha."""
    weight_decay: NotNegative | None = None
    """The weight decay in place of ``train.weight_decay``: a step at rate η shrinks A and B by η
    times this."""
    kl: KLConfig | None = None
    replay: ReplayConfig | None = None

    def _problems(self) -> Iterator[str]:
        if not self.model_dump(exclude={"name"}, exclude_none=True):
            yield "the arm changes nothing; give learning_rate_factor, kl, replay or another key"

    @property
    def label(self) -> str:
        """What it is called in tables: its name, or what it changes."""
        changed = {
            "rate × ": self.learning_rate_factor,
            "alpha × ": self.alpha_factor,
            "weight decay ": self.weight_decay,
        }
        parts = [f"{what}{to:g}" for what, to in changed.items() if to is not None]
        if self.kl is not None:
            parts.append(self.kl.label)
        if self.replay is not None:
            source = "own texts" if self.replay.rows is None else self.replay.rows.name
            parts.append(f"{100 * self.replay.share:g} % {source}")
        return self.name or ", ".join(parts)
