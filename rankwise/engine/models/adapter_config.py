"""What the config of a PEFT adapter says: its kind, ranks and scalings."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rankwise.engine.models.files import read_json, unusable
from rankwise.errors import BeyondLoraError, ModelError
from rankwise.records.fields import Alpha
from rankwise.records.patterns import layer_pattern

CONFIG_FILE = "adapter_config.json"

# No layer of a model of today is as wide, and no rank is above the width of its layer.
_MAX_RANK = 1 << 17
# Patterns that are more than a name or a tail of one: how many, and seconds of matching all layers.
_MOST_PATTERNS, MOST_SECONDS = 100, 10.0
_NAME, _TAIL = re.compile(r"[\w.]+"), re.compile(r"^|\.")
# A whole name as ``rank_entries`` writes it: it matches that layer and no tail of another.
_WHOLE = re.compile(r"\^((?:\w|\\\.)+)")
# Entries of PEFT's config that are read here, or that change nothing in a trained adapter of plain
# LoRA. Any other entry that is set is refused, including those that PEFT may add one day.
_UNDERSTOOD = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "fan_in_fan_out", "init_lora_weights", "bias", "megatron_core"),
    *("qalora_group_size", "eva_config", "runtime_config", "ensure_weight_tying"),
}
# Ends of the entries that PEFT takes for regular expressions, of some kind of adapter or another.
_MATCHED = ("_pattern", "_modules", "modules_to_save")
# Initialisations that leave the base's weights unchanged (PiSSA, for example, moves part of them).
PLAIN_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


def _patterns(values: dict[str, Any]) -> dict[str, Any]:
    patterns = [text for text in values if not _is_name(text)]
    if len(patterns) > _MOST_PATTERNS:
        raise ValueError(f"has more than {_MOST_PATTERNS} patterns that are no names")
    for text in patterns:
        layer_pattern(text)
    return values


def _is_name(key: str) -> bool:
    """Whether it names one layer, or a tail of names, so that it is matched at once."""
    return bool(_NAME.fullmatch(key) or _WHOLE.fullmatch(key))


_Rank = Annotated[int, Field(ge=1, le=_MAX_RANK)]
_Text = Annotated[str, AfterValidator(_printable)]
_Names = list[_Text] | None


class _Entries(BaseModel):
    """The entries that are read here, and what PEFT lets them be."""

    model_config = ConfigDict(strict=True, extra="allow")

    r: _Rank
    lora_alpha: Alpha
    rank_pattern: Annotated[dict[_Text, _Rank], AfterValidator(_patterns)] | None = None
    alpha_pattern: Annotated[dict[_Text, Alpha], AfterValidator(_patterns)] | None = None
    use_rslora: bool | None = None
    target_modules: _Text | _Names = None
    exclude_modules: _Text | _Names = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: _Text | _Names = None
    modules_to_save: _Names = None
    base_model_name_or_path: _Text | None = None
    bias: _Text = "none"
    init_lora_weights: bool | _Text | None = True
    fan_in_fan_out: bool | None = None


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read ``adapter_config.json`` of a LoRA adapter; what is read of it here can be relied on.

    Ranks are whole numbers of at least 1, alphas are positive and finite, patterns are regular
    expressions.

    Raises:
        ModelError: it cannot be read, is of another kind of adapter, or an entry is of no use.
    """
    config = _content_of(folder)
    kind = repr(config.get("peft_type")).strip("'")
    if kind != "LORA":
        raise ModelError(
            f"{folder} holds an adapter of kind {kind:.40}; only LORA has a rank. Leave it out."
        )
    try:
        _Entries.model_validate(config)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['input']!r:.40} ({problem['msg']})"
            for problem in error.errors(include_url=False)[:3]
        )
        raise ModelError(
            f"{folder}: {CONFIG_FILE} cannot be used: {problems}. Save the adapter again."
        ) from error
    return config


def _content_of(folder: Path) -> dict[str, Any]:
    what = f"{folder} is not a PEFT adapter: {CONFIG_FILE} cannot be read"
    with unusable(what, "Check the path."):
        return read_json(folder / CONFIG_FILE)


