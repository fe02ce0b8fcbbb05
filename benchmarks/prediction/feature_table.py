"""The names of what is measured before training, and what each of them is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

TRUNCATED_RANKS = (1, 2, 4, 8, 16, 32)
"""Ranks to which the probe's update is cut, those below its own rank."""

NEAR_TIE_NATS = 1.0
"""An item is a near tie if the base's right option is nearer than this to its best wrong one."""


class Feature(NamedTuple):
    """One number that is known before training.

    Attributes:
        definition: what it is.
        unit: in which it is given.
        source: what it is measured on.
    """

    definition: str
    unit: str
    source: str


_PLAN, _ROWS = "the plan of the study", "the first 64 training rows, in the order of training"
_MATRICES = f"{_ROWS}; the adapted matrices of 8 layers, evenly spread"
_ANSWERS = "the right answers of the first in-domain items, those of the gauge (50 at most)"
_PROBE = "the largest rank after the first 10 steps of its planned training"


def _by_kind(name: str, definition: str, source: str) -> dict[str, Feature]:
    """A mean over matrices: of all that are read, of attention's and of those of the MLPs."""
    kinds = {"": "", "_attention": " of attention", "_mlp": " of the MLPs"}
    return {
        f"{name}{end}": Feature(f"{definition}, mean over the matrices{of}", "directions", source)
        for end, of in kinds.items()
    }


FEATURES: Mapping[str, Feature] = {
    "train_rows": Feature("Training rows, each read once per epoch", "rows", _PLAN),
    "train_tokens": Feature("Tokens of the training rows, once each", "tokens", _PLAN),
    "train_loss_tokens": Feature("Tokens that are learned of them", "tokens", _PLAN),
    "train_steps": Feature("Optimizer steps of a whole training", "steps", _PLAN),
    "model_parameters": Feature("Weights of the base model", "weights", _PLAN),
    "model_layers": Feature("Layers of the base model", "layers", _PLAN),
    "model_width": Feature("Hidden size of the base model", "features", _PLAN),
    "adapted_matrices": Feature("Matrices that LoRA adapts", "matrices", _PLAN),
    "adapted_parameters": Feature("Weights in these matrices", "weights", _PLAN),
    "rank_parameters": Feature("Weights that LoRA trains per unit of rank", "weights", _PLAN),
    "overlap_share": Feature(
        "Share of in-domain and retention items that are in the training rows, mean over tasks",
        "share",
        _PLAN,
    ),
    "base_accuracy": Feature(
        "Share of items whose right option the base puts first, mean over in-domain tasks with "
        "options",
        "share",
        "the first in-domain items",
    ),
    "base_p_right": Feature(
        "The base's p(right), mean likewise", "share", "the first in-domain items"
    ),
    "chance": Feature("Accuracy of guessing, mean likewise", "share", "the first in-domain items"),
    "near_tie_share": Feature(
        f"Share of items whose right option is within {NEAR_TIE_NATS:g} nat of the best wrong one, "
        "mean likewise",
        "share",
        "the first in-domain items",
    ),
    "retention_accuracy": Feature(
        "As base_accuracy, over retention tasks", "share", "the first retention items"
    ),
    "retention_p_right": Feature(
        "As base_p_right, over retention tasks", "share", "the first retention items"
    ),
    "retention_chance": Feature(
        "As chance, over retention tasks", "share", "the first retention items"
    ),
    "retention_near_tie_share": Feature(
        "As near_tie_share, over retention tasks", "share", "the first retention items"
    ),
    "base_loss": Feature("The base's loss on right answers in-domain", "nats per token", _ANSWERS),
    "train_loss": Feature("The base's loss on training rows", "nats per token", _ROWS),
    **_by_kind(
        "gradient_energy_rank_90",
        "Leading singular directions that hold 90 % of the squared Frobenius norm of the gradient "
        "by W",
        _MATRICES,
    ),
    **_by_kind(
        "activation_energy_rank_90",
        "Leading directions that hold 90 % of the sum of squares of what enters a matrix",
        _MATRICES,
    ),
    "gradient_cosine": Feature(
        "Cosine of the gradients of the loss on training rows and on the right answers of "
        "retention items, by all read matrices together; above 0, training lowers both",
        "cosine",
        f"{_MATRICES}; and the first 64 right answers of retention tasks",
    ),
    "gradient_overlap_left": Feature(
        "Mean squared cosine of the principal angles between both gradients' 8 leading left "
        "singular vectors (outputs), mean over the read matrices",
        "share",
        "as gradient_cosine",
    ),
    "gradient_overlap_right": Feature(
        "The same of right singular vectors (inputs)", "share", "as gradient_cosine"
    ),
    "probe_rank": Feature("The rank of the probe, the study's largest", "rank", _PLAN),
    "probe_steps": Feature(
        "Steps that the probe took, 10 unless training has fewer", "steps", _PLAN
    ),
    "probe_loss_drop": Feature(
        "The base's loss less the probe's, on right answers in-domain",
        "nats per token",
        f"{_PROBE}; {_ANSWERS}",
    ),
    "probe_kl": Feature(
        "KL(base || probe) on right answers in-domain, as the gauge of forgetting has it",
        "nats per token",
        f"{_PROBE}; {_ANSWERS}",
    ),
    "probe_kl_text": Feature(
        "KL(base || probe) on held-out text, as the gauge of forgetting has it",
        "nats per token",
        f"{_PROBE}; the ends of 50 texts at most",
    ),
    **_by_kind(
        "probe_energy_rank_90",
        "Leading singular directions that hold 90 % of the squared Frobenius norm of the update",
        _PROBE,
    ),
    **{
        f"probe_loss_drop_rank_{rank}": Feature(
            f"As probe_loss_drop, with every matrix's update cut to its best approximation of rank "
            f"{rank}; missing where the probe has no higher rank",
            "nats per token",
            f"{_PROBE}; {_ANSWERS}",
        )
        for rank in TRUNCATED_RANKS
    },
}
"""Name -> what it is. What a study does not have (options, retention tasks, text) is missing."""
