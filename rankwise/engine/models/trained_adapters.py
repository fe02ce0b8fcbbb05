"""Many LoRA adapters of mixed rank on one frozen base: each applies to its own rows alone.

Each adapter has a contiguous piece of a batch's rows. The base's matrix product runs once over all
rows; the A and B of each adapter then add to its rows, at its rank (``grouped_adapters`` has them
all at once).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.grouped_adapters import (
    AdapterStack,
    GroupedLinear,
    StackRows,
    WaitingGradients,
    rows_of_stacks,
    stacked,
)
from rankwise.engine.models.seeds import seed_of
from rankwise.engine.models.structure import LinearShape, layers_replaced

# Half-precision numbers in 16 bytes: tensor cores want rows that begin where these do.
_VECTOR = 8


class LoraFactors(NamedTuple):
    """The two matrices of one adapted layer: delta = scaling * lora_B @ lora_A."""

    lora_A: Float[Tensor, "rank in_features"]
    lora_B: Float[Tensor, "out_features rank"]


class DroppedSequence(NamedTuple):
    """The rows ``start`` to ``stop`` (exclusive) of one sequence, and what its dropout depends on.

    Attributes:
        start: its first row of the batch.
        stop: the row after its last one.
        draw: what its mask depends on besides the adapter's seed and the layer, for example the
            optimizer's step and the place in the effective batch; never on other trainees.
    """

    start: int
    stop: int
    draw: tuple[int, ...]


class Piece(NamedTuple):
    """The rows ``start`` to ``stop`` (exclusive) of a batch, which belong to ``adapter``."""

    adapter: Adapter
    start: int
    stop: int
    sequences: tuple[DroppedSequence, ...]


class Adapter:
    """One adapter's float32 weights and gradients, each in one block of memory of a device.

    Attributes:
        weights: of each device, (rank * sum(in + out),) every lora_A and lora_B of its layers,
            float32, with ``grad`` set.
        factors: views of ``weights`` by the layer's name.
        gradients: views of their ``grad``, likewise.
        copies: what is multiplied, in the dtype in which it is: the factors of ``update``. On a
            card in half precision the rank is filled up with zeros to a multiple of 8.
        rank: of the trained factors; of layers with ranks of their own, the highest.
        update_rank: of ``update``; of layers with ranks of their own, the highest.
        ranks: the rank of every layer. Rows of lora_A and columns of lora_B beyond it are zero, and
            stay so: the gradient of each is a product with the other.
        scaling: the factor before B @ A: alpha / rank, or alpha / sqrt(rank) under rsLoRA.
        scaling_left: the factor before the copies' product; 1 where their B has the scaling.
        dropout: probability with which an input of lora_A is zeroed in training.
        seed: of the initial weights and the dropout masks; other adapters do not change them.
    """

    def __init__(
        self,
        shapes: Mapping[str, LinearShape],
        *,
        rank: int | Mapping[str, int],
        scaling: float,
        dropout: float,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        elsewhere: Mapping[str, torch.device] = MappingProxyType({}),
    ) -> None:
        """Allocate the weights for these layers: A is drawn as PEFT draws it, and B is zero.

        ``rank`` is that of all layers, or of each, by name.
        It is multiplied in ``dtype``, to which the float32 weights are copied after each step.
        ``elsewhere`` are the devices of layers that are not on ``device``.
        """
        self.ranks = dict.fromkeys(shapes, rank) if isinstance(rank, int) else dict(rank)
        self.rank = self.update_rank = rank = max(self.ranks.values())
        self.scaling, self.dropout, self.seed = scaling, dropout, seed
        self.scaling_left = scaling
        self._shapes: dict[torch.device, dict[str, LinearShape]] = {}
        for name, shape in shapes.items():
            self._shapes.setdefault(elsewhere.get(name, device), {})[name] = shape
        self.weights = [nn.Parameter(block) for block in self._blocks(rank)]
        for block in self.weights:
            block.grad = torch.zeros_like(block)
        self._dtype = dtype
        self.factors = self._views([block.detach() for block in self.weights], rank)
        self.gradients = self._views([block.grad for block in self.weights], rank)
        self._make_copies(rank)
        self._in_base: Mapping[str, LoraFactors] = {}
        self._beside: Mapping[str, LoraFactors] = {}
        for name, factors in self.factors.items():
            own_rank = self.ranks[name]
            drawn = drawn_rows(name, own_rank, shapes[name].in_features, seed)
            factors.lora_A[:own_rank].copy_(drawn)
        self.refresh()

    def _blocks(self, rank: int) -> list[Float[Tensor, " size"]]:
        """Zeros for matrices of this rank, on each device."""
        return [
            torch.zeros(rank * sum(map(sum, shapes.values())), device=device)
            for device, shapes in self._shapes.items()
        ]

    def _views(self, blocks: Sequence[Any], rank: int) -> dict[str, LoraFactors]:
        """Matrices of every layer as views of the devices' blocks: A before B, layer by layer."""
        views: dict[str, LoraFactors] = {}
        for block, shapes in zip(blocks, self._shapes.values(), strict=True):
            start = 0
            for name, (in_features, out_features) in shapes.items():
                middle = start + rank * in_features
                end = middle + rank * out_features
                lora_A = block[start:middle].view(rank, in_features)
                views[name] = LoraFactors(lora_A, block[middle:end].view(out_features, rank))
                start = end
        return views

    def _make_copies(self, rank: int) -> None:
        rank = _copied_rank(rank, self.weights[0].device, self._dtype)
        self._copies = [block.to(self._dtype) for block in self._blocks(rank)]
        self.copies = self._views(self._copies, rank)

    def lie_in(self, views: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Have the copies in memory of a stack, zeros of this rank or more; B with the scaling."""
        self._copies, self.scaling_left = [], 1.0
        self.copies = {name: LoraFactors(*pair) for name, pair in views.items()}
        self.refresh()

    def twin(self) -> Adapter:
        """The same weights with gradients of their own, for another thread."""
        other = copy.copy(self)
        other.weights = [nn.Parameter(block.detach()) for block in self.weights]
        for block in other.weights:
            block.grad = torch.zeros_like(block)
        other.gradients = self._views([block.grad for block in other.weights], self.rank)
        return other

    def add_gradients(self, other: Adapter) -> None:
        """Add those of a twin."""
        for block, beside in zip(self.weights, other.weights, strict=True):
            assert block.grad is not None
            assert beside.grad is not None
            block.grad.add_(beside.grad)

    def clear_gradients(self) -> None:
        """Set them to zero in place: ``gradients`` are views of them."""
        for block in self.weights:
            assert block.grad is not None
            block.grad.zero_()

    def start_from(
        self, factors: Mapping[str, tuple[Tensor, Tensor]], *, is_in_base: bool = False
    ) -> None:
        """Take over the factors of another update under the same scaling.

        Args:
            factors: lora_A and lora_B of every adapted layer; where they are of a lower rank, the
                rest of the rank is zero.
            is_in_base: the base's weights hold this update already, so that the adapter adds what
                it comes to beyond it (``update``).
        """
        for name, (into_A, into_B) in self.factors.items():
            lora_A, lora_B = factors[name]
            rank = len(lora_A)
            into_A.zero_()
            into_B.zero_()
            into_A[:rank].copy_(lora_A)
            into_B[:, :rank].copy_(lora_B)
        if is_in_base:
            self._in_base = {
                name: LoraFactors(lora_A.clone(), lora_B.clone())
                for name, (lora_A, lora_B) in self.factors.items()
            }
            self.update_rank = 2 * self.rank
            self._make_copies(self.update_rank)
        self.refresh()

    def start_beside(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add to another update under the same scaling, which stays as it is; as it were merged.

        ``factors`` are lora_A and lora_B of every adapted layer.
        """
        self._beside = {
            name: LoraFactors(*(part.to(own.lora_A, copy=True) for part in factors[name]))
            for name, own in self.factors.items()
        }
        self.update_rank = self.rank + max(len(lora_A) for lora_A, _ in self._beside.values())
        self._make_copies(self.update_rank)
        self.refresh()

    @property
    def is_in_base(self) -> bool:
        """Whether the base holds what the adapter began at; its ``update`` has twice the rank."""
        return bool(self._in_base)

    @property
    def is_plain(self) -> bool:
        """Whether its ``update`` is ``factors`` alone."""
        return not self._in_base and not self._beside

    @property
    def update(self) -> Mapping[str, LoraFactors]:
        """The factors of what the adapter adds to each layer of the base.

        They are ``factors``, each layer at its rank. Or, where it began at what the base holds
        already (A0 and B0), they are those of B @ A - B0 @ A0 = (B - B0) @ A + B0 @ (A - A0), of
        twice the rank. In this form nothing cancels, whatever dtype they are rounded to. What it
        was trained beside is behind ``factors``.
        """
        return {name: self._whole(name, rank) for name, rank in self.ranks.items()}

    def _whole(self, name: str, rank: int) -> LoraFactors:
        """The factors of a layer's update, this rank of which is trained."""
        lora_A, lora_B = self.factors[name].lora_A[:rank], self.factors[name].lora_B[:, :rank]
        if name in self._beside:
            beside_A, beside_B = self._beside[name]
            return LoraFactors(torch.cat([lora_A, beside_A]), torch.cat([lora_B, beside_B], dim=1))
        if name not in self._in_base:
            return LoraFactors(lora_A, lora_B)
        base_A, base_B = self._in_base[name]
        return LoraFactors(
            torch.cat([lora_A, lora_A - base_A]), torch.cat([lora_B - base_B, base_B], dim=1)
        )

    def matrices(self) -> list[LoraFactors]:
        """The factors of each layer as parameters of their own, for optimizers that tell A from B.

        They share the memory and the gradients of ``weights``.
        """
        made: list[LoraFactors] = []
        for factors, gradients in zip(self.factors.values(), self.gradients.values(), strict=True):
            pair = LoraFactors(*map(nn.Parameter, factors))
            for matrix, gradient in zip(pair, gradients, strict=True):
                matrix.grad = gradient
            made.append(pair)
        return made

    def refresh(self) -> None:
        """Copy the weights into ``copies``, in the dtype that they are multiplied in."""
        if not self.is_plain:
            for name, copied in self.copies.items():
                for into, values in zip(copied, self._whole(name, self.rank), strict=True):
                    _first(into, values).copy_(values)
        elif [len(block) for block in self._copies] == [len(block) for block in self.weights]:
            for copied, weights in zip(self._copies, self.weights, strict=True):  # all at once
                copied.copy_(weights.detach())
        else:
            lora_A, lora_B = zip(*self.factors.values(), strict=True)
            factor = self.scaling if self.scaling_left == 1.0 else 1.0
            lora_B = torch._foreach_mul(lora_B, factor)  # pyright: ignore[reportPrivateUsage]
            for values, copied in zip(
                (lora_A, lora_B), zip(*self.copies.values(), strict=True), strict=True
            ):
                into = [*map(_first, copied, values)]
                torch._foreach_copy_(into, values)  # pyright: ignore[reportPrivateUsage]

    @property
    def is_zero_update(self) -> bool:
        """Whether what is added is exactly zero everywhere."""
        if self._in_base:
            return all(
                torch.equal(*pair)
                for name, factors in self.factors.items()
                for pair in zip(factors, self._in_base[name], strict=True)
            )
        if any(bool(lora_B.any()) for _, lora_B in self._beside.values()):
            return False
        return all(not bool(a.any()) or not bool(b.any()) for a, b in self.factors.values())


def _copied_rank(rank: int, device: torch.device, dtype: torch.dtype) -> int:
    """The rank of an adapter's copies."""
    is_padded = device.type == "cuda" and dtype.itemsize == 2
    return -(-rank // _VECTOR) * _VECTOR if is_padded else rank


def _first(matrix: Tensor, like: Tensor) -> Tensor:
    """The first rows and columns of a matrix, as many as the other has."""
    return matrix[: like.shape[0], : like.shape[1]]


def drawn_rows(
    layer: str, rank: int, in_features: int, seed: int
) -> Float[Tensor, "rank in_features"]:
    """The lora_A that a layer begins at under a seed, on the CPU.

    Uniform within 1 / sqrt(in_features), which is PEFT's kaiming_uniform_ with a = sqrt(5).
    """
    drawn = torch.empty(rank, in_features)
    # on the CPU and seeded by the layer's name, so that the weights are the same on every device,
    # whichever other layers are adapted
    generator = torch.Generator().manual_seed(seed_of(seed, layer))
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
    return drawn


class AdapterBank:
    """Tells the adapted layers which rows of the current batch belong to which adapter."""

    def __init__(self) -> None:
        self.pieces: Sequence[Piece] = ()
        self.stacks: Sequence[AdapterStack] = ()
        self.stack_rows: Sequence[StackRows] = ()
        self.waiting = WaitingGradients()
        # An input of every adapted layer that requires a gradient. The first adapted layer's own
        # input may require none, and autograd would then not call its backward.
        self.anchor = torch.zeros((), requires_grad=True)

    @contextlib.contextmanager
    def rows_of(self, pieces: Sequence[Piece]) -> Generator[None]:
        """Within the block, forward and backward, rows belong to adapters as ``pieces`` say."""
        self.pieces, self.stack_rows = pieces, rows_of_stacks(self.stacks, pieces)
        try:
            yield
            self.waiting.flush()
        finally:
            self.waiting.drop()
            self.pieces = self.stack_rows = ()

    def stack(self, adapters: Sequence[Adapter]) -> None:
        """Multiply these adapters all at once, where torch can; their rows come in this order."""
        self.stacks = stacked(adapters)


@contextlib.contextmanager
def adapted(base_model: nn.Module, layer_names: Sequence[str]) -> Generator[AdapterBank]:
    """Within the block, the named layers of the base add the adapters of the bank's pieces.

    The base's weights are neither copied nor changed; afterwards the base has its own layers again.
    """
    bank = AdapterBank()
    layers = {
        name: _AdaptedLayer(base_model.get_submodule(name), name, bank) for name in layer_names
    }
    with layers_replaced(base_model, layers):
        yield bank


class _AdaptedLayer(nn.Module):
    """A frozen layer, plus what the adapters add."""

    def __init__(self, base_layer: nn.Module, name: str, bank: AdapterBank) -> None:
        super().__init__()
        self.base_layer, self.name, self.bank = base_layer, name, bank
        self.train(base_layer.training)

    @torch.compiler.disable
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        pieces = [piece for piece in self.bank.pieces if self.name in piece.adapter.copies]
        if not pieces:
            return self.base_layer(x)
        weight, bias = plain_weight(self.base_layer)
        # A layer that is not a plain product (a quantised one) runs here, so that autograd goes
        # back through it. Its output may be a view, and adapters add in place: hence the clone.
        y = self.base_layer(x).clone() if weight is None else None
        inputs = (x, y, weight, bias, self.bank.anchor, self.name)
        adapted_y: Any
        if self.bank.stack_rows:
            stacks = [rows for rows in self.bank.stack_rows if self.name in rows.stack.layers]
            adapted_y = GroupedLinear.apply(*inputs, stacks, self.bank.waiting)
        else:
            adapted_y = _AdaptedLinear.apply(*inputs, pieces)
        return adapted_y


def plain_weight(
    layer: nn.Module,
) -> tuple[Float[Tensor, "out_features in_features"] | None, Tensor | None]:
    """Weight and bias of a layer that is a matrix product and nothing else; None for others."""
    if type(layer) is nn.Linear:
        return layer.weight, layer.bias
    if type(layer) is Conv1D:
        return layer.weight.T, layer.bias  # (out_features, in_features); stored transposed
    return None, None


class _AdaptedLinear(torch.autograd.Function):
    """The base's output ``y`` plus scaling * dropout(x) @ A.T @ B.T on the rows of each piece.

    ``y`` is x @ weight.T + bias. Where there is no weight, ``y`` is ``given`` and changed in place.
    Gradients of A and B go straight into the adapters' float32 blocks: autograd never sees them.
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
        pieces: Sequence[Piece],
    ) -> Tensor:
        if given is not None:
            y = given
            ctx.mark_dirty(given)
        else:
            assert weight is not None
            y = nn.functional.linear(x, weight, bias)
        rows = x.reshape(-1, x.shape[-1])  # (rows, in_features)
        out = y.view(-1, y.shape[-1])  # (rows, out_features), shares y's memory
        inner: list[Tensor] = []
        masks: list[Tensor | None] = []
        for piece in pieces:
            A, B = piece.adapter.copies[name]
            part = slice(piece.start, piece.stop)
            mask = _dropout_mask(piece, name, rows)
            h = _dropped(rows[part].to(A.dtype), mask, piece) @ A.T  # (piece rows, rank)
            add_product(out[part], h, B.T, piece.adapter.scaling_left)
            inner.append(h)
            masks.append(mask)
        ctx.save_for_backward(x, weight, *inner, *masks)
        ctx.name, ctx.pieces = name, pieces
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, *saved = ctx.saved_tensors
        inner, masks = saved[: len(ctx.pieces)], saved[len(ctx.pieces) :]
        rows = x.reshape(-1, x.shape[-1])  # (rows, in_features)
        grad = grad_y.reshape(-1, grad_y.shape[-1])  # (rows, out_features)
        grad_rows = None  # (rows, in_features) once it is needed
        if ctx.needs_input_grad[0]:
            # without a weight, the base's part comes through ``given``, whose gradient is grad_y
            grad_rows = torch.zeros_like(rows) if weight is None else grad @ weight
        for piece, h, mask in zip(ctx.pieces, inner, masks, strict=True):
            adapter, part = piece.adapter, slice(piece.start, piece.stop)
            A, B = adapter.copies[ctx.name]
            into_A, into_B = adapter.gradients[ctx.name]
            grad_part = grad[part].to(A.dtype)  # (piece rows, out_features)
            grad_h = (grad_part @ B).mul_(adapter.scaling_left)  # (piece rows, rank)
            x_part = _dropped(rows[part].to(A.dtype), mask, piece)  # (piece rows, in_features)
            rank, grad_A = adapter.rank, grad_h if adapter.is_plain else grad_h[:, : adapter.rank]
            if adapter.is_in_base:  # A is in both halves of ``Adapter.update``, B in the first one
                grad_A = grad_A + grad_h[:, rank : 2 * rank]
            if len(A) == adapter.update_rank:
                add_product(into_A, grad_A.T, x_part)
                add_product(into_B, grad_part.T, h[:, :rank], adapter.scaling)
            else:  # zeros are multiplied too, for aligned results
                into_A.add_((grad_A.T @ x_part)[:rank])
                into_B.add_((grad_part.T @ h)[:, :rank], alpha=adapter.scaling)
            if grad_rows is None:
                continue
            # dropout is linear: its backward multiplies by the same mask and factor
            if mask is None:
                add_product(grad_rows[part], grad_h, A)
            else:
                grad_rows[part].add_(_dropped(grad_h @ A, mask, piece))
        grad_x = None if grad_rows is None else grad_rows.view_as(x)
        # for x, given; none for weight, bias, anchor, name, pieces
        return grad_x, grad_y if weight is None else None, None, None, None, None, None


def add_product(into: Tensor, left: Tensor, right: Tensor, scaling: float = 1.0) -> None:
    """Add scaling * left @ right in place: by one kernel where all have one dtype."""
    if into.dtype == left.dtype:
        into.addmm_(left, right, alpha=scaling)
    else:
        into.add_(left @ right, alpha=scaling)


def _dropped(
    rows: Float[Tensor, "rows features"], mask: Tensor | None, piece: Piece
) -> Float[Tensor, "rows features"]:
    """The rows with dropped inputs zeroed; the rest is scaled up so that the mean stays."""
    if mask is None:
        return rows
    return (rows * mask).mul_(1 / (1 - piece.adapter.dropout))


def _dropout_mask(piece: Piece, layer: str, rows: Tensor) -> Tensor | None:
    """(piece rows, features), True for inputs that stay.

    Each sequence has a separate seed, so that its mask does not depend on the micro-batch.
    """
    if piece.adapter.dropout == 0:
        return None
    size = rows.shape[-1]
    mask = torch.empty(piece.stop - piece.start, size, dtype=torch.bool, device=rows.device)
    generator = torch.Generator(rows.device)
    for sequence in piece.sequences:
        generator.manual_seed(seed_of(piece.adapter.seed, layer, *sequence.draw))
        # (tokens, features)
        of_sequence = mask[sequence.start - piece.start : sequence.stop - piece.start]
        of_sequence.bernoulli_(1 - piece.adapter.dropout, generator=generator)
    return mask
