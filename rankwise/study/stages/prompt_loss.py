"""Prompt loss: how well the models of one trained task predict its prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankwise.records.fingerprints import fingerprint
from rankwise.records.results import PromptLoss
from rankwise.records.study import StageInputs, StudyRecord
from rankwise.study.stages.stage import Graph, Model, OneRecord, PlannedTasks, Stage, model_name

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext

PROMPTS = 20
"""Prompts of a trained task: a mean over some hundred tokens says whether prompts are learned."""


@dataclass(frozen=True)
class ScorePrompts(OneRecord):
    """Score the prompts of one trained task."""

    train_task: str

    kind = "prompt_loss"
    record = PromptLoss
    file = "prompt_loss.json"
    field = "prompt_loss"
    made_by = "scoring the prompts of"

    @classmethod
    def inputs(cls, planned: PlannedTasks) -> Mapping[str, tuple[Any, StageInputs]]:
        """The first in-domain prompts of more than one token."""
        found: dict[str, tuple[Any, StageInputs]] = {}
        for source, relations in (
            planned.relations.items() if planned.config.analysis.prompt_loss else ()
        ):
            texts = dict.fromkeys(
                request.context
                for name in relations["in_domain"]
                for request in planned.prepared[name].requests
                if len(request.context) > 1
            )
            prompts = tuple(texts)[:PROMPTS]
            if prompts:
                tokens = sum(map(len, prompts))
                found[source] = (
                    prompts,
                    StageInputs(num_tokens=tokens, fingerprint=fingerprint(prompts)),
                )
        return found

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        inputs = graph.study.inputs.get(cls.kind, {})
        for train_task, runs in graph.by_train_task().items():
            if train_task in inputs:
                work = inputs[train_task].num_tokens * len(runs)
                yield cls.of(graph, "prompt loss", runs, work, train_task=train_task)

    @classmethod
    def wanted(cls, study: StudyRecord, model: Model) -> str:
        assert model is not None
        read = study.inputs.get(cls.kind, {}).get(model.train_task)
        return fingerprint([model.fingerprint, None if read is None else read.fingerprint])

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        """Each model by itself; see ``Stage.do``."""
        import torch

        prompts = context.plan.inputs[self.kind][self.train_task]
        context.tell.skipped(self.work - self.work_of(models))
        for run in (model for model in models if model is not None):
            started, nats, count = time.perf_counter(), 0.0, 0
            with context.models.reading(run) as model, torch.inference_mode():
                device = next(model.parameters()).device
                for prompt in prompts:
                    ids = torch.tensor([prompt], device=device)  # (1, tokens)
                    logits = model(input_ids=ids).logits[0, :-1].float()  # (tokens - 1, vocabulary)
                    nats += float(
                        torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
                    )
                    count += len(prompt) - 1
                    context.tell.advanced(float(len(prompt)))
            record = PromptLoss(
                fingerprint=self.fingerprint_of(run),
                model=model_name(run),
                num_prompts=len(prompts),
                num_tokens=count,
                nats=nats / count,
                score_seconds=time.perf_counter() - started,
            )
            context.folder.write(self.path_of(context.folder, run), record)
