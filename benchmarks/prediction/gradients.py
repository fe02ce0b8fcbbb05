"""First gradients by the weights of a frozen base: their spectra, and the angle between two."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.prediction.matrices import GROUP_BYTES, in_groups, means_by_kind
from benchmarks.prediction.rows import as_memory_allows, hidden_states, micro_batches
from rankwise.engine.models.head import CompletionHead, backward_losses
from rankwise.engine.models.packed_attention import packed_attention
from rankwise.engine.models.structure import LinearShape
from rankwise.tasks.training_rows import Example
from rankwise.weights.spectra import Svd, cosines, energy_rank, subspace_overlap

NUM_VECTORS = 8
"""Leading singular vectors of a gradient that are compared with another one's."""

# Singular values below this share of the largest are rounding: the gradient is in float32, and
# their squares are found in float64.
_SMALLEST = 1e-5
_FLOAT32_BYTES = 4


class WeightGradients(NamedTuple):
    """Gradients of the mean loss over all learned tokens.

    Attributes:
        loss_nats: this mean.
        of_layers: layer -> gradient by its weight, float32.
    """

    loss_nats: float
    of_layers: dict[str, Float[Tensor, "out_features in_features"]]


def gradient_features(
    base_model: nn.Module,
    shapes: Mapping[str, LinearShape],
    rows: Sequence[Example],
    retained: Sequence[Example],
    *,
    max_tokens: int,
) -> dict[str, float]:
    """What the first gradients say, by the names of ``FEATURES``.

    A group of matrices that fits into ``GROUP_BYTES`` is gathered at once, with both gradients. The
    base reads its rows once for each group.

    Args:
        base_model: frozen.
        shapes: of the matrices that are read.
        rows: that are trained on, at least one.
        retained: right answers of retention items; empty where there are none.
        max_tokens: of one micro-batch.
    """
    device = next(base_model.parameters()).device
    bytes_of = {
        name: 2 * _FLOAT32_BYTES * shape.in_features * shape.out_features
        for name, shape in shapes.items()
    }
    loss, compared = math.nan, dict[str, _Compared]()
    for group in in_groups(bytes_of, GROUP_BYTES[device.type]):
        loss, own = weight_gradients(base_model, group, rows, max_tokens=max_tokens)
        others: dict[str, Tensor] = {}
        if retained:
            others = weight_gradients(base_model, group, retained, max_tokens=max_tokens).of_layers
        for name in list(own):  # an expert that no row was sent to is not there
            compared[name] = _compared(own.pop(name), others.pop(name, None))
    ranks = {name: float(each.energy_rank) for name, each in compared.items() if each.energy_rank}
    found = {"train_loss": loss, **means_by_kind("gradient_energy_rank_90", ranks)}
    return found | (_angles(compared.values()) if retained else {})


def weight_gradients(
    base_model: nn.Module,
    layer_names: Iterable[str],
    examples: Sequence[Example],
    *,
    max_tokens: int,
) -> WeightGradients:
    """The gradients of the named layers of a frozen base, whose own weights need no gradient.

    Args:
        base_model: in eval mode; sums are float32 whatever its precision.
        layer_names: of linear layers.
        examples: at least one.
        max_tokens: of one micro-batch; halved while memory runs out.

    Raises:
        ModelError: the model cannot read packed sequences.
    """
    names = list(layer_names)
    device = next(base_model.parameters()).device

    def gathered(budget: int) -> WeightGradients:
        sums: dict[str, Tensor] = {}
        total = 0.0
        with packed_attention(base_model), _summed_up(base_model, names, sums):
            head = CompletionHead(base_model)
            for batch in micro_batches(examples, budget, device):
                losses, _ = backward_losses(head, hidden_states(base_model, batch), batch.learned)
                total += float(losses.double().sum())
        return WeightGradients(total / sum(each.num_loss_tokens for each in examples), sums)

    return as_memory_allows(gathered, examples, max_tokens, device)


