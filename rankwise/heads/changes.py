"""What training changed in every head: base and adapted on the same prompts, and the weights.

Attention weights are (..., queries, keys): every row sums to 1, and a key that a query does not see
has weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.engine.models.attention import (
    INSTEAD,
    AttentionTerms,
    attention_of,
    capped_,
    decoder_of,
    unseen_keys,
)
from rankwise.engine.models.devices import moved
from rankwise.errors import ModelError
from rankwise.heads.interventions import Head, adapted_heads, head_slices
from rankwise.heads.layouts import HeadLayout, LayerSlice
from rankwise.records.heads import ChangeMap, ChangeMeasure, HeadMap, ShareMap, ShareOf

WATCHED_ATTENTION = "rankwise_watched"

NormSquared = Callable[[LayerSlice], float]
"""‖delta‖² of these rows or columns; 0 if not adapted."""


class HeadActivity(NamedTuple):
    """One layer's heads on one prompt.

    Attributes:
        weights: of attention; rows sum to 1 (to less under a sink logit).
        outputs: the input of the output projection.
    """

    weights: Float[Tensor, "heads tokens tokens"]
    outputs: Float[Tensor, "heads tokens width"]


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


def norm_squared(
    lora_A: Float[Tensor, "rank in_features"],
    lora_B: Float[Tensor, "out_features rank"],
    scaling: float,
    rows: slice,
    columns: slice,
) -> float:
    """‖delta[rows, columns]‖_F² of delta = scaling * lora_B @ lora_A, never built; in float64.

    It is tr((Bᵀ B)(A Aᵀ)) with those rows of B and columns of A.
    """
    A, B = lora_A.double()[:, columns], lora_B.double()[rows]
    # both factors of the trace are symmetric; rounding must not make it negative
    return scaling**2 * max(float(((B.T @ B) * (A @ A.T)).sum()), 0.0)


class HeadChangeTally:
    """Sums over prompts, in two halves, so that the halves' agreement can be measured.

    The first token of a prompt sees only itself, so means are over the queries behind it.
    """

    def __init__(self) -> None:
        # of each layer, as ``_sums`` has them
        self._halves: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._added = 0

    def add(self, before: Sequence[HeadActivity], after: Sequence[HeadActivity]) -> None:
        """Add a prompt of at least two tokens, layer by layer; the halves take turns."""
        new = [_sums(one, other) for one, other in zip(before, after, strict=True)]
        half = self._halves[self._added % 2]
        half[:] = [a + b for a, b in zip(half, new, strict=True)] if half else new
        self._added += 1

    def changes(self) -> tuple[ChangeMap, ...]:
        """All measures; at least two prompts were added."""
        first, second = self._halves
        return tuple(
            ChangeMap(
                measure=measure,
                values=_map(self._whole, change),
                halves=(_map(first, change), _map(second, change)),
            )
            for measure, change in _CHANGES.items()
        )

    def base_maps(self) -> tuple[HeadMap, HeadMap]:
        """The base's own entropy in nats and mass on the first token."""
        entropy = _map(self._whole, lambda sums: sums[_ENTROPY] / sums[_QUERIES])
        return entropy, _map(self._whole, lambda sums: sums[_MASS] / sums[_QUERIES])

    @property
    def _whole(self) -> list[Tensor]:
        return [a + b for a, b in zip(*self._halves, strict=True)]


# Rows of ``_sums``, in the order of ``by_query`` there.
_ENTROPY, _NEW_ENTROPY, _DIVERGENCE, _MASS, _NEW_MASS, _MOVED, _SIZE, _QUERIES = range(8)


def _sums(before: HeadActivity, after: HeadActivity) -> Float[Tensor, "measures heads"]:
    """Sums over queries of every head of a layer, and last how many queries there are."""
    p, q = before.weights[:, 1:], after.weights[:, 1:]  # (heads, queries, keys)
    by_query = [  # each (heads, queries)
        attention_entropy(p),
        attention_entropy(q),
        attention_divergence(p, q),
        first_token_mass(p),
        first_token_mass(q),
        (after.outputs.float() - before.outputs.float()).square().sum(-1),
        before.outputs.float().square().sum(-1),
        p.new_ones(p.shape[:2]),
    ]
    # float64: sums run over all prompts
    return torch.stack([measure.double().sum(-1).cpu() for measure in by_query])


def relative_change(
    moved: Float[Tensor, " heads"], size: Float[Tensor, " heads"]
) -> Float[Tensor, " heads"]:
    """‖change‖ / ‖output‖ of each head; 0 if nothing moved, else 1 for an output of zero before."""
    relative = torch.where(size == 0, torch.ones_like(moved), moved / size)
    return torch.where(moved == 0, torch.zeros_like(moved), relative)


_CHANGES: dict[ChangeMeasure, Callable[[Tensor], Tensor]] = {
    "entropy": lambda sums: (sums[_NEW_ENTROPY] - sums[_ENTROPY]) / sums[_QUERIES],
    "divergence": lambda sums: sums[_DIVERGENCE] / sums[_QUERIES],
    "first_token_mass": lambda sums: (sums[_NEW_MASS] - sums[_MASS]) / sums[_QUERIES],
    "output": lambda sums: relative_change(sums[_MOVED].sqrt(), sums[_SIZE].sqrt()),
}


def _map(layers: Sequence[Tensor], of: Callable[[Tensor], Tensor]) -> HeadMap:
    """What is made of every layer's sums."""
    return tuple(tuple(of(sums).tolist()) for sums in layers)


