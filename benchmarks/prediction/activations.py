"""What enters the matrices of a frozen base: in how many directions its energy lies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.prediction.matrices import GROUP_BYTES, in_groups, means_by_kind
from benchmarks.prediction.rows import as_memory_allows, hidden_states, micro_batches
from rankwise.engine.models.packed_attention import packed_attention
from rankwise.engine.models.structure import LinearShape
from rankwise.tasks.training_rows import Example
from rankwise.weights.spectra import energy_rank

_FLOAT32_BYTES = 4


def activation_features(
    base_model: nn.Module,
    shapes: Mapping[str, LinearShape],
    rows: Sequence[Example],
    *,
    max_tokens: int,
) -> dict[str, float]:
    """The energy rank of the inputs of each matrix, by the names of ``FEATURES``.

    Args:
        base_model: frozen.
        shapes: of the matrices that are read.
        rows: that are trained on, at least one.
        max_tokens: of one micro-batch.
    """
    device = next(base_model.parameters()).device
    bytes_of = {name: _FLOAT32_BYTES * shape.in_features**2 for name, shape in shapes.items()}
    ranks: dict[str, float] = {}
    for group in in_groups(bytes_of, GROUP_BYTES[device.type]):
        moments = second_moments(base_model, group, rows, max_tokens=max_tokens)
        known: dict[int, float] = {}  # layers that read the same have the same moments
        for name, moment in moments.items():
            if id(moment) not in known:
                squares = torch.linalg.eigvalsh(moment.double()).flip(0).clamp(min=0.0)
                known[id(moment)] = float(energy_rank(squares.sqrt(), 0.9))
            ranks[name] = known[id(moment)]
    return means_by_kind("activation_energy_rank_90", ranks)


def second_moments(
    base_model: nn.Module,
    layer_names: Iterable[str],
    examples: Sequence[Example],
    *,
    max_tokens: int,
) -> dict[str, Float[Tensor, "in_features in_features"]]:
    """Σ x xᵀ over all tokens of what enters the named layers, float32, uncentred.

    Layers that read the same tensor share one matrix.

    Args:
        base_model: frozen, in eval mode.
        layer_names: of linear layers.
        examples: at least one.
        max_tokens: of one micro-batch; halved while memory runs out.

    Raises:
        ModelError: the model cannot read packed sequences.
    """
    names = list(layer_names)
    device = next(base_model.parameters()).device

    @torch.no_grad()
    def gathered(budget: int) -> dict[str, Tensor]:
        moments = _Moments()
        with packed_attention(base_model), moments.listening(base_model, names):
            for batch in micro_batches(examples, budget, device):
                hidden_states(base_model, batch)
        return moments.of_layers

    return as_memory_allows(gathered, examples, max_tokens, device)


class _Moments:
    """The sums so far."""

    def __init__(self) -> None:
        self.of_layers: dict[str, Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    @contextlib.contextmanager
    def listening(self, base_model: nn.Module, layer_names: Sequence[str]) -> Generator[None]:
        """Within the block, what enters the layers is added."""
        with contextlib.ExitStack() as hooks:
            for name in layer_names:
                layer = base_model.get_submodule(name)
                hooks.enter_context(layer.register_forward_pre_hook(self._hook(name)))
            yield

    def _hook(self, name: str) -> Callable[..., None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (x,) = inputs
            if self._last is not None and x is self._last[0]:
                self.of_layers[name] = self._last[1]
                return
            rows = x.reshape(-1, x.shape[-1]).float()
            if name not in self.of_layers:
                self.of_layers[name] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
            self.of_layers[name].addmm_(rows.T, rows)
            self._last = x, self.of_layers[name]

        return add
