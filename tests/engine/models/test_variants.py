"""One contract for every row of the table: training, saving, reloading, counting, merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from rankwise.engine.models.adapter_folder import WEIGHTS_FILE, AdapterFolder
from rankwise.engine.models.frozen_adapters import FrozenPiece, carrying, load_frozen_adapter
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.peft_adapters import variant_on
from rankwise.engine.models.structure import adaptable_shapes, target_shapes
from rankwise.engine.models.variants import MOST_RANK, VARIANTS, VariantSetting
from rankwise.errors import ModelError
from rankwise.records.config.training import LearningRateConfig, TrainConfig
from rankwise.records.config.variants import VARIANT_LABELS, VariantName
from rankwise.tasks.training_rows import Example
from tests.support.passes import CPU, TARGETS, Setting, config
from tests.support.tiny_models import tiny
from tests.support.variants import RANK, logits, same, trained

FAMILIES: dict[str, tuple[str, ...]] = {
    "Qwen2": ("q_proj", "v_proj", "down_proj"),
    "GPT2": ("c_attn", "mlp.c_proj"),
    "Gemma2": ("q_proj", "o_proj", "up_proj"),
    "Phi3": ("qkv_proj", "down_proj"),
}
ALONE = [name for name, variant in VARIANTS.items() if not variant.is_plain]
RATES: dict[str, float] = {"lora_plus": 2e-3, "adalora": 5e-2, "vera": 5e-2}


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def train_config(name: VariantName) -> TrainConfig:
    return config(epochs=4, learning_rate=LearningRateConfig(lora=RATES.get(name, 1e-2), full=1e-3))


def copy_of(base: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in base.state_dict().items()}


def unchanged(base: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = base.state_dict()
    return before.keys() == after.keys() and all(
        torch.equal(tensor, after[name]) for name, tensor in before.items()
    )


def test_every_variant_has_a_row_and_a_label() -> None:
    assert VARIANTS.keys() == VARIANT_LABELS.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_contract(setting: Setting, tmp_path: Path, name: VariantName) -> None:
    variant, train = VARIANTS[name], train_config(name)
    examples = setting.examples(train)
    before, kinds = copy_of(setting.base), [type(module) for module in setting.base.modules()]
    rate = RATES.get(name, 1e-2)

    def use(model: Any) -> Any:
        model.save(tmp_path / "adapter", "the base")
        count = sum(weight.numel() for weight in model.weights)
        return count, model.is_zero_update, logits(model.model, examples)

    heard, (count, is_zero, own) = trained(
        setting.base, name, examples, train, use=use, learning_rate=rate
    )
    losses = heard.losses["variant"]
    assert losses[-1] < losses[0] - 0.3
    assert not is_zero

    shapes = target_shapes(adaptable_shapes(setting.base), TARGETS)
    assert count == variant.num_weights(shapes.values(), RANK)

    assert unchanged(setting.base, before)
    assert [type(module) for module in setting.base.modules()] == kinds
    assert not hasattr(setting.base, "peft_config")

    # on the base as it is on disk
    fresh: Any = load_frozen(setting.folder, "float32", CPU)
    assert not same(logits(fresh, examples), own, 1e-2)
    reloaded: Any = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    assert same(logits(reloaded, examples), own, 1e-4)
    merged = reloaded.merge_and_unload()
    assert same(logits(merged, examples), own, 1e-3)

    if variant.is_plain:
        adapter = load_frozen_adapter(
            setting.base, AdapterFolder(tmp_path / "adapter"), torch.float32
        )
        with (
            carrying(setting.base, [adapter]) as bank,
            bank.rows_of([FrozenPiece(adapter, 0, 10_000)]),
        ):
            assert same(logits(setting.base, examples), own, 1e-4)
    else:
        with pytest.raises(ModelError):
            AdapterFolder(tmp_path / "adapter").refuse_beyond_lora()

    def save_again(model: Any) -> None:
        model.save(tmp_path / "again", "the base")

    trained(setting.base, name, examples, train, use=save_again, learning_rate=rate)
    first, second = (tmp_path / folder / WEIGHTS_FILE for folder in ("adapter", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert "the base" in (tmp_path / "again" / "adapter_config.json").read_text()
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", VARIANTS)
def test_other_architectures(tmp_path: Path, name: VariantName, family: str) -> None:
    base, targets = tiny(family), FAMILIES[family]
    base.requires_grad_(False)
    before = copy_of(base)
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 64, (8, 12), generator=random).tolist()
    examples = [Example(tuple(row), 4, False) for row in rows]
    train = config(epochs=3, learning_rate=LearningRateConfig(lora=1e-2, full=1e-3))

    def use(model: Any) -> Any:
        model.save(tmp_path / "adapter", "the base")
        return sum(w.numel() for w in model.weights), logits(model.model, examples)

    _, (count, own) = trained(base, name, examples, train, targets=targets, use=use)
    shapes = target_shapes(adaptable_shapes(base), targets)
    assert count == VARIANTS[name].num_weights(shapes.values(), RANK)
    assert unchanged(base, before)
    assert not same(logits(base, examples), own, 1e-3)
    reloaded: Any = peft.PeftModel.from_pretrained(tiny(family), str(tmp_path / "adapter")).eval()
    assert same(logits(reloaded, examples), own, 1e-3)


def test_the_rank_with_as_many_weights(setting: Setting) -> None:
    shapes = target_shapes(adaptable_shapes(setting.base), TARGETS).values()
    wanted = VARIANTS["rslora"].num_weights(shapes, 8)
    for variant in VARIANTS.values():
        rank = variant.rank_with(wanted, shapes)
        off = abs(variant.num_weights(shapes, rank) - wanted)
        for other in range(1, MOST_RANK + 1):
            assert off <= abs(variant.num_weights(shapes, other) - wanted)
    assert VARIANTS["pissa"].rank_with(wanted, shapes) == 8
    # sides of 48 + 48, 48 + 24, 48 + 24 and 48 + 48 in each layer, of which LoRA-FA has the second
    assert VARIANTS["lora_fa"].rank_with(wanted, shapes) == round(8 * 336 / 144)


def test_what_leaves_a_block_early_leaves_the_base_as_it_was(setting: Setting) -> None:
    before = copy_of(setting.base)
    asked = VariantSetting(RANK, 2.0, TARGETS, 0, 10)
    for name in ALONE:
        with pytest.raises(KeyboardInterrupt), variant_on(setting.base, VARIANTS[name], asked):
            raise KeyboardInterrupt
        assert unchanged(setting.base, before)


def test_the_caller_s_randomness_is_left_alone(setting: Setting) -> None:
    train = config(epochs=1)
    examples = setting.examples(train)
    for name in VARIANTS:
        torch.manual_seed(123)
        expected = torch.rand(1)
        torch.manual_seed(123)
        trained(setting.base, name, examples, train)
        assert torch.equal(torch.rand(1), expected), name
