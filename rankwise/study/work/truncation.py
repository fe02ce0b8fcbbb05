"""Trained adapters at lower ranks: what a truncated adapter begins with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from rankwise.records.study import PlannedRun
from rankwise.study.context import StudyContext
from rankwise.weights.lowrank import read_updates


class Truncated(NamedTuple):
    """A trained adapter's update at a lower rank.

    Attributes:
        factors: lora_A and lora_B by layer, under the scaling of the model that they are for.
        relative_error: ||delta - truncated|| / ||delta|| over all layers, in [0, 1].
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    relative_error: float


def truncated_adapters(context: StudyContext, models: Sequence[PlannedRun]) -> dict[str, Truncated]:
    """The update that each of some truncated models begins with, by the model's name.

    Singular values are shared between the factors, so that neither is small: a refinement trains
    both. A run's adapter is decomposed once for all of its ranks.

    Raises:
        ModelError: a run's adapter cannot be read.
        RecordError: it is not what was trained.
    """
    runs = {run.name: run for run in context.study.runs}
    by_source: dict[str, list[PlannedRun]] = {}
    for model in models:
        if model.role == "truncated" and model.of is not None:
            by_source.setdefault(model.of.name, []).append(model)
    found: dict[str, Truncated] = {}
    for source, its_models in by_source.items():
        updates = read_updates(context.folder.weights(runs[source]))
        for model in its_models:
            assert model.rank is not None
            assert model.scaling is not None
            factors: dict[str, tuple[Tensor, Tensor]] = {}
            missed: list[float] = []
            for name, update in updates.items():
                cut = update.truncated(model.rank)
                kept = cut.update.at_scaling(model.scaling)
                factors[name] = kept.lora_A, kept.lora_B
                missed.append(cut.relative_error * update.frobenius_norm)
            total = math.hypot(*(update.frobenius_norm for update in updates.values()))
            error = math.hypot(*missed) / total if total else 0.0
            found[model.name] = Truncated(factors, error)
    return found


def diverged_source(context: StudyContext, model: PlannedRun) -> str | None:
    """Why there is nothing to truncate: the run's training diverged; None where it did not."""
    runs = {run.name: run for run in context.study.runs}
    if model.role != "truncated" or model.of is None:
        return None
    record = context.folder.finished_run(runs[model.of.name])
    if record is None or record.status != "diverged":
        return None
    return f"{record.planned.name}, whose adapter it is, diverged: {record.message}"
