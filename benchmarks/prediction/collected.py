"""A finished study as predictors read it: figures and outcomes only, no weights, no texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import model_validator

from rankwise.findings.stats.items import POINTS, Floats
from rankwise.records.base import Record, VersionedRecord
from rankwise.records.names import task_file_name
from rankwise.records.study import Method, Relation, Unit

# A quarter of LegalBench's mix of tasks are the rows of Overruling, texts for texts.
_HAS_ITS_ROWS = {"overruling": "legal"}

_SCORES_OF_BASE = frozenset({"base_accuracy", "base_p_right", "chance"})

PER_UNIT = 1000
"""Values of items are kept in thousandths, of a share or of a nat."""


class Change(Record):
    """A mean over items, adapted - base, positive where it is better, with its standard error."""

    unit: Unit
    estimate: float
    stderr: float


class CollectedModel(Record):
    """The base model: its name, the hash of its weights, and its size."""

    name: str
    fingerprint: str
    num_parameters: int
    parameters_per_rank: int
    """Trained parameters of a LoRA run for each rank: in + out, summed over adapted matrices."""


class CollectedTraining(Record):
    """What all runs of the study have in common."""

    num_rows: int
    num_tokens: int
    """Tokens that are read, over all epochs."""
    num_steps: int
    epochs: int
    rows_per_step: int
    target_modules: tuple[str, ...]


class CollectedRun(Record):
    """One run; what follows from scores is None where it diverged or the study has no such task.

    ``gain`` is over the tasks in-domain, ``retention`` over the retention tasks (in points, every
    task counting the same), ``held_out_text`` the change of the loss on prose. ``losses_nats`` are
    means over eighths of the training. ``alpha`` is the rank times the factor of the update, so
    that of rsLoRA is comparable. ``energy_rank_90`` and ``intruders`` are means over the
    adapted matrices, ``update_norm`` is that of the whole update.
    """

    method: Method
    rank: int | None
    alpha: float | None
    learning_rate: float | None
    seed: int | None
    status: Literal["trained", "diverged"]
    gain: Change | None
    retention: Change | None
    held_out_text: Change | None
    tasks: Mapping[str, Change]
    losses_nats: tuple[float, ...]
    energy_rank_90: float | None
    intruders: float | None
    update_norm: float | None


class CollectedItems(Record):
    """The items of one task: of the base first, then of each run in the study's order.

    ``values`` are p(right), or what else decides, in thousandths with blanks between; ``right`` is
    a 0 or 1 for each item by the task's own metric. Both are empty for a run that diverged, and
    ``right`` of all models where some item is neither right nor wrong. Items are known by their
    place alone.
    """

    task: str
    relation: Relation
    unit: Unit
    higher_is_better: bool
    values: tuple[str, ...]
    right: tuple[str, ...]

    def value_of(self, model: int) -> Floats:
        """(items,): points or nats of the model at this place; 0 is the base."""
        scale = POINTS if self.unit == "points" else 1.0
        return np.array(self.values[model].split(), dtype=float) / PER_UNIT * scale

    def right_of(self, model: int) -> Floats:
        """(items,): 1 where the model at this place is right, else 0; empty where not known."""
        return np.array([float(sign) for sign in self.right[model]])

    def gain_of(self, model: int) -> Floats:
        """(items,): adapted - base, positive where the model is better."""
        sign = 1.0 if self.higher_is_better else -1.0
        return sign * (self.value_of(model) - self.value_of(0))


class CollectedStudy(VersionedRecord, has_texts=False):
    """The runs of a study that were trained on one task.

    ``source`` is a hash of the study's name, base, task, rows, epochs and modules, so that a study
    that was extended is known again.
    ``features`` is what was known or measured before training, by name; see METHODS.
    """

    task: str
    source: str
    base_model: CollectedModel
    training: CollectedTraining
    features: Mapping[str, float]
    base_scores: Mapping[str, float]
    """Task -> score of the base, in points or nats."""
    runs: tuple[CollectedRun, ...]
    items: tuple[CollectedItems, ...]

    @model_validator(mode="after")
    def _every_run_has_items(self) -> CollectedStudy:
        for items in self.items:
            if not len(items.values) == len(items.right) == len(self.runs) + 1:
                raise ValueError(
                    f"items of {items.task}: {len(items.values)} models and {len(self.runs)} runs"
                )
        return self

    @property
    def file_name(self) -> str:
        """Where it lies in a collection; the same study has the same name."""
        return f"{task_file_name(self.task)}-{self.training.num_rows}-{self.source[:8]}.json"

    @property
    def data_set(self) -> str:
        """What is left out together: the data set, or one that has rows of it."""
        name = data_set_of(self.task)
        return _HAS_ITS_ROWS.get(name, name)

    def with_features(self, features: Mapping[str, float]) -> CollectedStudy:
        """The same with features that were measured, in the place of recorded ones of that name."""
        return self.model_copy(update={"features": {**self.features, **features}})

    def extends(self, earlier: CollectedStudy) -> bool:
        """Whether it is the same study: it has every run of the earlier record, and maybe more."""
        return (
            self.source == earlier.source
            and self.training == earlier.training
            and self._in_domain == earlier._in_domain
            and earlier._settings <= self._settings
        )

    @property
    def _in_domain(self) -> set[str]:
        return {items.task for items in self.items_of("in_domain")}

    @property
    def _settings(self) -> set[tuple[object, ...]]:
        return {(r.method, r.rank, r.alpha, r.learning_rate, r.seed) for r in self.runs}

    def after(self, earlier: CollectedStudy) -> CollectedStudy:
        """The same with what was measured for an earlier record of the study, and not for this.

        A probe of another rank or rate is not this study's. Of two scores of the base, the one that
        was measured before training counts, as the near ties beside it tell.
        """
        is_probe = self._largest == earlier._largest
        kept = {n: x for n, x in earlier.features.items() if is_probe or not is_of_probe(n)}
        own = self.features
        if "near_tie_share" in kept and "near_tie_share" not in own:
            own = {n: x for n, x in own.items() if n not in _SCORES_OF_BASE}
        return self.model_copy(update={"features": {**self.features, **kept, **own}})

    @property
    def _largest(self) -> tuple[int, float | None, float | None]:
        """Rank, alpha and rate of the first run of the largest rank, which the probe begins."""
        run = max(self.runs, key=lambda each: each.rank or 0)
        return run.rank or 0, run.alpha, run.learning_rate

    def alphas_of(self, ranks: Sequence[int]) -> tuple[float, ...]:
        """Of each of these ranks; all runs of a rank have one."""
        of_rank = {run.rank: run.alpha or 0.0 for run in self.runs}
        return tuple(of_rank[rank] for rank in ranks)

    def items_of(self, *relations: Relation) -> tuple[CollectedItems, ...]:
        """The items of all tasks of these relations."""
        return tuple(items for items in self.items if items.relation in relations)


def data_set_of(task: str) -> str:
    """What a task is made of: local_sciq and sciq_cloze have the rows of sciq."""
    return task.removeprefix("local_").removesuffix("_cloze")


def is_of_probe(feature: str) -> bool:
    """Whether a feature is of the probe, and so of its rank and rate."""
    return feature.startswith("probe_")


def in_thousandths(values: Sequence[float]) -> str:
    """Values as they are kept in ``CollectedItems``."""
    return " ".join(str(round(value * PER_UNIT)) for value in values)
