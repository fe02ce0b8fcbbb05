"""The structure of a base model: its config, the layers that can be adapted, and their sizes."""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import itertools
import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.files import CHECK_CONFIG, read_json, unusable
from rankwise.engine.models.limits import refuse_large_numbers
from rankwise.errors import ModelError

# The largest sizes that are believed: modules are made before any of their weights is looked at.
_SIZES = {"num_hidden_layers": 1 << 10, "hidden_size": 1 << 17, "vocab_size": 1 << 23}

ARCHITECTURE = ("model_type", "hidden_size", "num_hidden_layers")
"""Entries of a model's config that no fine-tuning changes."""

MODULE_KINDS = {
    "attention": re.compile(r"attn|attention"),
    "mlp": re.compile(r"mlp|feed_?forward|ffn|experts|fc\d"),
    "all-linear": re.compile(""),
}
"""Names for sets of layers, and a pattern that the path of each of their layers contains."""


class LinearShape(NamedTuple):
    """The size of one matrix that can be adapted."""

    in_features: int
    out_features: int


def linear_shape(module: nn.Module | None) -> LinearShape | None:
    """The size of a linear layer, GPT-2's Conv1D too; None for other modules."""
    if isinstance(module, Conv1D):
        return LinearShape(module.nx, module.nf)
    if isinstance(module, nn.Linear):
        return LinearShape(module.in_features, module.out_features)
    return None


def model_skeleton(folder: Path) -> nn.Module:
    """The model without its weights (on the meta device): shapes and names only."""
    config = _model_config(folder)
    with unusable(f"{folder} is not a causal language model", CHECK_CONFIG), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _model_config(folder: Path) -> Any:
    what = f"{folder} has no usable model config"
    with unusable(what, CHECK_CONFIG):
        refuse_large_numbers(read_json(folder / "config.json"))  # before transformers reads it
        config: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        text = config.get_text_config()
    for name in _SIZES:
        size = getattr(text, name, None)
        if size is not None and not (type(size) is int and 1 <= size <= _SIZES[name]):
            raise ModelError(f"{what}: {name} is {size!r:.40}. {CHECK_CONFIG}")
    return config


def refuse_other_architecture(
    folder: Path, base_config: Any, compared: Sequence[str] = ARCHITECTURE
) -> None:
    """Refuse a checkpoint whose config cannot be that of a fine-tuning of the base.

    Args:
        folder: of the checkpoint.
        base_config: the base model's, as transformers has it.
        compared: entries of both configs that have to be equal.

    Raises:
        ModelError: an entry differs, or the checkpoint's config cannot be read.
    """
    ours, theirs = base_config.get_text_config(), _model_config(folder).get_text_config()
    for name in compared:
        expected, other = getattr(ours, name, None), getattr(theirs, name, None)
        if expected != other:
            raise ModelError(
                f"{folder} has {name} {other} and the base model {expected}: it is no "
                "fine-tuning of this base. Name the base that it was trained from."
            )


def context_length(model_config: Any, tokenizer: Any) -> int:
    """The most tokens that the model reads at once, as lm-eval resolves it.

    LongRoPE rotates all texts of a batch by other angles as soon as one of them is longer than the
    model's original context. Scores of a text would then depend on the other texts, so such a
    model is limited to its original context.
    """
    from lm_eval.models.utils import resolve_max_length

    limit = int(resolve_max_length(model_config, tokenizer))
    rope = getattr(model_config.get_text_config(), "rope_parameters", None) or {}
    for section in (rope, *rope.values()):  # one section for all layers, or one for each kind
        if isinstance(section, Mapping) and section.get("rope_type") == "longrope":
            limit = min(limit, int(section["original_max_position_embeddings"]))
    if limit < 1:
        raise ModelError(f"the model reads at most {limit} tokens. {CHECK_CONFIG}")
    return limit


