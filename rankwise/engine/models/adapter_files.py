"""Adapters as PEFT writes them: read as factors by layer, and what they say of their base.

What is more than plain LoRA is refused by name: its update is not the product of two factors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rankwise.engine.models.base import BaseModel, LinearShape, find_base_model, target_shapes
from rankwise.errors import BeyondLoraError, ModelError
from rankwise.records.config import BaseModelConfig

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_SIDES = (".lora_A.weight", ".lora_B.weight")
# What PEFT writes into a config that changes nothing in a trained adapter of plain LoRA, or is
# read here. Everything else that is set is refused, also what PEFT may add one day.
_UNDERSTOOD = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "fan_in_fan_out", "init_lora_weights", "bias", "megatron_core"),
    *("qalora_group_size", "eva_config", "runtime_config", "ensure_weight_tying"),
}
# What makes an adapter leave out layers that its target_modules name.
_RESTRICTIONS = ("exclude_modules", "layers_to_transform", "layers_pattern")
# Ways to begin that leave the base's weights alone.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


class ScaledFactors(NamedTuple):
    """What one layer adds: scaling * x @ lora_A.T @ lora_B.T."""

    lora_A: Float[Tensor, "rank in_features"]
    lora_B: Float[Tensor, "out_features rank"]
    scaling: float


def read_factors(folder: Path) -> dict[str, ScaledFactors]:
    """The factors of every adapted layer as saved, of any rank, also where ranks and alphas differ.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors, as PEFT writes them.

    Returns:
        By the layer's name in the base model.

    Raises:
        ModelError: the folder cannot be read.
        BeyondLoraError: it asks for more than plain LoRA on linear layers (DoRA, ``lora_bias``,
            ``modules_to_save``, ``target_parameters`` ...).
    """
    config = read_adapter_config(folder)
    _refuse_beyond_lora(config, folder)
    return {
        name: ScaledFactors(A, B, _scaling(config, name, A.shape[0], folder))
        for name, (A, B) in _read_matrices(folder).items()
    }


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a LoRA adapter, with its rank ``r`` and its ``lora_alpha``.

    Raises:
        ModelError: it cannot be read, is of another kind of adapter, or says no rank or alpha.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is not a PEFT adapter: {CONFIG_FILE} cannot be read ({error}). Check the "
            "path."
        ) from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(
            f"{folder} holds an adapter of kind {kind}; only LORA has a rank. Leave it out."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ModelError(
            f"{folder}: {CONFIG_FILE} says r: {rank} and lora_alpha: {alpha}, which are no rank "
            "and no number. Save the adapter again."
        )
    return config  # pyright: ignore[reportUnknownVariableType]


def adapter_weights(folder: Path) -> Path:
    """The safetensors file of an adapter.

    Raises:
        ModelError: there is none.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ModelError(
            f"{folder} has no {WEIGHTS_FILE}; other formats can run code when they are loaded. "
            "Save the adapter again with safetensors."
        )
    return path


def refuse_other_base(folder: Path, base: BaseModel) -> tuple[str, ...]:
    """Refuse an adapter whose config names another base than the given one.

    A model folder that is here is compared by its content, whatever it is called. Of other names
    the last part is compared, without case: organisations copy each other's models. A folder that
    is not here says nothing.

    Returns:
        What cannot be told, a sentence each.

    Raises:
        ModelError: another base is recorded, or the config cannot be read.
    """
    recorded = read_adapter_config(folder).get("base_model_name_or_path")
    if not recorded:
        return (f"{CONFIG_FILE} does not say from which base it was trained; it fits this one.",)
    name = str(recorded)
    other = Path(name).expanduser()
    if name == base.name:
        return ()
    if (other / "config.json").is_file() and any(other.glob("*.safetensors")):
        if base.folder.samefile(other) or _content(base.folder) == _content(other):
            return ()
    elif _last_part(name) == _last_part(base.name):
        return ()
    elif other.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        return (
            f"{CONFIG_FILE} records {name} as its base, a folder that is not here; it fits "
            f"{base.name}, and whether it is the same model cannot be told.",
        )
    raise ModelError(
        f"{folder} records {name} as its base, not {base.name}. Name that one, or add --any-base "
        "if this is the same model under another name."
    )


def layers_without_factors(
    folder: Path, shapes: Mapping[str, LinearShape], adapted: Container[str]
) -> list[str]:
    """Layers of the base that ``target_modules`` names and the adapter has no factors for.

    Args:
        folder: of the adapter.
        shapes: of every linear layer below the base's head.
        adapted: names of the layers with factors.

    Returns:
        Their names in the model's order; none where ``target_modules`` is a pattern, or restricted
        to some layers.

    Raises:
        ModelError: the config cannot be read.
    """
    config = read_adapter_config(folder)
    targets = config.get("target_modules")
    restricted = any(config.get(name) not in (None, "", []) for name in _RESTRICTIONS)
    if restricted or not isinstance(targets, list):
        return []
    named = target_shapes(shapes, [str(each) for each in targets])
    return [name for name in shapes if name in named and name not in adapted]


def _content(folder: Path) -> str:
    return find_base_model(BaseModelConfig(name=str(folder.resolve()))).fingerprint


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()


def _refuse_beyond_lora(config: Mapping[str, Any], folder: Path) -> None:
    beyond = [name for name, given in config.items() if given and name not in _UNDERSTOOD]
    beyond += ["bias"] * (config.get("bias", "none") != "none")
    beginning = config.get("init_lora_weights", True)
    if beginning not in _PLAIN_BEGINNINGS:
        beyond.append(f"init_lora_weights: {beginning}")
    else:  # an empty section of a way to begin that was not taken
        beyond = [name for name in beyond if name not in ("loftq_config", "corda_config")]
    if beyond:
        names = ", ".join(sorted(beyond))
        raise BeyondLoraError(
            f"the adapter in {folder} asks for more than plain LoRA ({names}), and is not "
            "the sum of the base and two factors. Merge it into a full model and take that."
        )


def _read_matrices(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """lora_A and lora_B by the layer's name in the base."""
    path = adapter_weights(folder)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Save the adapter again.") from error
    names = {key.removesuffix(side) for key in tensors for side in _SIDES}
    names = {name for name in names if not name.endswith(".weight")}
    wanted = {name + side for name in names for side in _SIDES}
    odd = sorted(wanted ^ tensors.keys())
    if odd or not names:
        found = ", ".join(odd[:3]) or "none at all"
        raise BeyondLoraError(
            f"{path} holds other weights than pairs of lora_A and lora_B of layers: {found}."
        )
    return {
        name.removeprefix(PREFIX): (tensors[name + _SIDES[0]], tensors[name + _SIDES[1]])
        for name in sorted(names)
    }


def _scaling(config: Mapping[str, Any], name: str, rank: int, folder: Path) -> float:
    """The factor of a layer, by PEFT's rule: its patterns come before the adapter's own values."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    said = ranks.get(get_pattern_key(list(ranks), name), config["r"])
    alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
    if said != rank:
        raise ModelError(
            f"the adapter in {folder} says rank {said} for {name}, its weights have rank {rank}. "
            "Config and weights belong to different adapters."
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
