"""An adapter merged into its base in memory, in the numbers of a form, and what is left of it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.errors import ModelError
from rankwise.findings.deployment import FormWeights
from rankwise.records.deployment import DeltaInForm
from rankwise.weights.forms import Form, Named, Storage, Stored
from rankwise.weights.lowrank import LowRankUpdate


class Rounding(NamedTuple):
    """Sums over the entries of a delta, of which shares are made; they add up over modules.

    Attributes:
        squares: Σ delta².
        error_squares: Σ (Q(W + delta) - W - delta)², with the form's rounding Q.
        kept: Σ (Q(W + delta) - Q(W)) · delta.
        num_entries: entries of delta that are not zero.
        num_unchanged: of these, where Q(W + delta) is Q(W).
    """

    squares: float
    error_squares: float
    kept: float
    num_entries: int
    num_unchanged: int

    def record(self, module: str) -> DeltaInForm:
        """Its shares; ``squares`` is above zero."""
        return DeltaInForm(
            module=module,
            delta_norm=self.squares**0.5,
            relative_error=(self.error_squares / self.squares) ** 0.5,
            unchanged_share=self.num_unchanged / self.num_entries,
            kept_share=self.kept / self.squares,
        )


def rounding(
    weight: Float[Tensor, "out_features in_features"],
    delta: Float[Tensor, "out_features in_features"],
    stored: Float[Tensor, "out_features in_features"],
    plain: Float[Tensor, "out_features in_features"],
) -> Rounding:
    """Compare what a form holds of a merged matrix with what it should hold, in float64.

    Args:
        weight: of the base, W.
        delta: of the adapter.
        stored: Q(W + delta).
        plain: Q(W).
    """
    change = delta.double()
    held = stored.double() - plain.double()
    is_entry = change != 0
    return Rounding(
        squares=float(change.square().sum()),
        error_squares=float((stored.double() - weight.double() - change).square().sum()),
        kept=float((held * change).sum()),
        num_entries=int(is_entry.sum()),
        num_unchanged=int((is_entry & (held == 0)).sum()),
    )


class Merged(NamedTuple):
    """What a merged model is.

    Attributes:
        weights: its size, and what is left of delta.
        num_matrices: all that are not embeddings, head or vectors.
        num_instead: of these, those that a simpler format was taken for, see ``Stored``.
    """

    weights: FormWeights
    num_matrices: int
    num_instead: int


def delta_of(
    update: LowRankUpdate, device: torch.device
) -> Float[Tensor, "out_features in_features"]:
    """The update in float32, multiplied in PEFT's order."""
    A, B = (factor.to(device, torch.float32) for factor in (update.lora_A, update.lora_B))
    return (B @ A) * update.scaling


@contextlib.contextmanager
def merged_as(
    base_model: nn.Module, form: Form, updates: Mapping[str, LowRankUpdate]
) -> Generator[Merged]:
    """Within the block, a model has its weights and the updates in a form; afterwards its own.

    A form with the adapter beside the base has the base's weights alone, and ``weights`` counts the
    adapter's bytes. The model's own weights are kept meanwhile, on the CPU, and put back as they
    were, bit by bit.

    Args:
        base_model: frozen, without adapters.
        form: in which all weights are stored.
        updates: by layer.

    Raises:
        ModelError: a merged weight is not a number of the form.
    """
    parameters = dict(base_model.named_parameters())
    own = {name: parameter.data.to("cpu") for name, parameter in parameters.items()}
    try:
        merged = _merge(base_model, form, {} if form.is_beside else updates)
        if form.is_beside:
            beside = sum(each.lora_A.nbytes + each.lora_B.nbytes for each in updates.values())
            weights = merged.weights._replace(num_bytes=merged.weights.num_bytes + beside)
            merged = merged._replace(weights=weights)
        yield merged
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name].to(parameter.device)