def adaptable_shapes(model: nn.Module, *, beside_text: bool = False) -> dict[str, LinearShape]:
    """Every linear layer of the text model below the head: its full name and its size.

    A router is none that is a linear layer by class alone and returns more than a product, or whose
    weight is read past it: what an adapter adds to its output would be lost.

    Args:
        model: a causal language model, or its skeleton.
        beside_text: also the layers of a vision tower, which reads no rows of text, but which an
            adapter of somebody else may have.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    text = "" if beside_text else text_part(model)
    shapes: dict[str, LinearShape] = {}
    for name, module in model.named_modules():
        if module is head or not name.startswith(text):
            continue
        if (shape := linear_shape(module)) is not None and not _is_router(model, name):
            shapes[name] = shape
    return shapes


def text_part(model: nn.Module) -> str:
    """How the names of the text model's modules begin; "" where there is nothing beside it."""
    config: Any = getattr(model, "config", None)
    if config is None or config.get_text_config() is config:
        return ""
    decoder = getattr(model, "get_decoder", lambda: None)()
    names = [name for name, module in model.named_modules() if module is decoder]
    return f"{names[0]}." if names and names[0] else ""


def _is_router(model: nn.Module, name: str) -> bool:
    """Whether a model's own class made something else of a linear layer; FP8's is no model's."""
    kind = type(model.get_submodule(name))
    if kind is Conv1D:
        return False
    is_own = kind.__module__.startswith("transformers.models.")
    owner, _, own = name.rpartition(".")
    readers = {owner, owner.rpartition(".")[0]}  # some decoder layers read it past their attention
    return (is_own and kind.forward is not nn.Linear.forward) or any(
        _reads_weight(type(model.get_submodule(reader)), own) for reader in readers
    )


@functools.cache
def _reads_weight(kind: type[nn.Module], layer: str) -> bool:
    """Whether the code of a class has ``self.layer.weight``, or ``self.part.layer.weight``."""
    # Nothing weaker sees it. Such a layer is a plain nn.Linear, so its class says nothing. Whether
    # it is called only a forward pass shows, but a skeleton has no numbers to route tokens by.
    # Source text may be missing, and can have the same words in comments and docstrings.
    classes = kind.__mro__[: kind.__mro__.index(nn.Module)]
    functions = filter(inspect.isfunction, (each for cls in classes for each in vars(cls).values()))
    return any(
        (layer, "weight") in itertools.pairwise(step.argval for step in dis.get_instructions(each))
        for each in map(inspect.unwrap, functions)
    )


def not_linear(model: nn.Module) -> list[str]:
    """Modules of the text model with matrices that no adapter is put on: experts and routers."""
    shapes, text = adaptable_shapes(model), text_part(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(text)
        and name not in shapes
        and module is not head
        and not isinstance(module, nn.Embedding)
        and any(weight.ndim > 1 for weight in module.parameters(recurse=False))
    ]


def resolved_targets(
    shapes: Mapping[str, LinearShape], target_modules: Sequence[str]
) -> tuple[str, ...]:
    """Targets as PEFT takes them: ``attention``, ``mlp`` and ``all-linear`` become layer names.

    A layer belongs to a kind if its path matches the kind's pattern in ``MODULE_KINDS``. A target
    is the last part of the path, or the last two if layers outside the kind share the last one or
    it is a number in a list, which other modules share.
    """
    resolved: list[str] = []
    for target in target_modules:
        kind = MODULE_KINDS.get(target)
        if kind is None:
            resolved.append(target)
            continue
        inside = [name for name in shapes if kind.search(name)]
        outside = {name.rpartition(".")[2] for name in shapes.keys() - set(inside)}
        for name in inside:
            *_, parent, last = ["", *name.split(".")]
            resolved.append(f"{parent}.{last}" if last in outside or last.isdigit() else last)
    return tuple(dict.fromkeys(resolved))


def matching_modules(
    shapes: Mapping[str, LinearShape], target_modules: Sequence[str]
) -> dict[str, list[str]]:
    """The layers that each target names, by PEFT's rule: the whole name, or its end after a dot."""
    return {
        target: [name for name in shapes if name == target or name.endswith(f".{target}")]
        for target in target_modules
    }


def target_shapes(
    shapes: Mapping[str, LinearShape], target_modules: Sequence[str]
) -> dict[str, LinearShape]:
    """The layers that any of the targets names, each once, with its size."""
    matches = matching_modules(shapes, target_modules)
    return {name: shapes[name] for names in matches.values() for name in names}


@contextlib.contextmanager
def layers_replaced(base_model: nn.Module, layers: Mapping[str, nn.Module]) -> Generator[None]:
    """Within the block, a model has other layers under these names; afterwards the originals."""
    originals = {name: base_model.get_submodule(name) for name in layers}
    try:
        for name, layer in layers.items():
            base_model.set_submodule(name, layer)
        yield
    finally:
        for name, layer in originals.items():
            base_model.set_submodule(name, layer)
