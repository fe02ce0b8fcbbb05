"""Examples of several trainees, packed into the rows of one forward and backward pass.

Of pairs of answers it has DPO's losses, and what the base says of them: that never changes, as the
base is frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from rankwise.engine.models.devices import in_smaller_steps, moved_together
from rankwise.engine.models.head import CompletionHead, LearnedTokens, token_losses
from rankwise.engine.models.lanes import num_lanes
from rankwise.engine.models.packed_attention import packed_attention, packed_states, within_budget
from rankwise.engine.models.packed_kernels import MASK_BLOCK
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.engine.models.trained_adapters import DroppedSequence, Piece
from rankwise.engine.training.terms import PairTerms, PolicyTerms
from rankwise.engine.training.trainees import AdapterTrainee, GradientShare, Trainee
from rankwise.records.config.training import TrainConfig
from rankwise.tasks.training_rows import Example, OwnText

# A beginning of this many tokens is read once for all neighbours that have it. Shorter ones are not
# worth a product of their own; on a card flash attention, which cannot share, is faster below a
# block of flex attention's mask.
_LEAST_SHARED = {"cpu": 16, "cuda": MASK_BLOCK}


class Placed(NamedTuple):
    """An example of a trainee's effective batch.

    Attributes:
        trainee: its index.
        place: of the example in the batch.
        example: that is read.
        held: the tokens at which the trainee is held to the base.
        num_shared: the first tokens of its sequences that are read once for all of them, and for
            its neighbours in the batch that have the same.
    """

    trainee: int
    place: int
    example: Example
    held: Sequence[int] = ()
    num_shared: int = 0


class PromptFamily(NamedTuple):
    """Neighbours of a trainee's batch whose first tokens are read once; mostly a single example.

    ``num_inputs`` are the tokens that are read of all.
    """

    members: tuple[Placed, ...]
    num_inputs: int

    @property
    def order(self) -> tuple[int, int, int]:
        """Trainee by trainee, the longest first."""
        first = self.members[0]
        return first.trainee, -self.num_inputs, first.place


class Span(NamedTuple):
    """The rows ``start`` to ``stop`` (exclusive) of one sequence: the ``part``-th of its example.

    What it shares with the one before it lies there.

    ``num_losses`` are those of its learned tokens; a pair has one, with its first sequence.
    """

    placed: Placed
    part: int
    start: int
    stop: int
    num_losses: int


class PackedTokens(NamedTuple):
    """Sequences one behind the other, as ``packed_states`` takes them.

    Attributes:
        input_ids: (1, tokens).
        layout: which token belongs to which sequence.
        position_ids: (1, tokens), counted from each sequence's first token.
    """

    input_ids: Int[Tensor, "1 tokens"]
    layout: PackedLayout
    position_ids: Int[Tensor, "1 tokens"]


class HeldRows(NamedTuple):
    """Where trainees are held to the base.

    Attributes:
        rows: (held,) in the micro-batch, in order.
        weights: (held,) float32, of each KL in the sum that is minimised.
        left_out: (held,) the token that neither distribution counts, -1 for none.
        texts: what the base reads; what several trainees read is there once.
        text_rows: (held,) the same tokens there.
    """

    rows: Int[Tensor, " held"]
    weights: Float[Tensor, " held"]
    left_out: Int[Tensor, " held"]
    texts: PackedTokens
    text_rows: Int[Tensor, " held"]


class MicroBatch(NamedTuple):
    """Sequences packed into one row, those of a trainee next to each other.

    Attributes:
        tokens: that are read.
        spans: the rows of each sequence, in order.
        learned: what is learned.
        held: where trainees are held to the base; None: nowhere.
        terms: the pairs, or the texts that models wrote, whose learned tokens these are; None:
            each token has a loss of its own.
    """

    tokens: PackedTokens
    spans: tuple[Span, ...]
    learned: LearnedTokens
    held: HeldRows | None
    terms: PairTerms | PolicyTerms | None

    def sums(self, nats: Float[Tensor, " _"], counts: Sequence[int]) -> dict[int, float]:
        """The sum of each trainee's losses or KLs, in float64, on the CPU.

        Each span has ``counts``. KLs from a teacher count as their text weighs.
        """
        sums: dict[int, float] = {}
        for span, of_span in zip(self.spans, nats.double().split([*counts]), strict=True):
            trainee, own = span.placed.trainee, span.placed.example.own
            weight = own.weight if own is not None and own.teacher else 1.0
            sums[trainee] = sums.get(trainee, 0.0) + weight * float(of_span.sum())
        return sums

    def of_texts(self, nats: Float[Tensor, " tokens"]) -> list[tuple[Placed, Float[Tensor, " _"]]]:
        """The losses of the tokens of each text that a model wrote; none where there are none."""
        if not len(nats):
            return []
        lengths = [span.placed.example.num_loss_tokens for span in self.spans]
        parts = nats.split(lengths)
        return [(span.placed, part) for span, part in zip(self.spans, parts, strict=True)]


def training_lanes(train: TrainConfig, device: torch.device) -> int:
    """Micro-batches of adapters that may be read side by side.

    Modules of a quantised base may have one state for all threads.
    """
    return num_lanes(device) if train.base_precision == "auto" else 1


def shared_tokens(example: Example, kind: str) -> int:
    """The first tokens of an example that it can share with others that have the same prompt.

    The prompt's last token is left out: what it predicts differs, so that each has a row of its
    own for its losses.

    Args:
        example: a pair too, if both of its answers have that prompt.
        kind: of device: ``cpu`` or ``cuda``.
    """
    places = [sequence.places for sequence in example.sequences]
    number = min((each[0] - 1 for each in places if each), default=0)
    beginnings = {sequence.tokens[:number] for sequence in example.sequences}
    return number if number >= _LEAST_SHARED[kind] and len(beginnings) == 1 else 0


def families(placed: Iterable[Placed], max_tokens: int | None = None) -> list[PromptFamily]:
    """Examples with those neighbours that begin with the same tokens, as far as they share them.

    Args:
        placed: in the order of their batches.
        max_tokens: that are read of one family, a longer example is one alone; None: any number.
    """
    found: list[PromptFamily] = []
    for item in placed:
        shared, inputs = item.num_shared, item.example.num_inputs
        inputs -= shared * (len(item.example.sequences) - 1)
        if shared and found:
            members, so_far = found[-1]
            together = so_far + inputs - shared
            fits = max_tokens is None or together <= max_tokens
            if fits and _beginning(members[0]) == _beginning(item):
                found[-1] = PromptFamily((*members, item), together)
                continue
        found.append(PromptFamily((item,), inputs))
    return found


def _beginning(item: Placed) -> tuple[int, tuple[int, ...]]:
    return item.trainee, item.example.tokens[: item.num_shared]


def shared_out(placed: Sequence[Placed], count: int) -> list[list[Placed]]:
    """Examples in up to ``count`` parts of about as many tokens, those of a trainee together.

    So a part has few trainees, each of which brings small products of its own.
    """
    in_order = sorted(families(placed), key=lambda family: family.order)
    total = sum(family.num_inputs for family in in_order)
    # a family goes where its middle token lies, so no part depends on how the others filled up
    parts: list[list[Placed]] = [[] for _ in range(count)]
    start = 0
    for family in in_order:
        middle = start + family.num_inputs / 2
        parts[int(middle * count / total)] += family.members
        start += family.num_inputs
    return [part for part in parts if part]


def split_by_budget(
    placed: Sequence[Placed], max_tokens: int, kind: str = "cpu"
) -> list[list[Placed]]:
    """Examples in groups of at most ``max_tokens``; a longer one gets a group of its own.

    On a CPU the longest come first, and those of equal length by place and trainee: trainees that
    read the same example meet in one group, where attention multiplies sequences of one length in
    one batch. On CUDA, whose attention does not care, a group has few trainees: each brings small
    products of its own, which cost their launches there.

    Args:
        placed: the examples of a step.
        max_tokens: read in one group.
        kind: of device: ``cpu`` or ``cuda``.
    """

    def order(family: PromptFamily) -> tuple[int, int, int]:
        trainee, longest, place = family.order
        return (trainee, longest, place) if kind == "cuda" else (longest, place, trainee)

    in_order = sorted(families(placed, max_tokens), key=order)
    lengths = [family.num_inputs for family in in_order]
    groups = within_budget(lengths, max_tokens, range(len(lengths)))
    return [[item for i in group for item in in_order[i].members] for group in groups]


def pack(
    placed: Sequence[Placed], shares: Mapping[int, GradientShare], device: torch.device
) -> MicroBatch:
    """Put examples one after the other, trainee by trainee, and everything on the device at once.

    A pair whose prompt is p q, with the chosen answer c d and the rejected answer r, becomes five
    rows: the last token of a sequence is only predicted. ::

        row          0  1  2    3  4
        input_ids    p  q  c    p  q
        position     0  1  2    0  1     counted anew; attention keeps the spans apart
        predicts     q  c  d    q  r
        loss_rows       1  2       4     the row before each learned token
        targets         c  d       r
        spans        0 to 3     3 to 5   parts 0 and 1 of the example
        counts       2          1        base_nats has a number for each of both

    An example that is no pair is its first span alone. Where a prompt of p q r is shared by both
    answers, its last token begins each: the rows are p q r c r, at 0 1 2 3 2.

    Where a trainee is held to the base, ``held_rows`` are the rows of its KLs, and the base reads
    the same sequences once for all trainees: ``text_rows`` are these tokens there. A teacher reads
    what it is asked in place of the prompt, and nothing but its KLs is learned.

    Args:
        placed: at least one.
        shares: of each trainee.
        device: that trains.
    """
    in_families = sorted(families(placed), key=lambda family: family.order)
    in_order = [item for family in in_families for item in family.members]
    sequences = [(item, each) for item in in_order for each in enumerate(item.example.sequences)]
    shared = _shared(in_families)
    spans: list[Span] = []
    loss_rows: list[int] = []
    targets: list[int] = []
    held_rows: list[int] = []
    left_out: list[int] = []
    counts: list[int] = []
    start = 0
    for (item, (part, sequence)), above in zip(sequences, shared, strict=True):
        tokens, stop = sequence.tokens, start + sequence.num_inputs - above
        first = start - above  # where the sequence would begin if all of it were here
        places = () if _teacher(sequence) else sequence.places
        loss_rows += (first + place - 1 for place in places)  # one before what it predicts
        targets += (tokens[place] for place in places)
        counts.append(len(places))
        held_rows += (first + row for row in item.held)
        masks = shares[item.trainee].masks_targets
        left_out += (tokens[row + 1] if masks else -1 for row in item.held)
        spans.append(Span(item, part, start, stop, _num_losses(item, part, len(places))))
        start = stop
    # the last token is only learned
    read = [x.tokens[above:-1] for (_, (_, x)), above in zip(sequences, shared, strict=True)]
    held_by = [item.held for item, _ in sequences]
    texts, text_rows = _held_texts([sequence for _, (_, sequence) in sequences], held_by)
    integers = {
        "ids": [*chain.from_iterable(read)],
        "positions": _positions(read, shared),
        "loss_rows": loss_rows,
        "targets": targets,
        "held_rows": held_rows,
        "left_out": left_out,
        "text_ids": [*chain.from_iterable(texts)],
        "text_positions": _positions(texts),
        "text_rows": text_rows,
        "counts": counts,
    }
    weights, kl_weights = (
        np.array(each, np.float32)
        for each in zip(*(_weights(shares[x.trainee], s) for x, (_, s) in sequences), strict=True)
    )
    arrays = {name: np.array(numbers, np.int64) for name, numbers in integers.items()}
    arrays |= {
        "weights": weights.repeat(counts),
        "kl_weights": kl_weights.repeat([len(held) for held in held_by]),
        **_pair_arrays(in_order, shares),
        **_text_arrays(in_order, counts),
    }
    of = dict(zip(arrays, moved_together([*arrays.values()], device), strict=True))
    learned = LearnedTokens(of["loss_rows"], of["targets"], of["weights"])
    tokens = _packed(of["ids"], of["positions"], read, shared)
    return MicroBatch(tokens, tuple(spans), learned, _held(of, texts), _terms(in_order, of))


def _num_losses(item: Placed, part: int, num_learned: int) -> int:
    """Of a sequence: a pair and a text that a model wrote have one, the others one a token."""
    if item.example.rejected is not None:
        return 1 - part
    return num_learned if item.example.own is None else min(num_learned, 1)


def _held(of: Mapping[str, Tensor], texts: Sequence[Sequence[int]]) -> HeldRows | None:
    """Where trainees are held, from the arrays on the device; nowhere without texts."""
    if not texts:
        return None
    read = _packed(of["text_ids"], of["text_positions"], texts)
    return HeldRows(of["held_rows"], of["kl_weights"], of["left_out"], read, of["text_rows"])


def _shared(in_families: Sequence[PromptFamily]) -> tuple[int, ...]:
    """Of each sequence, how many of its first tokens are read with one before it."""
    shared: list[int] = []
    for family in in_families:
        counts = [item.num_shared for item in family.members for _ in item.example.sequences]
        shared += (0, *counts[1:])
    return tuple(shared)


def _held_texts(
    sequences: Sequence[Example], held_by: Sequence[Sequence[int]]
) -> tuple[list[tuple[int, ...]], list[int]]:
    """What the base or a teacher reads, each text once, and the rows there of the held tokens."""
    as_held = [sequence.as_held for sequence in sequences]
    texts = dict.fromkeys(text for (text, _), held in zip(as_held, held_by, strict=True) if held)
    starts = dict(zip(texts, accumulate(map(len, texts), initial=0), strict=False))
    rows = [
        starts[text] + further + row
        for (text, further), held in zip(as_held, held_by, strict=True)
        for row in held
    ]
    return [*texts], rows


def _weights(share: GradientShare, sequence: Example) -> tuple[float, float]:
    """Of the loss of each learned token of a sequence, and of each KL."""
    taught = _teacher(sequence)
    return share.of_loss, share.of_kl if taught is None else taught.weight


def _pair_arrays(
    in_order: Sequence[Placed], shares: Mapping[int, GradientShare]
) -> dict[str, NDArray[np.float32]]:
    """What ``PairTerms`` has of each example."""
    of = [shares[item.trainee] for item in in_order]
    return {
        "pair_weights": np.array([share.of_loss for share in of], np.float32),
        "chosen_weights": np.array([share.of_chosen for share in of], np.float32),
        "base_nats": np.array([item.example.base_nats or () for item in in_order], np.float32),
    }


def _text_arrays(
    in_order: Sequence[Placed], counts: Sequence[int]
) -> dict[str, NDArray[np.float32]]:
    """What ``PolicyTerms`` has of each text that a model wrote, and of its tokens."""
    of = [item.example.own for item in in_order if item.example.own is not None]
    return {
        "advantages": np.array([text.advantage for text in of], np.float32),
        "text_weights": np.array([text.weight for text in of], np.float32),
        "old_nats": _of_tokens([text.old_nats for text in of], counts),
        "texts_base_nats": _of_tokens([text.base_nats for text in of], counts),
    }


def _terms(in_order: Sequence[Placed], of: Mapping[str, Tensor]) -> PairTerms | PolicyTerms | None:
    """The losses of whole texts, from the arrays on the device; all examples are of one kind."""
    first = in_order[0].example
    if first.rejected is not None:
        names = ("counts", "base_nats", "pair_weights", "chosen_weights")
        return PairTerms(*(of[name] for name in names))
    if first.own is None or first.own.teacher:
        return None
    written = [item.example.own for item in in_order if item.example.own is not None]
    return PolicyTerms(
        of["counts"],
        of["advantages"],
        of["text_weights"],
        of["old_nats"],
        of["texts_base_nats"] if any(text.base_nats for text in written) else None,
        are_new=not any(text.old_nats for text in written),
    )


def _teacher(sequence: Example) -> OwnText | None:
    """What is learned from a text that has a teacher."""
    own = sequence.own
    return own if own is not None and own.teacher else None


def _of_tokens(nats: Sequence[Sequence[float]], counts: Sequence[int]) -> NDArray[np.float32]:
    """The numbers of each text's tokens; not a number where a text has none."""
    missing = float("nan")
    parts = [each or [missing] * count for each, count in zip(nats, counts, strict=False)]
    return np.array([*chain.from_iterable(parts)], np.float32)


