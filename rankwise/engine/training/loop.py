"""Train many adapters in one pass over one frozen base, or every weight of a model.

Each trainee goes through its own examples in its own order: an optimizer step sees exactly
``batch_size * gradient_accumulation_steps`` of them, and its loss is the mean over their learned
tokens, as transformers' Trainer averages it. How these examples are cut into micro-batches, and
which other trainees' examples share one, changes nothing beyond rounding.

A trainee may be held to the base: the mean of KL(base || adapted) at some tokens is then added to
its loss. The base reads these in the same pass, with no adapter on their rows.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rankwise.engine.models.devices import (
    PeakMemory,
    ResolvedPrecision,
    give_back_memory,
    is_out_of_memory,
    moved,
)
from rankwise.engine.models.head import (
    CompletionHead,
    HeldTokens,
    LearnedTokens,
    backward_losses,
)
from rankwise.engine.models.packed_attention import (
    check_packable,
    packed_attention,
    within_budget,
)
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.engine.models.trained_adapters import AdapterBank, DroppedSequence, Piece
from rankwise.engine.training.trainees import AdapterTrainee, StepMetrics, Trainee
from rankwise.errors import DivergedError
from rankwise.records.config.training import TrainConfig
from rankwise.tasks.training_rows import Example


class StepLosses(NamedTuple):
    """Of one step: the loss per learned token, and the KL from the base per held one; in nats.

    ``kl_nats`` is None where the trainee is not held to the base.
    """

    loss_nats: float
    kl_nats: float | None


class TrainingResult(NamedTuple):
    """The result of training one run.

    ``train_seconds`` is its share, by tokens, of the time of its pass; ``peak_memory_bytes`` is
    that of the whole pass so far.
    """

    num_steps: int
    num_tokens: int
    num_loss_tokens: int
    first_loss_nats: float | None
    final_loss_nats: float | None
    train_seconds: float
    peak_memory_bytes: int


@runtime_checkable
class PassObserver(Protocol):
    """Is notified of the progress of a pass."""

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
        """A trainee has taken a step."""
        ...

    def reached(self, trainee: Trainee, result: TrainingResult) -> None:
        """A trainee is at one of its marks, or at its end; save its weights now."""
        ...

    def diverged(self, trainee: Trainee, error: DivergedError) -> None:
        """A trainee has diverged and is dropped; the others continue."""
        ...

    def shrunk(self, max_tokens: int) -> None:
        """Memory ran out; from now on micro-batches have at most ``max_tokens`` tokens."""
        ...


def num_optimizer_steps(num_examples: int, config: TrainConfig, epochs: int) -> int:
    """Steps over all epochs; the last step of an epoch may have fewer examples."""
    per_step = config.batch_size * config.gradient_accumulation_steps
    return math.ceil(num_examples / per_step) * epochs


def train_pass(
    model: nn.Module,
    trainees: Sequence[Trainee],
    *,
    bank: AdapterBank | None,
    max_tokens: int,
    precision: ResolvedPrecision,
    gradient_checkpointing: bool,
    compile_layers: bool,
    observer: PassObserver,
) -> None:
    """Take all remaining steps of every trainee, until its last mark.

    Args:
        model: the frozen base with the bank's layers in it; or the model whose weights are trained.
        trainees: adapters, in any mix of rank, seed, data and number of steps; or one full model.
        bank: of the adapters; None when the model's own weights are trained.
        max_tokens: read in one micro-batch. It is halved when memory runs out, and the step is
            taken again; only a single example that does not fit ends the pass.
        precision: of the matrix products when a model's float32 weights are trained.
        gradient_checkpointing: compute a layer's activations again instead of keeping them.
        compile_layers: compile the parts of a layer outside its adapters and its attention.
        observer: is notified of every step.

    Raises:
        ModelError: the model cannot read packed sequences.
        torch.OutOfMemoryError: a single example does not fit (MemoryError, RuntimeError on a CPU).
    """
    check_packable(model)
    with (
        packed_attention(model),
        _checkpointing(model, gradient_checkpointing),
        _compiled(model, compile_layers),
    ):
        _Pass(model, trainees, bank, max_tokens, precision, observer).run()


class _Pass:
    def __init__(
        self,
        model: Any,
        trainees: Sequence[Trainee],
        bank: AdapterBank | None,
        max_tokens: int,
        precision: ResolvedPrecision,
        observer: PassObserver,
    ) -> None:
        self._model, self._trainees, self._bank = model, trainees, bank
        self._max_tokens, self._observer = max_tokens, observer
        self._head = CompletionHead(model)
        self._device: torch.device = next(model.parameters()).device
        self._autocast = bank is None and precision == "bfloat16"
        self._memory = PeakMemory(self._device)

    def run(self) -> None:
        active: dict[int, Trainee] = {}
        with self._memory.measured():
            for index, trainee in enumerate(self._trainees):
                if trainee.is_marked:  # it was interrupted between a step and its record
                    self._observer.reached(trainee, self._result(trainee))
                if not trainee.is_finished:
                    active[index] = trainee
            while active:
                self._step(active)

    def _step(self, active: dict[int, Trainee]) -> None:
        """One step of every active trainee; those that finish or diverge leave ``active``."""
        started = time.perf_counter()
        losses = self._gathered_losses(active)
        num_read = {index: trainee.num_read for index, trainee in active.items()}
        stepped: list[tuple[Trainee, StepMetrics]] = []
        for index, trainee in list(active.items()):
            try:
                taken = trainee.take_step(*losses[index], vocab_size=self._head.vocab_size)
                stepped.append((trainee, taken))
            except DivergedError as error:
                del active[index]
                self._observer.diverged(trainee, error)
        seconds = time.perf_counter() - started
        for index, count in num_read.items():
            self._trainees[index].seconds += seconds * count / sum(num_read.values())
        for trainee, metrics in stepped:
            self._observer.stepped(trainee, metrics)
            if trainee.is_marked:
                self._observer.reached(trainee, self._result(trainee))
        for index in [index for index, trainee in active.items() if trainee.is_finished]:
            del active[index]

    def _result(self, trainee: Trainee) -> TrainingResult:
        first, last = (trainee.metrics[0], trainee.metrics[-1]) if trainee.metrics else (None, None)
        return TrainingResult(
            num_steps=trainee.step,
            num_tokens=last.num_tokens if last else 0,
            num_loss_tokens=sum(
                x.num_loss_tokens for batch in trainee.batches[: trainee.step] for x in batch
            ),
            first_loss_nats=first.loss_nats if first else None,
            final_loss_nats=last.loss_nats if last else None,
            train_seconds=trainee.seconds,
            peak_memory_bytes=self._memory.so_far(),
        )

    def _gathered_losses(self, active: Mapping[int, Trainee]) -> dict[int, StepLosses]:
        """Gather the gradients of each trainee's next step."""
        placed = [
            Placed(index, place, example, trainee.held_rows(example))
            for index, trainee in active.items()
            for place, example in enumerate(trainee.batch)
        ]
        while True:
            try:
                return self._gather(active, placed)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                longest = max(item.example.num_inputs for item in placed)
                if self._max_tokens <= longest:
                    raise
                self._max_tokens = max(self._max_tokens // 2, longest)
            # outside of the handler: inside, the error's frames would keep the step's tensors alive
            for trainee in active.values():
                trainee.clear_gradients()
            give_back_memory(self._device)
            self._observer.shrunk(self._max_tokens)

    def _gather(
        self, active: Mapping[int, Trainee], placed: Sequence[Placed]
    ) -> dict[int, StepLosses]:
        """Gradients and losses of a step of all trainees together.

        Kernels multiply what a token does not see by zero, which lets NaN and infinity of one
        trainee through to others. If there is any, each trainee is gathered again alone.
        """
        losses = self._gather_together(active, placed)
        finite = (
            math.isfinite(losses[index].loss_nats) and trainee.has_finite_gradients
            for index, trainee in active.items()
        )
        if len(active) == 1 or all(finite):
            return losses
        for index, trainee in active.items():
            trainee.clear_gradients()
            of_trainee = [item for item in placed if item.trainee == index]
            losses |= self._gather_together({index: trainee}, of_trainee)
        return losses

    def _gather_together(
        self, active: Mapping[int, Trainee], placed: Sequence[Placed]
    ) -> dict[int, StepLosses]:
        counts = {index: trainee.num_loss_tokens for index, trainee in active.items()}
        held = dict.fromkeys(active, 0)
        for item in placed:
            held[item.trainee] += len(item.held)
        losses, kls = dict.fromkeys(active, 0.0), dict.fromkeys(active, 0.0)
        for group in split_by_budget(placed, self._max_tokens):
            batch = pack(group, self._device)
            of_batch = self._backward(batch, active, counts, held)
            for sums, of_trainees in zip((losses, kls), of_batch, strict=True):
                for index, total in of_trainees.items():
                    sums[index] += total
        return {
            index: StepLosses(
                losses[index] / counts[index], kls[index] / held[index] if held[index] else None
            )
            for index in active
        }

    def _backward(
        self,
        batch: MicroBatch,
        active: Mapping[int, Trainee],
        counts: Mapping[int, int],
        held: Mapping[int, int],
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Add a micro-batch's part to the gradients; returns summed losses and KLs by trainee.

        Each trainee's gradient is that of means over the tokens of the whole step, of which there
        are ``counts`` that it learns and ``held`` at which it is held to the base, however the step
        is cut into micro-batches.
        """
        of_spans = [active[span.placed.trainee] for span in batch.spans]

        def by_token(of_span: Sequence[float], repeats: Sequence[int]) -> Tensor:
            # with its size, which a card would have to tell the host
            values = torch.tensor(of_span).repeat_interleave(
                torch.tensor(repeats), output_size=sum(repeats)
            )
            return moved(values, self._device)

        by_probability = None
        if any(trainee.learns_by_probability for trainee in of_spans):
            flags = [float(trainee.learns_by_probability) for trainee in of_spans]
            by_probability = by_token(flags, batch.loss_counts) > 0
        learned = LearnedTokens(
            rows=batch.loss_rows,
            targets=batch.targets,
            weights=by_token(
                [1.0 / counts[span.placed.trainee] for span in batch.spans], batch.loss_counts
            ),
            by_probability=by_probability,
        )
        to_base = None
        if len(batch.held_rows):
            weights = [
                trainee.kl_weight / max(held[span.placed.trainee], 1)
                for trainee, span in zip(of_spans, batch.spans, strict=True)
            ]
            to_base = HeldTokens(
                rows=batch.held_rows,
                reference=self._base_states(batch),
                weights=by_token(weights, batch.held_counts),
                left_out=batch.next_held.where(
                    by_token([float(x.masks_targets) for x in of_spans], batch.held_counts) > 0, -1
                ),
            )
        rows = (
            contextlib.nullcontext()
            if self._bank is None
            else self._bank.rows_of(pieces_of(batch, active))
        )
        with rows, torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            hidden = self._hidden(batch.input_ids, batch.layout)
            losses, kls = backward_losses(self._head, hidden, learned, to_base)
        return batch.summed(losses, batch.loss_counts), batch.summed(kls, batch.held_counts)

    def _hidden(self, input_ids: Tensor, layout: PackedLayout) -> Float[Tensor, "1 tokens hidden"]:
        """The last hidden states of packed sequences."""
        return self._model.base_model(
            input_ids=input_ids,
            position_ids=layout.position_ids(self._device),
            packed_layout=layout,
            use_cache=False,
        ).last_hidden_state

    @torch.no_grad()
    def _base_states(self, batch: MicroBatch) -> Float[Tensor, "held hidden"]:
        """The base's own last hidden states at the held rows.

        No row belongs to an adapter here, so every layer is the base's. What several trainees read
        is read once.
        """
        of_held = [span for span in batch.spans if span.placed.held]
        texts = dict.fromkeys(span.placed.example.tokens[:-1] for span in of_held)
        layout = PackedLayout(tuple(map(len, texts)))
        starts = dict(zip(texts, layout.starts, strict=True))
        input_ids = torch.tensor([[token for text in texts for token in text]])  # (1, tokens)
        states = self._hidden(input_ids.to(self._device), layout)[0]  # (tokens, hidden)
        rows = [
            starts[span.placed.example.tokens[:-1]] + row
            for span in of_held
            for row in span.placed.held
        ]
        return states[torch.tensor(rows, device=self._device)]


def pieces_of(batch: MicroBatch, trainees: Mapping[int, Trainee]) -> list[Piece]:
    """The rows of a micro-batch that belong to each adapter; ``pack`` puts them side by side."""
    spans: dict[int, list[DroppedSequence]] = {}
    for span in batch.spans:
        trainee, place = span.placed.trainee, span.placed.place
        draw = (trainees[trainee].step, place)
        spans.setdefault(trainee, []).append(DroppedSequence(span.start, span.stop, draw))
    pieces: list[Piece] = []
    for index, sequences in spans.items():
        trainee = trainees[index]
        assert isinstance(trainee, AdapterTrainee)
        start, stop = sequences[0].start, sequences[-1].stop
        pieces.append(Piece(trainee.adapter, start, stop, tuple(sequences)))
    return pieces


@contextlib.contextmanager
def _compiled(model: nn.Module, enabled: bool) -> Generator[None]:
    """Within the block, every decoder layer is compiled, without its adapters and its attention.

    All layers share their code, and dynamo counts the recompilations of one code: its limit is
    raised so that each layer can have some.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not enabled:
        yield
        return
    with torch._dynamo.config.patch(  # pyright: ignore[reportPrivateUsage]
        recompile_limit=8 * max(8, len(layers))
    ):
        try:
            for layer in layers:
                layer.compile(dynamic=True)
            yield
        finally:
            for layer in layers:
                layer._compiled_call_impl = None


@contextlib.contextmanager
def _checkpointing(model: Any, enabled: bool) -> Generator[None]:
    """Within the block, every decoder layer computes its activations again in the backward pass.

    A layer recomputes in training mode only. Its parts stay in evaluation mode, and its own dropout
    (OPT has one) is set to 0.
    """
    if not enabled:
        yield
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    before = [
        (layer, name, value)
        for layer in layers
        for name, value in vars(layer).items()
        if name == "training" or ("drop" in name and isinstance(value, float))
    ]
    try:
        for layer, name, _ in before:
            setattr(layer, name, True if name == "training" else 0.0)
        yield
    finally:
        model.gradient_checkpointing_disable()
        for layer, name, value in before:
            setattr(layer, name, value)


class Placed(NamedTuple):
    """An example of a trainee's effective batch.

    Attributes:
        trainee: its index.
        place: of the example in the batch.
        example: that is read.
        held: the tokens at which the trainee is held to the base.
    """

    trainee: int
    place: int
    example: Example
    held: range = range(0)


class Span(NamedTuple):
    """The rows ``start`` to ``stop`` (exclusive) of one sequence."""

    placed: Placed
    start: int
    stop: int


class MicroBatch(NamedTuple):
    """Sequences packed into one row, those of a trainee next to each other.

    Attributes:
        input_ids: (1, tokens) ids.
        layout: which token belongs to which sequence.
        spans: the rows of each sequence, in order.
        loss_rows: (losses,) the rows whose next token is learned, in order.
        targets: (losses,) the learned tokens.
        loss_counts: how many of the losses belong to each span.
        held_rows: (held,) the rows at which a trainee is held to the base, in order.
        next_held: (held,) the tokens after these in their sequences.
        held_counts: how many of them belong to each span.
    """

    input_ids: Int[Tensor, "1 tokens"]
    layout: PackedLayout
    spans: tuple[Span, ...]
    loss_rows: Int[Tensor, " losses"]
    targets: Int[Tensor, " losses"]
    loss_counts: tuple[int, ...]
    held_rows: Int[Tensor, " held"]
    next_held: Int[Tensor, " held"]
    held_counts: tuple[int, ...]

    def summed(self, nats: Float[Tensor, " _"], counts: Sequence[int]) -> dict[int, float]:
        """The sum of each trainee's losses, added up in float64; each span has ``counts``."""
        by_span = nats.double().cpu().split([*counts])
        sums: dict[int, float] = {}
        for span, of_span in zip(self.spans, by_span, strict=True):
            trainee = span.placed.trainee
            sums[trainee] = sums.get(trainee, 0.0) + float(of_span.sum())
        return sums


def split_by_budget(placed: Sequence[Placed], max_tokens: int) -> list[list[Placed]]:
    """Examples in groups as ``within_budget``, of equal length by place and trainee.

    Trainees that read the same example meet in one group, where attention multiplies sequences of
    one length in one batch. An example longer than the budget gets a separate group.
    """
    in_order = sorted(placed, key=lambda item: (item.place, item.trainee))
    lengths = [item.example.num_inputs for item in in_order]
    return [[in_order[index] for index in group] for group in within_budget(lengths, max_tokens)]


def pack(placed: Sequence[Placed], device: torch.device) -> MicroBatch:
    """Put examples one after the other, trainee by trainee."""
    in_order = sorted(placed, key=lambda item: (item.trainee, -item.example.num_inputs, item.place))
    ids: list[int] = []
    loss_rows: list[int] = []
    targets: list[int] = []
    held_rows: list[int] = []
    next_held: list[int] = []
    spans: list[Span] = []
    for item in in_order:
        tokens, start = item.example.tokens, len(ids)
        ids += tokens[:-1]  # the last token is only learned, never read
        first = len(ids) - item.example.num_loss_tokens  # each is one before the one it predicts
        loss_rows += range(first, len(ids))
        targets += tokens[first - start + 1 :]
        held_rows += (start + row for row in item.held)
        next_held += (tokens[row + 1] for row in item.held)
        spans.append(Span(item, start, len(ids)))

    def on_device(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long).to(device)

    return MicroBatch(
        input_ids=on_device(ids)[None],  # (1, tokens)
        layout=PackedLayout(tuple(span.stop - span.start for span in spans)),
        spans=tuple(spans),
        loss_rows=on_device(loss_rows),
        targets=on_device(targets),
        loss_counts=tuple(item.example.num_loss_tokens for item in in_order),
        held_rows=on_device(held_rows),
        next_held=on_device(next_held),
        held_counts=tuple(len(item.held) for item in in_order),
    )
