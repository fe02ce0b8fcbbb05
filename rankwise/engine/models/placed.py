"""Models whose layers lie on several cards: accelerate's hooks bring to each what it reads.

What is outside of the layers (embeddings, last norm, head) is on the first card, and so is whatever
is made of a text or of hidden states: tokens, positions, losses. The layers follow each other over
all cards. Attention and adapters are on the card of their layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from rankwise.engine.models.attention import decoder_layers, is_below
from rankwise.engine.models.base import load_frozen, model_skeleton
from rankwise.engine.models.devices import ResolvedPrecision

Place = int | str
"""As accelerate takes it: the number of a card, or the name of a device."""


def cards_of_layers(sizes: Sequence[int], outside: int, num_cards: int) -> list[int]:
    """The card of each layer, from the first on: cards are as equally full as whole layers can be.

    Args:
        sizes: of the layers, in their order.
        outside: size of all else, which is on the first card.
        num_cards: over which they lie.
    """
    total, before, cards = outside + sum(sizes), outside, list[int]()
    for size in sizes:
        cards.append(min(int(num_cards * (before + size / 2) / total), num_cards - 1))
        before += size
    return cards


def most_on_a_card(sizes: Sequence[int], outside: int, num_cards: int) -> int:
    """The size of what is on the fullest card; see ``cards_of_layers``."""
    held = [outside, *[0] * (num_cards - 1)]
    for card, size in zip(cards_of_layers(sizes, outside, num_cards), sizes, strict=True):
        held[card] += size
    return max(held)


def device_map(skeleton: nn.Module, layers: Mapping[str, Place], others: Place) -> dict[str, Place]:
    """Module -> where it is, as transformers takes it.

    Args:
        skeleton: the model on the meta device.
        layers: where each of its layers is.
        others: where all else is.
    """
    where: dict[str, Place] = {}
    for name, _ in skeleton.named_modules():
        has_layers = not name or any(layer.startswith(f"{name}.") for layer in layers)
        if not has_layers and not is_below(name, where):
            where[name] = layers.get(name, others)
    return where


def over_cards(skeleton: nn.Module, num_cards: int) -> dict[str, Place]:
    """The ``device_map`` of a model whose layers lie on so many cards."""
    layers = decoder_layers(skeleton)
    sizes = [num_weights(layer) for layer in layers.values()]
    cards = cards_of_layers(sizes, num_weights(skeleton) - sum(sizes), num_cards)
    return device_map(skeleton, dict(zip(layers, cards, strict=True)), 0)


def num_weights(module: nn.Module) -> int:
    """Of a module, and of all below it."""
    return sum(weight.numel() for weight in module.parameters())


def load_over_cards(
    folder: Path, precision: ResolvedPrecision, cards: Sequence[torch.device]
) -> nn.Module:
    """A frozen model, as ``base.load_frozen``, whose layers lie on several cards.

    Args:
        folder: of the model.
        precision: of its weights and activations.
        cards: all of this process, in the order of their numbers.

    Raises:
        ModelError: as ``load_frozen``.
    """
    where = over_cards(model_skeleton(folder), len(cards))
    return load_frozen(folder, precision, cards[0], device_map=where)


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices that hold a model, the first one first; what stays in files is on none."""
    devices = dict.fromkeys(weight.device for weight in model.parameters())
    return [device for device in devices if device.type != "meta"]


def layer_devices(model: nn.Module, names: Iterable[str]) -> dict[str, torch.device]:
    """Where modules of a model compute, by name; what is read from files comes to the first device.

    Each of them has weights.
    """
    first, *_ = devices_of(model)
    found = {name: next(model.get_submodule(name).parameters()).device for name in names}
    return {name: first if device.type == "meta" else device for name, device in found.items()}