def _packed(
    ids: Tensor,
    positions: Tensor,
    sequences: Iterable[Sequence[int]],
    shared: tuple[int, ...] = (),
) -> PackedTokens:
    layout = PackedLayout(tuple(len(sequence) for sequence in sequences), shared)
    return PackedTokens(ids[None], layout, positions[None])  # both (1, tokens)


def _positions(sequences: Sequence[Sequence[int]], shared: Sequence[int] = ()) -> list[int]:
    """Counted from each sequence's first token, which may be one that it shares."""
    firsts = shared or (0,) * len(sequences)
    return [
        place
        for sequence, first in zip(sequences, firsts, strict=True)
        for place in range(first, first + len(sequence))
    ]


def pieces_of(batch: MicroBatch, trainees: Mapping[int, Trainee]) -> list[Piece]:
    """The rows of a micro-batch that belong to each adapter; ``pack`` puts them side by side."""
    spans: dict[int, list[DroppedSequence]] = {}
    for span in batch.spans:
        trainee, place = span.placed.trainee, span.placed.place
        draw = (trainees[trainee].step, place)
        if span.part:  # the second answer of a pair is dropped apart from the first
            draw = (*draw, span.part)
        spans.setdefault(trainee, []).append(DroppedSequence(span.start, span.stop, draw))
    pieces: list[Piece] = []
    for index, sequences in spans.items():
        trainee = trainees[index]
        assert isinstance(trainee, AdapterTrainee)
        start, stop = sequences[0].start, sequences[-1].stop
        pieces.append(Piece(trainee.adapter, start, stop, tuple(sequences)))
    return pieces


