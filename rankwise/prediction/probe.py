"""A probe: the first steps of the largest rank's training, and what they have done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from rankwise.engine.models.base import adaptable_shapes, target_shapes
from rankwise.engine.models.devices import DTYPES, ResolvedPrecision
from rankwise.engine.models.trained_adapters import Adapter, adapted
from rankwise.engine.scoring.divergence import ItemDivergence, divergences, log_probabilities
from rankwise.engine.training.loop import TrainingResult, train_pass
from rankwise.engine.training.trainees import AdapterTrainee, StepMetrics, Trainee
from rankwise.errors import DivergedError
from rankwise.prediction.feature_table import TRUNCATED_RANKS
from rankwise.prediction.matrices import means_by_kind
from rankwise.records.config.study import StudyConfig
from rankwise.records.results import weighted_by_tokens
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
    assert run.rank is not None
    assert run.scaling is not None
    assert run.seed is not None
    adapter = Adapter(
        target_shapes(adaptable_shapes(base_model), run.target_modules),
        rank=run.rank,
        scaling=run.scaling,
        dropout=config.train.dropout,
        seed=run.seed,
        device=next(base_model.parameters()).device,
        dtype=DTYPES[setting.precision],
        init="A" if config.methods.lora is None else config.methods.lora.init,
    )
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
            compile_layers=False,
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

    def diverged(self, trainee: Trainee, error: DivergedError) -> None:
        raise error

    def shrunk(self, max_tokens: int) -> None: ...


class Reference(NamedTuple):
    """What the base says of right answers and texts, with which a probe is compared.

    Attributes:
        answers: right answers in-domain.
        texts: the ends of held-out texts.
        expected: the base's log-probabilities at the tokens of both.
        max_batch_tokens: of one forward pass.
    """

    answers: Sequence[RightAnswer]
    texts: Sequence[RightAnswer]
    expected: Sequence[Tensor]
    max_batch_tokens: int

    @classmethod
    def of(
        cls,
        base_model: nn.Module,
        answers: Sequence[RightAnswer],
        texts: Sequence[RightAnswer],
        *,
        max_batch_tokens: int,
    ) -> Reference:
        """Let the base read; at least one answer or text."""
        every = [*answers, *texts]
        expected = log_probabilities(base_model, every, max_batch_tokens=max_batch_tokens)
        return cls(answers, texts, expected, max_batch_tokens)

    @property
    def base_loss(self) -> dict[str, float]:
        """``base_loss`` of ``FEATURES``; nothing where there are no answers."""
        losses = [
            -float(expected[range(len(tokens)), tokens].double().sum())
            for expected, tokens in (
                (expected, list(answer.continuation))
                for expected, answer in zip(self.expected, self.answers, strict=False)
            )
        ]
        num_tokens = sum(len(answer.continuation) for answer in self.answers)
        return {"base_loss": sum(losses) / num_tokens} if losses else {}

    def divergences(self, base_model: nn.Module, updates: Updates) -> list[ItemDivergence]:
        """How far base and update are from the base, on every answer and then every text."""
        return divergences(
            base_model,
            [*self.answers, *self.texts],
            self.expected,
            max_batch_tokens=self.max_batch_tokens,
            adapter=as_frozen(updates, base_model),
        )


def probe_features(
    base_model: nn.Module, updates: Mapping[str, LowRankUpdate], reference: Reference
) -> dict[str, float]:
    """What a probe has done, by the names of ``FEATURES``.

    Args:
        base_model: frozen, in eval mode.
        updates: from ``train_probe``.
        reference: what the base says.
    """
    rank = max(update.rank for update in updates.values())
    ranks = {name: float(energy_rank(x.singular_values, 0.9)) for name, x in updates.items()}
    found: dict[str, Any] = {
        **means_by_kind("probe_energy_rank_90", ranks),
        **_whole(base_model, updates, reference),
    }
    if reference.answers:
        only_answers = reference._replace(
            texts=(), expected=reference.expected[: len(reference.answers)]
        )
        for lower in TRUNCATED_RANKS:
            if lower < rank:
                cut = {name: x.truncated(lower).update for name, x in updates.items()}
                items = only_answers.divergences(base_model, cut)
                found[f"probe_loss_drop_rank_{lower}"] = -_mean(items, reference.answers).rise_nats
    return found


def _whole(
    base_model: nn.Module, updates: Mapping[str, LowRankUpdate], reference: Reference
) -> dict[str, float]:
    """Loss and divergences of the whole update."""
    items = reference.divergences(base_model, updates)
    number = len(reference.answers)
    found: dict[str, float] = {}
    if reference.answers:
        mean = _mean(items[:number], reference.answers)
        found |= {"probe_loss_drop": -mean.rise_nats, "probe_kl": mean.kl_nats}
    if reference.texts:
        found["probe_kl_text"] = _mean(items[number:], reference.texts).kl_nats
    return found


def _mean(items: Sequence[ItemDivergence], answers: Sequence[RightAnswer]) -> ItemDivergence:
    """Means over tokens, as the gauge of forgetting takes them."""
    lengths = [len(answer.continuation) for answer in answers]
    return ItemDivergence(
        *(
            math.fsum(weighted_by_tokens(each, lengths)) / len(items)
            for each in zip(*items, strict=True)
        )
    )
