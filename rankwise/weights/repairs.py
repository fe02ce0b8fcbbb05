"""Repairs of a trained adapter without training: other updates of the same layers, by families.

Each family is one row of ``FAMILIES``: which of its repairs are tried, and how one is made.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft.utils import merge_utils
from torch import Tensor, nn

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.engine.models.devices import choose_device, float64_device
from rankwise.engine.models.frozen_adapters import FrozenAdapter
from rankwise.engine.models.placed import layer_devices
from rankwise.engine.models.seeds import seed_of
from rankwise.engine.models.structure import adaptable_shapes, model_skeleton
from rankwise.errors import ModelError
from rankwise.heads.changes import heads_by_delta
from rankwise.heads.interventions import Head, without_heads
from rankwise.heads.layouts import HeadLayout, head_layouts
from rankwise.records import quantities
from rankwise.records.repairs import AS_IT_IS, COMBINATIONS, Combination, Repair, RepairFamily
from rankwise.weights.decomposition import thin_svd
from rankwise.weights.lowrank import LowRankUpdate
from rankwise.weights.matrix import layer_number
from rankwise.weights.spectra import energy_rank

Updates = Mapping[str, LowRankUpdate]
"""Layer -> update."""

How = Combination | Literal["global"] | None
"""The way of a repair, as ``Repair.how``."""

DENSITY = 0.5
"""Share of an update's entries that a sparse average keeps; PEFT has no default. TIES' paper keeps
0.2, DARE's 0.01 to 0.9."""


@dataclass(frozen=True, eq=False)
class RepairSources:
    """What repairs are made of.

    Attributes:
        adapter: the adapter to repair.
        others: adapters to average it with; they adapt the same layers.
        num_layers: of the base model.
        layouts: of its heads, layer by layer; empty where they are laid out in no known way.
        unknown_heads: why there are no layouts.

    Raises:
        ModelError: the adapter's update is zero, or another adapts other layers.
    """

    adapter: Updates
    others: tuple[Updates, ...]
    num_layers: int
    layouts: tuple[HeadLayout, ...]
    unknown_heads: str | None = None

    def __post_init__(self) -> None:
        if not any(update.frobenius_norm for update in self.adapter.values()):
            raise ModelError("the adapter's update is zero: there is nothing to repair.")
        for other in self.others:
            shapes = [{name: u.shape for name, u in each.items()} for each in (self.adapter, other)]
            if shapes[0] != shapes[1]:
                raise ModelError(
                    "the adapters adapt different layers, which have no average. Give adapters "
                    "of one base with the same target_modules."
                )

    @classmethod
    def of(cls, base: Path, adapter: Updates, others: Sequence[Updates] = ()) -> RepairSources:
        """The sources of adapters of a base model, of whose folder the config alone is read.

        Raises:
            ModelError: the base's config cannot be read, or as the class.
        """
        skeleton: Any = model_skeleton(base)
        numbers = [layer_number(name) for name in adaptable_shapes(skeleton)]
        depth = 1 + max((number for number in numbers if number is not None), default=0)
        layouts, reason = (), None
        try:
            layouts = head_layouts(skeleton)
        except ModelError as error:
            reason = str(error)
        return cls(adapter, tuple(others), depth, layouts, reason)

    def warnings_of(self, kinds: Sequence[RepairFamily | Repair]) -> tuple[str, ...]:
        """What cannot be tried of some kinds, and why."""
        if self.unknown_heads is None or "heads" not in kinds:
            return ()
        return (f"no heads are reverted: {self.unknown_heads}",)

    @functools.cached_property
    def heads(self) -> list[Head]:
        """Those of which the adapter has a delta, the most changed first."""
        return heads_by_delta(_factors(self.adapter), self.layouts)


class Family(NamedTuple):
    """One kind of repair, by its value and how it is done.

    Attributes:
        tried: the values that are tried on these sources, each with how.
        derive: the updates under one.
    """

    tried: Callable[[RepairSources], Iterable[tuple[float | None, How]]]
    derive: Callable[[RepairSources, Any, Any], Updates]


