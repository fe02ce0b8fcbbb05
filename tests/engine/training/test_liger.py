"""Liger's kernels are there while adapters are trained, and nowhere else; a stand-in plays it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama import modeling_llama

from rankwise.engine.training import liger, loop
from rankwise.engine.training.liger import liger_kernels
from rankwise.engine.training.trainees import AdapterTrainee
from tests.support.fake_cuda import CUDA
from tests.support.passes import Heard, Setting, config

USED = Counter[str]()


class StandIn:
    """Changes what Liger changes: three names of transformers, and methods of modules.

    Its functions compute what transformers' do.
    """

    def __init__(self, *, breaks: bool = False, factor: float = 1.0) -> None:
        self.breaks, self.factor = breaks, factor

    def __call__(self, model: Any, **settings: Any) -> None:
        assert settings == {"cross_entropy": False, "fused_linear_cross_entropy": False}
        rotate: Any = modeling_llama.apply_rotary_pos_emb

        def rotary(*tensors: torch.Tensor, **given: Any) -> Any:
            USED["rotary"] += 1
            return rotate(*tensors, **given)

        modeling_llama.apply_rotary_pos_emb = rotary
        modeling_llama.LlamaRMSNorm = modeling_llama.LlamaMLP = type("Other", (nn.Module,), {})
        for module in model.modules():
            kind = type(module).__name__
            if kind in ("LlamaRMSNorm", "LlamaMLP"):
                module.offset = 0.0
                forward = _counted(kind, type(module).forward, self.factor)
                module.forward = MethodType(forward, module)
        if self.breaks:
            raise TypeError("another version")


def _counted(kind: str, forward: Any, factor: float) -> Any:
    def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
        USED[kind] += 1
        return forward(self, x) * factor

    return counted


def install(patch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    module: Any = ModuleType("liger_kernel.transformers")
    module._apply_liger_kernel_to_instance = stand_in
    patch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    patch.setitem(sys.modules, "liger_kernel.transformers", module)
    patch.setattr(liger, "package_version", lambda _: "1.2.3")
    USED.clear()


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def state_of(model: nn.Module) -> list[Any]:
    """What Liger may change, as it is now."""
    names = ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP")
    of_modules = [sorted(vars(module).items(), key=str) for module in model.modules()]
    return [[getattr(modeling_llama, name) for name in names], of_modules]


def two(setting: Setting) -> Sequence[AdapterTrainee]:
    return [setting.trainee(config(), name=f"r{rank}", rank=rank) for rank in (2, 4)]


def test_a_pass_has_the_kernels_and_gives_them_back(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = setting.train(*two(setting))
    assert {result.kernels for result in plain.results.values()} == {None}
    install(monkeypatch, StandIn())
    monkeypatch.setattr(liger, "_fits", lambda _: True)
    before = state_of(setting.base)
    heard = setting.train(*two(setting))
    assert heard.losses == plain.losses
    assert {result.kernels for result in heard.results.values()} == {"liger-kernel 1.2.3"}
    layers, batches = setting.base.config.num_hidden_layers, USED["rotary"]
    assert batches > 0
    assert USED["LlamaMLP"] == batches
    assert USED["LlamaRMSNorm"] == batches * (2 * layers + 1) // layers
    assert state_of(setting.base) == before
    setting.base(torch.tensor([[5, 6, 7]]))
    assert USED["rotary"] == batches


def test_an_interrupted_pass_gives_them_back(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, StandIn())
    monkeypatch.setattr(liger, "_fits", lambda _: True)
    before = state_of(setting.base)
    with pytest.raises(KeyboardInterrupt):
        setting.train(*two(setting), heard=Heard(stop_at=1))
    assert USED
    assert state_of(setting.base) == before


def test_what_breaks_half_way_is_taken_back(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, StandIn(breaks=True))
    monkeypatch.setattr(liger, "_fits", lambda _: True)
    before = state_of(setting.base)
    with (
        pytest.raises(TypeError, match="another version"),
        liger_kernels(setting.base, enabled=True),
    ):
        pass
    assert state_of(setting.base) == before


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_kernels_with_other_results_are_not_used(
    factor: float,
    setting: Setting,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    install(monkeypatch, StandIn(factor=factor))
    monkeypatch.setattr(liger, "_fits", lambda _: True)
    before = state_of(setting.base)
    with liger_kernels(setting.base, enabled=True) as kernels:
        assert kernels is None
        assert state_of(setting.base) == before
    assert "liger-kernel 1.2.3" in caplog.text


def test_a_whole_model_has_none_of_them(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, StandIn())
    monkeypatch.setattr(liger, "_fits", lambda _: True)
    heard = Heard()
    settings: dict[str, Any] = {
        "bank": None,
        "max_tokens": 128,
        "precision": "float32",
        "gradient_checkpointing": False,
        "observer": heard,
    }
    loop.train_pass(setting.base, [setting.full(config(), setting.base)], **settings)
    assert [result.kernels for result in heard.results.values()] == [None]
    assert not USED


def test_without_liger_nothing_is_changed(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    monkeypatch.setattr(liger, "_fits", lambda _: True)
    with liger_kernels(setting.base, enabled=True) as kernels:
        assert kernels is None


@pytest.mark.parametrize(
    ("devices", "model_type", "activation", "expected"),
    [
        ([CUDA], "llama", "silu", True),
        ([CUDA], "qwen3", "silu", True),
        ([CUDA], "llama", "gelu", False),
        ([CUDA], "qwen3_moe", "silu", False),
        ([CUDA, torch.device("cuda", 1)], "llama", "silu", False),
        ([torch.device("cpu")], "llama", "silu", False),
    ],
)
def test_a_model_on_a_card_that_liger_knows(
    devices: list[torch.device],
    model_type: str,
    activation: str,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liger, "devices_of", lambda _: devices)
    of_model = SimpleNamespace(model_type=model_type, hidden_act=activation)
    assert liger._fits(SimpleNamespace(config=of_model)) is expected
