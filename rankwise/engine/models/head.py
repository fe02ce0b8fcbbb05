"""Losses of the tokens that have any, in chunks: the vocabulary never decides the memory."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.engine.models.attention import INSTEAD
from rankwise.engine.models.packed_attention import packed_attention
from rankwise.engine.models.packed_layout import PackedLayout
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

    def __init__(self, model: Any, temperature: float = 1.0) -> None:
        """Take the head of ``model``, and compare with the model's own logits of four tokens.

        Args:
            model: a causal language model of transformers, which can be packed.
            temperature: by which its logits are divided.

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
        self._temperature = 1.0
        self._check(model)
        self._temperature = temperature

    def logits(self, hidden: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows vocab"]:
        """The model's logits after these hidden states."""
        logits: Tensor = self.head(hidden)
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits if self._temperature == 1.0 else logits / self._temperature

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
        with torch.no_grad(), packed_attention(model):
            hidden = getattr(model.base_model(**inputs), "last_hidden_state", None)
            if hidden is None:
                raise ModelError(
                    f"{type(model).__name__} gives no hidden states without its head: it has no "
                    f"part {model.base_model_prefix!r}, which its class names as the model below "
                    f"the head. {INSTEAD}"
                )
            expected = model(**inputs).logits[0]
            ours = self.logits(hidden[0])  # (4, vocab)
        # loose enough for bfloat16
        if not torch.allclose(ours.float(), expected.float(), rtol=1e-2, atol=1e-2):
            raise ModelError(
                f"the logits of {type(model).__name__} are not its head's output, and how it "
                "scales them is not known here. Choose a model whose logits are its head's, scaled "
                "by logit_scale or logits_scaling or capped by final_logit_softcapping."
            )


class LearnedTokens(NamedTuple):
    """Tokens that a micro-batch learns.

    Attributes:
        rows: (losses,) the tokens whose next token is learned.
        targets: (losses,) the next tokens.
        weights: (losses,) float32, of each loss in the sum that is minimised.
    """

    rows: Int[Tensor, " losses"]
    targets: Int[Tensor, " losses"]
    weights: Float[Tensor, " losses"]


class HeldTokens(NamedTuple):
    """Tokens at which a model is held to another one's next-token distribution.

    Attributes:
        rows: (held,) the tokens.
        reference: (held, hidden) the other model's last hidden states there.
        weights: (held,) float32, of each KL in the sum that is minimised.
        left_out: (held,) the token that neither distribution counts, -1 for none.
        head: of the other model.
        is_reverse: KL(model || other) is taken, and not KL(other || model).
    """

    rows: Int[Tensor, " held"]
    reference: Float[Tensor, "held hidden"]
    weights: Float[Tensor, " held"]
    left_out: Int[Tensor, " held"]
    head: CompletionHead
    is_reverse: bool = False


def backward_losses(
    head: CompletionHead,
    hidden: Float[Tensor, "1 tokens hidden"],
    learned: LearnedTokens,
    held: HeldTokens | None = None,
) -> tuple[Float[Tensor, " losses"], Float[Tensor, " held"]]:
    """Losses of a micro-batch; backpropagates their weighted sum.

    Args:
        head: of the model.
        hidden: the last hidden state of every token.
        learned: what is learned.
        held: where the model is held to another one; None: nowhere.

    Returns:
        Unweighted and float32, in nats: the cross-entropy of each learned token, and the KL over
        the whole vocabulary at each held one.
    """
    # The graph is cut at the hidden states: each chunk of logits is differentiated and freed before
    # the next one is made, and the layers below are gone through once, at the end.
    states = hidden.detach()[0]  # (tokens, hidden)
    grad_hidden = torch.zeros_like(states)
    losses = torch.empty(len(learned.rows), device=states.device)
    bytes_of_row = head.vocab_size * states.element_size()
    budget = CHUNK_BYTES[states.device.type]
    for part in _chunks(len(learned.rows), budget // bytes_of_row):
        with _backward_chunk(head, states, learned.rows[part], grad_hidden) as logits:
            losses[part] = _losses_and_gradient(
                logits, learned.targets[part], learned.weights[part]
            )
    kls = torch.empty(0 if held is None else len(held.rows), device=states.device)
    if held is not None:
        for part in _chunks(len(held.rows), budget // (2 * bytes_of_row)):  # two models' logits
            with _backward_chunk(head, states, held.rows[part], grad_hidden) as logits:
                with torch.no_grad():
                    reference = held.head.logits(held.reference[part])  # (chunk, vocab)
                of_part = held.weights[part], held.left_out[part]
                kls[part] = _divergences_and_gradient(logits, reference, *of_part, held.is_reverse)
    hidden.backward(grad_hidden[None])
    return losses, kls


@torch.no_grad()
def token_losses(
    head: CompletionHead, states: Float[Tensor, "rows hidden"], targets: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """The cross-entropy of each token that follows on these states, float32, in nats."""
    losses = torch.empty(len(targets), device=states.device)
    size = CHUNK_BYTES[states.device.type] // (head.vocab_size * states.element_size())
    for chunk in _chunks(len(targets), size):
        logits = head.logits(states[chunk])  # (chunk, vocab)
        right, into = targets[chunk], losses[chunk]
        for part in _chunks(len(right), _rows_of_block(logits)):
            into[part] = nn.functional.cross_entropy(
                logits[part].float(), right[part], reduction="none"
            )
    return losses


def _chunks(count: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, count, size))


@contextlib.contextmanager
def _backward_chunk(
    head: CompletionHead,
    states: Float[Tensor, "tokens hidden"],
    rows: Int[Tensor, " chunk"],
    grad_hidden: Float[Tensor, "tokens hidden"],
) -> Generator[Float[Tensor, "chunk vocab"]]:
    """The logits at some tokens, which the block overwrites with their gradient.

    The gradient of the hidden states is added to ``grad_hidden``; that of the head's weights to
    these. No token is twice in ``rows``.
    """
    leaf = states[rows].requires_grad_()  # (chunk, hidden)
    logits = head.logits(leaf)  # (chunk, vocab)
    yield logits.detach()
    # the logits' memory holds their gradient now; no step of the head needs its own output
    logits.backward(logits.detach())
    assert leaf.grad is not None
    grad_hidden[rows] += leaf.grad


def _losses_and_gradient(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    weights: Float[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """Cross-entropies; ``logits`` are overwritten by the gradient of their weighted sum."""
    losses = torch.empty(len(targets), device=logits.device)
    for part in _chunks(len(targets), _rows_of_block(logits)):
        rows = logits[part]  # (block, vocab), a view
        right = targets[part, None]  # (block, 1), as are the three below
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


def _divergences_and_gradient(
    logits: Float[Tensor, "rows vocab"],
    reference: Float[Tensor, "rows vocab"],
    weights: Float[Tensor, " rows"],
    left_out: Int[Tensor, " rows"],
    is_reverse: bool,
) -> Float[Tensor, " rows"]:
    """KL(reference || model); ``logits`` are overwritten by the gradient of their weighted sum.

    ``is_reverse``: KL(model || reference).
    """
    divergences = torch.empty(len(weights), device=logits.device)
    for part in _chunks(len(weights), _rows_of_block(logits)):
        rows = logits[part]  # (block, vocab), a view
        ours, theirs = rows.float(), reference[part].float()
        absent = left_out[part, None]  # (block, 1)
        place = absent.clamp(min=0)
        for each in (ours, theirs):
            # the lowest number and not -inf: the difference of two -inf is not a number
            lowest = torch.finfo(torch.float32).min
            each.scatter_(1, place, each.gather(1, place).masked_fill(absent >= 0, lowest))
        log_q, log_p = ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
        if is_reverse:
            q, ratios = log_q.exp(), log_q - log_p  # (block, vocab)
            kl = (q * ratios).sum(dim=-1)
            divergences[part] = kl
            # of KL(softmax(z) || p) by z: softmax(z) * (log softmax(z) - log p - KL)
            torch.mul(q.mul_(ratios.sub_(kl[:, None])), weights[part, None], out=rows)
            continue
        p = log_p.exp()  # (block, vocab)
        divergences[part] = (p * (log_p - log_q)).sum(dim=-1)
        # of KL(p || softmax(z)) by z: softmax(z) - p
        torch.mul(log_q.exp_().sub_(p), weights[part, None], out=rows)
    return divergences


def _rows_of_block(logits: Float[Tensor, "rows vocab"]) -> int:
    return BLOCK_BYTES[logits.device.type] // (4 * logits.shape[-1])  # 4 bytes: float32
