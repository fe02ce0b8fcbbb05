"""Variants that are LoRA, in a pass with it: against PEFT's own construction of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.trained_adapters import LoraFactors
from rankwise.engine.models.variants import RATE_RATIO, VARIANTS
from rankwise.engine.training.trainees import AdapterTrainee
from rankwise.records.config.training import TrainConfig
from rankwise.records.config.variants import VariantName
from tests.support.passes import Heard, Setting, config
from tests.support.variants import RANK, SCALING, PeftReference, PlainModel

PLAIN: list[VariantName] = [name for name, variant in VARIANTS.items() if variant.is_plain]
RATES: dict[VariantName, float] = {"lora_plus": 1e-3, "pissa": 3e-3, "olora": 3e-3}


@pytest.fixture(scope="module")
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def train_config(**options: Any) -> TrainConfig:
    return config(**({"epochs": 4, "weight_decay": 0.05, "max_grad_norm": 0.5} | options))


def trainee_of(
    setting: Setting, name: VariantName | None, train: TrainConfig, **options: Any
) -> AdapterTrainee:
    scaling = SCALING * (RANK**0.5 if name == "rslora" else 1.0)
    settings: dict[str, Any] = {"rank": RANK, "scaling": scaling, "seed": 3, "variant": name}
    if name is not None:
        settings["learning_rate"] = RATES.get(name, 1e-2)
    return setting.trainee(train, **(settings | {"name": str(name)} | options))


@pytest.fixture(scope="module")
def together(setting: Setting) -> tuple[dict[str, AdapterTrainee], Heard]:
    """LoRA and every plain variant in one pass."""
    trainees = [trainee_of(setting, name, train_config()) for name in (None, *PLAIN)]
    heard = setting.train(*trainees)
    return {each.run.name: each for each in trainees}, heard


def delta(adapter: Any, factors: LoraFactors) -> torch.Tensor:
    return adapter.scaling * factors.lora_B @ factors.lora_A


def test_which_are_plain() -> None:
    assert PLAIN == ["rslora", "lora_plus", "pissa", "olora", "eva", "lora_fa"]


@pytest.mark.parametrize("name", [None, *PLAIN])
def test_in_a_pass_it_is_peft_s_own_alone(
    setting: Setting,
    together: tuple[dict[str, AdapterTrainee], Heard],
    tmp_path: Path,
    name: VariantName | None,
) -> None:
    """The same losses step by step, and in the end the same change of every weight."""
    trainees, heard = together
    trainee, losses = trainees[str(name)], heard.losses[str(name)]
    reference = PeftReference(setting.base, name, trainee, tmp_path)
    reference.train(train_config())
    # LoRA-FA rounds gradients to bfloat16, and what is nearly equal to either side
    tolerance = 2e-3 if name == "lora_fa" else 1e-4
    assert losses == pytest.approx(reference.losses, rel=tolerance)
    assert losses[-1] < losses[0] - 0.1
    assert reference.deltas.keys() == trainee.adapter.update.keys()
    for layer, theirs in reference.deltas.items():
        ours = delta(trainee.adapter, trainee.adapter.update[layer])
        assert float((ours - theirs).norm() / theirs.norm()) < 20 * tolerance, layer


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_what_is_saved_is_what_peft_converts(
    setting: Setting,
    together: tuple[dict[str, AdapterTrainee], Heard],
    tmp_path: Path,
    name: VariantName,
) -> None:
    """Plain LoRA of twice the rank and the same scaling, whose product is the same."""
    trainee = together[0][name]
    reference = PeftReference(setting.base, name, trainee, tmp_path)
    reference.train(train_config())
    reference.save_converted(tmp_path / "theirs")
    plain: Any = PlainModel(setting.base, None, trainee, trainee.run.target_modules)  # pyright: ignore[reportArgumentType]
    plain.save(tmp_path / "ours", "base")
    ours, theirs = (
        AdapterFolder(tmp_path / "ours").factors,
        AdapterFolder(tmp_path / "theirs").factors,
    )
    assert ours.keys() == theirs.keys()
    for layer, (lora_A, lora_B, scaling) in ours.items():
        their_A, their_B, their_scaling = theirs[layer]
        assert lora_A.shape == their_A.shape
        assert lora_A.shape[0] == 2 * RANK
        assert scaling == their_scaling == SCALING
        product, wanted = lora_B @ lora_A, their_B @ their_A
        assert float((product - wanted).norm() / wanted.norm()) < 2e-3


def test_beside_variants_lora_is_what_it_is_alone(
    setting: Setting, together: tuple[dict[str, AdapterTrainee], Heard]
) -> None:
    trainees, heard = together
    alone = trainee_of(setting, None, train_config())
    assert setting.train(alone).losses["None"] == pytest.approx(heard.losses["None"], rel=1e-5)
    for layer, (lora_A, lora_B) in alone.adapter.factors.items():
        beside = trainees["None"].adapter.factors[layer]
        assert float((lora_A - beside.lora_A).norm() / lora_A.norm()) < 1e-4
        assert float((lora_B - beside.lora_B).norm() / lora_B.norm()) < 1e-3


def test_each_is_another_training(together: tuple[dict[str, AdapterTrainee], Heard]) -> None:
    _, heard = together
    last = {name: round(losses[-1], 4) for name, losses in heard.losses.items()}
    assert len({*last.values()}) == len(PLAIN) + 1


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_it_begins_as_the_base_and_in_its_weights(setting: Setting, name: VariantName) -> None:
    """At the start it adds exactly nothing, and B0 @ A0 is a part of the weights: the best of its
    rank under PiSSA; what a basis of the first columns holds under OLoRA."""
    adapter = trainee_of(setting, name, train_config()).adapter
    assert adapter.is_zero_update
    for layer, factors in adapter.factors.items():
        weight = setting.base.get_submodule(layer).weight
        assert not bool(delta(adapter, adapter.update[layer]).any())
        if name == "pissa":
            U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
            best = U[:, :RANK] * S[:RANK] @ Vh[:RANK]
            assert torch.allclose(delta(adapter, factors), best, atol=1e-5)
        else:
            product = factors.lora_B @ factors.lora_A
            assert torch.allclose(product[:, :RANK], weight[:, :RANK], atol=1e-5)
            assert torch.allclose(factors.lora_B.T @ factors.lora_B, torch.eye(RANK), atol=1e-5)


def test_small_changes_of_a_large_initialisation_survive_bfloat16(setting: Setting) -> None:
    """Changes of a thousandth, a quarter of what bfloat16 tells apart, are added to 1 %."""
    train = train_config()
    trainee = setting.trainee(train, variant="pissa", rank=RANK, dtype=torch.bfloat16)
    adapter = trainee.adapter
    random = torch.Generator().manual_seed(0)
    for factors in adapter.factors.values():
        for matrix in factors:
            matrix *= 1.0 + 1e-3 * torch.randn(matrix.shape, generator=random)
    adapter.refresh()
    for layer, update in adapter.update.items():
        wanted, copied = delta(adapter, update), delta(adapter, adapter.copies[layer])
        assert float((copied.float() - wanted).norm() / wanted.norm()) < 0.01


def test_lora_plus_steps_b_at_its_own_rate(setting: Setting) -> None:
    """Adam's first step has the size of the rate, whatever the gradient."""
    train = config(epochs=1, warmup_ratio=0.0, batch_size=20, gradient_accumulation_steps=1)
    for name, ratio in ((None, 1.0), ("lora_plus", RATE_RATIO)):
        trainee = trainee_of(setting, name, train, learning_rate=1e-3)
        before = [factors.lora_A.clone() for factors in trainee.adapter.factors.values()]
        setting.train(trainee)
        pairs = zip(trainee.adapter.factors.values(), before, strict=True)
        for factors, lora_A in pairs:
            assert float(factors.lora_B.abs().max()) == pytest.approx(ratio * 1e-3, rel=1e-3)
            assert torch.equal(factors.lora_A, lora_A)  # its gradient is zero where B is


def test_lora_fa_leaves_a_as_drawn_and_out_of_the_norm(
    setting: Setting, together: tuple[dict[str, AdapterTrainee], Heard]
) -> None:
    after = together[0]["lora_fa"].adapter.factors
    drawn = trainee_of(setting, None, train_config()).adapter.factors
    assert all(torch.equal(after[name].lora_A, drawn[name].lora_A) for name in drawn)
    trainee = together[0]["lora_fa"]
    for each, part in (("A", 0), ("B", 1)):
        gradients = [pair[part] for pair in trainee.adapter.gradients.values()]
        for gradient in gradients:
            gradient.fill_(1.0 if each == "B" else 100.0)
    num_B = sum(factors.lora_B.numel() for factors in after.values())
    assert float(trainee.finish_gradients()) == pytest.approx(num_B**0.5)
    trainee.clear_gradients()
    assert not bool(trainee.adapter.weights[0].grad.any())  # pyright: ignore[reportOptionalMemberAccess]
