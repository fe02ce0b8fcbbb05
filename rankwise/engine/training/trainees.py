"""A run while it is trained, an adapter or a whole model: data order, learning rate, state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import get_scheduler

from rankwise.engine.models.devices import DTYPES, ResolvedPrecision, is_out_of_memory
from rankwise.engine.models.peft_adapters import VariantModel
from rankwise.engine.models.seeds import seed_of
from rankwise.engine.models.structure import LinearShape, target_shapes
from rankwise.engine.models.trained_adapters import Adapter
from rankwise.engine.models.variants import MakeOptimizer
from rankwise.engine.training.optimizers import MOMENTS, make_optimizer
from rankwise.engine.training.states import UNUSABLE, UnusableStateError, read_state, write_state
from rankwise.engine.training.written import TextMetrics, WrittenTexts
from rankwise.errors import DivergedError, RecordError
from rankwise.records.base import Record
from rankwise.records.config.objectives import GrpoConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.training import TrainConfig
from rankwise.records.study import OptimizerName, PlannedRun
from rankwise.tasks.training_rows import Example

# our names -> transformers' names; its "constant" has no warm-up
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}

NewOptimizer = Callable[[float, float], torch.optim.Optimizer]
"""Makes an optimizer from a learning rate and a weight decay; it has the weights that it trains."""

WriteState = Callable[[Path, dict[str, Any]], None]

EXPLODED = 2.0
"""A loss above this many times both the first loss and that of a uniform guess has exploded."""


class StepMetrics(Record):
    """One line of ``metrics.jsonl``: one optimizer step.

    ``num_tokens`` counts the examples of all steps so far, ``loss_nats`` is the mean over the
    step's learned tokens, or over its pairs, ``learning_rate`` is the step's, ``grad_norm`` is
    taken before clipping. ``kl_nats`` is the mean KL(base || adapted) where the run is held to the
    base; else None. ``texts`` says what the model wrote for the step, where it learns from that;
    ``loss_nats`` is that of GRPO then, or the mean over texts of the mean KL from the teacher.
    """

    step: int
    num_tokens: int
    loss_nats: float
    learning_rate: float
    grad_norm: float
    kl_nats: float | None = None
    texts: TextMetrics | None = None


class StepGradients(NamedTuple):
    """What was gathered for one step.

    Attributes:
        loss_nats: per learned token, or per pair.
        kl_nats: from the base, per token at which it is held to it; None where there is none.
        norm: of the gradients, before clipping.
    """

    loss_nats: float
    kl_nats: float | None
    norm: float


class GradientShare(NamedTuple):
    """How a trainee's tokens count in its gradient, wherever they are in the step.

    Attributes:
        of_loss: weight of each learned token; of each pair under DPO.
        of_kl: weight of each token at which it is held to the base.
        masks_targets: the right token is left out where it is held to the base.
        of_chosen: weight of each token of chosen answers, beside DPO.
    """

    of_loss: float
    of_kl: float = 0.0
    masks_targets: bool = False
    of_chosen: float = 0.0


class Beside(NamedTuple):
    """What a run reads beside its own rows.

    Attributes:
        replayed: examples that it learns, at the share that its mitigation says.
        held: examples of which it learns nothing (``num_loss_tokens`` is 0), at which it is held
            to the base.
    """

    replayed: Sequence[Example] = ()
    held: Sequence[Example] = ()


NOTHING_BESIDE = Beside()


class Trainee:
    """One run while it is trained. Everything random in it comes from the run's seed.

    A step, which ``loop`` lets all trainees of a pass take together::

        batch ─▶ micro-batches, forward and backward: every loss is weighted by share()
              ─▶ gradients in the weights ─▶ finish_gradients: _before_step, norm
              ─▶ take_step: clip, learning rate, optimizer, _weights_changed, metrics

    If memory runs out, or another trainee's numbers are not finite, the gradients are gathered
    again: until ``take_step`` nothing has changed but them.

    Attributes:
        run: as planned.
        batches: the examples of every optimizer step, in order.
        marks: the steps after which its weights are wanted; it stops at the last one.
        metrics: of the finished steps.
        seconds: that they took; of time shared with other trainees, its share by tokens.
        dpo: how it learns from pairs of answers; None: it learns the next token, or from its own
            texts.
        own: how it writes the texts that it learns from; None: it learns from given ones.
        num_iterations: steps that are taken with the same texts.
        written: these texts, for the next step; None: they are not written yet.
    """

    _frees_gradients = True
    """Whether gradients that are cleared leave the memory; else they are set to zero in place."""

    def __init__(
        self,
        run: PlannedRun,
        examples: Sequence[Example],
        config: TrainConfig,
        weights: Sequence[nn.Parameter],
        optimizer: OptimizerName | NewOptimizer,
        marks: Sequence[int] = (),
        beside: Beside = NOTHING_BESIDE,
    ) -> None:
        assert run.learning_rate is not None
        assert run.seed is not None
        self.run, self.dpo, self.own = run, config.dpo, config.written
        self.num_iterations = config.num_iterations
        self.written: WrittenTexts | None = None
        self._read_nats: Mapping[int, Sequence[float]] = {}
        self.batches = effective_batches(examples, run, config, beside)[: run.num_steps]
        self.marks = tuple(sorted(marks)) or (len(self.batches),)
        self.metrics: list[StepMetrics] = []
        self.seconds = 0.0
        self._config = config
        # what kinds of trainees do when a step's gradients are gathered, and after each change of
        # the weights: a step, or a state that is loaded
        self._before_step: Callable[[], None] = lambda: None
        self._weights_changed: Callable[[], None] = lambda: None
        arm = run.mitigation
        self._kl, decay = (None, None) if arm is None else (arm.kl, arm.weight_decay)
        self._new_optimizer = (
            partial(optimizer, run.learning_rate, config.weight_decay)
            if callable(optimizer)
            else partial(
                make_optimizer,
                list(weights),
                name=optimizer,
                learning_rate=run.learning_rate,
                weight_decay=config.weight_decay if decay is None else decay,
                seed=run.seed,
            )
        )
        self._optimizer = self._new_optimizer()
        in_groups = (group["params"] for group in self._optimizer.param_groups)
        self._weights = [w for group in in_groups for w in group if w.requires_grad]
        self._norm = torch.zeros(())
        self._rate = run.learning_rate
        self._rate_factor = rate_factor(config, run.num_steps)

    @property
    def step(self) -> int:
        """How many steps are finished."""
        return len(self.metrics)

    @property
    def is_finished(self) -> bool:
        """Whether its last mark is reached."""
        return self.step >= self.marks[-1]

    @property
    def is_marked(self) -> bool:
        """Whether its weights are wanted as they are now."""
        return self.step in self.marks

    @property
    def batch(self) -> Sequence[Example]:
        """The examples of the next step."""
        return self.batches[self.step] if self.written is None else self.written.examples

    @property
    def num_tokens(self) -> int:
        """Tokens of the examples of the next step."""
        return sum(example.num_tokens for example in self.batch)

    @property
    def num_read(self) -> int:
        """The same with those that the base reads once more, where it is held to the base."""
        held = sum(len(example.as_held.tokens) for example in self.batch if self.held_rows(example))
        return self.num_tokens + held

    @property
    def num_loss_tokens(self) -> int:
        """Learned tokens of the next step; of pairs, those of the chosen answers."""
        return sum(example.num_loss_tokens for example in self.batch)

    @property
    def num_losses(self) -> int:
        """Losses of the next step, whose mean is minimised: of tokens, or of pairs.

        Losses of texts that it wrote itself come weighted, as parts of a single one.
        """
        if self.written is not None:
            return 1
        return self.num_loss_tokens if self.dpo is None else len(self.batch)

    @property
    def num_learned(self) -> int:
        """Learned tokens of all finished steps."""
        if self.own is not None:
            return sum(line.texts.num_tokens for line in self.metrics if line.texts is not None)
        return sum(
            sequence.num_loss_tokens
            for batch in self.batches[: self.step]
            for example in batch
            for sequence in example.sequences
        )

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt may be read once for all of a step's texts that follow it.

        Dropout is drawn anew for each of them, and a run may be held to the base in its prompts.
        """
        return self._config.dropout == 0 and self._kl is None

    @property
    def is_taught(self) -> bool:
        """Whether it learns what a teacher says of its own texts."""
        return self.own is not None and self.own.is_distilled

    def share(self, num_held: int) -> GradientShare:
        """How the tokens of the next step count, at ``num_held`` of which it is held to the base.

        Its gradient is that of means over the whole step, however that is cut.
        """
        return GradientShare(
            of_loss=1.0 / self.num_losses,
            of_kl=0.0 if self._kl is None else self._kl.weight / max(num_held, 1),
            masks_targets=self._kl is not None and self._kl.mask_target,
            of_chosen=0.0 if self.dpo is None else self.dpo.sft_weight / self.num_loss_tokens,
        )

    def held_rows(self, example: Example) -> Sequence[int]:
        """The tokens of an example at whose prediction it is held to the base, or to a teacher."""
        if example.own is not None:
            return [place - 1 for place in example.places] if example.own.teacher else ()
        if self._kl is None:
            return ()
        rows = range(example.num_inputs)
        if self._kl.has_rows:  # those that are there for it are learned nowhere
            return rows if example.num_loss_tokens == 0 else ()
        predicting, in_prompts = {place - 1 for place in example.places}, self._kl.at == "prompts"
        return [row for row in rows if (row in predicting) != in_prompts]

    def texts_read(self, nats: Mapping[int, Sequence[float]]) -> None:
        """The losses of the tokens of its own texts, by their places in the step."""
        self._read_nats = nats

    def finish_gradients(self) -> Float[Tensor, ""]:
        """Do what is left to do once a step's gradients are gathered; returns their norm."""
        self._before_step()
        gradients = [weights.grad for weights in self._weights if weights.grad is not None]
        self._norm = nn.utils.get_total_norm(gradients)
        return self._norm

    def take_step(self, gathered: StepGradients, *, vocab_size: int) -> StepMetrics:
        """Clip the gathered gradients, step the optimizer, and clear them.

        Args:
            gathered: of the step, after ``finish_gradients``.
            vocab_size: the loss of a uniform guess is its logarithm.

        Raises:
            DivergedError: the loss or the gradient is not finite, or the loss has exploded.
        """
        step, (loss, kl, norm) = self.step + 1, gathered
        if not math.isfinite(loss):
            raise DivergedError(f"the loss was {loss} at step {step}")
        if kl is not None and not math.isfinite(kl):
            raise DivergedError(f"the KL from the base was {kl} at step {step}")
        first = self.metrics[0].loss_nats if self.metrics else loss
        limit = EXPLODED * max(first, math.log(vocab_size))
        # the loss of GRPO is of advantages, whose scale is that of the rewards
        if loss > limit and not isinstance(self.own, GrpoConfig):
            raise DivergedError(
                f"the loss was {loss:.4g} nats at step {step}, above {limit:.4g}: {EXPLODED:g} "
                "times the first loss and that of a uniform guess"
            )
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient's norm was {norm} at step {step}")
        # the norm is on the device already: nothing has to be read again
        nn.utils.clip_grads_with_norm_(self._weights, self._config.max_grad_norm, self._norm)
        rate = self._rate * self._rate_factor(self.step)
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # torchao's
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._optimizer.step()
        self.clear_gradients()
        self._weights_changed()
        before = self.metrics[-1].num_tokens if self.metrics else 0
        num_tokens, texts = before + self.num_tokens, self._texts_used(step)
        metrics = StepMetrics(
            step=step,
            num_tokens=num_tokens,
            loss_nats=loss,
            learning_rate=rate,
            grad_norm=norm,
            kl_nats=kl,
            texts=texts,
        )
        self.metrics.append(metrics)
        return metrics

    def _texts_used(self, step: int) -> TextMetrics | None:
        """What a step says of its texts, which go once enough steps are taken with them."""
        if self.written is None:
            return None
        if not isinstance(self.own, GrpoConfig):
            texts, self.written = self.written.metrics, None
            return texts
        aged, texts = self.written.read(self._read_nats, self.own)
        self.written = aged if step % self.num_iterations else None
        return texts

    def clear_gradients(self) -> None:
        """Discard the gradients gathered for the next step."""
        self._optimizer.zero_grad(set_to_none=self._frees_gradients)

    def save_state(self, path: Path, write: WriteState = write_state) -> None:
        """Write everything that the next step depends on, whole or not at all.

        Args:
            path: of the file.
            write: ``write_state``, or a ``StateWriter``'s.

        Raises:
            StorageError: the file cannot be written.
        """
        weights = [weights.detach() for weights in self._weights]
        content = {
            "run": self.run.fingerprint,
            "metrics": [line.model_dump() for line in self.metrics],
            "seconds": self.seconds,
            "weights": weights,
            "optimizer": self._optimizer.state_dict(),
            "written": None if self.written is None else self.written.as_values(),
        }
        write(path, content)

    def load_state(self, path: Path, until: int | None = None) -> None:
        """Continue from a saved state; one that is refused changes nothing.

        Args:
            path: of the state.
            until: leave a state of more steps alone, and begin anew.

        Raises:
            RecordError: the file is not a state of this run.
        """
        try:
            state = read_state(path)
            if until is None or len(state.get("metrics", ())) <= until:
                self._continue_from(state)
        except UnusableStateError as error:
            raise RecordError(
                f"{path} is not a saved state of {self.run.name}: {error}."
            ) from error

    def _continue_from(self, state: Mapping[str, Any]) -> None:
        if (run := state.get("run")) != self.run.fingerprint:
            raise UnusableStateError(f"it belongs to the run {run!s:.16}")
        try:
            metrics = [StepMetrics.model_validate(line) for line in state["metrics"]]
            seconds, values = float(state["seconds"]), state["written"]
            written = None if values is None else WrittenTexts.of_values(values)
            if not len(metrics) <= len(self.batches) or not math.isfinite(seconds):
                raise ValueError("more steps than there are")
            saved = state["weights"]
            shapes = [tuple(weights.shape) for weights in self._weights]
            if [tuple(values.shape) for values in saved] != shapes:
                raise ValueError("other shapes")
            self._optimizer.state.clear()  # there may be no room for both
            self._optimizer.load_state_dict(state["optimizer"])
            for weights, moments in self._optimizer.state.items():
                for name in MOMENTS:
                    if name in moments and moments[name].numel() != weights.numel():
                        raise ValueError(f"{name} of another shape")
            with torch.no_grad():  # at the end, when nothing can fail
                for weights, values in zip(self._weights, saved, strict=True):
                    weights.copy_(values)
        except UNUSABLE as error:
            self._optimizer.state.clear()
            self._optimizer = self._new_optimizer()
            if is_out_of_memory(error):
                raise
            raise UnusableStateError("its content is none of this training") from error
        self.metrics, self.seconds, self.written = metrics, seconds, written
        self._weights_changed()


