"""Variants through the loop of all trainees: resumed, in bfloat16, and what PEFT trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.engine.models.files import opened
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.peft_adapters import variant_on
from rankwise.engine.models.variants import VARIANTS, VariantSetting
from rankwise.records.config.training import LearningRateConfig
from rankwise.records.config.variants import VariantName
from tests.support.passes import CPU, TARGETS, Heard, Setting, config
from tests.support.variants import RANK, SCALING, trained


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_and_resumed_gives_the_same_weights(
    setting: Setting, tmp_path: Path, name: VariantName
) -> None:
    train = config(epochs=3, learning_rate=LearningRateConfig(lora=2e-3, full=1e-3))
    examples = setting.examples(train)

    def save_to(folder: str) -> Any:
        return lambda model: model.save(tmp_path / folder, "base")

    def train_it(**options: Any) -> Heard:
        heard, _ = trained(setting.base, name, examples, train, learning_rate=2e-3, **options)
        return heard

    expected = train_it(use=save_to("undisturbed")).losses["variant"]
    state = tmp_path / "state.pt"
    train_it(state=state, heard=Heard(stop_at=4))
    assert state.exists()
    assert train_it(state=state, use=save_to("resumed")).losses["variant"] == expected[4:]
    one, other = (tmp_path / folder / WEIGHTS_FILE for folder in ("undisturbed", "resumed"))
    assert one.read_bytes() == other.read_bytes()


def test_adalora_ends_at_the_mean_rank_that_was_asked_for(setting: Setting) -> None:
    train = config(epochs=7)

    def ranks(model: Any) -> list[int]:
        pattern = model.model.active_peft_config.rank_pattern
        return [sum(kept) for kept in pattern.values()]

    _, found = trained(setting.base, "adalora", setting.examples(train), train, use=ranks)
    assert len(found) == 2 * len(TARGETS)
    assert sum(found) == RANK * len(found)


def test_adalora_s_penalty_is_the_published_one(setting: Setting) -> None:
    """Half the mean of ||P Pᵀ - I|| and ||Qᵀ Q - I|| over all matrices, and its gradient."""
    asked = VariantSetting(RANK, SCALING, TARGETS, 0, 10)
    with variant_on(setting.base, VARIANTS["adalora"], asked) as model:
        model.penalise()
        matrices = {
            name: weight
            for name, weight in model.model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        }
        found = {name: weight.grad.clone() for name, weight in matrices.items()}
        total = torch.zeros(())
        for name, weight in matrices.items():
            product = weight @ weight.T if "lora_A" in name else weight.T @ weight
            total = total + (product - torch.eye(len(product))).pow(2).sum().sqrt()
        expected = torch.autograd.grad(0.5 * total / len(matrices), list(matrices.values()))
        for gradient, name in zip(expected, matrices, strict=True):
            assert torch.allclose(found[name], gradient, atol=1e-7)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_base_in_bfloat16_is_close_to_one_in_float32(
    setting: Setting, tmp_path: Path, name: VariantName
) -> None:
    """What is trained stays float32; the base is the same, bit for bit, afterwards."""
    train = config(epochs=3)
    examples = setting.examples(train)
    half: Any = load_frozen(setting.folder, "bfloat16", CPU)
    before = {key: value.clone() for key, value in half.state_dict().items()}

    def dtypes(model: Any) -> set[torch.dtype]:
        model.save(tmp_path / "adapter", "base")
        return {weight.dtype for weight in model.weights}

    expected, _ = trained(setting.base, name, examples, train)
    heard, found = trained(half, name, examples, train, use=dtypes)
    assert found == {torch.float32}
    assert heard.losses["variant"] == pytest.approx(expected.losses["variant"], rel=0.03)
    assert all(torch.equal(value, before[key]) for key, value in half.state_dict().items())
    with opened(tmp_path / "adapter" / WEIGHTS_FILE) as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}  # noqa: SIM118


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_checkpointing_changes_nothing(setting: Setting, name: VariantName) -> None:
    train = config(epochs=2)
    examples = setting.examples(train)
    kept, _ = trained(setting.base, name, examples, train)
    again, _ = trained(setting.base, name, examples, train, gradient_checkpointing=True)
    assert again.losses["variant"] == pytest.approx(kept.losses["variant"], rel=1e-5)
