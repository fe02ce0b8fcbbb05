"""Giving a decoder of transformers another attention, and refusing where that would be wrong.

Decoders take their attention from transformers' ``AttentionInterface``, by the name in their
config. What is registered there without a mask function beside it gets no mask.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from rankwise.errors import ModelError

INSTEAD = "Choose another base model."
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "attention"}
# Some models hand these to the attention function, where they change nothing.
_WITHOUT_EFFECT = {"position_ids", "use_cache", "output_router_logits", "num_items_in_batch"}


class AttentionTerms(NamedTuple):
    """What the scores of attention depend on beside query and key.

    Attributes:
        scale: factor of the products.
        window: how many tokens a token sees, the last of which is itself; None is all.
        softcap: scores are limited to (-softcap, softcap) by tanh; None is not at all.
        sinks: a logit per head that takes part in the softmax and has no value.
    """

    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    @classmethod
    def of(
        cls,
        query: Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> AttentionTerms:
        """As a layer of transformers gives them: without a scaling, it is width ** -0.5."""
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return cls(scale, window, softcap, sinks)


def decoder_of(model: nn.Module) -> Any:
    """The transformers model that is this one or is wrapped in it.

    Raises:
        ModelError: there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ModelError(f"{type(model).__name__} is no model of transformers. {INSTEAD}")


@contextmanager
def attention_of(decoder: Any, name: str) -> Generator[None]:
    """Within the block, a model and the models inside of it attend by the function of that name.

    Afterwards each has its own again; their names may differ.
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
    if found := ", ".join(sorted({kind for each in kinds for kind in each} - _ATTENTION_LAYERS)):
        raise ModelError(f"{name} has layers ({found}) that mix packed sequences. {INSTEAD}")


def refuse_lost_window(decoder: Any, windows: Iterable[int | None]) -> None:
    """Refuse a model whose window is in its mask alone: without a mask it would see everything.

    Args:
        decoder: of transformers.
        windows: that its layers asked their attention for.

    Raises:
        ModelError: its config limits what a token sees to less than its context, and no layer
            asked for that.
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


def refuse_arguments(layer: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Refuse what a layer asks of its attention beside ``AttentionTerms`` and would change it.

    A mask, dropout, attention in both directions, and all that is not known here: leaving it out
    would give other numbers without a word.

    Args:
        layer: that calls; also its own ``is_causal`` counts.
        arguments: by name; None, False and a dropout of 0 ask for nothing, and an ``is_causal``
            only if it is False.

    Raises:
        ModelError: names what is refused.
    """
    causal = arguments.get("is_causal"), getattr(layer, "is_causal", True)
    refused = ["is_causal"] * (False in causal)
    for name, given in arguments.items():
        asks = given is not None and given is not False and name != "is_causal"
        if asks and name not in _WITHOUT_EFFECT and not (name == "dropout" and given == 0):
            refused.append(name)
    if refused:
        names, of = ", ".join(refused), type(layer).__name__
        raise ModelError(f"attention here cannot honour {names} of {of}. {INSTEAD}")
