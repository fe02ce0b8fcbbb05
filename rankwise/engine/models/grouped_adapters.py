"""LoRA products of many adapters at once, where torch multiplies groups of rows by one kernel.

The factors of adapters whose rows are neighbours lie in one tensor for each layer, a *stack*, and
lower ranks are filled up with zeros. Elsewhere ``trained_adapters`` goes from adapter to adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from rankwise.engine.models.devices import moved

if TYPE_CHECKING:
    from rankwise.engine.models.trained_adapters import Adapter, Piece

# The highest rank of a stack over the lowest: what fills up is multiplied and held too.
_MOST_PADDING = 4
# Bytes of gradients that wait to be added to the float32 ones: a few layers' launches in one.
_WAITING_BYTES = 2**26
# Major versions of compute capability for which torch has a kernel: H100 and B200. On others it
# loops over the groups, and waits for the card to read where they end.
_CARDS = (9, 10)


def has_grouped_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's ``grouped_mm`` is one kernel there."""
    return (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and hasattr(functional, "grouped_mm")
        and torch.version.hip is None
        and sys.platform != "win32"
        and torch.cuda.get_device_capability(device)[0] in _CARDS
    )


class StackedFactors(NamedTuple):
    """The factors of a layer, of all adapters of a stack; lora_B times the adapter's scaling."""

    lora_A: Float[Tensor, "adapters rank in_features"]
    lora_B: Float[Tensor, "adapters out_features rank"]


