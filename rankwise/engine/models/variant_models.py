"""A base model while PEFT's weights are in it: put on, prepared, saved, and taken off again."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from rankwise.engine.models.base import adaptable_shapes, layers_replaced, target_shapes
from rankwise.engine.models.files import unusable
from rankwise.engine.models.packed_attention import packed_attention
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.engine.models.trained_adapters import drawn_rows
from rankwise.engine.models.variants import Variant, VariantSetting
from rankwise.errors import ModelError
from rankwise.records.files import write_atomically, writing
from rankwise.tasks.training_rows import Example

_INITIAL = "initial"  # PEFT reads the beginning of an adapter as an adapter of this name

# Read at once for EVA: a step of its decomposition needs more tokens than directions.
_EVA_TOKENS = 2048
_EVA_TOKENS_PER_RANK = 4
# PEFT looks for its directions in a subspace of so many times the rank.
_EVA_SUBSPACE = 2
# EVA goes on until the directions stay; those of a layer whose inputs hardly vary may never do.
_EVA_MOST_READS = 500


class VariantModel:
    """PEFT's model of a base and a variant, while its weights are trained.

    Attributes:
        variant: of the table.
        model: PEFT's, in evaluation mode; the base is in it, and computes as it does.
    """

    def __init__(self, variant: Variant, model: Any, initial: Path | None) -> None:
        """Take PEFT's model as it begins; ``initial`` holds that beginning, where it is needed."""
        self.variant, self.model = variant, model
        self._initial = initial
        self._before = [weight.detach().clone() for weight in self.weights]

    @property
    def weights(self) -> list[nn.Parameter]:
        """What is trained."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    @property
    def is_zero_update(self) -> bool:
        """Whether no weight has moved."""
        return all(map(torch.equal, self.weights, self._before))

    def optimizer(self, rate: float, weight_decay: float) -> torch.optim.Optimizer | None:
        """The variant's own optimizer; None where it is AdamW."""
        make = self.variant.optimizer
        if make is None:
            return None
        optimizer = make(self.model, rate, weight_decay)
        self._before = [weight.detach().clone() for weight in self.weights]  # it may freeze some
        return optimizer

    def penalise(self) -> None:
        """Add the gradient of the variant's penalty, if it has one."""
        if self.variant.penalise is not None:
            self.variant.penalise(self.model)

    def save(self, folder: Path, base_model_name: str) -> int:
        """Write the adapter in PEFT's layout, for the base as it was; returns the weights' bytes.

        Args:
            folder: is created.
            base_model_name: is written into the config.

        Raises:
            StorageError: the folder cannot be written.
        """
        options: dict[str, Any] = {}
        if self._initial is not None:
            options["path_initial_model_for_weight_conversion"] = str(self._initial)
        with writing(folder), _quietly(), torch.random.fork_rng(devices=[]):
            self.model.save_pretrained(str(folder), save_embedding_layers=False, **options)
            (folder / "README.md").unlink(missing_ok=True)  # a model card to fill in
            path = folder / CONFIG_FILE
            content = json.loads(path.read_text(encoding="utf-8"))
        content["base_model_name_or_path"] = base_model_name
        # PEFT holds them as a set, whose order is another one in every process
        content["target_modules"] = sorted(content["target_modules"])
        write_atomically(path, json.dumps(content, indent=2, sort_keys=True))
        return (folder / WEIGHTS_FILE).stat().st_size


@contextlib.contextmanager
def variant_on(
    base_model: nn.Module,
    variant: Variant,
    setting: VariantSetting,
    examples: Sequence[Example] = (),
) -> Generator[VariantModel]:
    """Within the block, a base has a variant's weights in its layers, at their beginning.

    Afterwards it has its own layers and weights again. The caller's randomness is left alone.

    Args:
        base_model: frozen, not quantised.
        variant: of the table.
        setting: of the variant.
        examples: in the order in which they are trained on; some are read where the variant begins
            at what the base computes on them.

    Raises:
        ModelError: PEFT cannot put it on this base, or it cannot begin from these examples.
    """
    shapes = target_shapes(adaptable_shapes(base_model), setting.target_modules)
    layers: dict[str, Any] = {name: base_model.get_submodule(name) for name in shapes}
    if not variant.takes_conv1d and any(isinstance(layer, Conv1D) for layer in layers.values()):
        raise ModelError(
            "PEFT cannot put this variant on layers of GPT-2's kind (Conv1D). Leave it out of "
            "methods.variants."
        )
    changed: dict[str, Tensor] = {}
    if variant.changes_base:
        changed = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        # its own layers for its own: whatever takes their place is taken off again
        with (
            layers_replaced(base_model, layers),
            tempfile.TemporaryDirectory(prefix="rankwise-") as folder,
        ):
            with torch.random.fork_rng(devices=[]), _quietly():
                model = _put_on(base_model, variant, setting)
                if variant.reads_examples:
                    narrowest = min(shape.in_features for shape in shapes.values())
                    _begin_at_inputs(model, base_model, setting.rank, narrowest, examples)
                initial = Path(folder) / _INITIAL if variant.changes_base else None
                if initial is not None:
                    model.save_pretrained(str(initial), save_embedding_layers=False)
            yield VariantModel(variant, model, initial)
    finally:
        for name, weight in changed.items():
            layers[name].weight.data = weight
        vars(base_model).pop("peft_config", None)  # PEFT leaves it there