def derived_updates(
    sources: RepairSources, kinds: Sequence[RepairFamily | Repair]
) -> dict[Repair, Updates]:
    """The adapter as it is, and every repair of these kinds.

    Args:
        sources: what repairs are made of.
        kinds: families, of which all repairs are tried, and single repairs.

    Raises:
        ModelError: a single repair has nothing to change.
    """
    found: dict[Repair, Updates] = {AS_IT_IS: sources.adapter}
    for kind in kinds:
        for repair in [kind] if isinstance(kind, Repair) else _tried(sources, kind):
            if repair not in found:
                derive = FAMILIES[repair.family].derive
                found[repair] = derive(sources, repair.value, repair.how)
    return found


def _tried(sources: RepairSources, family: RepairFamily) -> Iterator[Repair]:
    for value, how in FAMILIES[family].tried(sources):
        yield Repair(family=family, value=value, how=how)


def as_frozen(updates: Updates, base_model: nn.Module) -> FrozenAdapter:
    """An adapter to be scored: exactly what is read back after ``lowrank.save_updates``.

    Args:
        updates: of layers of the base.
        base_model: decides devices and dtype.
    """
    dtype, devices = next(base_model.parameters()).dtype, layer_devices(base_model, updates)
    layers: dict[str, ScaledFactors] = {}
    for name, update in updates.items():
        written = update.as_written
        A, B = (factor.to(devices[name], dtype) for factor in (written.lora_A, written.lora_B))
        layers[name] = ScaledFactors(A, B, 1.0)
    return FrozenAdapter(layers, is_zero_update=not any(u.frobenius_norm for u in updates.values()))


def scaled(updates: Updates, factor: float) -> Updates:
    """Delta times a factor in every layer: 0 is the base exactly, 1 the adapter exactly.

    The straight line from base to adapter; source: WiSE-FT, arXiv:2109.01903.
    """
    return {name: update.times(factor) for name, update in updates.items()}


def lines_factor(layer: int | None, num_layers: int, first: float) -> float:
    """LiNeS' factor of a layer's delta: linear in its depth, ``first`` to 1 in the last.

    Args:
        layer: its number, from 0; None for what is in no numbered layer, which keeps its delta.
        num_layers: of the model, at least 1.
        first: the factor of layer 0.

    Source: arXiv:2410.17146, with α = ``first`` and β = 1 - ``first``.
    """
    if layer is None or num_layers == 1:
        return 1.0
    return first + (1.0 - first) * layer / (num_layers - 1)


def lines(updates: Updates, num_layers: int, first: float) -> Updates:
    """Delta scaled by the depth of its layer, which is read from the name; see ``lines_factor``.

    General features are in the shallow layers, so these keep less of the change.
    """
    return {
        name: update.times(lines_factor(layer_number(name), num_layers, first))
        for name, update in updates.items()
    }


def cut_to_energy(updates: Updates, share: float, *, is_global: bool = False) -> Updates:
    """The fewest leading singular directions that hold a share of delta's squared norm.

    They keep their size. A layer that loses all of them keeps a zero update of rank 1, the least
    that PEFT takes.

    Args:
        updates: by layer; not all zero.
        share: above 0; 1 keeps every update as it is.
        is_global: of all layers together, by one threshold for their singular values, not of each.

    Source: the threshold over all layers is that of arXiv:2604.27796.
    """
    if share == 1.0:
        return updates
    values = {name: update.singular_values for name, update in updates.items()}
    if is_global:
        pooled = torch.cat([*values.values()]).sort(descending=True).values
        least = pooled[energy_rank(pooled, share) - 1]
        ranks = {name: int((own >= least).sum()) for name, own in values.items()}
    else:
        ranks = {name: energy_rank(own, share) for name, own in values.items()}
    made: dict[str, LowRankUpdate] = {}
    for name, update in updates.items():
        if ranks[name] == 0:
            made[name] = update.truncated(1).times(0.0)
        else:
            made[name] = update.truncated(ranks[name]) if ranks[name] < update.rank else update
    return made


def reverted_heads(sources: RepairSources, repair: Repair | None) -> list[Head]:
    """The heads whose delta a repair takes away, the most changed first; none of other families."""
    if repair is None or repair.family != "heads":
        return []
    assert repair.value is not None
    return sources.heads[: int(repair.value)]


