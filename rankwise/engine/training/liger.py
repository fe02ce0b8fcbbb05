"""Liger's kernels in the training of adapters: norms, rotary positions and SwiGLU, each in one.

Hsu et al., "Liger Kernel", arXiv:2410.10989. Liger changes a loaded model and functions of
transformers and takes nothing back; here all of that is taken back. What scores never uses them.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.placed import devices_of
from rankwise.records.provenance import package_version

# Types of models for which Liger changes norms, MLP and rotary positions, and nothing else; of
# others it changes more, such as the products of experts, past the adapters.
_MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3"}
_ACTIVATIONS = {"silu", "swish"}  # what Liger computes, whatever the model's own is
_MISSING = object()
# Tokens that are read with and without the kernels, and how far norms of the results may be apart:
# in half precision what rounding adds up to over some dozen layers.
_TOKENS = 16
_APART = {torch.float32: 1e-3}
_APART_IN_HALF = 0.05
_log = logging.getLogger(__name__)


@contextmanager
def liger_kernels(model: nn.Module, *, enabled: bool) -> Generator[str | None]:
    """Within the block a model has Liger's kernels, if they are installed and fit it.

    They are Triton's, for CUDA, and round where transformers rounds, but for rotary positions in
    half precision. A few tokens are read with and without them first, forward and backward: kernels
    that differ by more than rounding are not used. Afterwards model and transformers are as before.

    Args:
        model: a causal language model of transformers, or what wraps one.
        enabled: False changes nothing.

    Yields:
        Package and version of the kernels; None where they are not used.
    """
    decoder = decoder_of(model)
    apply: Any = None
    if enabled and _fits(decoder):
        with suppress(ImportError):  # it is not installed
            kernels: Any = importlib.import_module("liger_kernel.transformers")
            apply = kernels._apply_liger_kernel_to_instance
    if apply is None:
        yield None
        return
    plain = _read(decoder)
    places: list[Any] = [vars(sys.modules[type(decoder).__module__])]
    places += map(vars, decoder.modules())
    before = [place.copy() for place in places]
    changed: list[tuple[Any, str, Any]] = []

    def take_back() -> None:
        for place, name, old in changed:
            if old is _MISSING:
                del place[name]
            else:
                place[name] = old
        changed.clear()

    try:
        try:
            apply(model=decoder, cross_entropy=False, fused_linear_cross_entropy=False)
        finally:
            for place, earlier in zip(places, before, strict=True):
                olds = ((name, earlier.get(name, _MISSING)) for name in place)
                changed += [(place, name, old) for name, old in olds if place[name] is not old]
        kernels = f"liger-kernel {package_version('liger-kernel')}"
        apart = max(map(_apart, _read(decoder), plain))
        if not apart <= _APART.get(plain[0].dtype, _APART_IN_HALF):
            _log.warning("%s is not used: its results are %.2g apart from torch's", kernels, apart)
            take_back()
            kernels = None
        yield kernels
    finally:
        take_back()


def _read(decoder: Any) -> tuple[Tensor, Tensor]:
    """What comes out for a few tokens, and a derivative by their embeddings."""
    embed = decoder.get_input_embeddings()
    tokens = torch.arange(_TOKENS, device=embed.weight.device)[None]
    with torch.enable_grad():
        inputs = embed(tokens).detach().requires_grad_()
        hidden = decoder(inputs_embeds=inputs, use_cache=False)[0]
        weights = torch.linspace(-1, 1, hidden.numel(), device=hidden.device).view_as(hidden)
        (gradient,) = torch.autograd.grad(hidden, inputs, weights.to(hidden.dtype))
    return hidden.detach(), gradient


def _apart(found: Tensor, expected: Tensor) -> float:
    difference = (found.float() - expected.float()).norm()
    return float(difference / expected.float().norm())


def _fits(decoder: Any) -> bool:
    """Whether Liger changes only what it should in this model, and the model is on one card.

    Its kernels run on the current card, and it takes off the hooks that bring inputs to another.
    """
    config = decoder.config
    return (
        [device.type for device in devices_of(decoder)] == ["cuda"]
        and config.model_type in _MODEL_TYPES
        and config.hidden_act in _ACTIVATIONS
    )
