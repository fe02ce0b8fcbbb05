"""Variants through the loop of all trainees: against LoRA in one pass, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models import base as models
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.engine.models.files import opened
from rankwise.engine.models.variant_models import VariantModel, variant_on
from rankwise.engine.models.variants import (
    RATE_RATIO,
    VARIANTS,
    Variant,
    VariantSetting,
)
from rankwise.records.config.training import LearningRateConfig
from rankwise.records.config.variants import VariantName
from tests.support.passes import CPU, TARGETS, Heard, Setting, config
from tests.support.saved_adapters import lora_factors
from tests.support.variants import RANK, SCALING, trained

# LoRA itself, through PEFT: a row that the table does not need
LORA = Variant(VARIANTS["lora_plus"].config, VARIANTS["lora_plus"].weights_of, draws_like_lora=True)


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def test_lora_through_peft_is_lora_in_one_pass(setting: Setting) -> None:
    """The same beginning, steps and losses: a variant differs from LoRA by what it is alone."""
    train = config(epochs=7, weight_decay=0.01)
    trainee = setting.trainee(train, rank=RANK, scaling=SCALING)
    ours = setting.train(trainee).losses[trainee.run.name]

    def factors(model: VariantModel) -> Any:
        found = lora_factors(model.model.base_model.model)
        return {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in found.items()}

    examples = setting.examples(train)
    heard, theirs = trained(setting.base, LORA, examples, train, use=factors)
    assert heard.losses["variant"] == pytest.approx(ours, rel=1e-5)
    assert ours[-1] < ours[0] - 0.5
    assert theirs.keys() == trainee.adapter.factors.keys()
    for name, (lora_A, lora_B) in trainee.adapter.factors.items():
        assert float((lora_A - theirs[name][0]).norm() / lora_A.norm()) < 1e-3
        assert float((lora_B - theirs[name][1]).norm() / lora_B.norm()) < 1e-3


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_and_resumed_gives_the_same_weights(
    setting: Setting, tmp_path: Path, name: VariantName
) -> None:
    train = config(epochs=3, learning_rate=LearningRateConfig(lora=2e-3, full=1e-3))
    examples, variant = setting.examples(train), VARIANTS[name]

    def save_to(folder: str) -> Any:
        return lambda model: model.save(tmp_path / folder, "base")

    def train_it(**options: Any) -> Heard:
        heard, _ = trained(setting.base, variant, examples, train, learning_rate=2e-3, **options)
        return heard

    expected = train_it(use=save_to("undisturbed")).losses["variant"]
    state = tmp_path / "state.pt"
    train_it(state=state, heard=Heard(stop_at=4))
    assert state.exists()
    assert train_it(state=state, use=save_to("resumed")).losses["variant"] == expected[4:]
    one, other = (tmp_path / folder / WEIGHTS_FILE for folder in ("undisturbed", "resumed"))
    assert one.read_bytes() == other.read_bytes()


def test_lora_plus_steps_b_at_its_own_rate(setting: Setting) -> None:
    """Adam's first step has the size of the rate, whatever the gradient."""
    train = config(epochs=1, warmup_ratio=0.0, batch_size=20, gradient_accumulation_steps=1)

    def largest(model: VariantModel) -> float:
        factors = lora_factors(model.model.base_model.model)
        return max(float(lora_B.detach().abs().max()) for _, lora_B in factors.values())

    for variant, ratio in ((LORA, 1.0), (VARIANTS["lora_plus"], RATE_RATIO)):
        examples = setting.examples(train)
        _, moved = trained(setting.base, variant, examples, train, learning_rate=1e-3, use=largest)
        assert moved == pytest.approx(ratio * 1e-3, rel=1e-3)


def test_lora_fa_leaves_a_as_drawn(setting: Setting) -> None:
    train = config()

    def of_A(model: VariantModel) -> dict[str, torch.Tensor]:
        factors = lora_factors(model.model.base_model.model)
        return {name: lora_A.detach().clone() for name, (lora_A, _) in factors.items()}

    _, after = trained(setting.base, VARIANTS["lora_fa"], setting.examples(train), train, use=of_A)
    drawn = setting.trainee(train, rank=RANK, scaling=SCALING).adapter.factors
    assert all(torch.equal(lora_A, drawn[name].lora_A) for name, lora_A in after.items())
    assert after.keys() == drawn.keys()


def test_adalora_ends_at_the_mean_rank_that_was_asked_for(setting: Setting) -> None:
    train = config(epochs=7)

    def ranks(model: VariantModel) -> list[int]:
        pattern = model.model.active_peft_config.rank_pattern
        return [sum(kept) for kept in pattern.values()]

    _, found = trained(setting.base, VARIANTS["adalora"], setting.examples(train), train, use=ranks)
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
    examples, variant = setting.examples(train), VARIANTS[name]
    half: Any = models.load_frozen(setting.folder, "bfloat16", CPU)
    before = {key: value.clone() for key, value in half.state_dict().items()}

    def dtypes(model: VariantModel) -> set[torch.dtype]:
        model.save(tmp_path / "adapter", "base")
        return {weight.dtype for weight in model.weights}

    expected, _ = trained(setting.base, variant, examples, train)
    heard, found = trained(half, variant, examples, train, use=dtypes)
    assert found == {torch.float32}
    assert heard.losses["variant"] == pytest.approx(expected.losses["variant"], rel=0.03)
    assert all(torch.equal(value, before[key]) for key, value in half.state_dict().items())
    with opened(tmp_path / "adapter" / WEIGHTS_FILE) as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}  # noqa: SIM118


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_checkpointing_changes_nothing(setting: Setting, name: VariantName) -> None:
    train = config(epochs=2)
    examples, variant = setting.examples(train), VARIANTS[name]
    kept, _ = trained(setting.base, variant, examples, train)
    again, _ = trained(setting.base, variant, examples, train, gradient_checkpointing=True)
    assert again.losses["variant"] == pytest.approx(kept.losses["variant"], rel=1e-5)
