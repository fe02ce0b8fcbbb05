"""Cross-entropy of learned tokens only, in chunks: the vocabulary never decides the memory."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.engine.models.packed_attention import PackedLayout
from rankwise.errors import ModelError

CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Bytes of the logits of one chunk, by kind of device; on a CPU they should fit into its cache."""

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Bytes of the logits that are turned into float32 at once; a chunk has several such blocks."""


class CompletionHead:
    """A causal language model's head: from hidden states to logits, as its own forward does it.

    Some models cap or scale their logits. A model is refused if the known ways of doing so do not
    reproduce its logits.
    """

    def __init__(self, model: Any) -> None:
        """Take the head of ``model``, which is inside of ``packed_attention``.

        Raises:
            ModelError: head and known scalings do not give the model's logits.
        """
        self.head: nn.Module = model.get_output_embeddings()
        config = model.config.get_text_config()
        # the same idea under two names: Cohere multiplies by logit_scale, Granite divides by
        # logits_scaling
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
        """Compare with the model's own logits of four tokens."""
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
            ours = self.logits(hidden[0])  # (4, vocab)
        # loose enough for bfloat16
        if not torch.allclose(ours.float(), expected.float(), rtol=1e-2, atol=1e-2):
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
    """Losses of the learned tokens; backpropagates their weighted sum.

    Args:
        head: of the model.
        hidden: the last hidden state of every token.
        loss_rows: the tokens whose next token is learned.
        targets: the next tokens.
        weights: of each loss in the sum.

    Returns:
        Cross-entropy in nats of each learned token, unweighted, float32.
    """
    # The graph is cut at the hidden states: each chunk of logits is differentiated and freed before
    # the next one is made, and the layers below are gone through once, at the end.
    states = hidden.detach()[0]  # (tokens, hidden)
    grad_hidden = torch.zeros_like(states)
    losses = torch.empty(len(loss_rows), device=states.device)
    chunk = max(1, CHUNK_BYTES[states.device.type] // (head.vocab_size * states.element_size()))
    for start in range(0, len(loss_rows), chunk):
        part = slice(start, start + chunk)
        leaf = states[loss_rows[part]].requires_grad_()  # (chunk, hidden)
        logits = head.logits(leaf)  # (chunk, vocab)
        losses[part] = _losses_and_gradient(logits.detach(), targets[part], weights[part])
        # the logits' memory holds their gradient now; no step of the head needs its own output
        logits.backward(logits.detach())
        assert leaf.grad is not None
        grad_hidden[loss_rows[part]] = leaf.grad
    hidden.backward(grad_hidden[None])
    return losses


def _losses_and_gradient(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    weights: Float[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """Cross-entropies; ``logits`` are overwritten by the gradient of their weighted sum."""
    losses = torch.empty(len(targets), device=logits.device)
    block = max(1, BLOCK_BYTES[logits.device.type] // (4 * logits.shape[-1]))  # 4 bytes: float32
    for start in range(0, len(targets), block):
        part = slice(start, start + block)
        rows = logits[part]  # (block, vocab), a view
        right = targets[part, None]  # (block, 1), as are the four below
        highest = rows.amax(dim=-1, keepdim=True).float()  # three times as fast as max on a CPU
        chosen = rows.gather(1, right).float()
        shares = torch.softmax(rows, dim=-1, dtype=torch.float32)  # (block, vocab)
        share = shares.gather(1, right)
        # A share that underflows is that of a logit far below the highest one, next to which the
        # logarithm of the sum is the highest logit itself.
        losses[part] = torch.where(share > 0, -share.log(), highest - chosen)[:, 0]
        # the gradient of cross-entropy is softmax - one-hot, times the loss's weight
        shares.scatter_add_(1, right, torch.full_like(share, -1.0))
        torch.mul(shares, weights[part, None], out=rows)
    return losses