class AdapterStack:
    """Adapters of the same layers, whose copies become views of the stack's tensors.

    Attributes:
        adapters: in the order in which their rows come.
        layers: the factors by the layer's name.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = tuple(adapters)
        self.layers: dict[str, StackedFactors] = {}
        ranks = [_copied_rank(adapter) for adapter in adapters]
        for name, (lora_A, lora_B) in adapters[0].copies.items():
            sizes = (len(ranks), max(ranks))
            self.layers[name] = StackedFactors(
                lora_A.new_zeros((*sizes, lora_A.shape[1])),
                lora_B.new_zeros((sizes[0], len(lora_B), sizes[1])),
            )
        for number, adapter in enumerate(adapters):
            adapter.lie_in({n: (A[number], B[number]) for n, (A, B) in self.layers.items()})


class StackRows(NamedTuple):
    """The rows ``start`` to ``stop`` (exclusive) of a batch, which belong to a stack's adapters.

    Attributes:
        stack: of the adapters.
        start: the first row; ``stop`` is the one after the last.
        stop: see ``start``.
        ends: (adapters,) behind the last row of each adapter, counted from ``start``.
        present: numbers of the adapters that have rows.
    """

    stack: AdapterStack
    start: int
    stop: int
    ends: Int[Tensor, " adapters"]
    present: tuple[int, ...]


def stacked(adapters: Sequence[Adapter]) -> tuple[AdapterStack, ...]:
    """Stacks of neighbouring adapters of similar rank; none if any has to be multiplied alone."""
    if len(adapters) < 2 or not all(map(_fits, adapters)):
        return ()
    runs: list[list[Adapter]] = []
    for adapter in adapters:
        ranks = [_copied_rank(each) for each in (*(runs[-1] if runs else ()), adapter)]
        if (
            runs
            and max(ranks) <= _MOST_PADDING * min(ranks)
            and runs[-1][0].copies.keys() == adapter.copies.keys()
        ):
            runs[-1].append(adapter)
        else:
            runs.append([adapter])
    return tuple(map(AdapterStack, runs))


def _copied_rank(adapter: Adapter) -> int:
    return len(next(iter(adapter.copies.values()))[0])


def _fits(adapter: Adapter) -> bool:
    """Whether it can lie in a stack: one card, no dropout, its factors alone, whole vectors."""
    factors = [factor for pair in adapter.copies.values() for factor in pair]
    return (
        has_grouped_products(factors[0].device, factors[0].dtype)
        and len({factor.device for factor in factors}) == 1
        and adapter.dropout == 0
        and adapter.is_plain
        and all(size % 8 == 0 for factor in factors for size in factor.shape)
    )


def rows_of_stacks(
    stacks: Sequence[AdapterStack], pieces: Sequence[Piece]
) -> tuple[StackRows, ...]:
    """Which rows belong to which stack; none where the pieces are not those of stacks, in order."""
    of_adapters = {piece.adapter: piece for piece in pieces}
    rows: list[StackRows] = []
    place = 0
    for stack in stacks:
        start, ends, present = place, list[int](), list[int]()
        for number, adapter in enumerate(stack.adapters):
            if (piece := of_adapters.get(adapter)) is not None:
                if piece.start != place:
                    return ()
                place = piece.stop
                present.append(number)
            ends.append(place - start)
        if present:
            device = next(iter(stack.layers.values())).lora_A.device
            moved_ends = moved(torch.tensor(ends, dtype=torch.int32), device)
            rows.append(StackRows(stack, start, place, moved_ends, tuple(present)))
    num_placed = sum(len(each.present) for each in rows)
    return tuple(rows) if num_placed == len(pieces) else ()


class WaitingGradients:
    """Gradients in half precision, which are added to float32 ones: many by one kernel."""

    def __init__(self) -> None:
        self._into: list[Tensor] = []
        self._parts: list[Tensor] = []
        self._scalings: list[float] = []
        self._bytes = 0

    def add(self, into: Tensor, part: Tensor, scaling: float = 1.0) -> None:
        """``into`` gets scaling * part, or the part's first rows and columns, by ``flush``."""
        if part.shape[1] > into.shape[1]:
            part = part[:, : into.shape[1]].float()
        self._into.append(into)
        self._parts.append(part[: len(into)])
        self._scalings.append(scaling)
        self._bytes += part.nbytes
        if self._bytes >= _WAITING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Add what waits."""
        if self._into:
            halves = [n for n, part in enumerate(self._parts) if part.dtype != torch.float32]
            singles = [torch.empty_like(self._into[n]) for n in halves]
            if halves:
                halved = [self._parts[n] for n in halves]
                torch._foreach_copy_(singles, halved)  # pyright: ignore[reportPrivateUsage]
            for number, single in zip(halves, singles, strict=True):
                self._parts[number] = single
            torch._foreach_mul_(self._parts, self._scalings)  # pyright: ignore[reportPrivateUsage]
            torch._foreach_add_(self._into, self._parts)  # pyright: ignore[reportPrivateUsage]
        self.drop()

    def drop(self) -> None:
        """Forget what waits."""
        self._into, self._parts, self._scalings, self._bytes = [], [], [], 0


class GroupedLinear(torch.autograd.Function):
    """The base's output plus scaling * x @ A.T @ B.T, each row with its adapter's factors.

    Arguments and result are those of the products adapter by adapter (``trained_adapters``), but
    for the rows of stacks, and where gradients wait to be added to the adapters'.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        given: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        anchor: Tensor,
        name: str,
        stacks: Sequence[StackRows],
        waiting: WaitingGradients,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (rows, in_features)
        inner: list[Tensor] = []
        added: list[Tensor] = []
        for stack, start, stop, ends, _ in stacks:
            A, B = stack.layers[name]
            inner.append(functional.grouped_mm(rows[start:stop], A.mT, offs=ends))
            added.append(functional.grouped_mm(inner[-1], B.mT, offs=ends))  # (.., out_features)
        ctx.save_for_backward(rows, weight, *inner)
        ctx.name, ctx.stacks, ctx.waiting, ctx.shape = name, stacks, waiting, x.shape
        base = None if weight is None else (rows, weight.T)
        y = _summed(base, given, added, stacks)
        if given is not None:
            ctx.mark_dirty(given)
            return given
        if bias is not None:
            y.add_(bias)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weight, *inner = ctx.saved_tensors
        grad = grad_y.reshape(-1, grad_y.shape[-1]).contiguous()  # (rows, out_features)
        added: list[Tensor] = []
        for (stack, start, stop, ends, present), h in zip(ctx.stacks, inner, strict=True):
            A, B = stack.layers[ctx.name]
            of_rows = grad[start:stop]
            grad_h = functional.grouped_mm(of_rows, B, offs=ends)  # (rows, rank), times the scaling
            grad_A = functional.grouped_mm(grad_h.T, rows[start:stop], offs=ends)
            grad_B = functional.grouped_mm(of_rows.T, h, offs=ends)
            for number in present:
                adapter = stack.adapters[number]
                into_A, into_B = adapter.gradients[ctx.name]
                ctx.waiting.add(into_A, grad_A[number])
                ctx.waiting.add(into_B, grad_B[number], adapter.scaling)
            if ctx.needs_input_grad[0]:
                added.append(functional.grouped_mm(grad_h, A, offs=ends))  # (.., in_features)
        grad_x = None
        if ctx.needs_input_grad[0]:
            # without a weight, the base's part comes through ``given``, whose gradient is grad_y
            zeros = torch.zeros_like(rows) if weight is None else None
            base = None if weight is None else (grad, weight)
            grad_x = _summed(base, zeros, added, ctx.stacks).view(ctx.shape)
        # for x, given; none for weight, bias, anchor, name, stacks, waiting
        return grad_x, grad_y if weight is None else None, None, None, None, None, None, None


def _summed(
    base: tuple[Tensor, Tensor] | None,
    given: Tensor | None,
    added: Sequence[Tensor],
    stacks: Sequence[StackRows],
) -> Float[Tensor, "rows features"]:
    """What stacks add to their rows, plus the base's product of two matrices, or what is given.

    The base's product is added to the other by its own kernel, where that has every row.
    """
    if base is not None and sum(map(len, added)) == len(base[0]):
        whole = added[0] if len(added) == 1 else torch.cat([*added])
        return whole.addmm_(*base)
    if given is None:
        assert base is not None
        out = torch.mm(*base)
    else:
        out = given.view(-1, given.shape[-1])
    for more, rows in zip(added, stacks, strict=True):
        out[rows.start : rows.stop].add_(more)
    return out
