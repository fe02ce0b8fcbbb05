"""DPO's losses of pairs of answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.records.config.training import DpoConfig


class PairTerms(NamedTuple):
    """The pairs of a micro-batch, whose learned tokens come as chosen, rejected, chosen, ...

    Attributes:
        counts: (2 * pairs,) learned tokens of each answer.
        base_nats: (pairs, 2) log-likelihoods that the base gives them, float32.
        weights: (pairs,) of each pair's loss in the sum that is minimised, float32.
        chosen_weights: (pairs,) of the loss of each token of the chosen answers, beside it.
    """

    counts: Int[Tensor, " answers"]
    base_nats: Float[Tensor, "pairs 2"]
    weights: Float[Tensor, " pairs"]
    chosen_weights: Float[Tensor, " pairs"]

    def log_likelihoods(self, nats: Float[Tensor, " tokens"]) -> Float[Tensor, "pairs 2"]:
        """Of both answers, from the losses of their tokens."""
        return -torch.segment_reduce(nats, "sum", lengths=self.counts).view(-1, 2)

    def losses(
        self, nats: Float[Tensor, " tokens"], dpo: DpoConfig
    ) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " tokens"]]:
        """The loss of each pair, and the derivative of their weighted sum by each token's loss.

        Args:
            nats: the loss of each learned token, float32.
            dpo: the settings.
        """
        with torch.enable_grad():
            of_tokens = nats.detach().requires_grad_()
            likelihoods = self.log_likelihoods(of_tokens)
            losses = pair_losses(likelihoods - self.base_nats, self.counts.view(-1, 2), dpo)
            # a mean over tokens beside one over pairs, as a part of each pair's loss
            losses = losses - self.chosen_weights / self.weights * likelihoods[:, 0]
            (losses * self.weights).sum().backward()
        assert of_tokens.grad is not None
        return losses.detach(), of_tokens.grad


def pair_losses(
    log_ratios: Float[Tensor, "pairs 2"], counts: Int[Tensor, "pairs 2"], dpo: DpoConfig
) -> Float[Tensor, " pairs"]:
    """DPO's loss of each pair, as TRL's DPOTrainer has it.

    Args:
        log_ratios: log(model / base) of the chosen and of the rejected answer.
        counts: tokens of each answer.
        dpo: the settings.
    """
    if dpo.loss == "ipo":  # arXiv:2310.12036, of means over tokens as its authors recommend
        chosen, rejected = (log_ratios / counts).unbind(1)
        return (chosen - rejected - 1 / (2 * dpo.beta)) ** 2
    chosen, rejected = log_ratios.unbind(1)
    margins, smoothing = dpo.beta * (chosen - rejected), dpo.label_smoothing
    log_sigmoid = nn.functional.logsigmoid
    return -log_sigmoid(margins) * (1 - smoothing) - log_sigmoid(-margins) * smoothing
