"""What PEFT itself does: the config of a trained adapter, and adapters that only PEFT can apply.

Variants that only PEFT can train are put into a base here, prepared, saved, and taken off again.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rankwise.engine.models.adapter_config import refuse_patterns
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE, rewrite_config, write_factors
from rankwise.engine.models.files import unusable
from rankwise.engine.models.structure import LinearShape, layers_replaced
from rankwise.engine.models.trained_adapters import Adapter, drawn_rows
from rankwise.engine.models.variants import Variant, VariantSetting
from rankwise.errors import ModelError
from rankwise.records.files import writing
from rankwise.records.patterns import rank_entries

# Of what an adapter adds to a layer, the share that may be off beside the rounding of the sum.
_MOST_ERROR = 0.02


def load_adapter(base_model: nn.Module, folder: Path) -> peft.PeftModel:
    """Attach a saved adapter to the base, for scoring.

    Raises:
        ModelError: the folder is not a PEFT adapter, or it does not fit this base.
    """
    refuse_patterns(folder)
    what = f"{folder} cannot be attached to this base model"
    with unusable(what, "Check its adapter_config.json and weights."), warnings.catch_warnings():
        # what is missing in the file PEFT draws at random
        warnings.filterwarnings("error", ".*missing adapter keys", UserWarning)
        # AdaLoRA names ranks by weights, and PEFT looks for layers of these names
        warnings.filterwarnings("ignore", ".*rank_pattern keys", RuntimeWarning)
        return peft.PeftModel.from_pretrained(base_model, str(folder))  # pyright: ignore[reportArgumentType]


def save_adapter(
    adapter: Adapter,
    folder: Path,
    *,
    alpha: float | None,
    use_rslora: bool,
    target_modules: Sequence[str],
    base_model_name: str,
) -> int:
    """Write adapter_config.json and adapter_model.safetensors; returns the bytes of the weights.

    What is saved is what the adapter adds to the base. Where that is of a higher rank than what is
    trained, alpha is that of the same scaling.

    Args:
        adapter: its float32 weights.
        folder: is created.
        alpha: numerator of the scaling; None where layers have ranks of their own, and one scaling.
        use_rslora: whether it is divided by sqrt(rank) rather than rank.
        target_modules: of the base, as PEFT takes them.
        base_model_name: is written into the config.

    Raises:
        StorageError: the folder cannot be written.
    """
    update = adapter.update
    ranks = {name: len(lora_A) for name, (lora_A, _) in update.items()}
    entries: dict[str, Any]
    if alpha is None:
        entries = rank_entries(ranks, adapter.scaling)
    else:
        rank = max(ranks.values())
        alpha *= (rank / adapter.rank) ** (0.5 if use_rslora else 1.0)
        entries = {"r": rank, "lora_alpha": alpha}
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        base_model_name_or_path=base_model_name,
        inference_mode=True,
        **entries,
        target_modules=list(target_modules),
        lora_dropout=adapter.dropout,
        use_rslora=use_rslora,
        bias="none",
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        rewrite_config(folder)
    return write_factors(folder, update)


@torch.no_grad()
def misloaded(
    base_model: nn.Module,
    shapes: Mapping[str, LinearShape],
    target_modules: Sequence[str],
    *,
    ranks: Mapping[str, int] | None = None,
    use_rslora: bool = False,
    tokens: Sequence[int] = (),
) -> list[str]:
    """The layers for which PEFT loads something else than ``save_adapter`` saves.

    In some mixtures of experts it takes ``gate_proj`` and its like for the fused experts, also
    where linear layers have these names. The factors are drawn: what they add is far above rounding
    in every precision, while an update that has hardly been trained is not.

    Args:
        base_model: may be quantised, or on the meta device; has its own layers again afterwards.
        shapes: of the layers that ``target_modules`` adapt.
        target_modules: as ``save_adapter`` has them.
        ranks: of the layers, where these have ranks of their own.
        use_rslora: likewise.
        tokens: of a text on which what is added is compared; none: only where it is added.
    """
    settings: dict[str, Any] = {"dropout": 0.0, "seed": 0, "dtype": torch.float32}
    drawn = Adapter(shapes, rank=ranks or 2, scaling=1.0, device=torch.device("cpu"), **settings)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.default_generator.manual_seed(0)
        for name, (_, lora_B) in drawn.factors.items():
            lora_B[:, : drawn.ranks[name]].normal_()
        save_adapter(
            drawn,
            Path(folder),
            alpha=None if ranks else drawn.rank ** (0.5 if use_rslora else 1.0),
            use_rslora=use_rslora,
            target_modules=target_modules,
            base_model_name="",
        )
        with lent(base_model), quietly():
            try:
                load_adapter(base_model, Path(folder))
            except ModelError:  # the file lacks what PEFT adapts instead
                return list(shapes)
            layers: dict[str, Any] = {
                name: module
                for name, module in base_model.named_modules()
                if isinstance(module, LoraLayer)
            }
            if not tokens or layers.keys() != shapes.keys():
                return sorted(layers.keys() ^ shapes.keys())
            return _adding_otherwise(base_model, layers, drawn, tokens)


def _adding_otherwise(
    base_model: nn.Module, layers: Mapping[str, nn.Module], drawn: Adapter, tokens: Sequence[int]
) -> list[str]:
    """Those of PEFT's layers that add something else to their output than the factors say.

    A layer that is not called is left out: an expert to which no token is sent.
    """
    wrong: set[str] = set()

    def compare(name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, y = inputs[0].float(), output.float()
        lora_A, lora_B = (factor.to(x.device) for factor in drawn.factors[name])
        expected = drawn.scaling * (x @ lora_A.T) @ lora_B.T
        error = y - layer.base_layer(inputs[0]).float() - expected
        rounding = 4 * torch.finfo(output.dtype).eps * y.norm()
        if not bool(error.norm() <= _MOST_ERROR * expected.norm() + rounding):  # NaN is wrong
            wrong.add(name)

    for name, layer in layers.items():
        layer.register_forward_hook(partial(compare, name))
    (weight, *_) = base_model.parameters()
    base_model(torch.tensor([tokens], device=weight.device), use_cache=False)
    return sorted(wrong)


@contextlib.contextmanager
def lent(model: nn.Module) -> Generator[None]:
    """Within the block, PEFT may wrap modules of a model; afterwards it has its own again."""
    own = {
        name: module
        for name, module in model.named_modules()
        if name and next(module.parameters(recurse=False), None) is not None
    }
    try:
        with layers_replaced(model, own):
            yield
    finally:
        vars(model).pop("peft_config", None)  # PEFT leaves it there


@contextlib.contextmanager
def quietly() -> Generator[None]:
    """Within the block, PEFT does not warn of what it settles by itself."""
    with warnings.catch_warnings():
        for kind in (UserWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield


class VariantModel:
    """PEFT's model of a base and a variant, while its weights are trained.

    Attributes:
        variant: of the table.
        model: PEFT's, in evaluation mode; the base is in it, and computes as it does.
        weights: what is trained.
    """

    def __init__(self, variant: Variant, model: Any) -> None:
        """Take PEFT's model as it begins."""
        self.variant, self.model = variant, model
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._before = [weight.detach().clone() for weight in self.weights]

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
                if isinstance(layer, LoraLayer):
                    into: Any = layer.lora_A["default"]
                    rank, size = into.weight.shape
                    with torch.no_grad():
                        into.weight.copy_(drawn_rows(name, rank, size, setting.seed))
        yield VariantModel(variant, model.eval())
