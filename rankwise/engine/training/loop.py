"""Train many adapters in one pass over one frozen base, or every weight of a model.

Each trainee goes through its own examples in its own order: an optimizer step sees exactly
``batch_size * gradient_accumulation_steps`` of them, and its loss is the mean over their learned
tokens, as transformers' Trainer averages it. How these examples are cut into micro-batches, and
which other trainees' examples share one, changes nothing beyond rounding.

Under DPO an example is a pair of answers. Both are in one micro-batch, and the mean is over pairs.

A trainee may be held to the base: the mean of KL(base || adapted) at some tokens is then added to
its loss. The base reads these in the same pass, with no adapter on their rows.

Where trainees learn from their own texts, each step begins with these: all trainees write together
(``TextWriter``), and what each has written is then an example like others, with a weight for each
token, or with a teacher that it is held to.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.engine.models.attention import decoder_layers
from rankwise.engine.models.devices import PeakMemory, ResolvedPrecision, in_smaller_steps
from rankwise.engine.models.head import CompletionHead, HeldTokens, backward_losses, token_losses
from rankwise.engine.models.lanes import Lanes, lanes_within, opened, twin
from rankwise.engine.models.packed_attention import check_packable, packed_attention, packed_states
from rankwise.engine.models.packed_kernels import flex_failed
from rankwise.engine.models.placed import devices_of
from rankwise.engine.models.trained_adapters import Adapter, AdapterBank
from rankwise.engine.training.liger import liger_kernels
from rankwise.engine.training.micro_batches import (
    MicroBatch,
    Placed,
    pack,
    pieces_of,
    shared_out,
    shared_tokens,
    split_by_budget,
)
from rankwise.engine.training.terms import PolicyTerms
from rankwise.engine.training.trainees import (
    AdapterTrainee,
    GradientShare,
    StepGradients,
    StepMetrics,
    Trainee,
)
from rankwise.engine.training.written import summary
from rankwise.errors import DivergedError, RewardError
from rankwise.records.config.objectives import GrpoConfig, WrittenConfig
from rankwise.records.config.training import TrainConfig
from rankwise.records.study import LearnedTexts

# Good steps after which a larger micro-batch is tried again: where that fails, a step is taken
# twice, 2 % of them.
_GOOD_STEPS = 50


class TrainingResult(NamedTuple):
    """The result of training one run.

    ``train_seconds`` is its share, by tokens, of the time of its pass; ``peak_memory_bytes`` is
    that of the whole pass so far, and ``peak_reserved_bytes`` what PyTorch held of the card for it
    (None on a CPU). ``kernels`` is the package whose kernels it used; None: torch's own.
    ``learned_texts`` are those that it wrote itself; None: it learned from given ones.
    """

    num_steps: int
    num_tokens: int
    num_loss_tokens: int
    first_loss_nats: float
    final_loss_nats: float
    train_seconds: float
    peak_memory_bytes: int
    peak_reserved_bytes: int | None
    kernels: str | None
    learned_texts: LearnedTexts | None


@runtime_checkable
class PassObserver(Protocol):
    """Is notified of the progress of a pass."""

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
        """A trainee has taken a step."""
        ...

    def reached(self, trainee: Trainee, result: TrainingResult) -> None:
        """A trainee is at one of its marks, or at its end; save its weights now."""
        ...

    def dropped(self, trainee: Trainee, error: DivergedError | RewardError) -> None:
        """A trainee has diverged, or its texts cannot be rewarded; the others continue."""
        ...

    def shrunk(self, max_tokens: int) -> None:
        """Memory ran out; from now on micro-batches have at most ``max_tokens`` tokens."""
        ...


@runtime_checkable
class TextWriter(Protocol):
    """Writes what trainees learn from, at the beginning of a step.

    Attributes:
        settings: how texts are written.
        other: the model that trainees are held to and its head, where it is not the base without
            adapters.
        is_reverse: KL(model || other) is taken.
    """

    settings: WrittenConfig
    other: tuple[Any, CompletionHead] | None
    is_reverse: bool

    def write(self, trainees: Sequence[Trainee]) -> Mapping[Trainee, RewardError]:
        """Give ``written`` to those that have none; those that cannot have any, and why."""
        ...


def num_optimizer_steps(num_examples: int, config: TrainConfig, epochs: int) -> int:
    """Steps over all epochs; the last step of an epoch may have fewer examples."""
    per_step = config.batch_size * config.gradient_accumulation_steps
    return math.ceil(num_examples / per_step) * config.num_iterations * epochs


def train_pass(
    model: nn.Module,
    trainees: Sequence[Trainee],
    *,
    bank: AdapterBank | None,
    max_tokens: int,
    precision: ResolvedPrecision,
    gradient_checkpointing: bool,
    observer: PassObserver,
    max_lanes: int = 1,
    writer: TextWriter | None = None,
) -> None:
    """Take all remaining steps of every trainee, until its last mark.

    Args:
        model: the frozen base with the bank's layers in it; or the model whose weights are trained.
        trainees: adapters, in any mix of rank, seed, data and number of steps; or one full model.
        bank: of the adapters; None when the model's own weights are trained.
        max_tokens: read at once. It is halved when memory runs out, and the step is
            taken again; only a single example that does not fit ends the pass. After some good
            steps it is doubled again.
        precision: of the matrix products when a model's float32 weights are trained.
        gradient_checkpointing: compute a layer's activations again instead of keeping them.
        observer: is notified of every step.
        max_lanes: micro-batches of adapters that are read side by side, on a CPU; they share
            ``max_tokens`` (``lanes_within``). Of a full model one is read at a time: gathering the
            gradient of every weight twice costs more than is won.
        writer: writes the texts of trainees that learn from their own; None: there are none.

    Raises:
        ModelError: the model cannot read packed sequences.
        torch.OutOfMemoryError: a single example does not fit (MemoryError, RuntimeError on a CPU).
    """
    autocast = bank is None and precision == "bfloat16"
    device: torch.device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        check_packable(model)
    adapters = [each.adapter for each in trainees if isinstance(each, AdapterTrainee)]
    other = None if writer is None or writer.other is None else writer.other[0]
    count = 1
    if bank is not None:
        bank.stack(adapters)
        examples = (one for each in trainees for batch in each.batches for one in batch)
        longest = max((example.num_inputs for example in examples), default=1)
        count = lanes_within(max_tokens, longest, max_lanes)
    with (
        liger_kernels(model, enabled=bank is not None) as kernels,
        packed_attention(model),
        contextlib.nullcontext() if other is None else packed_attention(other),
        _checkpointing(model) if gradient_checkpointing else contextlib.nullcontext(),
        opened(count) as threads,
    ):
        lanes = [_Lane(model, bank, autocast, (), writer)]
        for _ in range(count - 1):
            lanes.append(_Lane(*twin(model, bank), autocast, adapters, writer))
        budget, memory = _Budget(max_tokens), PeakMemory(*devices_of(model))
        with memory.measured():
            _RunningPass(
                trainees, lanes, threads, budget, observer, kernels, memory, device, writer
            ).run()


class _Budget:
    """How many tokens a micro-batch may read.

    The budget is halved when memory runs out. Other programs, or pieces of free memory that do not
    fit together, may have been the reason, so twice as much is tried after some good steps; each
    time that fails, twice as many steps have to be good.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = self._planned = max_tokens
        self._wait, self._good, self._has_grown = _GOOD_STEPS, 0, False

    def shrink(self, least: int) -> bool:
        """Halve it, not below ``least``; False where it is no more than that already."""
        if self.max_tokens <= least:
            return False
        if self._has_grown:
            self._wait *= 2
        self.max_tokens = max(self.max_tokens // 2, least)
        self._good, self._has_grown = 0, False
        return True

    def stepped(self) -> None:
        """A step was good."""
        self._good += 1
        if self._good >= self._wait and self.max_tokens < self._planned:
            self.max_tokens = min(2 * self.max_tokens, self._planned)
            self._good, self._has_grown = 0, True


@dataclass(frozen=True, eq=False)
class _RunningPass:
    trainees: Sequence[Trainee]
    lanes: Sequence[_Lane]
    threads: Lanes
    budget: _Budget
    observer: PassObserver
    kernels: str | None
    memory: PeakMemory
    device: torch.device
    writer: TextWriter | None

    def run(self) -> None:
        active: dict[int, Trainee] = {}
        for index, trainee in enumerate(self.trainees):
            if trainee.is_marked:  # it was interrupted between a step and its record
                self.observer.reached(trainee, self._result(trainee))
            if not trainee.is_finished:
                active[index] = trainee
        while active:
            self._step(active)

    def _step(self, active: dict[int, Trainee]) -> None:
        """One step of every active trainee; those that finish or diverge leave ``active``."""
        started = time.perf_counter()
        self._write(active)
        if not active:
            return
        gathered = self._gathered(active)
        num_read = {index: trainee.num_read for index, trainee in active.items()}
        stepped: list[tuple[Trainee, StepMetrics]] = []
        for index, trainee in list(active.items()):
            try:
                taken = trainee.take_step(gathered[index], vocab_size=self.lanes[0].head.vocab_size)
                stepped.append((trainee, taken))
            except DivergedError as error:
                del active[index]
                self.observer.dropped(trainee, error)
        seconds = time.perf_counter() - started
        for index, count in num_read.items():
            self.trainees[index].seconds += seconds * count / sum(num_read.values())
        for trainee, metrics in stepped:
            self.observer.stepped(trainee, metrics)
            if trainee.is_marked:
                self.observer.reached(trainee, self._result(trainee))
        for index in [index for index, trainee in active.items() if trainee.is_finished]:
            del active[index]

    def _write(self, active: dict[int, Trainee]) -> None:
        """Let trainees write what they learn from; those whose rewards fail leave ``active``."""
        if self.writer is None:
            return
        for trainee, error in self.writer.write([*active.values()]).items():
            del active[next(index for index, each in active.items() if each is trainee)]
            self.observer.dropped(trainee, error)

    def _result(self, trainee: Trainee) -> TrainingResult:
        first, last = trainee.metrics[0], trainee.metrics[-1]
        return TrainingResult(
            num_steps=trainee.step,
            num_tokens=last.num_tokens,
            num_loss_tokens=trainee.num_learned,
            first_loss_nats=first.loss_nats,
            final_loss_nats=last.loss_nats,
            train_seconds=trainee.seconds,
            peak_memory_bytes=self.memory.so_far(),
            peak_reserved_bytes=self.memory.reserved_so_far(),
            kernels=self.kernels,
            learned_texts=summary(
                [line.texts for line in trainee.metrics if line.texts is not None],
                trainee.num_iterations,
            ),
        )

    def _gathered(self, active: Mapping[int, Trainee]) -> dict[int, StepGradients]:
        """Gather the gradients of each trainee's next step."""
        kind = self.device.type
        placed = [
            Placed(index, place, example, trainee.held_rows(example), shared)
            for index, trainee in active.items()
            for place, example in enumerate(trainee.batch)
            for shared in (shared_tokens(example, kind) if trainee.shares_prompts else 0,)
        ]

        def shrink() -> bool:
            least = max(item.example.num_inputs for item in placed)
            if not self.budget.shrink(least):
                return False
            self._clear(active.values())
            self.observer.shrunk(self.budget.max_tokens)
            return True

        def gather(_: Callable[[int], None]) -> dict[int, StepGradients]:
            while True:
                try:
                    return self._gather(active, placed)
                except Exception as error:
                    if not flex_failed(error):
                        raise
                self._clear(active.values())

        found = in_smaller_steps(gather, shrink, lambda _: None, self.device)
        self.budget.stepped()
        return found

    def _gather(
        self, active: Mapping[int, Trainee], placed: Sequence[Placed]
    ) -> dict[int, StepGradients]:
        """Gradients and losses of a step of all trainees together.

        Kernels multiply what a token does not see by zero, which lets NaN and infinity of one
        trainee through to others. If there is any, each trainee is gathered again alone.
        """
        found = self._gather_together(active, placed)
        if len(active) == 1 or all(math.isfinite(x.loss_nats + x.norm) for x in found.values()):
            return found
        for index, trainee in active.items():
            self._clear([trainee])
            of_trainee = [item for item in placed if item.trainee == index]
            found |= self._gather_together({index: trainee}, of_trainee)
        return found

    def _gather_together(
        self, active: Mapping[int, Trainee], placed: Sequence[Placed]
    ) -> dict[int, StepGradients]:
        """Gather the gradients of these trainees.

        Losses and norms are read from the device once, at the end.
        """
        counts = {index: trainee.num_losses for index, trainee in active.items()}
        held = dict.fromkeys(active, 0)
        for item in placed:
            held[item.trainee] += len(item.held)
        shares = {index: trainee.share(held[index]) for index, trainee in active.items()}
        done = self._read(active, placed, shares)
        norms = [trainee.finish_gradients().to(self.device) for trainee in active.values()]
        nats = [part for _, read in done for part in read]
        of_batches = iter(torch.cat(nats).cpu().split([len(part) for part in nats]))
        sums, kl_sums = (dict.fromkeys(active, 0.0) for _ in range(2))
        of_texts: dict[int, dict[int, list[float]]] = {index: {} for index in active}
        for batch, _ in done:
            num_losses = [span.num_losses for span in batch.spans]
            num_held = [len(span.placed.held) for span in batch.spans]
            for totals, numbers in ((sums, num_losses), (kl_sums, num_held)):
                for index, total in batch.sums(next(of_batches), numbers).items():
                    totals[index] += total
            for item, losses in batch.of_texts(next(of_batches)):
                of_texts[item.trainee][item.place] = losses.tolist()
        found: dict[int, StepGradients] = {}
        for index, norm in zip(active, torch.stack(norms).tolist(), strict=True):
            loss, kl = sums[index] / counts[index], None
            if active[index].is_taught:  # KLs from a teacher are the loss itself, and come weighted
                loss = kl_sums[index]
            elif held[index]:
                kl = kl_sums[index] / held[index]
            active[index].texts_read(of_texts[index])
            found[index] = StepGradients(loss, kl, norm)
        return found

    def _read(
        self,
        active: Mapping[int, Trainee],
        placed: Sequence[Placed],
        shares: Mapping[int, GradientShare],
    ) -> list[tuple[MicroBatch, BatchLosses]]:
        """Gather the gradients of these examples; returns the micro-batches with their losses.

        Which lane reads an example, and the order in which lanes' gradients are added, depend on
        the examples alone: the result is the same however fast each lane is.
        """
        max_tokens, kind = self.budget.max_tokens, self.device.type
        longest = max(item.example.num_inputs for item in placed)
        count = lanes_within(max_tokens, longest, len(self.lanes))

        def of_lane(
            part: tuple[_Lane, list[Placed]], _: Callable[[int], None]
        ) -> list[tuple[MicroBatch, BatchLosses]]:
            lane, items = part
            groups = split_by_budget(items, max_tokens // count, kind)
            batches = (pack(group, shares, self.device) for group in groups)
            return [(batch, lane.backward(batch, active)) for batch in batches]

        parts = [*zip(self.lanes, shared_out(placed, count), strict=False)]
        done = self.threads.map(of_lane, parts)
        for lane in self.lanes:
            lane.hand_over()
        return [*itertools.chain(*done)]

    def _clear(self, trainees: Iterable[Trainee]) -> None:
        """Discard what was gathered for the next step of these, and whatever lanes hold."""
        for trainee in trainees:
            trainee.clear_gradients()
        for lane in self.lanes:
            lane.clear()


class BatchLosses(NamedTuple):
    """What the gradients of a micro-batch come from, in nats.

    Attributes:
        losses: (losses,) of tokens, pairs, or texts.
        kls: (held,) from the model that trainees are held to.
        of_tokens: (tokens,) the losses of the tokens of texts that models wrote; else empty.
    """

    losses: Float[Tensor, " losses"]
    kls: Float[Tensor, " held"]
    of_tokens: Float[Tensor, " tokens"]


class _Lane:
    """The model and its trainees, on a thread.

    One beside that of the call has other modules over the same base, and twins of the trainees'
    adapters, with gradients of their own.
    """

    def __init__(
        self,
        model: Any,
        bank: AdapterBank | None,
        autocast: bool,
        twins_of: Sequence[Adapter],
        writer: TextWriter | None,
    ) -> None:
        temperature = 1.0 if writer is None else writer.settings.temperature
        self._decoder, self.head = model.base_model, CompletionHead(model, temperature)
        self._bank, self._autocast = bank, autocast
        self._device: torch.device = next(model.parameters()).device
        self._twins = {adapter: adapter.twin() for adapter in twins_of}
        # whom trainees are held to: the base without the bank's adapters, or another model
        self._other, self._other_head, self._is_reverse = self._decoder, self.head, False
        if writer is not None:
            self._is_reverse = writer.is_reverse
            if writer.other is not None:
                model, self._other_head = writer.other
                self._other = model.base_model

    def backward(self, batch: MicroBatch, active: Mapping[int, Trainee]) -> BatchLosses:
        """Add a micro-batch's part to the gradients; returns its losses, on the device."""
        held, to_other = batch.held, None
        if held is not None:
            with torch.no_grad():  # (held, hidden)
                states = packed_states(self._other, *held.texts)[0][held.text_rows]
            of_held = held.weights, held.left_out, self._other_head, self._is_reverse
            to_other = HeldTokens(held.rows, states, *of_held)
        rows = contextlib.nullcontext()
        if self._bank is not None:
            pieces = pieces_of(batch, active)
            if self._twins:
                pieces = [each._replace(adapter=self._twins[each.adapter]) for each in pieces]
            rows = self._bank.rows_of(pieces)
        with rows, torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            hidden, learned = packed_states(self._decoder, *batch.tokens), batch.learned
            terms, nothing = batch.terms, torch.empty(0, device=self._device)
            if terms is None:
                return BatchLosses(*backward_losses(self.head, hidden, learned, to_other), nothing)
            trainee = active[batch.spans[0].placed.trainee]
            if isinstance(terms, PolicyTerms) and terms.are_new and terms.base_nats is None:
                weights = terms.new_weights()
                known = learned._replace(weights=weights)
                nats, kls = backward_losses(self.head, hidden, known, to_other)
                assert isinstance(trainee.own, GrpoConfig)
                return BatchLosses(terms.losses(nats, trainee.own)[0], kls, nats)
            # what a token weighs depends on the whole text: its losses are read first
            nats = token_losses(self.head, hidden.detach()[0, learned.rows], learned.targets)
            if isinstance(terms, PolicyTerms):
                assert isinstance(trainee.own, GrpoConfig)
                losses, weights = terms.losses(nats, trainee.own)
            else:
                assert trainee.dpo is not None
                losses, weights = terms.losses(nats, trainee.dpo)
            known = learned._replace(weights=weights)
            _, kls = backward_losses(self.head, hidden, known, to_other)
            return BatchLosses(losses, kls, nats if isinstance(terms, PolicyTerms) else nothing)

    def hand_over(self) -> None:
        """Add the gradients that this lane gathered beside the trainees' own to these."""
        for adapter, beside in self._twins.items():
            adapter.add_gradients(beside)
        self.clear()

    def clear(self) -> None:
        """Discard them."""
        for beside in self._twins.values():
            beside.clear_gradients()


@contextlib.contextmanager
def _checkpointing(model: Any) -> Generator[None]:
    """Within the block, every decoder layer computes its activations again in the backward pass.

    A layer recomputes in training mode only. Its parts stay in evaluation mode, and its own dropout
    (OPT has one) is set to 0.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    before = [
        (layer, name, value)
        for layer in decoder_layers(model).values()
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
