"""Heads: the attention heads of the runs of one trained task against the base's."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankwise.errors import BeyondLoraError, ModelError
from rankwise.records.fingerprints import fingerprint
from rankwise.records.heads import HeadChanges, ShareMap
from rankwise.records.study import PlannedRun, StageInputs, StudyRecord
from rankwise.study.stages.stage import Graph, Model, OneRecord, PlannedTasks, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from rankwise.heads.changes import HeadActivity
    from rankwise.heads.layouts import HeadLayout
    from rankwise.study.context import StudyContext

HEAD_CHANGES_REVISION = 1
"""A revision, as those in ``records.fingerprints``."""

HEAD_TOKENS = 128
"""The most tokens of a prompt on which heads are compared: all its attention weights are held in
memory."""


@dataclass(frozen=True)
class CompareHeads(OneRecord):
    """Compare the attention heads of the runs of one trained task with the base's."""

    train_task: str

    kind = "heads"
    record = HeadChanges
    file = "heads.json"
    field = "head_changes"
    made_by = "comparing the heads of"
    took = "analysis_seconds"
    slowness = 3.5
    """The slowness as measured in two studies of a model of 135M weights on two cores."""

    @classmethod
    def inputs(cls, planned: PlannedTasks) -> Mapping[str, tuple[Any, StageInputs]]:
        """The tokens of the first in-domain prompts, of every task in turn, as scored.

        A long prompt keeps its last tokens, a text without a context its first. A trained task
        with fewer than two prompts is left out.
        """
        found: dict[str, tuple[Any, StageInputs]] = {}
        settings = planned.config.analysis
        for train_task, relations in planned.relations.items() if settings.heads else ():
            by_task: list[list[tuple[int, ...]]] = []
            for name in relations.get("in_domain", ()):
                texts = [
                    request.context[-HEAD_TOKENS:]
                    if len(request.context) > 1
                    else request.tokens_read[:HEAD_TOKENS]
                    for request in planned.prepared[name].requests_in_turn
                ]
                by_task.append([text for text in dict.fromkeys(texts) if len(text) > 1])
            turns = itertools.chain.from_iterable(itertools.zip_longest(*by_task))
            prompts = tuple(dict.fromkeys(prompt for prompt in turns if prompt is not None))
            prompts = prompts[: settings.head_prompts]
            if len(prompts) > 1:
                found[train_task] = prompts, StageInputs(num_tokens=sum(map(len, prompts)))
        return found

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        inputs = graph.study.inputs.get(cls.kind, {})
        for train_task, runs in graph.by_train_task().items():
            if train_task in inputs:
                work = inputs[train_task].num_tokens * (len(runs) + 1)
                yield cls.of(graph, "heads", runs, work, train_task=train_task)

    @classmethod
    def wanted(cls, study: StudyRecord, model: Model) -> str:
        assert model is not None
        in_domain = study.tasks[model.train_task].get("in_domain", ())
        return fingerprint(
            {
                "revision": HEAD_CHANGES_REVISION,
                "base_model": study.base_model_fingerprint,
                "run": model.fingerprint,
                "prompts": [study.task_fingerprints.get(task) for task in in_domain],
                "num_prompts": study.config.analysis.head_prompts,
            }
        )

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        """The base is read once for all; see ``Stage.do``.

        A model whose heads are laid out in no known way is noted, and its records say so.
        """
        from rankwise.engine.models.start import fetch_weights
        from rankwise.engine.models.structure import model_skeleton
        from rankwise.engine.models.weights import weight_matrices
        from rankwise.heads.changes import HeadChangeTally, head_activity
        from rankwise.heads.layouts import head_layouts

        runs = [model for model in models if model is not None]
        prompts, advanced = context.plan.inputs[self.kind][self.train_task], context.tell.advanced
        tokens = sum(map(len, prompts))
        context.tell.skipped(float(tokens * (len(self.runs) - len(runs))))
        try:
            layouts = head_layouts(model_skeleton(context.plan.base.folder))
        except ModelError as error:
            context.tell.noted(f"heads are not analysed: {error}")
            for run in runs:
                self._write(context, run, not_analysed=str(error))
            context.tell.skipped(float(tokens * (len(runs) + 1)))
            return
        names = list(dict.fromkeys(name for layout in layouts for name in layout.projections))
        # read once for all full fine-tunings, and not at all where there is none
        base_matrices = functools.cache(
            lambda: weight_matrices(fetch_weights(context.plan.base), names)
        )
        before: list[list[HeadActivity]] = []
        with context.models.reading(None) as model:
            for prompt in prompts:
                before.append(head_activity(model, prompt))
                advanced(float(len(prompt)))
        for run in runs:
            started, tally = time.perf_counter(), HeadChangeTally()
            with context.models.reading(run) as model:
                for prompt, own in zip(prompts, before, strict=True):
                    tally.add(own, head_activity(model, prompt))
                    advanced(float(len(prompt)))
            shares, reason = self._shares(context, run, layouts, base_matrices)
            entropy, mass = tally.base_maps()
            self._write(
                context,
                run,
                num_prompts=len(prompts),
                num_tokens=tokens,
                num_groups=tuple(layout.num_groups for layout in layouts),
                base_entropy=entropy,
                base_first_token_mass=mass,
                changes=tally.changes(),
                shares=shares,
                not_analysed=reason,
                analysis_seconds=time.perf_counter() - started,
            )

    def _shares(
        self,
        context: StudyContext,
        run: PlannedRun,
        layouts: Sequence[HeadLayout],
        base_matrices: Callable[[], Mapping[str, Tensor]],
    ) -> tuple[tuple[ShareMap, ...], str | None]:
        """The shares from the weights.

        None of an adapter that is more than LoRA, which is noted.
        """
        from rankwise.engine.models.adapter_folder import AdapterFolder
        from rankwise.engine.models.weights import weight_matrices
        from rankwise.heads.changes import norms_of_factors, norms_of_matrices, share_maps

        weights = context.folder.weights(run)
        if run.method == "full":
            base = base_matrices()
            norms = norms_of_matrices(base, weight_matrices(weights, list(base)))
            return share_maps(layouts, norms), None
        try:
            norms = norms_of_factors(AdapterFolder(weights).factors)
        except BeyondLoraError as error:
            context.tell.noted(f"{run.name}: no head's share of delta is known: {error}")
            return (), str(error)
        return share_maps(layouts, norms), None

    def _write(self, context: StudyContext, run: PlannedRun, **found: Any) -> None:
        record = HeadChanges(
            model=run.name,
            fingerprint=self.fingerprint_of(run),
            tasks=context.study.tasks[run.train_task].get("in_domain", ()),
            **found,
        )
        context.folder.write(self.path_of(context.folder, run), record)
