"""An estimate of what a training needs, made before any weight is loaded."""

from __future__ import annotations

from typing import Any

from rankwise.devices import DTYPES, ResolvedPrecision
from rankwise.records import Method

_FLOAT32_BYTES = 4
_ADAM_BYTES = 3 * _FLOAT32_BYTES  # gradient and two moments


def estimate_training_memory(
    skeleton: Any,
    *,
    method: Method,
    num_trainable: int,
    batch_size: int,
    max_tokens: int,
    max_loss_tokens: int,
    precision: ResolvedPrecision,
) -> int:
    """Bytes for weights, gradients, AdamW's moments, activations and logits of one micro-batch.

    Activations count what autograd keeps of a decoder layer: about 14 vectors of the hidden size
    and 5 of the MLP's per token. The Python process itself is not in it.

    Args:
        skeleton: the model on the meta device.
        method: LoRA keeps the base in ``precision`` beside a float32 adapter; full fine-tuning
            keeps every weight in float32.
        num_trainable: parameters that get gradients.
        batch_size: rows of a micro-batch.
        max_tokens: of its longest row.
        max_loss_tokens: positions whose logits are computed, per row.
        precision: of the matrix products.
    """
    config = skeleton.config.get_text_config()
    num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    width = DTYPES[precision].itemsize
    base_bytes = num_parameters * (_FLOAT32_BYTES if method == "full" else width)
    adapter_bytes = 0 if method == "full" else num_trainable * _FLOAT32_BYTES
    hidden = config.hidden_size
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    per_token = config.num_hidden_layers * (14 * hidden + 5 * intermediate) * width
    logits = batch_size * max_loss_tokens * config.vocab_size * (width + 2 * _FLOAT32_BYTES)
    return (
        base_bytes
        + adapter_bytes
        + num_trainable * _ADAM_BYTES
        + batch_size * max_tokens * per_token
        + logits
    )
