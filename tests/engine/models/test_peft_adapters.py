"""What PEFT loads of a saved adapter is what was trained, or the targets are refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from rankwise.engine.models import peft_adapters
from rankwise.engine.models.adapter_folder import CONFIG_FILE
from rankwise.engine.models.peft_adapters import misloaded, save_adapter
from rankwise.engine.models.structure import (
    adaptable_shapes,
    not_linear,
    resolved_targets,
    target_shapes,
)
from rankwise.engine.models.trained_adapters import Adapter, Piece, adapted
from tests.support.tiny_models import MIXTURES, tiny, tiny_mixture

CPU = torch.device("cpu")
TOKENS = list(range(3, 19))


def error_of(model: Any, shapes: Any, targets: Any, folder: Path) -> float:
    """How far what PEFT loads is from what our layers add, relative to that."""
    adapter = Adapter(
        shapes, rank=2, scaling=1.0, dropout=0.0, seed=0, device=CPU, dtype=torch.float32
    )
    for _, lora_B in adapter.factors.values():
        lora_B.normal_(0, 0.2)
    adapter.refresh()
    settings: dict[str, Any] = {"alpha": 2.0, "use_rslora": False, "base_model_name": "x"}
    save_adapter(adapter, folder, target_modules=targets, **settings)
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        base = model(tokens).logits
        with adapted(model, list(shapes)) as bank, bank.rows_of([Piece(adapter, 0, 16, ())]):
            ours = model(tokens).logits
        try:
            loaded: Any = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder)
        except ValueError:
            return 1.0
        theirs = loaded(tokens).logits
    return float((theirs - ours).norm() / (ours - base).norm())


def check(family: str, kind: str, folder: Path) -> bool:
    """Whether PEFT loads what was trained, after it was made sure that this is known."""
    model = tiny_mixture(family)
    before = dict(model.named_modules())
    every = adaptable_shapes(model)
    targets = resolved_targets(every, (kind,))
    shapes = target_shapes(every, targets)
    assert shapes
    is_right = error_of(model, shapes, targets, folder) < 1e-4
    skeleton = copy.deepcopy(model).to("meta")
    assert bool(misloaded(skeleton, shapes, targets)) != is_right
    assert bool(misloaded(model, shapes, targets, tokens=TOKENS)) != is_right
    assert dict(model.named_modules()) == before
    assert not hasattr(model, "peft_config")
    return is_right


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "kind", "is_right"),
    [
        ("Dots1", "all-linear", False),
        ("Dots1", "attention", True),
        ("Laguna", "mlp", False),
        ("Afmoe", "attention", False),
        ("Qwen2Moe", "all-linear", True),
    ],
)
def test_it_is_known_what_peft_loads_of_an_adapter(
    family: str, kind: str, is_right: bool, tmp_path: Path
) -> None:
    assert check(family, kind, tmp_path) == is_right


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["attention", "all-linear"])
@pytest.mark.parametrize("family", MIXTURES)
def test_it_is_known_for_every_mixture_of_experts(family: str, kind: str, tmp_path: Path) -> None:
    check(family, kind, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_another_scaling_shows_on_a_text(
    dtype: torch.dtype, use_rslora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers are the right ones, so that only numbers tell."""
    model = tiny("Llama").to(dtype).requires_grad_(False)
    shapes = adaptable_shapes(model)
    targets = resolved_targets(shapes, ("all-linear",))
    found: dict[str, Any] = {"use_rslora": use_rslora, "tokens": TOKENS}
    assert misloaded(model, shapes, targets, **found) == []

    def damaged(adapter: Adapter, folder: Path, **settings: Any) -> int:
        size = save_adapter(adapter, folder, **settings)
        config = json.loads((folder / CONFIG_FILE).read_text())
        config["alpha_pattern"] = {"layers.1.self_attn.v_proj": 1.1 * config["lora_alpha"]}
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        return size

    monkeypatch.setattr(peft_adapters, "save_adapter", damaged)
    assert misloaded(model, shapes, targets, use_rslora=use_rslora) == []
    assert misloaded(model, shapes, targets, **found) == ["model.layers.1.self_attn.v_proj"]


@pytest.mark.parametrize("family", ["HunYuanMoEV1", "LongcatFlash"])
def test_routers_whose_weight_is_read_past_the_layer_are_not_adapted(family: str) -> None:
    """Such a router is a plain linear layer, which the model does not always call."""
    model = tiny_mixture(family)
    shapes = adaptable_shapes(model)
    routers = [name for name, _ in model.named_modules() if name.endswith((".wg", ".classifier"))]
    assert routers
    assert not shapes.keys() & set(routers)
    assert set(routers) < set(not_linear(model))
    adapter = Adapter(
        shapes, rank=2, scaling=1.0, dropout=0.0, seed=0, device=CPU, dtype=torch.float32
    )
    with adapted(model, list(shapes)) as bank, bank.rows_of([Piece(adapter, 0, 16, ())]):
        model(torch.tensor([TOKENS]))
