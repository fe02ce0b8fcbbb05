"""Losses of whole texts, in which what a token weighs depends on the rest of its text.

They are those of pairs of answers (DPO), and of texts that a model wrote and that were rewarded
(GRPO). Both come from the losses of single tokens, by which they are differentiated: so the head
needs to know nothing of them but a weight for each token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.records.config.objectives import DpoConfig, GrpoConfig


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
        """The log-likelihoods of both answers, from the losses of their tokens."""
        # (answers,), then (pairs, 2): chosen, rejected
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


class PolicyTerms(NamedTuple):
    """The texts of a micro-batch that models wrote themselves.

    Attributes:
        counts: (texts,) tokens of each.
        advantages: (texts,) by how much each is better than the others of its group, float32.
        weights: (texts,) of the loss of each token in the sum that is minimised, float32.
        old_nats: (tokens,) the losses when the texts were written; not a number where the model is
            as it was then.
        base_nats: (tokens,) the losses under the base; None: it is not held on to.
        are_new: whether all models are as they were.
    """

    counts: Int[Tensor, " texts"]
    advantages: Float[Tensor, " texts"]
    weights: Float[Tensor, " texts"]
    old_nats: Float[Tensor, " tokens"]
    base_nats: Float[Tensor, " tokens"] | None
    are_new: bool

    def new_weights(self) -> Float[Tensor, " tokens"]:
        """The derivatives of ``losses`` where all models are as they were and none holds on.

        The ratio is 1 there, whatever the losses of the tokens are.
        """
        return (self.advantages * self.weights).repeat_interleave(self.counts)

    def losses(
        self, nats: Float[Tensor, " tokens"], grpo: GrpoConfig
    ) -> tuple[Float[Tensor, " texts"], Float[Tensor, " tokens"]]:
        """The part of each text in the loss of its step, and the derivative by each token's loss.

        As TRL's GRPOTrainer has it.

        Args:
            nats: the loss of each token, float32.
            grpo: the settings.
        """
        with torch.enable_grad():
            of_tokens = nats.detach().requires_grad_()
            old = torch.where(self.old_nats.isnan(), nats.detach(), self.old_nats)
            log_ratios = old - of_tokens  # log(new / old), as a loss is -log
            if grpo.importance_sampling_level == "sequence":
                means = torch.segment_reduce(log_ratios, "mean", lengths=self.counts)
                log_ratios = means.repeat_interleave(self.counts)
            ratios = log_ratios.exp()
            clipped = ratios.clamp(1.0 - grpo.epsilon, grpo.largest_ratio)
            advantages = self.advantages.repeat_interleave(self.counts)
            losses = -torch.minimum(ratios * advantages, clipped * advantages)
            if self.base_nats is not None:
                to_base = of_tokens - self.base_nats  # log(base / new)
                losses = losses + grpo.beta * (to_base.exp() - to_base - 1.0)
            losses = losses * self.weights.repeat_interleave(self.counts)
            of_texts = torch.segment_reduce(losses, "sum", lengths=self.counts)
            of_texts.sum().backward()
        assert of_tokens.grad is not None
        return of_texts.detach(), of_tokens.grad


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
