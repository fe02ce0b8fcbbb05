"""Many LoRA adapters of mixed rank on one frozen base: each applies to its own rows alone.

The rows of a batch belong to adapters in contiguous pieces. The base's matrix product runs once
over all rows; each adapter's own A and B then add to its own rows, at its own rank: nothing is
padded.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.base import LinearShape, layers_replaced


class LoraFactors(NamedTuple):
    """The two matrices of one adapted layer: delta = scaling * lora_B @ lora_A."""

    lora_A: Float[Tensor, "rank in_features"]
    lora_B: Float[Tensor, "out_features rank"]


class DroppedSequence(NamedTuple):
    """One sequence of a piece, as far as dropout has to know it.

    Attributes:
        start: its first row of the batch; ``stop`` is the row after its last one.
        stop: see ``start``.
        draw: what its mask depends on beside the adapter's seed and the layer, for example the
            optimizer's step and the place in the effective batch; never on who else is there.
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
    """One adapter's float32 weights and gradients, each in one block of memory.

    Attributes:
        weights: (rank * sum(in + out),) all of lora_A and lora_B, float32, with ``grad`` set.
        factors: views of ``weights`` by the layer's name.
        scaling: the factor before B @ A.
        dropout: probability with which an input of lora_A is zeroed in training.
        seed: decides the initial weights and the dropout masks, whatever else is trained.
    """

    def __init__(
        self,
        shapes: Mapping[str, LinearShape],
        *,
        rank: int,
        scaling: float,
        dropout: float,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Lay the weights out: A as PEFT draws it, B zero.

        Args:
            shapes: of the adapted layers, by name.
            rank: of every layer's update.
            scaling: alpha / rank, or alpha / sqrt(rank) under rsLoRA.
            dropout: on the input of lora_A.
            seed: of everything random about this adapter.
            device: where it is trained.
            dtype: in which it is multiplied; the float32 weights are copied to it after each step.
        """
        self.rank, self.scaling, self.dropout, self.seed = rank, scaling, dropout, seed
        size = rank * sum(shape.in_features + shape.out_features for shape in shapes.values())
        self.weights = nn.Parameter(torch.zeros(size, device=device))
        self.weights.grad = torch.zeros_like(self.weights)
        self._copy = torch.zeros(size, device=device, dtype=dtype)
        self.factors = _views(self.weights.detach(), shapes, rank)
        self.gradients = _views(self.weights.grad, shapes, rank)
        self.copies = _views(self._copy, shapes, rank)
        for name, factors in self.factors.items():
            drawn = torch.empty(factors.lora_A.shape)
            generator = torch.Generator().manual_seed(_draw_seed(seed, name))
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            factors.lora_A.copy_(drawn)
        self.refresh()

    def refresh(self) -> None:
        """Copy the weights to the dtype that they are multiplied in."""
        self._copy.copy_(self.weights.detach())

    @property
    def is_zero_update(self) -> bool:
        """Whether scaling * B @ A is exactly zero everywhere."""
        return all(not bool(a.any()) or not bool(b.any()) for a, b in self.factors.values())


class AdapterBank:
    """The layers of a base model that carry adapters, and whose rows are whose at the moment."""

    def __init__(self) -> None:
        self.pieces: Sequence[Piece] = ()
        self.anchor = torch.zeros((), requires_grad=True)  # layers below which nothing is trained

    @contextlib.contextmanager
    def rows_of(self, pieces: Sequence[Piece]) -> Generator[None]:
        """Within the block, forward and backward, rows belong to adapters as ``pieces`` say."""
        self.pieces = pieces
        try:
            yield
        finally:
            self.pieces = ()


@contextlib.contextmanager
def adapted(base_model: nn.Module, layer_names: Sequence[str]) -> Generator[AdapterBank]:
    """Within the block, the named layers of the base add the adapters of the bank's pieces.

    The base's weights are neither copied nor changed; afterwards it is as it was.
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
        weight, bias = _plain_weight(self.base_layer)
        # autograd knows the way back through other layers; what they return may be a view
        y = self.base_layer(x).clone() if weight is None else None
        adapted_y: Any = _AdaptedLinear.apply(
            x, y, weight, bias, self.bank.anchor, self.name, pieces
        )
        return adapted_y


def _plain_weight(
    layer: nn.Module,
) -> tuple[Float[Tensor, "out_features in_features"] | None, Tensor | None]:
    """Weight and bias of a layer that is nothing but a matrix product."""
    if type(layer) is nn.Linear:
        return layer.weight, layer.bias
    if type(layer) is Conv1D:
        return layer.weight.T, layer.bias
    return None, None


class _AdaptedLinear(torch.autograd.Function):
    """The base's output ``y`` plus scaling * dropout(x) @ A.T @ B.T on the rows of each piece.

    ``y`` is x @ weight.T + bias, or given where there is no weight; then it is changed in place.
    Gradients of A and B go straight into the adapters' float32 blocks.
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
        rows, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        inner: list[Tensor] = []
        masks: list[Tensor | None] = []
        for piece in pieces:
            A, B = piece.adapter.copies[name]
            own = slice(piece.start, piece.stop)
            mask = _dropout_mask(piece, name, rows)
            h = _dropped(rows[own].to(A.dtype), mask, piece) @ A.T
            if out.dtype == h.dtype:
                out[own].addmm_(h, B.T, alpha=piece.adapter.scaling)
            else:
                out[own].add_(h @ B.T, alpha=piece.adapter.scaling)
            inner.append(h)
            masks.append(mask)
        ctx.save_for_backward(x, weight, *inner, *masks)
        ctx.name, ctx.pieces = name, pieces
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, *saved = ctx.saved_tensors
        inner, masks = saved[: len(ctx.pieces)], saved[len(ctx.pieces) :]
        rows, grad = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
        grad_rows = None
        if ctx.needs_input_grad[0]:
            grad_rows = torch.zeros_like(rows) if weight is None else grad @ weight
        for piece, h, mask in zip(ctx.pieces, inner, masks, strict=True):
            adapter, own = piece.adapter, slice(piece.start, piece.stop)
            A, B = adapter.copies[ctx.name]
            into_A, into_B = adapter.gradients[ctx.name]
            grad_own = grad[own].to(A.dtype)
            grad_h = (grad_own @ B).mul_(adapter.scaling)
            x_own = _dropped(rows[own].to(A.dtype), mask, piece)
            if A.dtype == into_A.dtype:
                into_A.addmm_(grad_h.T, x_own)
                into_B.addmm_(grad_own.T, h, alpha=adapter.scaling)
            else:
                into_A.add_(grad_h.T @ x_own)
                into_B.add_(grad_own.T @ h, alpha=adapter.scaling)
            if grad_rows is None:
                continue
            if mask is None and grad_rows.dtype == A.dtype:
                grad_rows[own].addmm_(grad_h, A)
            else:
                grad_rows[own].add_(_dropped(grad_h @ A, mask, piece))
        grad_x = None if grad_rows is None else grad_rows.view_as(x)
        return grad_x, grad_y if weight is None else None, None, None, None, None, None


def _dropped(
    rows: Float[Tensor, "rows features"], mask: Tensor | None, piece: Piece
) -> Float[Tensor, "rows features"]:
    if mask is None:
        return rows
    return (rows * mask).mul_(1 / (1 - piece.adapter.dropout))


def _dropout_mask(piece: Piece, layer: str, rows: Tensor) -> Tensor | None:
    """Which inputs of a piece stay, drawn anew for each sequence from what names it."""
    if piece.adapter.dropout == 0:
        return None
    size = rows.shape[-1]
    mask = torch.empty(piece.stop - piece.start, size, dtype=torch.bool, device=rows.device)
    generator = torch.Generator(rows.device)
    for sequence in piece.sequences:
        generator.manual_seed(_draw_seed(piece.adapter.seed, layer, *sequence.draw))
        own = mask[sequence.start - piece.start : sequence.stop - piece.start]
        own.bernoulli_(1 - piece.adapter.dropout, generator=generator)
    return mask


def _draw_seed(*content: int | str) -> int:
    """A seed that depends on all of ``content``, the same in every process."""
    digest = hashlib.blake2b(repr(content).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _views(
    block: Float[Tensor, " size"], shapes: Mapping[str, LinearShape], rank: int
) -> dict[str, LoraFactors]:
    """The matrices of every layer, one after the other in ``block``."""
    views: dict[str, LoraFactors] = {}
    start = 0
    for name, (in_features, out_features) in shapes.items():
        middle, end = start + rank * in_features, start + rank * (in_features + out_features)
        views[name] = LoraFactors(
            block[start:middle].view(rank, in_features), block[middle:end].view(out_features, rank)
        )
        start = end
    return views
