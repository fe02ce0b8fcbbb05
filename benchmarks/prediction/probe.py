"""A probe: the first steps of the largest rank's training, and what they have done."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.prediction.feature_table import TRUNCATED_RANKS
from benchmarks.prediction.matrices import means_by_kind
from rankwise.engine.models.devices import ResolvedPrecision
from rankwise.engine.models.frozen_adapters import wearing
from rankwise.engine.models.structure import adaptable_shapes
from rankwise.engine.models.trained_adapters import adapted
from rankwise.engine.scoring.divergence import ItemDivergence, divergences, log_probabilities
from rankwise.engine.training.loop import TrainingResult, train_pass
from rankwise.engine.training.trainees import (
    AdapterTrainee,
    StepMetrics,
    Trainee,
    lora_adapter,
)
from rankwise.errors import RankwiseError
from rankwise.records.config.study import StudyConfig
from rankwise.records.study import PlannedPass, PlannedRun
from rankwise.tasks.questions import RightAnswer
from rankwise.tasks.training_rows import Example
from rankwise.weights.lowrank import LowRankUpdate
from rankwise.weights.repairs import Updates, as_frozen
from rankwise.weights.spectra import energy_rank

PROBE_STEPS = 10
"""Optimizer steps that the probe takes."""


class ProbeSetting(NamedTuple):
    """What is trained, and how.

    Attributes:
        config: of the study.
        run: the whole training, as planned.
        planned: the pass that the run is in.
        precision: of the matrix products.
        num_steps: that are taken, unless the run has fewer.
    """

    config: StudyConfig
    run: PlannedRun
    planned: PlannedPass
    precision: ResolvedPrecision
    num_steps: int = PROBE_STEPS


def train_probe(
    base_model: nn.Module, examples: Sequence[Example], setting: ProbeSetting
) -> dict[str, LowRankUpdate]:
    """The update of each matrix after the first steps of a run, trained as the study trains it.

    Its rows, their order, its beginning and its learning rates are those of the whole run.

    Raises:
        DivergedError: the training diverged in these steps.
    """
    config, run = setting.config, setting.run
    device = next(base_model.parameters()).device
    shapes = adaptable_shapes(base_model)
    adapter = lora_adapter(shapes, run, config, device, setting.precision)
    marks = [min(setting.num_steps, run.num_steps)]
    trainee = AdapterTrainee(run, examples, config.train, adapter, marks)
    with adapted(base_model, list(adapter.factors)) as bank:
        train_pass(
            base_model,
            [trainee],
            bank=bank,
            max_tokens=setting.planned.max_tokens,
            precision=setting.precision,
            gradient_checkpointing=setting.planned.gradient_checkpointing,
            observer=_Raising(),
        )
    return {
        name: LowRankUpdate(A.clone(), B.clone(), adapter.scaling)
        for name, (A, B) in adapter.factors.items()
    }


class _Raising:
    """Follows a pass of one trainee: its divergence is an error."""

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None: ...

    def reached(self, trainee: Trainee, result: TrainingResult) -> None: ...

    def dropped(self, trainee: Trainee, error: RankwiseError) -> None:
        raise error

    def shrunk(self, max_tokens: int) -> None: ...


class Reference(NamedTuple):
    """What the base says of right answers or texts, with which a probe is compared.

    Attributes:
        answers: at least one.
        expected: the base's log-probabilities at the tokens of each.
        max_batch_tokens: of one forward pass.
    """

    answers: Sequence[RightAnswer]
    expected: Sequence[Tensor]
    max_batch_tokens: int

    @classmethod
    def of(
        cls, base_model: nn.Module, answers: Sequence[RightAnswer], *, max_batch_tokens: int
    ) -> Reference | None:
        """Let the base read; None where there is nothing to read."""
        if not answers:
            return None
        expected = log_probabilities(base_model, answers, max_batch_tokens=max_batch_tokens)
        return cls(answers, expected, max_batch_tokens)

    @property
    def loss_nats(self) -> float:
        """The base's own loss per token."""
        losses = [
            -expected.gather(1, torch.tensor(answer.continuation)[:, None])
            for expected, answer in zip(self.expected, self.answers, strict=True)
        ]
        return float(torch.cat(losses).double().mean())

    def change(self, base_model: nn.Module, updates: Updates) -> ItemDivergence:
        """How far base and update are from the base: means over all tokens."""
        with wearing(base_model, as_frozen(updates, base_model)):
            items = divergences(
                base_model,
                self.answers,
                self.expected,
                max_batch_tokens=self.max_batch_tokens,
            )
        lengths = [len(answer.continuation) for answer in self.answers]
        return ItemDivergence(
            *(statistics.fmean(each, lengths) for each in zip(*items, strict=True))
        )


def probe_features(
    base_model: nn.Module,
    updates: Mapping[str, LowRankUpdate],
    answers: Reference | None,
    texts: Reference | None,
) -> dict[str, float]:
    """What a probe has done, by the names of ``FEATURES``.

    Args:
        base_model: frozen, in eval mode.
        updates: from ``train_probe``.
        answers: what the base says of right answers in-domain; None where there are none.
        texts: what it says of held-out texts, likewise.
    """
    ranks = {name: float(energy_rank(x.singular_values, 0.9)) for name, x in updates.items()}
    found = means_by_kind("probe_energy_rank_90", ranks)
    if texts is not None:
        found["probe_kl_text"] = texts.change(base_model, updates).kl_nats
    if answers is not None:
        whole = answers.change(base_model, updates)
        found |= {"probe_loss_drop": -whole.rise_nats, "probe_kl": whole.kl_nats}
        rank = max(update.rank for update in updates.values())
        for lower in TRUNCATED_RANKS:
            if lower < rank:
                cut = {name: x.truncated(lower) for name, x in updates.items()}
                drop = -answers.change(base_model, cut).rise_nats
                found[f"probe_loss_drop_rank_{lower}"] = drop
    return found
