"""The one reader and the one writer of a PEFT adapter folder, and what its config says of the base.

An adapter that is more than plain LoRA is refused by name: its update is not the product of two
factors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankwise.engine.models.base import BaseModel, LinearShape, find_base_model, target_shapes
from rankwise.errors import BeyondLoraError, ModelError
from rankwise.records.config import BaseModelConfig
from rankwise.records.files import write_atomically, writing

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SIDES = (".lora_A.weight", ".lora_B.weight")
# Entries of PEFT's config that are read here, or that change nothing in a trained adapter of plain
# LoRA. Any other entry that is set is refused, including those that PEFT may add one day.
_UNDERSTOOD = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "fan_in_fan_out", "init_lora_weights", "bias", "megatron_core"),
    *("qalora_group_size", "eva_config", "runtime_config", "ensure_weight_tying"),
}
# Entries that make an adapter leave out layers that its target_modules name.
_RESTRICTIONS = ("exclude_modules", "layers_to_transform", "layers_pattern")
# Initialisations that leave the base's weights unchanged (PiSSA, for example, moves part of them).
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


class ScaledFactors(NamedTuple):
    """The factors of one layer, which adds scaling * x @ lora_A.T @ lora_B.T to its output."""

    lora_A: Float[Tensor, "rank in_features"]
    lora_B: Float[Tensor, "out_features rank"]
    scaling: float

    @property
    def is_zero(self) -> bool:
        """Whether the layer adds nothing: the scaling or a whole factor is zero."""
        return self.scaling == 0 or not bool(self.lora_A.any()) or not bool(self.lora_B.any())


def read_factors(folder: Path) -> dict[str, ScaledFactors]:
    """Read the factors of every adapted layer as saved; ranks and alphas may differ by layer.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors, as PEFT writes them.

    Returns:
        The factors by the layer's name in the base model.

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


def write_factors(
    folder: Path, factors: Mapping[str, tuple[Tensor, Tensor]], config: str | None = None
) -> int:
    """Write adapter_model.safetensors, and then adapter_config.json where its text is given.

    Args:
        folder: is created.
        factors: lora_A and lora_B by the layer's name in the base model, in the dtype to save.
        config: the text of adapter_config.json; None leaves that file alone.

    Returns:
        The bytes of the weights.

    Raises:
        StorageError: the folder cannot be written.
    """
    tensors = {
        f"{_PREFIX}{name}{side}": matrix.cpu().contiguous()
        for name, pair in factors.items()
        for side, matrix in zip(_SIDES, pair, strict=True)
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if config is not None:
        write_atomically(folder / CONFIG_FILE, config)
    return (folder / WEIGHTS_FILE).stat().st_size


def has_update(weights: Path) -> bool:
    """Whether any lora_B is not zero; works for every kind of LoRA, also for those refused here.

    Args:
        weights: the safetensors file of an adapter.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with safe_open(weights, "pt") as tensors:
            return any(
                bool(tensors.get_tensor(name).any())
                for name in tensors.keys()  # noqa: SIM118  (it is no dictionary)
                if ".lora_B" in name
            )
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{weights} cannot be read: {error}. Save it again.") from error


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read ``adapter_config.json`` of a LoRA adapter; it has a rank ``r`` and a ``lora_alpha``.

    Raises:
        ModelError: it cannot be read, is of another kind of adapter, or has no rank or alpha.
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

    If the recorded name is a model folder on this machine, its content is compared. Otherwise the
    last part of the name is compared, without case: organisations copy each other's models. A
    folder that does not exist here decides nothing.

    Returns:
        What could not be checked, one sentence each.

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
    """The layers that ``target_modules`` names but that have no factors.

    Args:
        folder: of the adapter.
        shapes: of every linear layer below the base's head.
        adapted: names of the layers with factors.

    Returns:
        Their names in the model's order; none if ``target_modules`` is a pattern or is restricted
        to some layers.

    Raises:
        ModelError: the config cannot be read.
    """
    config = read_adapter_config(folder)
    targets = config.get("target_modules")
    restricted = any(config.get(name) not in (None, "", []) for name in _RESTRICTIONS)
    if restricted or not isinstance(targets, list):
        return []
    named = target_shapes(shapes, [str(target) for target in targets])
    return [name for name in shapes if name in named and name not in adapted]


def _content(folder: Path) -> str:
    return find_base_model(BaseModelConfig(name=str(folder.resolve()))).fingerprint


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()


def _refuse_beyond_lora(config: Mapping[str, Any], folder: Path) -> None:
    beyond = [name for name, value in config.items() if value and name not in _UNDERSTOOD]
    beyond += ["bias"] * (config.get("bias", "none") != "none")
    beginning = config.get("init_lora_weights", True)
    if beginning not in _PLAIN_BEGINNINGS:
        beyond.append(f"init_lora_weights: {beginning}")
    else:  # PEFT writes these sections even if another initialisation was used
        beyond = [name for name in beyond if name not in ("loftq_config", "corda_config")]
    if beyond:
        names = ", ".join(sorted(beyond))
        raise BeyondLoraError(
            f"the adapter in {folder} asks for more than plain LoRA ({names}), and is not "
            "the sum of the base and two factors. Merge it into a full model and take that."
        )


def _read_matrices(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Read lora_A and lora_B by the layer's name in the base."""
    path = adapter_weights(folder)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Save the adapter again.") from error
    # a key without one of the two suffixes keeps its ".weight" and is dropped here ...
    names = {key.removesuffix(side) for key in tensors for side in _SIDES}
    names = {name for name in names if not name.endswith(".weight")}
    # ... and shows here, as does a factor without its partner
    wanted = {name + side for name in names for side in _SIDES}
    odd = sorted(wanted ^ tensors.keys())
    if odd or not names:
        examples = ", ".join(odd[:3]) or "none at all"
        raise BeyondLoraError(
            f"{path} holds other weights than pairs of lora_A and lora_B of layers: {examples}."
        )
    return {
        name.removeprefix(_PREFIX): (tensors[name + _SIDES[0]], tensors[name + _SIDES[1]])
        for name in sorted(names)
    }


def _scaling(config: Mapping[str, Any], name: str, rank: int, folder: Path) -> float:
    """The scaling of a layer, by PEFT's rule: patterns take precedence over ``r`` and alpha."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    recorded = ranks.get(get_pattern_key(list(ranks), name), config["r"])
    alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
    if recorded != rank:
        raise ModelError(
            f"the adapter in {folder} says rank {recorded} for {name}, its weights have rank "
            f"{rank}. Config and weights belong to different adapters."
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