@torch.no_grad()
def _merge(base_model: nn.Module, form: Form, updates: Mapping[str, LowRankUpdate]) -> Merged:
    layout = _Layout(base_model, form)
    if unknown := sorted(updates.keys() - {name.removesuffix(".weight") for name in layout.names}):
        raise ModelError(
            f"{unknown[0]} has no weight of its own that an adapter can be merged into."
        )
    roundings: dict[str, Rounding] = {}
    num_bytes = num_instead = 0
    plain, merged = layout.matrices({}), layout.matrices(updates)
    pairs = zip(layout.names, form.matrices(merged), form.matrices(plain), strict=True)
    for name, stored, alone in pairs:
        layer = name.removesuffix(".weight")
        if layer in updates:
            weight = layout.matrix(name)
            delta = delta_of(updates[layer], weight.device)
            found = rounding(weight, delta, stored.weight, alone.weight)
            if found.squares:
                roundings[layer] = found
        num_bytes, num_instead = num_bytes + stored.num_bytes, num_instead + stored.is_instead
        layout.put(name, _finite(stored, form, name))
    for name, store in layout.others(form):
        stored = store(layout.parameters[name].data)
        num_bytes += stored.num_bytes
        layout.put(name, _finite(stored, form, name))
    weights = FormWeights(num_bytes)
    if roundings:
        together = Rounding(*map(sum, zip(*roundings.values(), strict=True))).record("all")
        modules = tuple(each.record(layer) for layer, each in roundings.items())
        weights = FormWeights(num_bytes, together, modules)
    return Merged(weights, len(layout.names), num_instead)


class _Layout:
    """A model's parameters by how a form stores them; matrices are float32 (*, out, in) outside.

    Experts that share a parameter are its matrices, and the rows of a parameter beside it are their
    biases.
    """

    def __init__(self, base_model: nn.Module, form: Form) -> None:
        self.parameters = dict(base_model.named_parameters())
        modules = dict(base_model.named_modules())
        head = getattr(base_model, "get_output_embeddings", lambda: None)()
        embeddings = [module for module in modules.values() if isinstance(module, nn.Embedding)]
        tables = {id(module.weight) for module in (*embeddings, head) if module is not None}
        self._tables = {name for name, each in self.parameters.items() if id(each) in tables}
        linear, turned, biases = set[str](), set[str](), set[str]()
        for name, module in modules.items():
            own = {
                f"{name}.{key}": each.ndim for key, each in module.named_parameters(recurse=False)
            }
            stacks = {key for key, ndim in own.items() if ndim == 3}
            if isinstance(module, nn.Linear | Conv1D):
                linear.add(f"{name}.weight")
            if isinstance(module, Conv1D) or getattr(module, "is_transposed", False):
                turned |= stacks or own.keys()  # GPT-2's layers, GPT-OSS' experts: (*, in, out)
            if stacks:
                biases |= own.keys() - stacks
        self.names = [
            name
            for name, parameter in self.parameters.items()
            if parameter.ndim >= 2
            and name not in self._tables | biases
            and (name in linear or not form.is_of_linear_layers)
        ]
        self._turned = turned.intersection(self.names)

    def matrix(self, name: str) -> Tensor:
        """One of ``names`` as it is now."""
        weight = self.parameters[name].data.float()
        return weight.mT if name in self._turned else weight

    def matrices(self, updates: Mapping[str, LowRankUpdate]) -> Iterator[Named]:
        """All of ``names``, with the updates added in float32."""
        for name in self.names:
            weight, update = self.matrix(name), updates.get(name.removesuffix(".weight"))
            if update is not None:
                weight = weight + delta_of(update, weight.device)
            yield name, weight

    def others(self, form: Form) -> Iterator[tuple[str, Storage]]:
        """All other parameters, and how a form stores each."""
        for name in self.parameters:
            if name not in self.names:
                yield name, form.tables if name in self._tables else form.vectors

    def put(self, name: str, weight: Tensor) -> None:
        """Give a parameter other numbers; one of ``names`` as (*, out, in)."""
        weight = weight.mT.contiguous() if name in self._turned else weight
        self.parameters[name].data = weight.to(self.parameters[name].dtype)


def _finite(stored: Stored, form: Form, name: str) -> Tensor:
    if not bool(torch.isfinite(stored.weight).all()):
        raise ModelError(
            f"{form.name}: {name} with the adapter in it holds numbers that are too large for the "
            "form. Choose another form."
        )
    return stored.weight
