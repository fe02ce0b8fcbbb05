"""Models that are larger than a card: their layers lie on several cards.

accelerate's hooks bring to each layer what it reads. What is outside of the layers (embeddings,
last norm, head) is on the first card, and so is whatever is made of a text or of hidden states:
tokens, positions, losses. The layers follow each other over all cards. Attention and adapters are
on the card of their layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from rankwise.engine.models.attention import decoder_layers, is_below
from rankwise.engine.models.devices import DTYPES, Machine, ResolvedPrecision
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.structure import model_skeleton
from rankwise.errors import ModelError
from rankwise.records.files import in_words

WEIGHTS_SHARE = 0.85
"""The weights of a scored model fill at most this share of a device's memory."""


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


def over_cards(skeleton: nn.Module, num_cards: int) -> dict[str, int]:
    """The ``device_map`` of a model whose layers lie on so many cards: module -> number of a card.

    Args:
        skeleton: the model on the meta device.
        num_cards: over which its layers lie.
    """
    layers = decoder_layers(skeleton)
    sizes = [num_weights(layer) for layer in layers.values()]
    cards = cards_of_layers(sizes, num_weights(skeleton) - sum(sizes), num_cards)
    card_of, device_map = dict(zip(layers, cards, strict=True)), dict[str, int]()
    for name, _ in skeleton.named_modules():
        has_layers = not name or any(layer.startswith(f"{name}.") for layer in layers)
        if not has_layers and not is_below(name, device_map):
            device_map[name] = card_of.get(name, 0)
    return device_map


def num_weights(module: nn.Module) -> int:
    """The number of weights of a module and of all below it."""
    return sum(weight.numel() for weight in module.parameters())


def load_over_cards(
    folder: Path, precision: ResolvedPrecision, cards: Sequence[torch.device]
) -> nn.Module:
    """A frozen model, as ``loading.load_frozen``, whose layers lie on several cards.

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
    """The devices that hold a model, the first one first."""
    return list(dict.fromkeys(weight.device for weight in model.parameters()))


def layer_devices(model: nn.Module, names: Iterable[str]) -> dict[str, torch.device]:
    """Where modules of a model compute, by name; each of them has weights."""
    return {name: next(model.get_submodule(name).parameters()).device for name in names}


def cards_to_score(
    skeleton: nn.Module, dtype: torch.dtype, machine: Machine
) -> tuple[torch.device, ...]:
    """The cards over which the layers of a model lie that nothing is trained on.

    There are none where it fits on the device, and where the cards have no room for it either.

    Args:
        skeleton: the model on the meta device.
        dtype: of its weights.
        machine: that scores.
    """
    total = num_weights(skeleton)
    if total * dtype.itemsize <= WEIGHTS_SHARE * machine.available_bytes():
        return ()
    sizes = [num_weights(layer) for layer in decoder_layers(skeleton).values()]
    fullest = most_on_a_card(sizes, total - sum(sizes), machine.num_cards)
    fits = fullest * dtype.itemsize <= WEIGHTS_SHARE * machine.available_on_each()
    return machine.cards if fits else ()


def load_to_score(folder: Path, precision: ResolvedPrecision, device: torch.device) -> nn.Module:
    """A frozen model, on the device or over its cards; see ``cards_to_score``.

    Raises:
        ModelError: as ``load_frozen``; or its weights are larger than the memory that is free.
    """
    skeleton, machine = model_skeleton(folder), Machine.here(device)
    if cards := cards_to_score(skeleton, DTYPES[precision], machine):
        return load_over_cards(folder, precision, cards)
    num_bytes, free = num_weights(skeleton) * DTYPES[precision].itemsize, machine.available_bytes()
    if num_bytes > free:
        raise ModelError(
            f"the weights of {folder} take {in_words(num_bytes)} in {precision}, and {device} has "
            f"{in_words(free)}. Use a device with more memory, or several cards."
        )
    return load_frozen(folder, precision, device)
