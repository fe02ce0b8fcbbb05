"""A base model while PEFT's weights are in it: put on, prepared, saved, and taken off again."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.adapter_folder import WEIGHTS_FILE, rewrite_config
from rankwise.engine.models.base import adaptable_shapes, target_shapes
from rankwise.engine.models.files import unusable
from rankwise.engine.models.peft_adapters import lent, quietly
from rankwise.engine.models.trained_adapters import drawn_rows
from rankwise.engine.models.variants import Variant, VariantSetting
from rankwise.errors import ModelError
from rankwise.records.files import writing


class VariantModel:
    """PEFT's model of a base and a variant, while its weights are trained.

    Attributes:
        variant: of the table.
        model: PEFT's, in evaluation mode; the base is in it, and computes as it does.
    """

    def __init__(self, variant: Variant, model: Any) -> None:
        """Take PEFT's model as it begins."""
        self.variant, self.model = variant, model
        self._before = [weight.detach().clone() for weight in self.weights]

    @property
    def weights(self) -> list[nn.Parameter]:
        """What is trained."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    @property
    def is_zero_update(self) -> bool:
        """Whether no weight has moved."""
        return all(map(torch.equal, self.weights, self._before))

    def penalise(self) -> None:
        """Add the gradient of the variant's penalty, if it has one."""
        if self.variant.penalise is not None:
            self.variant.penalise(self.model)

    def save(self, folder: Path, base_model_name: str) -> int:
        """Write the adapter in PEFT's layout; returns the weights' bytes.

        Args:
            folder: is created.
            base_model_name: is written into the config.

        Raises:
            StorageError: the folder cannot be written.
        """
        with writing(folder), quietly(), torch.random.fork_rng(devices=[]):
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # a model card to fill in
            rewrite_config(folder, base_model_name_or_path=base_model_name)
        return (folder / WEIGHTS_FILE).stat().st_size


@contextlib.contextmanager
def variant_on(
    base_model: Any, variant: Variant, setting: VariantSetting
) -> Generator[VariantModel]:
    """Within the block, a base has a variant's weights in its layers, at their beginning.

    Afterwards it has its own layers again. The caller's randomness is left alone.

    Args:
        base_model: frozen, not quantised.
        variant: of the table, one that PEFT trains.
        setting: of the variant.

    Raises:
        ModelError: PEFT cannot put it on this base.
    """
    shapes = target_shapes(adaptable_shapes(base_model), setting.target_modules)
    adapted = map(base_model.get_submodule, shapes)
    if not variant.takes_conv1d and any(isinstance(layer, Conv1D) for layer in adapted):
        raise ModelError(
            "PEFT cannot put this variant on layers of GPT-2's kind (Conv1D). Leave it out of "
            "methods.variants."
        )
    assert variant.config is not None
    what = "PEFT cannot put this variant on the base model"
    with lent(base_model):
        with torch.random.fork_rng(devices=[]), quietly():
            torch.default_generator.manual_seed(setting.seed)  # PEFT draws from it, on the CPU
            remedy = "Leave it out of methods.variants, or choose other target_modules."
            with unusable(what, remedy):
                model: Any = peft.get_peft_model(base_model, variant.config(setting))
            layers = base_model.named_modules() if variant.draws_like_lora else ()
            for name, layer in layers:
                if isinstance(layer, peft.tuners.lora.LoraLayer):
                    into: Any = layer.lora_A["default"]
                    rank, size = into.weight.shape
                    with torch.no_grad():
                        into.weight.copy_(drawn_rows(name, rank, size, setting.seed))
        yield VariantModel(variant, model.eval())
