"""The one reader and the one writer of a PEFT adapter on disk.

Whoever is given a path makes an ``AdapterFolder`` of it, and hands that on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.engine.models.adapter_config import (
    CONFIG_FILE,
    LayerSetting,
    layer_settings,
    read_adapter_config,
    refuse_beyond_lora,
)
from rankwise.engine.models.base_folder import BaseModel, find_base_model, folder_here
from rankwise.engine.models.files import (
    TensorHeader,
    opened,
    refuse_other_dtypes,
    tensor_headers,
    unwrapped,
    weights_files,
)
from rankwise.engine.models.structure import LinearShape, linear_shape, target_shapes
from rankwise.errors import BeyondLoraError, ModelError
from rankwise.records.config.study import BaseModelConfig
from rankwise.records.files import share_as_usual, write_atomically, writing

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SIDES = (".lora_A.weight", ".lora_B.weight")
# Entries that make an adapter leave out layers that its target_modules name.
_RESTRICTIONS = ("exclude_modules", "layers_to_transform", "layers_pattern")


class ScaledFactors(NamedTuple):
    """The factors of one layer, which adds scaling * x @ lora_A.T @ lora_B.T to its output."""

    lora_A: Float[Tensor, "rank in_features"]
    lora_B: Float[Tensor, "out_features rank"]
    scaling: float


class FactorShapes(NamedTuple):
    """The factors of one layer in a file: their keys there, and their shapes."""

    key_A: str
    key_B: str
    lora_A: tuple[int, ...]
    lora_B: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AdapterFolder:
    """A LoRA adapter on disk: each part is read and checked once, when it is first asked for.

    What is wrong with the files is a ModelError of the part that needs them. A folder that changes
    is read anew by another object.

    Attributes:
        path: with adapter_config.json and adapter_model.safetensors, as PEFT writes them.
    """

    path: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What ``adapter_config.json`` says; see ``read_adapter_config``."""
        return read_adapter_config(self.path)

    @cached_property
    def weights(self) -> Path:
        """The safetensors file.

        Raises:
            ModelError: there is none.
        """
        path = self.path / WEIGHTS_FILE
        if not path.is_file():
            raise ModelError(
                f"{self.path} has no {WEIGHTS_FILE}; other formats can run code when they are "
                "loaded. Save the adapter again with safetensors."
            )
        return path

    @cached_property
    def headers(self) -> Mapping[str, TensorHeader]:
        """What the file of weights holds, by PEFT's name.

        Raises:
            ModelError: it cannot be read, or nothing here computes in one of its dtypes.
        """
        headers = tensor_headers(self.weights)
        refuse_other_dtypes(self.weights, headers)
        return headers

    @property
    def num_weights(self) -> int:
        """The number of all weights in the file."""
        return sum(math.prod(header.shape) for header in self.headers.values())

    @property
    def shapes(self) -> Mapping[str, FactorShapes]:
        """The pairs of factors that are matrices, by the layer's name in the base model.

        Raises:
            ModelError: two factors have no rank in common, or a layer has two pairs.
        """
        return self._pairs[0]

    @cached_property
    def digest(self) -> str:
        """The sha256 of config and weights together."""
        config, weights = self.files
        digest = hashlib.sha256(config.read_bytes())
        with weights.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @property
    def files(self) -> tuple[Path, Path]:
        """Config and weights, of what is a LoRA adapter."""
        _ = self.config
        return self.path / CONFIG_FILE, self.weights

    @cached_property
    def has_update(self) -> bool:
        """Whether any lora_B is not zero; of every kind of LoRA, also of those without factors."""
        with opened(self.weights) as file:
            return any(bool(file.get_tensor(n).any()) for n in self.headers if ".lora_B" in n)

    @cached_property
    def factors(self) -> Mapping[str, ScaledFactors]:
        """The factors of every adapted layer as saved; ranks and alphas may differ by layer.

        Raises:
            BeyondLoraError: as ``refuse_beyond_lora``.
        """
        self.refuse_beyond_lora()
        with opened(self.weights) as file:
            return {
                name: ScaledFactors(
                    file.get_tensor(shapes.key_A),
                    file.get_tensor(shapes.key_B),
                    self._settings[name].scaling,
                )
                for name, shapes in self.shapes.items()
            }

    def refuse_beyond_lora(self) -> None:
        """Refuse an adapter whose update is not the product of two factors for each linear layer.

        Raises:
            BeyondLoraError: it is more (DoRA, ``lora_bias``, ``modules_to_save``,
                ``target_parameters`` ...).
            ModelError: config and weights say different ranks.
        """
        refuse_beyond_lora(self.config, self.path)
        shapes, odd = self._pairs
        if odd or not shapes:
            examples = ", ".join(odd[:3]) or "none at all"
            raise BeyondLoraError(
                f"{self.weights} holds other weights than pairs of lora_A and lora_B of layers: "
                f"{examples}."
            )
        for name in shapes:
            self._refuse_other_rank(name)

    def refuse_other_base(self, base: BaseModel, *, remedy: str) -> tuple[str, ...]:
        """Refuse an adapter whose config names another base than the given one.

        If the recorded name is a model folder on this machine, its content is compared. Otherwise
        the last part of the name is compared, without case: organisations copy each other's models.
        A folder that does not exist here decides nothing.

        Args:
            base: that it would be used on.
            remedy: what to do if this is the same model under another name.

        Returns:
            What could not be checked, one sentence each.

        Raises:
            ModelError: another base is recorded.
        """
        name = self.config.get("base_model_name_or_path")
        if not name:
            return (
                f"{CONFIG_FILE} does not say from which base it was trained; it fits this one.",
            )
        if name == base.name:
            return ()
        last, expected = (
            each.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()
            for each in (name, base.name)
        )
        other = folder_here(name)
        if other is not None and (other / "config.json").is_file() and weights_files(other):
            if base.folder.samefile(other) or _content(base.folder) == _content(other):
                return ()
        elif last == expected:
            return ()
        elif name.startswith(("/", ".", "~")) or Path(name).is_absolute() or name.count("/") > 1:
            return (
                f"{CONFIG_FILE} records {name} as its base, a folder that is not here; it fits "
                f"{base.name}, and whether it is the same model cannot be told.",
            )
        raise ModelError(
            f"{self.path} records {name} as its base, not {base.name}. Name that one, or {remedy} "
            "if this is the same model under another name."
        )

    def check_fit(self, model: nn.Module) -> None:
        """Refuse an adapter that does not fit a base, before any of its weights is read.

        Adapters beyond plain LoRA are checked as far as their factors go: pairs of lora_A and
        lora_B stand for layers of the base, have their sizes and the rank that the config records.

        Args:
            model: the base; may be on the meta device.

        Raises:
            ModelError: it does not fit, or lacks one factor of a pair.
        """
        shapes, odd = self._pairs
        if lonely := [name for name in odd if name.endswith(_SIDES) and name not in self.headers]:
            raise ModelError(
                f"{self.weights} has a factor without its partner: {lonely[0]} is missing. The "
                "file is not complete; save the adapter again."
            )
        for name, factors in shapes.items():
            try:
                module = model.get_submodule(name)
            except AttributeError as error:
                raise ModelError(
                    f"{self.path} adapts {name}, which the base model does not have. Choose the "
                    "base that it was trained from."
                ) from error
            shape = linear_shape(module)
            if shape is None:
                continue
            self._refuse_other_rank(name)
            if shape != (factors.lora_A[1], factors.lora_B[0]):
                size = shape.out_features, shape.in_features
                raise ModelError(
                    f"{self.path} does not fit {name}: its factors are {factors.lora_A} and "
                    f"{factors.lora_B}, and the layer {size}. Choose the base that it was trained "
                    "from."
                )

    def layers_without_factors(self, shapes: Mapping[str, LinearShape]) -> list[str]:
        """The layers that ``target_modules`` names but that have no factors.

        Args:
            shapes: of every linear layer below the base's head.

        Returns:
            Their names in the model's order; none if ``target_modules`` is a pattern or is
            restricted to some layers.
        """
        targets = self.config.get("target_modules")
        restricted = any(self.config.get(name) not in (None, "", []) for name in _RESTRICTIONS)
        if restricted or not isinstance(targets, list):
            return []
        named = target_shapes(shapes, [str(target) for target in targets])
        return [name for name in shapes if name in named and name not in self.shapes]

    @cached_property
    def _settings(self) -> Mapping[str, LayerSetting]:
        return layer_settings(self.config, self.shapes, self.path)

    @cached_property
    def _pairs(self) -> tuple[Mapping[str, FactorShapes], list[str]]:
        """Pairs of factors that are matrices, and the names of what is beside them, or missing."""
        headers, weights = self.headers, self.weights
        names = {key.removesuffix(side) for key in headers for side in _SIDES if key.endswith(side)}
        wanted = {name + side for name in names for side in _SIDES}
        layers: dict[str, FactorShapes] = {}
        for name in sorted(names):
            keys = (name + _SIDES[0], name + _SIDES[1])
            A, B = (headers[key].shape if key in headers else None for key in keys)
            if A is None or B is None:
                continue
            if len(A) != 2 or len(B) != 2:
                wanted -= set(keys)
            elif A[0] != B[1] or not min(*A, *B):
                raise ModelError(
                    f"{weights}: lora_A {A} and lora_B {B} of {name} have no rank in common. Save "
                    "the adapter again."
                )
            elif (layer := unwrapped(name).removeprefix(_PREFIX)) in layers:
                raise ModelError(f"{weights} has two pairs of factors of {layer}. Save it again.")
            else:
                layers[layer] = FactorShapes(*keys, A, B)
        return layers, sorted(wanted ^ headers.keys())

    def _refuse_other_rank(self, name: str) -> None:
        recorded, rank = self._settings[name].rank, self.shapes[name].lora_A[0]
        if recorded != rank:
            raise ModelError(
                f"the adapter in {self.path} says rank {recorded} for {name}, its weights have "
                f"rank {rank}. Config and weights belong to different adapters."
            )


def _content(folder: Path) -> str:
    return find_base_model(BaseModelConfig(name=str(folder.absolute()))).fingerprint


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
        share_as_usual(folder / WEIGHTS_FILE)
    if config is not None:
        write_atomically(folder / CONFIG_FILE, config)
    return (folder / WEIGHTS_FILE).stat().st_size


def rewrite_config(folder: Path, **entries: Any) -> None:
    """Give entries of the adapter_config.json that PEFT has just written other values.

    Raises:
        StorageError: it cannot be written.
    """
    path = folder / CONFIG_FILE
    content = json.loads(path.read_text(encoding="utf-8")) | entries
    # PEFT holds them as a set, whose order is another one in every process
    content["target_modules"] = sorted(content["target_modules"])
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True))
