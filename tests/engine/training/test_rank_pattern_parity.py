"""Layers with ranks of their own in one pass: against PEFT's rank_pattern, and each run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from rankwise.engine.models import grouped_adapters, trained_adapters
from rankwise.engine.models.peft_adapters import save_adapter
from rankwise.engine.models.structure import adaptable_shapes, target_shapes
from rankwise.engine.training.trainees import AdapterTrainee, lora_adapter
from rankwise.records.config.study import StudyConfig
from tests.support.passes import CPU, TARGETS, Setting, config, planned

PATTERN = {"layers.0.*.q_proj": 1, "v_proj": 5, "layers.1.self_attn.o_proj": 8}
"""As PEFT takes it; other layers have ``r``."""
R = 3


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def peer_of(setting: Setting, ratio: float = 2.0) -> Any:
    """PEFT's model of the pattern: it reads the keys itself."""
    base = AutoModelForCausalLM.from_pretrained(setting.folder, dtype=torch.float32)
    settings = peft.LoraConfig(
        r=R,
        lora_alpha=ratio * R,  # pyright: ignore[reportArgumentType] (a float is allowed)
        rank_pattern=PATTERN,
        alpha_pattern={key: ratio * rank for key, rank in PATTERN.items()},
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(base, settings)


def layers_of(model: Any) -> dict[str, Any]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def trainee_of(setting: Setting, ranks: dict[str, int], **options: Any) -> AdapterTrainee:
    train = config(epochs=7, weight_decay=0.01)
    examples = setting.examples(train)
    mean_rank = sum(ranks.values()) / len(ranks)
    run = planned(
        21,
        name="pattern",
        rank=round(mean_rank),
        mean_rank=mean_rank,
        layer_ranks=tuple(ranks.items()),
        epochs=7,
        **options,
    )
    study = StudyConfig.model_validate({"base_model": "tiny", "train": train})
    adapter = lora_adapter(adaptable_shapes(setting.base), run, study, CPU, "float32")
    return AdapterTrainee(run, examples, train, adapter)


def test_losses_and_factors_are_those_of_peft_s_rank_pattern(
    setting: Setting, tmp_path: Path
) -> None:
    model = peer_of(setting)
    layers = layers_of(model)
    ranks = {name: layer.r["default"] for name, layer in layers.items()}
    assert {*ranks.values()} == {1, 3, 5, 8}
    trainee = trainee_of(setting, ranks)
    with torch.no_grad():
        for name, layer in layers.items():
            lora_A = trainee.adapter.update[name].lora_A
            # the first draws of its own rank, and not those of the highest
            assert lora_A.shape == layer.lora_A["default"].weight.shape
            layer.lora_A["default"].weight.copy_(lora_A)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.01)
    losses: list[float] = []
    for step, batch in enumerate(trainee.batches):
        factor = step / 3 if step < 3 else (21 - step) / 18
        optimizer.param_groups[0]["lr"] = 1e-2 * factor
        count, total = sum(each.num_loss_tokens for each in batch), 0.0
        for example in batch:
            tokens, number = torch.tensor([example.tokens]), example.num_loss_tokens
            logits = model(tokens).logits[0, -number - 1 : -1]
            loss = cross_entropy(logits, tokens[0, -number:], reduction="sum") / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    beside = setting.trainee(config(epochs=7), rank=4)
    heard = setting.train(trainee, beside)
    assert heard.losses["pattern"] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0] - 0.5
    for name, layer in layers.items():
        for ours, theirs in zip(
            trainee.adapter.update[name], (layer.lora_A, layer.lora_B), strict=True
        ):
            peer = theirs["default"].weight.detach()
            assert float((ours - peer).norm() / peer.norm()) < 1e-5
    save_adapter(
        trainee.adapter,
        tmp_path,
        alpha=None,
        use_rslora=False,
        target_modules=list(ranks),
        base_model_name=str(setting.folder),
    )
    base = AutoModelForCausalLM.from_pretrained(setting.folder, dtype=torch.float32)
    loaded: Any = peft.PeftModel.from_pretrained(base, str(tmp_path))
    tokens = torch.tensor([trainee.batches[0][0].tokens])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4
        )


def test_what_is_beyond_a_layer_s_rank_stays_exactly_zero(setting: Setting) -> None:
    shapes = target_shapes(adaptable_shapes(setting.base), TARGETS)
    ranks = {name: 1 + place for place, name in enumerate(shapes)}
    trainee = trainee_of(setting, ranks)
    setting.train(trainee)
    for name, (lora_A, lora_B) in trainee.adapter.factors.items():
        rank = ranks[name]
        assert bool(lora_A[:rank].all())
        assert bool(lora_B[:, :rank].any(dim=0).all())
        assert not bool(lora_A[rank:].any())
        assert not bool(lora_B[:, rank:].any())


@pytest.mark.parametrize("kind", ["plain", "dropout", "as on a card"])
def test_alone_and_beside_uniform_ranks_it_is_the_same(
    setting: Setting, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = target_shapes(adaptable_shapes(setting.base), TARGETS)
    # one layer is left out
    ranks = {name: 1 + place % 5 for place, name in enumerate([*shapes][1:])}
    alone, together = trainee_of(setting, ranks), trainee_of(setting, ranks)
    for each in (alone, together) if kind == "dropout" else ():
        each.adapter.dropout = 0.1
    losses = setting.train(alone).losses["pattern"]
    if kind == "as on a card":  # all adapters are multiplied at once
        monkeypatch.setattr(grouped_adapters, "has_grouped_products", lambda *_: True)
        monkeypatch.setattr(trained_adapters, "_copied_rank", lambda rank, *_: -(-rank // 8) * 8)
        together = trainee_of(setting, ranks)
    others = [setting.trainee(config(epochs=7), rank=rank, name=f"r{rank}") for rank in (2, 16)]
    heard = setting.train(others[0], together, others[1])
    assert heard.losses["pattern"] == pytest.approx(losses, rel=1e-5)
    assert together.adapter.scaling_left == (1.0 if kind == "as on a card" else 2.0)  # stacked
    for name, (lora_A, lora_B) in together.adapter.factors.items():
        assert not bool(lora_A[ranks[name] :].any())
        assert not bool(lora_B[:, ranks[name] :].any())
    for name, factors in together.adapter.update.items():
        torch.testing.assert_close(factors, alone.adapter.update[name], rtol=1e-4, atol=1e-6)