def base_readings(
    model: Any, examples: Iterable[Example], *, max_tokens: int, autocast: bool = False
) -> dict[Example, Example]:
    """Each pair -> the same with what the model, which is the base still, says of both answers.

    Each is read once for all runs, epochs and seeds of a pass, before these begin.

    Args:
        model: without any adapter.
        examples: pairs; of equal ones, one is read.
        max_tokens: read at once; halved when memory runs out.
        autocast: to bfloat16, as float32 weights are trained.

    Raises:
        torch.OutOfMemoryError: a single pair does not fit (MemoryError, RuntimeError on a CPU).
    """
    found: dict[Example, Example] = {}
    head = CompletionHead(model)
    reads = read_losses(model, head, examples, max_tokens=max_tokens, autocast=autocast)
    for batch, nats in reads:
        assert isinstance(batch.terms, PairTerms)
        likelihoods = batch.terms.log_likelihoods(nats).tolist()
        own = [span.placed.example for span in batch.spans if span.part == 0]
        for pair, (chosen, rejected) in zip(own, likelihoods, strict=True):
            found[pair] = pair._replace(base_nats=(chosen, rejected))
    return found


@torch.no_grad()
def read_losses(
    model: Any,
    head: CompletionHead,
    examples: Iterable[Example],
    *,
    max_tokens: int,
    autocast: bool = False,
) -> list[tuple[MicroBatch, Float[Tensor, " tokens"]]]:
    """The losses of the learned tokens of examples, which are read without any adapter.

    Args:
        model: read as it is.
        head: of it.
        examples: of equal ones, one is read.
        max_tokens: read at once; halved when memory runs out.
        autocast: to bfloat16, as float32 weights are trained.

    Raises:
        torch.OutOfMemoryError: a single one does not fit (MemoryError, RuntimeError on a CPU).
    """
    device: torch.device = next(model.parameters()).device
    placed = [
        Placed(0, place, one, num_shared=shared_tokens(one, device.type))
        # what begins alike stands together
        for place, one in enumerate(sorted(dict.fromkeys(examples), key=lambda one: one.tokens))
    ]
    least = max((item.example.num_inputs for item in placed), default=1)

    def shrink() -> bool:
        nonlocal max_tokens
        can, max_tokens = max_tokens > least, max_tokens // 2
        return can

    def read() -> list[tuple[MicroBatch, Tensor]]:
        done: list[tuple[MicroBatch, Tensor]] = []
        for group in split_by_budget(placed, max_tokens, device.type):
            batch = pack(group, {0: GradientShare(1.0)}, device)
            hidden, learned = packed_states(model.base_model, *batch.tokens), batch.learned
            done.append((batch, token_losses(head, hidden[0, learned.rows], learned.targets)))
        return done

    with packed_attention(model), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        return in_smaller_steps(lambda _: read(), shrink, lambda _: None, device)
