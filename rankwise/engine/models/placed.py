"""Models that are not whole on one device: layers on several cards, or weights read from files.

Over cards accelerate's hooks bring to each layer what it reads. What is outside of the layers
(embeddings, last norm, head) is on the first card, and so is whatever is made of a text or of
hidden states: tokens, positions, losses. The layers follow each other over all cards. Attention and
adapters are on the card of their layer.

From files accelerate reads a matrix before its product and lets go of it behind it. What that costs
is one reading of the files for each forward pass, so passes should be of many tokens.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rankwise.engine.models.attention import decoder_layers, is_below
from rankwise.engine.models.base import freeze, load_frozen, load_model, model_skeleton
from rankwise.engine.models.devices import (
    DTYPES,
    Machine,
    ResolvedPrecision,
    limit_kernel_cache,
    multiply_exactly,
)
from rankwise.engine.models.files import diverged, not_finite, weights_files
from rankwise.errors import ModelError
from rankwise.records.files import in_words

Place = int | str
"""As accelerate takes it: the number of a card, or the name of a device."""

IN_FILES = "disk"
"""Where transformers and accelerate say that weights are that stay in their files."""

WHOLE_SHARE = 0.85
"""Of a device's memory, what the weights of a model may fill that is held whole."""

HELD_SHARE = 0.5
"""Of a device's memory, what weights fill of a model that is not: a pass should be of many tokens,
and needs the rest for their keys, values and activations."""


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


class Placement(NamedTuple):
    """Where the weights are of a model that does not fit into a device's memory.

    Attributes:
        device_map: module → the device, or ``IN_FILES``.
        held_bytes: of weights that stay on the device.
        read_bytes: that every forward pass reads from the files.
        num_read: layers that are read from the files.
        num_layers: of the model.
    """

    device_map: dict[str, Place]
    held_bytes: int
    read_bytes: int
    num_read: int
    num_layers: int


def room_for_weights(num_bytes: int, available_bytes: int) -> int | None:
    """Bytes that the weights of a model may fill where they do not fit whole; None: they do."""
    if num_bytes <= WHOLE_SHARE * available_bytes:
        return None
    return int(HELD_SHARE * available_bytes)


def room_to_score(
    skeleton: nn.Module, dtype: torch.dtype, machine: Machine
) -> tuple[tuple[torch.device, ...], int | None]:
    """Where a model is held that nothing is trained on.

    Returns:
        The cards over which its layers lie, none where it fits on the device; and the bytes that
        weights may fill where it fits on no cards either and is read layer by layer, else None.
    """
    width, total = dtype.itemsize, num_weights(skeleton)
    most_bytes = room_for_weights(total * width, machine.available_bytes())
    if most_bytes is None:
        return (), None
    sizes = [num_weights(layer) for layer in decoder_layers(skeleton).values()]
    on_a_card = most_on_a_card(sizes, total - sum(sizes), machine.num_cards) * width
    if room_for_weights(on_a_card, machine.available_on_each()) is None:
        return machine.cards, None
    return (), most_bytes


def placement(
    skeleton: nn.Module, dtype: torch.dtype, device: torch.device, most_bytes: int
) -> Placement:
    """Layers stay on the device from the first one on, as many as leave room for one more.

    Args:
        skeleton: the model on the meta device.
        dtype: of its weights.
        device: that computes.
        most_bytes: of its weights on the device at any time.

    Raises:
        ModelError: what is outside of the layers (embeddings, head) and one layer are more.
    """
    width = dtype.itemsize
    layers = {name: num_weights(layer) * width for name, layer in decoder_layers(skeleton).items()}
    total = num_weights(skeleton) * width
    held, largest = total - sum(layers.values()), max(layers.values(), default=0)
    if not layers or held + largest > most_bytes:
        raise ModelError(
            f"{in_words(total)} of weights do not fit, and read layer by layer they take "
            f"{in_words(held + largest)} of the {in_words(most_bytes)} that weights may fill. Use "
            "a device with more memory."
        )
    read = dict(layers)
    for name, size in layers.items():
        if held + size + largest > most_bytes:
            break
        held += size
        del read[name]
    places = {name: IN_FILES if name in read else str(device) for name in layers}
    where = device_map(skeleton, places, str(device))
    return Placement(where, held, sum(read.values()), len(read), len(layers))


def load_streamed(
    folder: Path, precision: ResolvedPrecision, device: torch.device, most_bytes: int
) -> nn.Module:
    """A frozen model, as ``base.load_frozen``; its layers are read as ``placement`` says.

    It is called like any other, without gradients. An adapter can be put on it that adds to what
    its layers give (``frozen_adapters``); their weights cannot be looked at.

    Raises:
        ModelError: as ``load_frozen`` and ``placement``.
    """
    limit_kernel_cache()
    multiply_exactly(device)
    dtype = DTYPES[precision]
    where = placement(model_skeleton(folder), dtype, device, most_bytes)
    if (bad := not_finite(weights_files(folder))) is not None:
        raise diverged(folder, bad)
    model = load_in_files(folder, dtype, where.device_map)
    freeze(model)
    return model


def load_to_score(folder: Path, precision: ResolvedPrecision, device: torch.device) -> nn.Module:
    """A frozen model, on the device where it fits into the memory that is free there.

    Else its layers lie over all cards where these have room for it, or are read from its files.

    Raises:
        ModelError: as ``load_streamed``.
    """
    skeleton, machine = model_skeleton(folder), Machine.here(device)
    cards, most_bytes = room_to_score(skeleton, DTYPES[precision], machine)
    if cards:
        return load_over_cards(folder, precision, cards)
    if most_bytes is None:
        return load_frozen(folder, precision, device)
    return load_streamed(folder, precision, device, most_bytes)


def load_in_files(folder: Path, dtype: torch.dtype, device_map: Mapping[str, Place]) -> Any:
    """Load a causal language model, some of whose weights stay in its safetensors files.

    What the files lack is refused here, and what is wrong with a weight when it is read. Where an
    architecture holds weights in another layout than its files (most mixtures of experts),
    transformers writes those that stay in files into a temporary folder, which goes with the model.

    Args:
        folder: of the model.
        dtype: of its weights, also of those that are read later.
        device_map: where what is below each name is: a device, or ``IN_FILES``.

    Raises:
        ModelError: as ``load_model``.
    """
    # it warns that weights are on the meta device, which is what was asked for
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    with contextlib.ExitStack() as made:
        temporary = tempfile.TemporaryDirectory("-rankwise", ignore_cleanup_errors=True)
        converted = made.enter_context(temporary)
        model = load_model(folder, dtype, device_map=dict(device_map), offload_folder=converted)
        weakref.finalize(model, made.pop_all().close)
    return model
