"""Heads: the attention heads of the runs of one trained task against the base's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankwise.records.fingerprints import fingerprint
from rankwise.records.heads import HeadChanges
from rankwise.records.study import StudyRecord
from rankwise.study.stages.stage import Graph, Model, OneRecord, Stage

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext

HEAD_CHANGES_REVISION = 1
"""As the revisions in ``records.fingerprints``."""


@dataclass(frozen=True)
class CompareHeads(OneRecord):
    """Compare the attention heads of the runs of one trained task with the base's."""

    train_task: str

    kind = "heads"
    record = HeadChanges
    file = "heads.json"
    field = "head_changes"
    made_by = "comparing the heads of"
    slowness = 3.5
    """As measured in two studies of a model of 135M weights on two cores."""

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        study = graph.study
        for train_task, runs in graph.by_train_task():
            tokens = study.num_tokens.head_prompts.get(train_task)
            if study.config.analysis.heads and tokens != 0:
                work = (tokens or 0) * (len(runs) + 1)
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
        from rankwise.study.work.head_changes import compare_heads

        runs = [model for model in models if model is not None]
        compare_heads(context, self, context.plan.head_prompts[self.train_task], runs)

    def seconds_in(self, record: Any) -> float:
        return record.analysis_seconds
