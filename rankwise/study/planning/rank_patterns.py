"""The rank pattern of a study: which rank each adapted layer has."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rankwise.engine.models.adapter_config import MOST_SECONDS, by_pattern
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.errors import did_you_mean
from rankwise.records import quantities
from rankwise.records.config.methods import LoraConfig
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import StudyModel
from rankwise.study.planning.runs import TargetLayers

_PLACE = "methods.lora.rank_pattern"
_MOST_NAMED = 3

Layers = dict[tuple[str, ...], TargetLayers]
"""The layers of each set of target modules."""


def with_pattern(
    config: LoraConfig | None, model: StudyModel, layers: Layers, issues: Issues
) -> Layers:
    """The same layers with the ranks of the study's pattern, if it has one.

    Args:
        config: of LoRA.
        model: the base.
        layers: all of the study's sets of target modules.
        issues: gets every problem.
    """
    if config is None or config.rank_pattern is None or not layers:
        return layers
    ranks_of: Mapping[tuple[str, ...], Mapping[str, int]] = {}
    if isinstance(config.rank_pattern, Path):
        with issues.of(_PLACE):
            ranks = _saved_ranks(AdapterFolder(config.rank_pattern), model)
            ranks_of = {names: _within(ranks, names, of, issues) for names, of in layers.items()}
    else:
        ranks_of = _named_ranks(config.rank_pattern, layers, issues)
    found = {n: of._replace(pattern=ranks_of.get(n, {})) for n, of in layers.items()}
    _warn_of_wide(found, issues)
    return found


def _saved_ranks(adapter: AdapterFolder, model: StudyModel) -> Mapping[str, int]:
    """The rank of each layer that a saved adapter adapts; its weights are not read."""
    _ = adapter.config  # what is no adapter has no weights either, and its config says so
    adapter.check_fit(model.skeleton)
    adapter.refuse_beyond_lora()
    return {name: factors.lora_A[0] for name, factors in adapter.shapes.items()}


def _within(
    ranks: Mapping[str, int], names: Sequence[str], layers: TargetLayers, issues: Issues
) -> Mapping[str, int]:
    """These ranks in the order of a set's layers; a layer beyond the set is a problem."""
    if beyond := [name for name in ranks if name not in layers.shapes]:
        issues.problems.append(
            f"{_PLACE}: the adapter adapts {_some(beyond)}, which target_modules "
            f"{', '.join(names)} does not name; name these layers there"
        )
    return {name: ranks[name] for name in layers.shapes if name in ranks}


def _named_ranks(
    pattern: Mapping[str, int], layers: Layers, issues: Issues
) -> Mapping[tuple[str, ...], Mapping[str, int]]:
    """The ranks of each set's layers by PEFT's rule: the first key that matches decides.

    Every layer is ranked, and every key ranks one: PEFT gives layers without a key its ``r``, and a
    study has several ranks.
    """
    every = dict.fromkeys(name for of in layers.values() for name in of.shapes)
    keys = {key: key for key in pattern}
    try:
        key_of = by_pattern(keys, None, every, time.monotonic() + MOST_SECONDS)
    except TimeoutError:
        issues.problems.append(
            f"{_PLACE}: matching it with the layers takes more than {MOST_SECONDS:g} seconds; use "
            "names of layers"
        )
        return {}
    for key in keys.keys() - key_of.values():
        issues.problems.append(f"{_PLACE}: {_idle(key, every)}")
    if unranked := [name for name, key in key_of.items() if key is None]:
        issues.problems.append(
            f"{_PLACE}: it has no rank for {_some(unranked)}; PEFT would take r, and a study has "
            "several ranks: name these layers, or end the pattern with '.*': RANK"
        )
    return {
        names: {name: pattern[key] for name in of.shapes if (key := key_of[name]) is not None}
        for names, of in layers.items()
    }


def _idle(key: str, layers: Collection[str]) -> str:
    """Why a key decides of no layer."""
    if key in by_pattern({key: key}, None, layers, time.monotonic() + MOST_SECONDS).values():
        return f"the keys before {key!r} match all of its layers; put it before them"
    known = {name.rpartition(".")[2] for name in layers}
    hint = did_you_mean(key, known) or f"it has {', '.join(sorted(known))}"
    return f"no adapted layer is named {key!r}; {hint}"


def _some(layers: Sequence[str]) -> str:
    """The first of some layers, and how many there are."""
    more = len(layers) - _MOST_NAMED
    named = ", ".join(layers[:_MOST_NAMED])
    return f"{named} and {quantities.count(more)} more" if more > 0 else named


def _warn_of_wide(layers: Layers, issues: Issues) -> None:
    """Say where an update cannot have the rank that it is given."""
    wide = {
        name: rank
        for of in layers.values()
        for name, rank in of.pattern.items()
        if rank > min(of.shapes[name])
    }
    if wide:
        rank = next(iter(wide.values()))
        issues.warnings.append(
            f"{_PLACE}: rank {rank} is above min(in, out) of {_some([*wide])}; the update there "
            "has a lower rank"
        )
