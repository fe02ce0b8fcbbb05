"""Models are transformers' own, layer by layer, and what refuses one is called by its name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import transformers
from packaging.specifiers import SpecifierSet
from safetensors import SafetensorError
from torch import nn

from rankwise.engine.models.files import unusable
from rankwise.engine.models.loading import load_frozen, load_model
from rankwise.engine.models.structure import model_skeleton
from rankwise.errors import ModelError
from rankwise.records import versions
from tests.support.sources import package_sources

LOADS = {"AutoModelForCausalLM.from_pretrained", "type(skeleton).from_pretrained"}
"""The calls that make a model of files."""
OTHERS = {
    "AutoTokenizer.from_pretrained", "AutoConfig.from_pretrained",
    "peft.PeftModel.from_pretrained",  # is given a model that was loaded here
}  # fmt: skip


def loads(tree: ast.AST) -> list[tuple[str, bool]]:
    """Calls of ``from_pretrained``, and whether each forbids to swap layers."""
    return [
        (ast.unparse(node.func), "use_kernels=False" in map(ast.unparse, node.keywords))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")
    ]


def test_every_load_forbids_to_swap_layers() -> None:
    found = [each for source in package_sources().values() for each in loads(source.tree)]
    assert {name for name, _ in found} == LOADS | OTHERS
    assert {name for name, forbids in found if forbids} == LOADS
    assert not [name for name, forbids in found if name in LOADS and not forbids]


def test_a_load_that_may_swap_layers_is_seen() -> None:
    assert loads(ast.parse("M.from_pretrained(a, dtype=d)")) == [("M.from_pretrained", False)]


def swapped(model: nn.Module) -> list[str]:
    """The modules that are not just what transformers or torch define."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__module__.partition(".")[0] not in ("torch", "transformers")
        or "forward" in vars(module)
    ]


def test_a_loaded_model_is_made_of_transformers_own_classes(tiny_model_folder: Path) -> None:
    loaded = load_model(tiny_model_folder, torch.float32)
    frozen = load_frozen(tiny_model_folder, "float32", torch.device("cpu"))
    for model in (loaded, frozen, model_skeleton(tiny_model_folder)):
        assert swapped(model) == []
        assert type(model) is transformers.LlamaForCausalLM
    assert not getattr(loaded, "use_kernels", False)
    layer = loaded.model.layers[0].mlp
    layer.forward = type(layer).forward.__get__(layer)  # as the package kernels does
    assert swapped(loaded) == ["model.layers.0.mlp"]


def said(kind: type[Exception], text: str, module: str = "transformers.modeling_utils") -> str:
    """What is said of an error that another module raises."""
    code = compile(f"def refuse():\n    raise kind({text!r})\nrefuse()", module, "exec")
    with pytest.raises(ModelError) as caught, unusable("it cannot be loaded", "Check its config."):
        exec(code, {"__name__": module, "kind": kind})
    return str(caught.value)


def test_a_library_that_refuses_for_a_reason_of_its_own_is_named() -> None:
    refusal = NotImplementedError, "Unsupported device type 'meta'."
    here = transformers.__version__
    assert said(*refusal) == (
        f"it cannot be loaded: transformers {here} refused it: Unsupported device type 'meta'. "
        "Check its config."
    )
    assert "refused" not in said(*refusal, "rankwise.engine.models.files")
    assert "refused" not in said(SafetensorError, "HeaderTooLarge"), "the file's own fault"


def test_one_that_is_not_tested_is_to_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        versions, "tested_versions", lambda: {"transformers": SpecifierSet(">=4,<4.9")}
    )
    here = transformers.__version__
    assert said(NotImplementedError, "no") == (
        f"it cannot be loaded: transformers {here} refused it: no. rankwise is not tested with "
        f"transformers {here}. Install: pip install 'transformers>=4,<4.9'."
    )