def _without_heads(sources: RepairSources, number: float, _: How) -> Updates:
    if number > len(sources.heads):
        changed = quantities.counted(len(sources.heads), "head")
        raise ModelError(
            sources.unknown_heads
            or f"{number:.0f} heads cannot be reverted: the adapter changes {changed}. Give a "
            "smaller number."
        )
    heads = sources.heads[: int(number)]
    changed = without_heads(_factors(sources.adapter), sources.layouts, heads)
    return {name: LowRankUpdate(*factors) for name, factors in changed.items()}


def _factors(updates: Updates) -> dict[str, ScaledFactors]:
    return {name: ScaledFactors(u.lora_A, u.lora_B, u.scaling) for name, u in updates.items()}


def _average(sources: RepairSources, _: float | None, how: Combination) -> Updates:
    if not sources.others:
        raise ModelError(
            f"an average ({how}) needs another adapter, and there is none. Name one more, or use "
            "a study with several seeds."
        )
    return averaged((sources.adapter, *sources.others), how)


def averaged(adapters: Sequence[Updates], combination: Combination) -> Updates:
    """The average of adapters of the same layers, in PEFT's ways.

    ``linear`` is the exact mean of the deltas, of the ranks' sum. The others go by PEFT's functions
    (``peft.utils.merge_utils``), on the dense delta of each layer as its combination types with
    ``_svd`` do: factors of adapters that were trained apart have no entries in common. Their result
    is cut to the sum of the ranks by its singular values. The adapters count the same. ``ties`` and
    ``dare_ties`` take the mean of those that agree in sign themselves, so their weights are 1; the
    others sum, so theirs are 1 / number. ``DENSITY`` of the entries are kept; which ones ``dare_*``
    keeps is drawn by a generator that is seeded by the layer's name.

    Args:
        adapters: at least one.
        combination: how.

    Sources: arXiv:2306.01708 (TIES), arXiv:2311.03099 (DARE).
    """
    share, found = 1.0 / len(adapters), dict[str, LowRankUpdate]()
    for name in adapters[0]:
        updates = [adapter[name] for adapter in adapters]
        if combination == "linear":
            shares = [update.times(share) for update in updates]
            found[name] = functools.reduce(LowRankUpdate.plus, shares)
            continue
        # (out_features, in_features) each
        deltas = [each.scaling * each.lora_B.float() @ each.lora_A.float() for each in updates]
        elects = combination in ("ties", "dare_ties")
        weights = torch.full((len(updates),), 1.0 if elects else share)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed_of("average", combination, name))
            dense: Tensor = getattr(merge_utils, combination)(deltas, weights, DENSITY)
        svd = thin_svd(dense.to(float64_device(choose_device())))
        cut = LowRankUpdate.of(svd, sum(update.rank for update in updates))
        found[name] = LowRankUpdate(cut.lora_A.cpu(), cut.lora_B.cpu())
    return found


def _head_counts(sources: RepairSources) -> Iterator[float]:
    """One head, four times as many, and so on up to half of those that have a delta."""
    counts = (4.0**power for power in itertools.count())
    return itertools.takewhile(lambda count: count <= len(sources.heads) // 2, counts)


FAMILIES: Mapping[RepairFamily, Family] = {
    "scale": Family(
        lambda _: [(tenths / 10, None) for tenths in range(1, 11)],
        lambda sources, factor, _: scaled(sources.adapter, factor),
    ),
    "lines": Family(
        lambda _: [(first, None) for first in (0.0, 0.25, 0.5, 0.75)],
        lambda sources, first, _: lines(sources.adapter, sources.num_layers, first),
    ),
    "energy": Family(
        lambda _: itertools.product((0.5, 0.75, 0.9, 0.99), (None, "global")),
        lambda sources, share, how: cut_to_energy(
            sources.adapter, share, is_global=how == "global"
        ),
    ),
    "heads": Family(
        lambda sources: [(number, None) for number in _head_counts(sources)], _without_heads
    ),
    "average": Family(
        lambda sources: [(None, how) for how in COMBINATIONS] if sources.others else [], _average
    ),
}
