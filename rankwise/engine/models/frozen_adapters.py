"""Adapters that are not trained: from a PEFT folder to products on the rows of each adapter.

As in ``trained_adapters`` the base's matrix products run once over all rows, and each adapter adds
to its own rows. Nothing is kept for a backward pass, and rank and scaling may differ by layer.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.engine.models.adapter_folder import AdapterFolder, ScaledFactors
from rankwise.engine.models.devices import moved
from rankwise.engine.models.placed import layer_devices
from rankwise.engine.models.structure import adaptable_shapes, layers_replaced
from rankwise.engine.models.trained_adapters import add_product
from rankwise.errors import ModelError

# Up to this many rows, one product of all rows with all adapters, most of which is dropped, is
# faster than a small product for each adapter: there the number of calls counts, not their size.
_MAX_JOINED_ROWS = 128


@dataclass(frozen=True, eq=False)
class FrozenAdapter:
    """An adapter as tensors: from disk, or the factors that a trainer multiplies now.

    Whoever changes its tensors makes another object of them: what is derived is kept with it.

    Attributes:
        layers: the factors by the layer's name, in the dtype that they are multiplied in.
        is_zero_update: whether scaling * B @ A of the saved factors is exactly zero everywhere.
    """

    layers: Mapping[str, ScaledFactors]
    is_zero_update: bool

    @cached_property
    def finite_layers(self) -> frozenset[str]:
        """The layers whose B has neither infinity nor NaN; a card is asked once."""
        finite = [torch.isfinite(factors.lora_B).all() for factors in self.layers.values()]
        together = [each.to(finite[0].device) for each in finite]
        answers = torch.stack(together).tolist() if together else []
        return frozenset(name for name, yes in zip(self.layers, answers, strict=True) if yes)


class FrozenPiece(NamedTuple):
    """The rows ``start`` to ``stop`` (exclusive) of a batch, which belong to ``adapter``."""

    adapter: FrozenAdapter
    start: int
    stop: int


class FrozenBank:
    """Tells the layers of a base model which rows of the current batch belong to which adapter."""

    def __init__(self) -> None:
        self.pieces: Sequence[FrozenPiece] = ()
        self._joined: dict[str, tuple[Tensor, Tensor, tuple[int, ...]] | None] = {}
        self._joined_of: tuple[FrozenAdapter, ...] = ()
        self._foreign: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}

    @contextlib.contextmanager
    def rows_of(self, pieces: Sequence[FrozenPiece]) -> Generator[None]:
        """Within the block, rows belong to adapters as ``pieces`` say; other rows to the base."""
        self.pieces = pieces
        of = tuple(piece.adapter for piece in pieces)
        if of != self._joined_of:
            self._joined, self._joined_of = {}, of
        try:
            yield
        finally:
            self.pieces, self._foreign = (), {}

    def forget(self) -> None:
        """Release the joined factors."""
        self._joined, self._joined_of = {}, ()

    def joined(self, layer: str) -> tuple[Tensor, Tensor, tuple[int, ...]] | None:
        """The factors of all pieces as two matrices, for one product instead of many.

        Returns:
            (sum of ranks, in_features) every A, one below the other; (sum of ranks, out_features)
            every B, transposed and times the scaling; and the ranks in that order. None where each
            piece has to be multiplied alone: for a single piece, and where an adapter lacks the
            layer or a B is not finite.
        """
        if layer not in self._joined:
            adapters = [piece.adapter for piece in self.pieces]
            self._joined[layer] = None
            # products with other adapters are set to 0 before B, and 0 times infinity is NaN
            if len(adapters) > 1 and all(layer in each.finite_layers for each in adapters):
                factors = [each.layers[layer] for each in adapters]
                lora_A = torch.cat([a for a, _, _ in factors])
                lora_B = torch.cat([b.T * scaling for _, b, scaling in factors])
                self._joined[layer] = lora_A, lora_B, tuple(len(a) for a, _, _ in factors)
        return self._joined[layer]

    def foreign(self, ranks: tuple[int, ...], rows: Float[Tensor, "rows features"]) -> Tensor:
        """(rows, sum of ranks), True where a column belongs to another adapter than the row."""
        key = rows.device, ranks
        if key not in self._foreign:
            foreign = torch.ones(len(rows), sum(ranks), dtype=torch.bool)
            column = 0
            for (_, start, stop), rank in zip(self.pieces, ranks, strict=True):
                foreign[start:stop, column : column + rank] = False
                column += rank
            self._foreign[key] = moved(foreign, rows.device)
        return self._foreign[key]


@contextlib.contextmanager
def carrying(
    base_model: nn.Module, adapters: Iterable[FrozenAdapter | None], bank: FrozenBank | None = None
) -> Generator[FrozenBank]:
    """Within the block, the base's layers add these adapters to the rows of the bank's pieces.

    Rows are those of the input flattened to (rows, features). Gradients do not go through. The
    base's weights are neither copied nor changed; afterwards the base has its own layers again.
    None among the adapters is the base itself.
    """
    bank = FrozenBank() if bank is None else bank
    names = dict.fromkeys(name for adapter in adapters if adapter for name in adapter.layers)
    layers = {name: _FrozenLayer(base_model.get_submodule(name), name, bank) for name in names}
    try:
        with layers_replaced(base_model, layers):
            yield bank
    finally:
        bank.forget()


@contextlib.contextmanager
def wearing(base_model: nn.Module, adapter: FrozenAdapter) -> Generator[None]:
    """Within the block, the base's layers add this adapter to every row; see ``carrying``."""
    every_row = [FrozenPiece(adapter, 0, sys.maxsize)]
    with carrying(base_model, [adapter]) as bank, bank.rows_of(every_row):
        yield