class LayerSetting(NamedTuple):
    """What a config records of a layer; ``scaling`` is alpha over the rank, or over its root."""

    rank: int
    scaling: float


def layer_settings(
    config: Mapping[str, Any], layers: Collection[str], folder: Path
) -> dict[str, LayerSetting]:
    """Rank and scaling of each layer, by PEFT's rule: the first pattern that matches decides.

    Args:
        config: as ``read_adapter_config`` returns it.
        layers: names of layers in the base model.
        folder: of the adapter.

    Raises:
        ModelError: matching the patterns takes too long.
    """
    ends = time.monotonic() + MOST_SECONDS
    try:
        ranks = by_pattern(config.get("rank_pattern"), config["r"], layers, ends)
        alphas = by_pattern(config.get("alpha_pattern"), config["lora_alpha"], layers, ends)
    except TimeoutError as error:
        raise ModelError(
            f"{folder}: {CONFIG_FILE} cannot be used: matching rank_pattern and alpha_pattern with "
            f"its layers takes more than {MOST_SECONDS:g} seconds. Save the adapter again, with "
            "names of layers as patterns."
        ) from error
    is_rslora = config.get("use_rslora")
    return {
        name: LayerSetting(rank, alphas[name] / (math.sqrt(rank) if is_rslora else rank))
        for name, rank in ranks.items()
    }


def by_pattern(
    values: Mapping[str, Any] | None, otherwise: Any, layers: Collection[str], ends: float
) -> dict[str, Any]:
    """A value for each layer: of the first pattern that is its name, or a tail of it.

    Args:
        values: pattern -> value.
        otherwise: the value where none matches.
        layers: names of layers in the base model.
        ends: when they must be found, by ``time.monotonic``.

    Raises:
        TimeoutError: they are not found in time.
    """
    places = {key: place for place, key in enumerate(values or {})}
    names = {key: place for key, place in places.items() if _NAME.fullmatch(key)}
    found = {key: _WHOLE.fullmatch(key) for key in places}
    wholes = {it[1].replace("\\", ""): places[key] for key, it in found.items() if it}
    first: dict[str, int] = {}  # layer -> place of the first pattern that matches
    for layer in layers:
        tails = [layer[end.end() :] for end in _TAIL.finditer(layer)]
        matching = [names[tail] for tail in tails if tail in names]
        first[layer] = min([*matching, wholes.get(layer, len(places))])
    for key in (key for key in places if not _is_name(key)):
        pattern = layer_pattern(key)  # one at a time: each may take megabytes
        for layer, place in first.items():
            seconds = max(1e-6, ends - time.monotonic())
            if places[key] < place and pattern.begins(layer, seconds):
                first[layer] = places[key]
    chosen = [*(values or {}).values(), otherwise]
    return {layer: chosen[place] for layer, place in first.items()}


def refuse_patterns(folder: Path) -> None:
    """Refuse a config of which PEFT would match more than names of layers, without a time limit.

    Raises:
        ModelError: names the entry, or the config cannot be read.
    """
    for entry, value in _content_of(folder).items():
        names = value if isinstance(value, list | dict) else [value]
        wrong = [name for name in names if not _is_name(str(name))]
        if entry.endswith(_MATCHED) and wrong:
            raise ModelError(
                f"{folder}: {CONFIG_FILE} cannot be used: {entry} has {wrong[0]!r:.40}, which is "
                "no name of a layer. Train it again."
            )


def refuse_beyond_lora(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse an adapter that is more than two factors for each linear layer.

    Raises:
        BeyondLoraError: names the entries of the config that ask for more.
    """
    beyond = [name for name, value in config.items() if value and name not in _UNDERSTOOD]
    beyond += ["bias"] * (config.get("bias", "none") != "none")
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INITIALISATIONS:
        beyond.append(f"init_lora_weights: {init}")
    else:  # PEFT writes these sections even if another initialisation was used
        beyond = [name for name in beyond if name not in ("loftq_config", "corda_config")]
    if beyond:
        names = ", ".join(sorted(beyond))
        raise BeyondLoraError(
            f"the adapter in {folder} asks for more than plain LoRA ({names}), and is not "
            "the sum of the base and two factors. Merge it into a full model and take that."
        )
