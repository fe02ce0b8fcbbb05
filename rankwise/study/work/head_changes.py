"""Compares the heads of a study's runs with the base's, and writes a record for each run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from rankwise.engine.models import base as models
from rankwise.engine.models.adapter_folder import read_factors
from rankwise.engine.models.weights import weight_matrices
from rankwise.errors import BeyondLoraError, ModelError
from rankwise.heads.changes import (
    HeadActivity,
    HeadChangeTally,
    NormSquared,
    head_activity,
    norms_of_factors,
    norms_of_matrices,
    share_maps,
)
from rankwise.heads.layouts import HeadLayout, head_layouts
from rankwise.records.heads import HeadChanges, ShareMap
from rankwise.records.study import PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.planning.plan import HeadPrompts
from rankwise.study.stages.stage import Stage


def compare_heads(
    context: StudyContext, stage: Stage, prompts: HeadPrompts, runs: Sequence[PlannedRun]
) -> None:
    """Compare the heads of some runs of a stage; the base is read once for all.

    A model whose heads are laid out in no known way is noted, and its records say so.

    Raises:
        ModelError: weights cannot be read.
        StorageError: a record cannot be written.
    """
    tokens = sum(map(len, prompts))
    context.tell.skipped(float(tokens * (len(stage.runs) - len(runs))))
    comparison = _Comparison(context, stage, prompts)
    try:
        layouts = head_layouts(models.model_skeleton(context.plan.base.folder))
    except ModelError as error:
        context.tell.noted(f"heads are not analysed: {error}")
        for run in runs:
            comparison.write(run, (), str(error))
        context.tell.skipped(float(tokens * (len(runs) + 1)))
        return
    comparison.compare(runs, layouts)


class _Comparison:
    """The base's activity on some prompts, compared with that of each run."""

    def __init__(self, context: StudyContext, stage: Stage, prompts: HeadPrompts) -> None:
        self._context, self._stage, self._prompts = context, stage, prompts
        self._base_matrices: Mapping[str, Tensor] | None = None

    def compare(self, runs: Sequence[PlannedRun], layouts: Sequence[HeadLayout]) -> None:
        """Read the base, then every run, and write its record."""
        advanced = self._context.tell.advanced
        with self._context.models.reading(None) as model:
            before: list[list[HeadActivity]] = []
            for prompt in self._prompts:
                before.append(head_activity(model, prompt))
                advanced(float(len(prompt)))
        for run in runs:
            started, tally = time.perf_counter(), HeadChangeTally()
            with self._context.models.reading(run) as model:
                for prompt, own in zip(self._prompts, before, strict=True):
                    tally.add(own, head_activity(model, prompt))
                    advanced(float(len(prompt)))
            shares, reason = self._shares(run, layouts)
            self.write(run, shares, reason, tally, layouts, time.perf_counter() - started)

    def _shares(
        self, run: PlannedRun, layouts: Sequence[HeadLayout]
    ) -> tuple[tuple[ShareMap, ...], str | None]:
        """From the weights; not of an adapter that is more than LoRA, which is noted."""
        norms: NormSquared
        weights = self._context.folder.weights(run)
        if run.method == "full":
            names = list(dict.fromkeys(name for layout in layouts for name in layout.projections))
            if self._base_matrices is None:
                base = models.fetch_weights(self._context.plan.base)
                self._base_matrices = weight_matrices(base, names)
            norms = norms_of_matrices(self._base_matrices, weight_matrices(weights, names))
        else:
            try:
                norms = norms_of_factors(read_factors(weights))
            except BeyondLoraError as error:
                self._context.tell.noted(f"{run.name}: no head's share of delta is known: {error}")
                return (), str(error)
        return share_maps(layouts, norms), None

    def write(
        self,
        run: PlannedRun,
        shares: tuple[ShareMap, ...],
        reason: str | None,
        tally: HeadChangeTally | None = None,
        layouts: Sequence[HeadLayout] = (),
        seconds: float = 0.0,
    ) -> None:
        """A run's record; without a tally, that of a model whose heads are not known."""
        entropy, mass = ((), ()) if tally is None else tally.base_maps()
        prompts = () if tally is None else self._prompts
        study = self._context.study
        record = HeadChanges(
            model=run.name,
            fingerprint=self._stage.fingerprint_of(run),
            tasks=study.tasks[run.train_task].get("in_domain", ()),
            num_prompts=len(prompts),
            num_tokens=sum(map(len, prompts)),
            num_groups=tuple(layout.num_groups for layout in layouts),
            base_entropy=entropy,
            base_first_token_mass=mass,
            changes=() if tally is None else tally.changes(),
            shares=shares,
            not_analysed=reason,
            analysis_seconds=seconds,
        )
        folder = self._context.folder
        folder.write(self._stage.path_of(folder, run), record)
