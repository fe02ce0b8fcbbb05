"""A variant of LoRA while it is trained, alone on the base, by the steps that all trainees take."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rankwise.engine.models.variant_models import VariantModel
from rankwise.engine.training.trainees import Trainee
from rankwise.records.config.training import TrainConfig
from rankwise.records.study import PlannedRun
from rankwise.tasks.training_rows import Example


class VariantTrainee(Trainee):
    """The weights that PEFT has put into a base; float32, whatever the base's precision.

    Data order, schedule, clipping and saved state are those of the other trainees. A variant that
    has an optimizer of its own steps with it, and its penalty is clipped with the loss.
    """

    def __init__(
        self,
        run: PlannedRun,
        examples: Sequence[Example],
        config: TrainConfig,
        model: VariantModel,
        marks: Sequence[int] = (),
    ) -> None:
        assert run.learning_rate is not None
        make, rate = model.variant.optimizer, run.learning_rate
        own = None if make is None else partial(make, model.model, rate, config.weight_decay)
        super().__init__(run, examples, config, model.weights, own or "adamw", marks)
        self.model = model

    def _before_step(self) -> None:
        self.model.penalise()  # adds the gradient of the variant's penalty
