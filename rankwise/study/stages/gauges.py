"""Gauges: next-token distributions of the models of one trained task against the base's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import BASE
from rankwise.records.results import Divergence
from rankwise.records.study import StageInputs, StudyRecord
from rankwise.study.stages.divergence import (
    answers_read,
    expected_by,
    write_divergence,
)
from rankwise.study.stages.stage import Graph, Model, OneRecord, PlannedTasks, Stage

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext

GAUGE_ITEMS = 50
"""Right answers, and as many texts, on which models are compared with the base. More would cost as
much as scoring a task, and models are compared on the same items, so their spread cancels."""


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
    def inputs(cls, planned: PlannedTasks) -> Mapping[str, tuple[Any, StageInputs]]:
        """The first right answers in-domain, and the ends of held-out texts."""
        from rankwise.tasks.right_answers import text_ends

        found: dict[str, tuple[Any, StageInputs]] = {}
        answers = planned.answers if planned.config.analysis.gauges else {}
        for source, right in answers.items():
            texts = [planned.prepared[name] for name in planned.relations[source]["held_out_text"]]
            ends = text_ends(texts, planned.tokenizer, planned.vocabulary_size, GAUGE_ITEMS)
            read = (*right[:GAUGE_ITEMS], *ends)
            found[source] = read, answers_read(planned, read)
        return found

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        study = graph.study
        for train_task, read in study.inputs.get(cls.kind, {}).items():
            models = [model for model in study.tested if model.train_task == train_task]
            work = read.num_tokens * (len(models) + 1)
            if models:
                yield cls.of(graph, "gauges", models, work, train_task=train_task)

    @classmethod
    def wanted(cls, study: StudyRecord, model: Model) -> str:
        assert model is not None
        read = study.inputs.get(cls.kind, {}).get(model.train_task)
        answers = None if read is None else read.fingerprint
        return fingerprint([model.fingerprint, study.base_model_fingerprint, answers])

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        """The base reads once for all; see ``Stage.do``.

        The models read one after the other, in the steps of the base: so an update of zero is at
        exactly zero, which other steps would round away. With thousands of tokens in a step,
        reading several adapters at once would multiply as much.
        """
        answers = context.plan.inputs[self.kind][self.train_task]
        context.tell.skipped(self.work * (len(self.models) - len(models)) / (len(self.models) + 1))
        expected = expected_by(context, None, answers)
        # whole models last: each takes the place of the adapters
        for model in sorted(models, key=lambda each: each is not None and each.method == "full"):
            write_divergence(
                context, self, model, answers, expected, reference=BASE, train_task=self.train_task
            )