@contextlib.contextmanager
def _summed_up(
    base_model: Any, layer_names: Sequence[str], sums: dict[str, Tensor]
) -> Generator[None]:
    """Within the block, backward passes add to ``sums`` the gradients by the layers' weights.

    The gradient by W is the sum over tokens of (gradient by the output) x (input). The weights stay
    frozen: the outputs of the embedding are what asks for a gradient.
    """

    def hook(name: str) -> Callable[..., None]:
        def listen(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            (x,) = inputs
            if name not in sums:
                size = output.shape[-1], x.shape[-1]
                sums[name] = torch.zeros(size, device=x.device)

            def add(gradient: Tensor) -> None:
                of_output = gradient.reshape(-1, gradient.shape[-1]).float()
                sums[name].addmm_(of_output.T, x.detach().reshape(-1, x.shape[-1]).float())

            if output.requires_grad:  # not where the head is checked
                output.register_hook(add)

        return listen

    embedding = base_model.get_input_embeddings()
    with contextlib.ExitStack() as hooks:
        hooks.enter_context(
            embedding.register_forward_hook(lambda *call: call[-1].requires_grad_())
        )
        for name in layer_names:
            layer = base_model.get_submodule(name)
            hooks.enter_context(layer.register_forward_hook(hook(name)))
        yield


class _Compared(NamedTuple):
    """What is kept of one matrix.

    Attributes:
        energy_rank: at 90 %, of the first gradient; 0 where it is zero.
        squares: ‖G‖_F² of both gradients.
        product: <G, G'> of both.
        overlap: of both gradients' leading left and right vectors; None where one has none.
    """

    energy_rank: int
    squares: tuple[float, float]
    product: float
    overlap: tuple[float, float] | None


def _compared(
    gradient: Float[Tensor, "out_features in_features"],
    other: Float[Tensor, "out_features in_features"] | None,
) -> _Compared:
    first = leading_svd(gradient)
    squares = float(gradient.double().square().sum())
    rank = energy_rank(first.S, 0.9)
    if other is None:
        return _Compared(rank, (squares, 0.0), 0.0, None)
    second = leading_svd(other)
    product = float((gradient.double() * other.double()).sum())
    k = min(first.U.shape[1], second.U.shape[1])
    overlap = None
    if k:
        left = cosines(first.U[:, :k], second.U[:, :k])
        right = cosines(first.Vh[:k].T, second.Vh[:k].T)
        overlap = subspace_overlap(left, k), subspace_overlap(right, k)
    return _Compared(rank, (squares, float(other.double().square().sum())), product, overlap)


def leading_svd(gradient: Float[Tensor, "out_features in_features"]) -> Svd:
    """All singular values in float64, and at most ``NUM_VECTORS`` of their vectors.

    From the eigenvectors of the smaller Gram matrix: squares of singular values are right to 1e-13
    of the largest one, which decides energy and leading vectors.
    """
    is_tall = gradient.shape[0] > gradient.shape[1]
    matrix = (gradient.T if is_tall else gradient).double()
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    S = squares.flip(0).clamp(min=0.0).sqrt()
    number = min(NUM_VECTORS, int((S / S[0] > _SMALLEST).sum()))  # 0 where all are 0
    near = vectors.flip(1)[:, :number]
    far = matrix.T @ near / S[:number]
    return Svd(far, S, near.T) if is_tall else Svd(near, S, far.T)


def _angles(compared: Iterable[_Compared]) -> dict[str, float]:
    """The angle of two gradients over all matrices, and the overlap of their leading vectors."""
    of_all = list(compared)
    norms = [math.sqrt(sum(each.squares[place] for each in of_all)) for place in range(2)]
    found: dict[str, float] = {}
    if all(norms):
        found["gradient_cosine"] = sum(each.product for each in of_all) / math.prod(norms)
    overlaps = [each.overlap for each in of_all if each.overlap is not None]
    if overlaps:
        left, right = map(statistics.fmean, zip(*overlaps, strict=True))
        found |= {"gradient_overlap_left": left, "gradient_overlap_right": right}
    return found
