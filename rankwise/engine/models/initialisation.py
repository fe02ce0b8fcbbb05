"""What the variants of LoRA begin at: directions of a layer's weights, or of what enters it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import peft
import torch
from jaxtyping import Float
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

from rankwise.engine.models.packed_attention import packed_attention, packed_states
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.engine.models.trained_adapters import LoraFactors, plain_weight
from rankwise.errors import ModelError
from rankwise.tasks.training_rows import Example

# Read at once for EVA: a step of its decomposition needs more tokens than directions.
_EVA_TOKENS = 2048
_EVA_TOKENS_PER_RANK = 4
# PEFT looks for its directions in a subspace of so many times the rank.
_EVA_SUBSPACE = 2
# The cosine of a direction with itself before the last read from which on it stays: the authors'
# and PEFT's only value.
_EVA_STAYS = peft.EvaConfig().tau
# Many of 32 directions have nearly the same variance and turn about each other for dozens of reads,
# which changes little in what they hold together: after 8 reads of SciQ they held 98 to 100 % of
# the variance that the best ones hold (SmolLM2-135M, 15 layers), after one 85 to 100 %.
_EVA_MOST_READS = 8


def leading_vectors(layer: nn.Module, rank: int, scaling: float) -> LoraFactors:
    """A layer's leading singular vectors, at which PiSSA begins (arXiv:2404.02948).

    Scaling * B @ A is the best approximation of the weights of this rank; A and B have half of the
    singular values each, by their roots. Where there are fewer vectors, all.

    Raises:
        ModelError: the layer is not a plain matrix product.
    """
    U, S, Vh = torch.linalg.svd(_weight(layer), full_matrices=False)
    roots = (S[:rank] / scaling).sqrt()
    return LoraFactors(roots[:, None] * Vh[:rank], U[:, :rank] * roots)


def orthogonal_basis(layer: nn.Module, rank: int, _: float) -> LoraFactors:
    """The first part of a QR decomposition of the weights: OLoRA begins there (arXiv:2406.01775).

    Raises:
        ModelError: the layer is not a plain matrix product.
    """
    Q, R = torch.linalg.qr(_weight(layer))
    return LoraFactors(R[:rank], Q[:, :rank])


def _weight(layer: nn.Module) -> Float[Tensor, "out_features in_features"]:
    weight, _ = plain_weight(layer)
    if weight is None:
        raise ModelError(
            f"a layer is a {type(layer).__name__} and no plain matrix product, so PiSSA and OLoRA "
            "have no weights to begin at. Leave them out of methods.variants."
        )
    return weight.float()


class InputDirections(NamedTuple):
    """The directions in which the inputs of layers vary most.

    Attributes:
        rows: of each layer, (rank, in_features), orthonormal, that of most variance first.
        unsettled: layers in which some still changed with the last read.
        num_reads: how many there were.
    """

    rows: dict[str, Float[Tensor, "rank in_features"]]
    unsettled: tuple[str, ...]
    num_reads: int


@torch.no_grad()
def input_directions(
    base_model: Any, layer_names: Iterable[str], rank: int, examples: Sequence[Example]
) -> InputDirections:
    """The directions at which EVA begins (arXiv:2410.07170), by PEFT's incremental decomposition.

    The base reads rows of about 2,048 tokens, or four times the rank, each example once at most,
    until every direction stays within a cosine of 0.99 from one read to the next, in each layer
    for itself. Unlike PEFT, a direction may change its sign, which is arbitrary, and reading ends
    with the rows, or after 8 reads: then the directions are taken as they are.

    Args:
        base_model: frozen.
        layer_names: of its layers.
        rank: how many directions of each.
        examples: in the order in which they are trained on.

    Raises:
        ModelError: a layer has fewer inputs, or the rows fewer tokens, than are decomposed; or it
            has read none.
    """
    layers = {name: base_model.get_submodule(name) for name in layer_names}
    found: dict[str, _Directions] = {}
    last: tuple[Tensor, _Directions] | None = None

    def add(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """What a layer calls before it computes; layers with the same input share directions."""
        nonlocal last
        (x,) = inputs
        if last is not None and x is last[0]:
            found[name] = last[1]
            return
        directions = found.setdefault(name, _Directions(rank))
        directions.add(x.reshape(-1, x.shape[-1]))
        last = x, directions

    rows = _packed(examples, max(_EVA_TOKENS, _EVA_TOKENS_PER_RANK * rank))[:_EVA_MOST_READS]
    device = next(base_model.parameters()).device
    num_reads = 0
    with packed_attention(base_model), contextlib.ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(partial(add, name)))
        for row in rows:
            tokens = [[token for example in row for token in example.tokens[:-1]]]
            layout = PackedLayout(tuple(example.num_inputs for example in row))
            packed_states(base_model.base_model, torch.tensor(tokens, device=device), layout)
            num_reads += 1
            if found and all(each.are_settled for each in found.values()):
                break
    if unread := layers.keys() - found.keys():
        raise ModelError(
            f"the base has read training rows without {min(unread)}, so EVA cannot begin there. "
            "Leave it out of methods.variants, or choose other target_modules."
        )
    unsettled = tuple(name for name in layers if not found[name].are_settled)
    return InputDirections({name: found[name].rows for name in layers}, unsettled, num_reads)


class _Directions:
    """Those in which the rows so far vary most."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        # PEFT's settings for EVA
        self._pca: Any = IncrementalPCA(n_components=rank, lowrank=True, lowrank_seed=42)
        self.are_settled = False

    @property
    def rows(self) -> Float[Tensor, "rank in_features"]:
        """Orthonormal, that of most variance first."""
        return self._pca.components_.float()  # of later reads it has them in float64

    def add(self, rows: Float[Tensor, "rows in_features"]) -> None:
        if self.are_settled:
            return
        needed = _EVA_SUBSPACE * self._rank
        if needed > min(rows.shape):
            raise ModelError(
                f"EVA at rank {self._rank} needs {needed} inputs and tokens: a layer has "
                f"{rows.shape[1]} inputs, and the rows that are read at once {len(rows)} tokens. "
                "Choose a lower rank."
            )
        before = self.rows if hasattr(self._pca, "components_") else None
        self._pca.partial_fit(rows.float())
        if before is not None:
            # either sign is the same direction, and which one comes out is chance
            cosines = torch.cosine_similarity(self.rows, before).abs()
            self.are_settled = bool((cosines >= _EVA_STAYS).all())


def _packed(examples: Sequence[Example], num_tokens: int) -> list[list[Example]]:
    """All examples in rows of nearly equal size, which is as near to so many tokens as can be."""
    total = sum(example.num_inputs for example in examples)
    rows: list[list[Example]] = [[] for _ in range(max(1, round(total / num_tokens)))]
    before = 0
    for example in examples:
        rows[before * len(rows) // total].append(example)
        before += example.num_inputs
    return [row for row in rows if row]
