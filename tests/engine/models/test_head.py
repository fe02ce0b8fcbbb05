"""The loss of learned tokens in chunks: equal to that of all logits at once, and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rankwise.engine.models import head as completion_loss
from rankwise.engine.models.head import (
    CompletionHead,
    HeldTokens,
    LearnedTokens,
    backward_losses,
)
from rankwise.engine.models.packed_attention import packed_attention
from rankwise.engine.models.packed_layout import PackedLayout
from tests.support.packed_texts import CPU, LENGTHS, farthest, logits_alone, tokens
from tests.support.tiny_models import tiny

ROWS = torch.tensor([3, 4, 5, 6, 11, 12, 14, 19, 21, 22, 23, 24, 30])
WEIGHTS = torch.linspace(0.2, 1.4, len(ROWS))


def gradients(model: Any, embeds: Tensor) -> list[Tensor]:
    """Gathered by a backward pass, of the embeddings that were given and of every weight."""
    found = [embeds.grad, *(parameter.grad for parameter in model.parameters())]
    model.zero_grad()
    embeds.grad = None
    return [torch.zeros(1) if each is None else each for each in found]


HELD = torch.tensor([0, 4, 5, 13, 14, 27])
HELD_WEIGHTS = torch.linspace(0.5, 1.0, len(HELD))


@pytest.mark.parametrize("rows_of_a_chunk", [1000, 5])
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GPT2", "Cohere"])
def test_chunks_give_what_all_logits_give(
    family: str, rows_of_a_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Softcap (Gemma-2), a scale (Cohere), tied heads; chunks of 5 rows and blocks of 2."""
    model = tiny(family, **({"logit_scale": 0.3} if family == "Cohere" else {}))
    vocab = model.config.vocab_size
    monkeypatch.setitem(completion_loss.CHUNK_BYTES, "cpu", 4 * vocab * rows_of_a_chunk)
    monkeypatch.setitem(completion_loss.BLOCK_BYTES, "cpu", 4 * vocab * 2)
    embeds = model.get_input_embeddings()(tokens()).detach().requires_grad_()
    targets = tokens()[0].roll(1)[ROWS]
    reference = torch.randn(len(HELD), model.config.hidden_size)
    left_out = torch.tensor([-1, 3, -1, 0, 7, -1])

    logits = logits_alone(model, embeds)[0]
    each = cross_entropy(logits[ROWS], targets, reduction="none")
    layout = PackedLayout(LENGTHS)
    with packed_attention(model):
        head = CompletionHead(model)
        compared = torch.full((len(HELD), vocab), True)
        for row, token in enumerate(left_out):
            if token >= 0:
                compared[row, token] = False
        q, p = (
            torch.where(compared, found, -1e30).log_softmax(dim=-1)
            for found in (logits[HELD], head.logits(reference).detach())
        )
        kls = torch.where(compared, p.exp() * (p - q), 0.0).sum(dim=-1)
        ((each * WEIGHTS).sum() + (kls * HELD_WEIGHTS).sum()).backward()
        expected = gradients(model, embeds)
        hidden = model.base_model(
            inputs_embeds=embeds,
            position_ids=layout.position_ids(CPU),
            packed_layout=layout,
            use_cache=False,
        ).last_hidden_state
        found, divergences = backward_losses(
            head,
            hidden,
            LearnedTokens(ROWS, targets, WEIGHTS),
            HeldTokens(HELD, reference, HELD_WEIGHTS, left_out, head),
        )
    assert found == pytest.approx(each.detach(), rel=1e-5)
    assert divergences == pytest.approx(kls.detach(), rel=1e-4)
    assert farthest(gradients(model, embeds), expected) <= 1e-4
