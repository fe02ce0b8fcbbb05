"""Measures of an attention head's behaviour, and of its part of an update.

Tensors in, tensors out. Attention weights are (..., queries, keys): every row sums to 1, and a key
that a query does not see has weight 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def attention_entropy(
    weights: Float[Tensor, "*heads queries keys"],
) -> Float[Tensor, "*heads queries"]:
    """-Σ w ln w over the keys, in nats, from 0 (one key) to ln(keys); in float32."""
    return torch.special.entr(weights.float()).sum(dim=-1)


def attention_divergence(
    before: Float[Tensor, "*heads queries keys"], after: Float[Tensor, "*heads queries keys"]
) -> Float[Tensor, "*heads queries"]:
    """Jensen-Shannon divergence of two attention distributions, in nats, from 0 to ln 2.

    Source: Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37
    (1991): the entropy of the mean less the mean of the entropies.
    """
    p, q = before.float(), after.float()
    mean = attention_entropy((p + q) / 2)
    return (mean - (attention_entropy(p) + attention_entropy(q)) / 2).clamp_min_(0.0)


def first_token_mass(
    weights: Float[Tensor, "*heads queries keys"],
) -> Float[Tensor, "*heads queries"]:
    """The weight of the first key, from 0 to 1, where a head with nothing to do rests.

    Source: Xiao et al., "Efficient streaming language models with attention sinks",
    arXiv:2309.17453.
    """
    return weights[..., 0].float()


def row_norms_squared(
    lora_A: Float[Tensor, "rank in_features"],
    lora_B: Float[Tensor, "out_features rank"],
    scaling: float,
    rows: slice,
) -> float:
    """‖delta[rows]‖_F² of delta = scaling * lora_B @ lora_A, which is never built; in float64.

    It is tr((Bᵀ B)(A Aᵀ)) with those rows of B.
    """
    A, B = lora_A.double(), lora_B.double()[rows]
    return scaling**2 * _trace_of_product(B.T @ B, A @ A.T)


def column_norms_squared(
    lora_A: Float[Tensor, "rank in_features"],
    lora_B: Float[Tensor, "out_features rank"],
    scaling: float,
    columns: slice,
) -> float:
    """‖delta[:, columns]‖_F², as ``row_norms_squared`` with those columns of A."""
    A, B = lora_A.double()[:, columns], lora_B.double()
    return scaling**2 * _trace_of_product(B.T @ B, A @ A.T)


def _trace_of_product(first: Tensor, second: Tensor) -> float:
    """tr(first @ second) of symmetric matrices; rounding does not make it negative."""
    return max(float((first * second).sum()), 0.0)