def share_maps(layouts: Sequence[HeadLayout], norm_of: NormSquared) -> tuple[ShareMap, ...]:
    """Each head's share of ‖delta‖² of q, k, v and the output projection, and of all of them.

    Shares of a kind sum to 1 over all heads of the model. The rows of k and v of a group are
    divided evenly among its heads. Keys that are values count as keys. A kind that is not adapted,
    or whose delta is zero, is left out.
    """
    kinds: dict[ShareOf, list[list[float]]] = {}
    for kind in ("query", "key", "value", "output"):
        norms = [
            [_norm(layout, n, kind, norm_of) for n in range(layout.num_heads)] for layout in layouts
        ]
        if any(map(any, norms)):
            kinds[kind] = norms
    if kinds:
        kinds["all"] = [
            [sum(norms[layer][n] for norms in kinds.values()) for n in range(layout.num_heads)]
            for layer, layout in enumerate(layouts)
        ]
    totals = {kind: sum(map(sum, rows)) for kind, rows in kinds.items()}
    return tuple(
        ShareMap(of=kind, values=tuple(tuple(x / totals[kind] for x in row) for row in rows))
        for kind, rows in kinds.items()
    )


def heads_by_delta(
    factors: Mapping[str, ScaledFactors], layouts: Sequence[HeadLayout]
) -> list[Head]:
    """The heads of which an adapter has a delta, the largest first.

    Its size is ‖delta‖² on what ``interventions.without_heads`` takes away: rows of k and v count
    where no other head reads them. Of equal heads the first comes first.
    """
    norm_of = norms_of_factors(factors)

    def size(head: Head) -> float:
        parts = head_slices(layouts[head.layer], head.head)
        return sum(map(norm_of, parts))

    return sorted(adapted_heads(factors, layouts), key=size, reverse=True)


def _norm(layout: HeadLayout, head: int, kind: str, norm_of: NormSquared) -> float:
    if kind == "output":
        return norm_of(layout.columns(head))
    if kind == "query":
        return norm_of(layout.query(head))
    parts = dict(zip(("key", "value"), layout.keys_and_values(head), strict=False))
    return norm_of(parts[kind]) / len(layout.sharers(head)) if kind in parts else 0.0


def norms_of_factors(factors: Mapping[str, ScaledFactors]) -> NormSquared:
    """Norms of an adapter's delta, from its factors by layer; delta is never built."""

    def of_slice(part: LayerSlice) -> float:
        known = factors.get(part.module)
        return 0.0 if known is None else norm_squared(*known, *part.block)

    return of_slice


def norms_of_matrices(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> NormSquared:
    """Norms of full fine-tuning's delta, from weight matrices (out, in) by layer."""

    def of_slice(part: LayerSlice) -> float:
        if part.module not in before:
            return 0.0
        delta = after[part.module][part.block].double() - before[part.module][part.block].double()
        return float(delta.square().sum())

    return of_slice


@torch.inference_mode()
def head_activity(model: nn.Module, tokens: tuple[int, ...]) -> list[HeadActivity]:
    """Read a prompt and keep the activity of every layer's heads; all weights are in memory.

    Args:
        model: of transformers, in eval mode, also with adapters.
        tokens: at least one.

    Raises:
        ModelError: its attention needs something that is not supported here.
    """
    decoder, seen = decoder_of(model), dict[int, HeadActivity]()
    ids = torch.tensor([tokens], device=decoder.device)
    positions = torch.arange(len(tokens), device=decoder.device)[None]
    # a function, not the dictionary itself: accelerate's hooks hand a layer a copy of each
    watch = seen.__setitem__
    with attention_of(decoder, WATCHED_ATTENTION):
        decoder.base_model(input_ids=ids, position_ids=positions, head_watch=watch, use_cache=False)
    return [seen[number] for number in sorted(seen)]


def attend_watched(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 kv_heads tokens width"],
    value: Float[Tensor, "1 kv_heads tokens value_width"],
    attention_mask: Tensor | None,
    *,
    head_watch: Callable[[int, HeadActivity], None] | None = None,
    **arguments: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_width"], None]:
    """The attention function that transformers calls in every layer; see ``AttentionTerms``.

    ``head_watch`` is told the number of the layer and what its heads do.
    """
    layer = getattr(module, "layer_idx", None)
    if head_watch is None or layer is None:
        raise ModelError(f"{type(module).__name__} was given no head_watch. {INSTEAD}")
    terms = AttentionTerms.of(module, query, attention_mask, arguments)
    heads, tokens = query.shape[1:3]
    # (1, heads, tokens, width): a key for each head of its group
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    # (1, heads, tokens, tokens)
    scores = capped_((query @ key.mT).float() * terms.scale, terms.softcap)
    unseen = moved(unseen_keys(tokens, tokens, terms.window).squeeze(1), query.device)
    scores = scores.masked_fill(unseen, -torch.inf)
    if terms.sinks is not None:
        # a last column without a value, which takes its share of the softmax and is cut off
        sinks = terms.sinks.float().view(1, heads, 1, 1).expand(-1, -1, tokens, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., :tokens].to(value.dtype)
    out = weights @ value  # (1, heads, tokens, value_width)
    head_watch(layer, HeadActivity(weights[0], out[0]))
    return out.transpose(1, 2), None  # (1, tokens, heads, value_width)


AttentionInterface.register(WATCHED_ATTENTION, attend_watched)