class _FrozenLayer(nn.Module):
    """A layer of the base, plus what the adapters add."""

    def __init__(self, base_layer: nn.Module, name: str, bank: FrozenBank) -> None:
        super().__init__()
        self.base_layer, self.name, self.bank = base_layer, name, bank
        self.train(base_layer.training)

    @torch.no_grad()
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        y: Tensor = self.base_layer(x)
        rows = x.reshape(-1, x.shape[-1])  # (rows, in_features)
        out = y.view(-1, y.shape[-1])  # (rows, out_features), shares y's memory
        joined = self.bank.joined(self.name) if len(rows) <= _MAX_JOINED_ROWS else None
        if joined is not None and joined[0].dtype == rows.dtype == out.dtype:
            lora_A, lora_B, ranks = joined
            # (rows, sum of ranks), zero in the columns of other adapters
            inner = (rows @ lora_A.T).masked_fill_(self.bank.foreign(ranks, rows), 0)
            out.addmm_(inner, lora_B)
            return y
        for adapter, start, stop in self.bank.pieces:
            factors = adapter.layers.get(self.name)
            if factors is None:
                continue
            A, B, scaling = factors
            inner = rows[start:stop].to(A.dtype) @ A.T  # (piece rows, rank)
            add_product(out[start:stop], inner, B.T, scaling)
        return y


def load_frozen_adapter(
    base_model: nn.Module, adapter: AdapterFolder, dtype: torch.dtype
) -> FrozenAdapter:
    """Take an adapter from disk for this base; ranks and alphas may differ by layer.

    Args:
        base_model: without adapters attached; its layers decide the devices.
        adapter: its factors are read.
        dtype: in which the factors are multiplied.

    Raises:
        ModelError: it cannot be read, does not fit this base, or asks for more than plain
            LoRA on linear layers below the head (DoRA, ``lora_bias``, ``modules_to_save`` ...).
    """
    shapes = adaptable_shapes(base_model, beside_text=True)
    saved, folder = adapter.factors, adapter.path
    for name, (A, B, _) in saved.items():
        if (shape := shapes.get(name)) is None:
            raise ModelError(
                f"the adapter in {folder} adapts {name}, which is not a linear layer below the "
                "head of this base model. Check which base it was trained on."
            )
        if A.shape[1:] != shape[:1] or B.shape != (shape.out_features, A.shape[0]):
            raise ModelError(
                f"the adapter in {folder} does not fit {name}: {tuple(A.shape)} and "
                f"{tuple(B.shape)} on a layer from {shape.in_features} to {shape.out_features}. "
                "Check which base it was trained on."
            )
    devices = layer_devices(base_model, saved)
    layers = {
        name: ScaledFactors(A.to(devices[name], dtype), B.to(devices[name], dtype), scaling)
        for name, (A, B, scaling) in saved.items()
    }
    # of the factors as saved: small numbers can become zero in another dtype
    is_zero = all(not scaling or not A.any() or not B.any() for A, B, scaling in saved.values())
    return FrozenAdapter(layers, is_zero)