def lora_adapter(
    shapes: Mapping[str, LinearShape],
    run: PlannedRun,
    config: StudyConfig,
    device: torch.device,
    precision: ResolvedPrecision,
    elsewhere: Mapping[str, torch.device] = MappingProxyType({}),
) -> Adapter:
    """The adapter of a LoRA run as it begins, before a variant changes it.

    Args:
        shapes: of all matrices of the base that can be adapted.
        run: what is trained.
        config: of its study.
        device: of the base.
        precision: of the matrix products; weights are float32.
        elsewhere: the devices of layers that are not on ``device``.
    """
    assert run.rank is not None
    assert run.scaling is not None
    assert run.seed is not None
    seed = run.seed
    if run.after is not None and run.after.is_beside:
        # other draws than what it is trained beside began at: those directions are taken
        seed = seed_of(run.seed, "beside", run.after.rank // run.highest_rank)
    return Adapter(
        target_shapes(shapes, run.saved_targets),
        rank=dict(run.layer_ranks) or run.rank,
        scaling=run.scaling,
        dropout=config.train.dropout,
        seed=seed,
        device=device,
        dtype=DTYPES[precision],
        elsewhere=elsewhere,
    )


class AdapterTrainee(Trainee):
    """A LoRA adapter: float32 weights and optimizer state, whatever the base's precision.

    ``own_optimizer`` is that of a variant. It trains those of the weights in it that require a
    gradient; the others stay as they are, and do not count for the gradient's norm.
    """

    _frees_gradients = False  # layers write into views of them

    def __init__(
        self,
        run: PlannedRun,
        examples: Sequence[Example],
        config: TrainConfig,
        adapter: Adapter,
        marks: Sequence[int] = (),
        beside: Beside = NOTHING_BESIDE,
        own_optimizer: MakeOptimizer | None = None,
    ) -> None:
        own = None if own_optimizer is None else partial(own_optimizer, adapter)
        super().__init__(run, examples, config, adapter.weights, own or "adamw", marks, beside)
        self.adapter, self._weights_changed = adapter, adapter.refresh


class FullTrainee(Trainee):
    """Every weight of a model, in float32 or in bfloat16 with stochastic rounding."""

    def __init__(
        self,
        run: PlannedRun,
        examples: Sequence[Example],
        config: TrainConfig,
        model: nn.Module,
        optimizer: OptimizerName,
        marks: Sequence[int] = (),
    ) -> None:
        model.requires_grad_(True)
        super().__init__(run, examples, config, list(model.parameters()), optimizer, marks)
        self._before = self._sums()

    @property
    def is_zero_update(self) -> bool:
        """Whether no weight has moved, judged by the sums and absolute sums of all tensors.

        A copy to compare with would double the memory of the weights.
        """
        return self._before == self._sums()

    def _sums(self) -> list[tuple[float, float]]:
        in_float64 = (weights.detach().double() for weights in self._weights)
        return [(float(weights.sum()), float(weights.abs().sum())) for weights in in_float64]


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
        make = model.variant.optimizer
        own = None if make is None else partial(make, model.model)
        super().__init__(run, examples, config, model.weights, own or "adamw", marks)
        self._before_step = model.penalise  # adds the gradient of the variant's penalty


def effective_batches(
    examples: Sequence[Example],
    run: PlannedRun,
    config: TrainConfig,
    beside: Beside = NOTHING_BESIDE,
) -> list[list[Example]]:
    """The examples of each optimizer step, in an order that depends on the run's seed alone.

    The last step of an epoch may have fewer examples. What the run reads beside its own rows comes
    after them in each step.
    """
    assert run.seed is not None
    assert run.epochs is not None
    generator = torch.Generator().manual_seed(run.seed)
    size = config.batch_size * config.gradient_accumulation_steps
    batches: list[list[Example]] = []
    for _ in range(run.epochs):
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order), size):
            batches.append([examples[index] for index in order[start : start + size]])
    batches = [batch for batch in batches for _ in range(config.num_iterations)]
    replay, kl = (run.mitigation.replay, run.mitigation.kl) if run.mitigation else (None, None)
    if replay is not None:
        batches = _with_others(batches, beside.replayed, replay.share, seed_of(run.seed, "replay"))
    if kl is not None and kl.has_rows:
        batches = _with_others(batches, beside.held, kl.share_of_rows, seed_of(run.seed, "kl"))
    return batches


def _with_others(
    batches: Sequence[list[Example]], others: Sequence[Example], share: float, seed: int
) -> list[list[Example]]:
    """Batches with other examples behind, which are ``share`` of all examples.

    Of the first n batches too, to the nearest whole example. They come in a random order, each once
    before any comes again.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    num_own = num_given = 0
    mixed: list[list[Example]] = []
    for batch in batches:
        num_own += len(batch)
        # so many others beside num_own make them the share of all
        wanted = round(num_own * share / (1.0 - share))
        while len(order) < wanted:
            order += torch.randperm(len(others), generator=generator).tolist()
        mixed.append([*batch, *(others[index] for index in order[num_given:wanted])])
        num_given = wanted
    return mixed


def rate_factor(config: TrainConfig, num_steps: int) -> Callable[[int], float]:
    """Finished steps -> learning rate over its peak, by transformers' own schedule."""
    # get_scheduler wants an optimizer; only the function that it makes is used
    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule: Any = get_scheduler(
        _SCHEDULES[config.schedule],
        unused,
        num_warmup_steps=math.ceil(config.warmup_ratio * num_steps),
        num_training_steps=num_steps,
    )
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor
