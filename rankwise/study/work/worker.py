"""Does the stages of a study, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.records.study import PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.stages import (
    AnalyseWeights,
    CheckForm,
    CompareDistributions,
    CompareHeads,
    CompareWithBase,
    Model,
    ObserveBehaviour,
    Score,
    Stage,
    Train,
)
from rankwise.study.work.behaviour import observe_behaviour
from rankwise.study.work.distributions import DistributionWorker, compare_with_base
from rankwise.study.work.forms import check_form
from rankwise.study.work.head_changes import compare_heads
from rankwise.study.work.scoring import ScoreWorker
from rankwise.study.work.training import train
from rankwise.study.work.weights import analyse_weights


class Worker:
    """Does stages, and keeps in memory what the next stage needs too."""

    def __init__(self, context: StudyContext) -> None:
        self._context = context
        self._scores = ScoreWorker(context)
        self._distributions = DistributionWorker(context)

    def do(self, stage: Stage, models: Sequence[Model]) -> None:
        """Do a stage for some of its models, and write their records.

        Raises:
            RankwiseError: it cannot be done.
        """
        context = self._context
        context.tell.stage_started(stage.id)
        match stage:
            case Train():
                # one model at a time: full fine-tuning trains a copy of the base
                context.models.release(base=any(run.method == "full" for run in stage.runs))
                train(context, stage, _runs(models))
            case Score():
                self._scores.score(stage, models)
            case CompareDistributions():
                self._distributions.compare(stage, models)
            case CompareWithBase():
                compare_with_base(context, stage, _runs(models))
            case ObserveBehaviour():
                observe_behaviour(context, stage, models)
            case CompareHeads():
                compare_heads(context, stage, _runs(models))
            case CheckForm():
                for run in _runs(models):
                    check_form(context, stage, run)
            case AnalyseWeights():
                context.models.release(base=True)  # matrices are read one by one
                analyse_weights(context, stage, _runs(models))
            case _:
                raise TypeError(f"{type(stage).__name__} is no stage of a study")
        context.tell.stage_finished()


def _runs(models: Sequence[Model]) -> list[PlannedRun]:
    return [model for model in models if model is not None]
