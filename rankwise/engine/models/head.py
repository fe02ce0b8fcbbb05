"""Cross-entropy of learned tokens only, in chunks: the vocabulary never decides the memory."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.engine.models.packed_attention import PackedLayout
from rankwise.errors import ModelError

CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Of the logits of one chunk, by kind of device; on a CPU they should stay in the cache."""

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Of the logits that are turned into float32 at once."""


class CompletionHead:
    """A causal language model's head: from hidden states to logits, as its own forward does it.

    Some models cap or scale their logits; those whose logits cannot be had from the hidden states
    in a known way are refused.
    """

    def __init__(self, model: Any) -> None:
        """Take the head of ``model``, which reads packed sequences now.

        Raises:
            ModelError: head and known scalings do not give the model's logits.
        """
        self.head: nn.Module = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = float(getattr(config, "logit_scale", None) or 1.0)
        self._scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        self.vocab_size: int = config.vocab_size
        self._check(model)

    def logits(self, hidden: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows vocab"]:
        """The model's logits after these hidden states."""
        logits: Tensor = self.head(hidden)
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def _check(self, model: Any) -> None:
        device = next(model.parameters()).device
        layout = PackedLayout((4,))
        inputs: dict[str, Any] = {
            "input_ids": torch.arange(4, device=device)[None] % self.vocab_size,
            "position_ids": layout.position_ids(device),
            "packed_layout": layout,
            "use_cache": False,
        }
        with torch.no_grad():
            hidden = model.base_model(**inputs).last_hidden_state
            expected = model(**inputs).logits[0]
            found = self.logits(hidden[0])
        if not torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-2):
            raise ModelError(
                f"the logits of {type(model).__name__} are not its head's output, and how it "
                "scales them is not known here. Choose a model whose logits are its head's, scaled "
                "by logit_scale or logits_scaling or capped by final_logit_softcapping."
            )


def backward_completion_loss(
    head: CompletionHead,
    hidden: Float[Tensor, "1 tokens hidden"],
    loss_rows: Int[Tensor, " losses"],
    targets: Int[Tensor, " losses"],
    weights: Float[Tensor, " losses"],
) -> Float[Tensor, " losses"]:
    """Losses of the learned tokens, and the gradient of their weighted sum in all that led there.

    Args:
        head: of the model.
        hidden: what its layers say about every token.
        loss_rows: the tokens whose next token is learned.
        targets: the next tokens.
        weights: of each loss in the sum that is differentiated.

    Returns:
        Cross-entropy in nats of each learned token, unweighted, float32.
    """
    states = hidden.detach()[0]
    grad_hidden = torch.zeros_like(states)
    losses = torch.empty(len(loss_rows), device=states.device)
    chunk = max(1, CHUNK_BYTES[states.device.type] // (head.vocab_size * states.element_size()))
    for start in range(0, len(loss_rows), chunk):
        own = slice(start, start + chunk)
        leaf = states[loss_rows[own]].requires_grad_()
        logits = head.logits(leaf)
        losses[own] = _losses_and_gradient(logits.detach(), targets[own], weights[own])
        logits.backward(logits.detach())
        assert leaf.grad is not None
        grad_hidden[loss_rows[own]] = leaf.grad
    hidden.backward(grad_hidden[None])
    return losses


def _losses_and_gradient(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    weights: Float[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """Cross-entropies; ``logits`` become the gradient of their weighted sum, block by block."""
    losses = torch.empty(len(targets), device=logits.device)
    block = max(1, BLOCK_BYTES[logits.device.type] // (4 * logits.shape[-1]))
    for start in range(0, len(targets), block):
        own = slice(start, start + block)
        rows = logits[own]
        right = targets[own, None]
        highest = rows.amax(dim=-1, keepdim=True).float()  # three times as fast as max on a CPU
        chosen = rows.gather(1, right).float()
        shares = torch.softmax(rows, dim=-1, dtype=torch.float32)
        share = shares.gather(1, right)
        # a share that underflows is that of a logit far below the highest one
        losses[own] = torch.where(share > 0, -share.log(), highest - chosen)[:, 0]
        shares.scatter_add_(1, right, torch.full_like(share, -1.0))
        torch.mul(shares, weights[own, None], out=rows)
    return losses
