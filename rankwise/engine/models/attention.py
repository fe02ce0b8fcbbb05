"""Giving a decoder of transformers another attention, and refusing where that would be wrong.

Decoders take their attention from transformers' ``AttentionInterface``, by the name in their
config. A function that is registered there without a mask function gets no mask.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rankwise.errors import ModelError

INSTEAD = "Choose another base model."
# Layers in which every token attends to earlier tokens directly: no state, no chunks.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "attention"}
# Some models pass these to the attention function, where they change nothing.
_WITHOUT_EFFECT = {"position_ids", "use_cache", "output_router_logits", "num_items_in_batch"}
# transformers' names of ``AttentionTerms``.
_TERMS = ("scaling", "sliding_window", "softcap", "s_aux")


class AttentionTerms(NamedTuple):
    """What attention depends on besides query, key and value.

    Attributes:
        scale: factor of the products.
        window: how many tokens a token sees, the last of which is itself; None: all.
        softcap: scores are limited to (-softcap, softcap) by tanh; None: unlimited.
        sinks: (heads,) a logit per head that takes part in the softmax and has no value.
    """

    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    @classmethod
    def of(
        cls, layer: nn.Module, query: Tensor, mask: Tensor | None, arguments: Mapping[str, Any]
    ) -> AttentionTerms:
        """The terms as a layer of transformers passes them by name.

        Products are multiplied by ``scaling`` (width ** -0.5 if None), and limited to (-softcap,
        softcap) by tanh. A token sees ``sliding_window`` tokens, the last of which is itself.
        ``s_aux`` is a logit per head that takes part in the softmax and has no value.

        Args:
            layer: that calls; its attribute ``is_causal`` counts too.
            query: its queries.
            mask: is refused.
            arguments: by name. Of others than these None, False, a dropout of 0 and any
                ``is_causal`` but False are accepted.

        Raises:
            ModelError: another argument, known or not, is given: ignoring it would silently give
                other numbers.
        """
        others = dict(arguments, attention_mask=mask)
        scale, window, softcap, sinks = (others.pop(name, None) for name in _TERMS)
        causal = others.get("is_causal"), getattr(layer, "is_causal", True)
        refused = ["is_causal"] * (False in causal)
        for name, given in others.items():
            is_set = given is not None and given is not False and name != "is_causal"
            if is_set and name not in _WITHOUT_EFFECT and not (name == "dropout" and given == 0):
                refused.append(name)
        if refused:
            names, of = ", ".join(refused), type(layer).__name__
            raise ModelError(f"attention here cannot honour {names} of {of}. {INSTEAD}")
        return cls(query.shape[-1] ** -0.5 if scale is None else scale, window, softcap, sinks)


def score_dtype(query: Tensor) -> torch.dtype:
    """The dtype of products of queries and keys: float32 on CUDA, elsewhere the queries' own.

    Rounded to bfloat16, a score of 16 to 32 is off by up to 0.06, before the softmax takes its
    exponential. transformers' kernels on CUDA keep float32 there. torch can ask for it from 2.8 on.
    """
    is_wide = query.is_cuda and hasattr(torch.ops.aten.bmm, "dtype")
    return torch.float32 if is_wide else query.dtype


def scores_of(
    query: Float[Tensor, "batch rows width"], key: Float[Tensor, "batch width columns"]
) -> Float[Tensor, "batch rows columns"]:
    """Products of queries and keys, in ``score_dtype``."""
    if (dtype := score_dtype(query)) == query.dtype:
        return torch.bmm(query, key)
    return torch.bmm(query, key, out_dtype=dtype)


def capped_(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores under a softcap, in place."""
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


def unseen_keys(rows: int, columns: int, window: int | None) -> Bool[Tensor, "rows 1 columns"]:
    """True on keys that are not seen, on the CPU; the last column is the last row's own key."""
    # (rows, 1, columns): by how many positions a key is behind the query
    behind = torch.arange(columns - rows, columns)[:, None, None] - torch.arange(columns)
    return (behind < 0) | (behind >= (columns if window is None else window))


def decoder_of(model: nn.Module) -> Any:
    """The transformers model that this one is or wraps.

    Raises:
        ModelError: there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ModelError(f"{type(model).__name__} is not a model of transformers. {INSTEAD}")


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that transformers can checkpoint, by name; one inside of another is part of it."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and not is_below(name, layers):
            layers[name] = module
    return layers


def is_below(name: str, modules: Iterable[str]) -> bool:
    """Whether a module is inside of one of these, all by name."""
    return any(name.startswith(f"{module}.") for module in modules)


@contextmanager
def attention_of(decoder: Any, name: str) -> Generator[None]:
    """Within the block, a model and the models inside of it use the attention of that name.

    Afterwards each uses its own again; these may differ.
    """
    parts = (part for part in decoder.modules() if isinstance(part, PreTrainedModel))
    configs: dict[int, Any] = {id(part.config): part.config for part in parts}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        decoder.set_attn_implementation(name)
        yield
    finally:
        for config, earlier in before:
            config._attn_implementation = earlier


def refuse_unpackable(model: nn.Module) -> None:
    """Refuse a model by its structure: works without weights, on the meta device too.

    Raises:
        ModelError: the class does not use transformers' attention interface, or some of its
            layers carry a state from token to token or attend in chunks.
    """
    decoder = decoder_of(model)
    name, config = type(decoder).__name__, decoder.config.get_text_config()
    if not (decoder.is_backend_compatible() and decoder._can_set_attn_implementation()):
        raise ModelError(f"{name} brings its own attention, which cannot be packed. {INSTEAD}")
    kinds = (getattr(config, key, None) or () for key in ("layer_types", "layers_block_type"))
    others = {kind for layers in kinds for kind in layers} - _ATTENTION_LAYERS
    if others:
        listed = ", ".join(sorted(others))
        raise ModelError(f"{name} has layers ({listed}) that mix packed sequences. {INSTEAD}")


def refuse_lost_window(decoder: Any, windows: Iterable[int | None]) -> None:
    """Refuse a model whose window is in its mask alone: without a mask it would see everything.

    Args:
        decoder: of transformers.
        windows: the window that each layer passed to its attention.

    Raises:
        ModelError: its config has a window shorter than its context, and no layer passed one.
    """
    config = decoder.config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    is_off = not window or getattr(config, "use_sliding_window", True) is False
    if is_off or (kinds and "sliding_attention" not in kinds):
        return
    context = getattr(config, "max_position_embeddings", None)
    if (context is None or window < context) and not any(windows):
        raise ModelError(
            f"{type(decoder).__name__} limits attention to {window} tokens by its mask alone, and "
            f"packed sequences have none. {INSTEAD}"
        )