def _put_on(base_model: Any, variant: Variant, setting: VariantSetting) -> Any:
    torch.default_generator.manual_seed(setting.seed)  # PEFT draws from it, on the CPU
    what = "PEFT cannot put this variant on the base model"
    with unusable(what, "Leave it out of methods.variants, or choose other target_modules."):
        model: Any = peft.get_peft_model(base_model, variant.config(setting))
    if variant.draws_like_lora:
        with torch.no_grad():
            for name, layer in base_model.named_modules():
                if isinstance(layer, peft.tuners.lora.LoraLayer):
                    into: Any = layer.lora_A["default"]
                    rank, size = into.weight.shape
                    into.weight.copy_(drawn_rows(name, rank, size, setting.seed))
    return model.eval()


def _begin_at_inputs(
    model: Any, base_model: Any, rank: int, narrowest: int, examples: Sequence[Example]
) -> None:
    """EVA: begin at the directions in which the inputs of each layer vary most.

    ``narrowest`` is the number of inputs of the layer that has fewest.
    """
    size = max(_EVA_TOKENS, _EVA_TOKENS_PER_RANK * rank)
    batches = _packed(examples, size)
    needed, num_tokens = _EVA_SUBSPACE * rank, sum(row.num_inputs for row in examples)
    if needed > min(narrowest, num_tokens):
        raise ModelError(
            f"EVA at rank {rank} needs {needed} inputs and tokens: the narrowest layer has "
            f"{narrowest} inputs, and all training rows together {num_tokens} tokens. Choose a "
            "lower rank."
        )
    num_reads = 0

    def read(_: Any, inputs: dict[str, Tensor]) -> None:
        nonlocal num_reads
        num_reads += 1
        if num_reads > _EVA_MOST_READS:
            raise ModelError(
                f"EVA's directions still change after {_EVA_MOST_READS} batches: in some layer the "
                f"inputs hardly vary in {rank} directions. Choose a lower rank."
            )
        layout = PackedLayout(tuple(inputs["lengths"].tolist()))
        base_model.base_model(
            input_ids=inputs["input_ids"],
            position_ids=layout.position_ids(inputs["input_ids"].device),
            packed_layout=layout,
            use_cache=False,
        )

    what, remedy = "EVA cannot begin from these rows", "Choose a lower rank, or leave it out."
    with packed_attention(base_model), unusable(what, remedy):
        peft.initialize_lora_eva_weights(
            model, dataloader=batches, forward_fn=read, show_progress_bar=False
        )


def _packed(examples: Sequence[Example], num_tokens: int) -> list[dict[str, Tensor]]:
    """Examples in rows of about so many tokens; a shorter last row is left out, unless it is all.

    Returns:
        ``input_ids`` (1, tokens) of each row, and the ``lengths`` (sequences,) of what is in it.
    """
    rows: list[list[Example]] = [[]]
    for example in examples:
        if sum(other.num_inputs for other in rows[-1]) >= num_tokens:
            rows.append([])
        rows[-1].append(example)
    if len(rows) > 1 and sum(example.num_inputs for example in rows[-1]) < num_tokens:
        rows.pop()
    return [
        {
            "input_ids": torch.tensor([[t for example in row for t in example.tokens[:-1]]]),
            "lengths": torch.tensor([example.num_inputs for example in row]),
        }
        for row in rows
        if row
    ]


@contextlib.contextmanager
def _quietly() -> Generator[None]:
    """Within the block, PEFT does not warn of what it settles by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
