"""Replacements for a model's layers while a batch begins in the middle of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from rankwise.engine.models.frozen_adapters import FrozenAdapter, FrozenBank, FrozenPiece

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""A forward pre-hook that receives keyword arguments."""


class AblatedAttention(nn.Module):
    """In place of a layer's attention: its heads' kept outputs, one changed in each row."""

    def __init__(
        self,
        output: nn.Module,
        heads: Float[Tensor, "places heads_width"],
        changes: Sequence[tuple[slice, Tensor | None]],
    ) -> None:
        super().__init__()
        self.output, self._heads, self._changes = output, heads, changes

    def forward(self, *_: Any, **given: Any) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layout = given["tree_step"].layout
        # (rows, places, heads * width): one row for each change
        heads = self._heads[layout.start : layout.stop].repeat(len(self._changes), 1, 1)
        for row, (span, value) in enumerate(self._changes):
            heads[row, :, span] = 0 if value is None else value
        return self.output(heads), None


class VariedAttention(nn.Module):
    """A layer's attention, each row of the batch under its own adapter."""

    def __init__(
        self, attention: nn.Module, bank: FrozenBank, variants: Sequence[FrozenAdapter | None]
    ) -> None:
        super().__init__()
        self.attention, self._bank, self._variants = attention, bank, variants

    def forward(self, *args: Any, **given: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = given["tree_step"].layout.num_queries
        pieces = [
            FrozenPiece(variant, number * count, (number + 1) * count)
            for number, variant in enumerate(self._variants)
            if variant is not None
        ]
        with self._bank.rows_of(pieces):
            return self.attention(*args, **given)


class PassedLayer(nn.Module):
    """In place of a layer that is not computed again; has the layer's other attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **given: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return args[0] if args else given["hidden_states"]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def keeping_input(into: list[Tensor]) -> Hook:
    """Keep the hidden states, the first input, of a module in a batch of one row."""

    def keep(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        (row,) = args[0] if args else given["hidden_states"]  # (places, width)
        into.append(row.clone())  # layers may change their input in place

    return keep


def entering_layer(kept: Float[Tensor, "places hidden"]) -> Hook:
    """Give a layer its kept input, in every row."""

    def enter(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        layout = given["tree_step"].layout
        rows = len(args[0] if args else given["hidden_states"])
        hidden = kept[layout.start : layout.stop].expand(rows, -1, -1)  # (rows, places, hidden)
        if args:
            return (hidden, *args[1:]), given
        return args, given | {"hidden_states": hidden}

    return enter
