"""Gauges: next-token distributions of the models of one trained task against the base's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import BASE
from rankwise.records.results import Divergence
from rankwise.records.study import StudyRecord
from rankwise.study.stages.divergence import expected_by, write_divergence
from rankwise.study.stages.stage import Graph, Model, OneRecord, Stage

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext


@dataclass(frozen=True)
class CompareWithBase(OneRecord):
    """Compare next-token distributions of the models of one trained task with the base's.

    So the base reads once for all of them.
    """

    train_task: str

    kind = "gauges"
    record = Divergence
    file = "gauges.json"
    field = "from_base"
    made_by = "comparing with the base"

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        study = graph.study
        for train_task in study.gauge_fingerprints:
            models = [model for model in study.tested if model.train_task == train_task]
            work = study.num_tokens.gauges.get(train_task, 0) * (len(models) + 1)
            if models:
                yield cls.of(graph, "gauges", models, work, train_task=train_task)

    @classmethod
    def wanted(cls, study: StudyRecord, model: Model) -> str:
        assert model is not None
        answers = study.gauge_fingerprints.get(model.train_task)
        return fingerprint([model.fingerprint, study.base_model_fingerprint, answers])

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        """The base reads once for all; see ``Stage.do``.

        The models read one after the other, in the steps of the base: so an update of zero is at
        exactly zero, which other steps would round away. With thousands of tokens in a step,
        reading several adapters at once would multiply as much.
        """
        answers = context.plan.gauged[self.train_task]
        context.tell.skipped(self.work * (len(self.models) - len(models)) / (len(self.models) + 1))
        expected = expected_by(context, None, answers)
        # whole models last: each takes the place of the adapters
        for model in sorted(models, key=lambda each: each is not None and each.method == "full"):
            write_divergence(
                context, self, model, answers, expected, reference=BASE, train_task=self.train_task
            )
