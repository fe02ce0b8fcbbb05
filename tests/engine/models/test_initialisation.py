"""The directions at which EVA begins: against exact ones, and against PEFT's own search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from rankwise.engine.models.initialisation import (
    input_directions,
    leading_vectors,
    orthogonal_basis,
)
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.packed_attention import packed_attention
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.engine.models.structure import LinearShape, adaptable_shapes, target_shapes
from rankwise.engine.models.trained_adapters import Adapter
from rankwise.errors import ModelError
from rankwise.tasks.training_rows import Example
from tests.support.passes import CPU, TARGETS, Setting, config

RANK = 4
LENGTH = 50
ROWS_AT_ONCE = 41  # of 50 tokens: 2,050


@pytest.fixture(scope="module")
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


@pytest.fixture(scope="module")
def layers(setting: Setting) -> list[str]:
    return list(target_shapes(adaptable_shapes(setting.base), TARGETS))


def texts(number: int, seed: int) -> list[Example]:
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, 60, (number, LENGTH + 1), generator=random).tolist()
    return [Example(tuple(row), 1, is_truncated=False) for row in rows]


@torch.no_grad()
def inputs_of(setting: Setting, layer: str, examples: list[Example]) -> Tensor:
    """(tokens, in_features) of what enters a layer, text by text."""
    seen: list[Tensor] = []
    hook = setting.base.get_submodule(layer).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0][0])
    )
    for example in examples:
        setting.base(torch.tensor([example.tokens[:-1]]))
    hook.remove()
    return torch.cat(seen)


def test_they_hold_as_much_of_the_inputs_as_the_best(setting: Setting, layers: list[str]) -> None:
    examples = texts(3 * ROWS_AT_ONCE, seed=0)
    found = input_directions(setting.base, layers, RANK, examples)
    assert 2 <= found.num_reads <= 3
    assert found.rows.keys() == {*layers}
    for layer, rows in found.rows.items():
        inputs = inputs_of(setting, layer, examples)
        variances = torch.linalg.eigvalsh(torch.cov(inputs.T.double()))
        held = (inputs.double() @ rows.double().T).var(dim=0).sum()
        assert float(held / variances[-RANK:].sum()) > 0.98
        assert torch.allclose(rows @ rows.T, torch.eye(RANK), atol=1e-4)


def test_where_nothing_new_is_read_they_are_peft_s(setting: Setting, layers: list[str]) -> None:
    """The same rows twice: the second read leaves all directions, and PEFT ends there too."""
    once = texts(ROWS_AT_ONCE, seed=1)
    found = input_directions(setting.base, layers, RANK, [*once, *once, *texts(205, seed=2)])
    assert (found.num_reads, found.unsettled) == (2, ())
    layout = PackedLayout(tuple(example.num_inputs for example in once))
    ids = torch.tensor([[token for example in once for token in example.tokens[:-1]]])

    def read(model: Any, inputs: dict[str, Tensor]) -> None:
        model.base_model.model.base_model(
            input_ids=inputs["input_ids"],
            position_ids=layout.position_ids(ids.device),
            packed_layout=layout,
            use_cache=False,
        )

    fresh: Any = load_frozen(setting.folder, "float32", torch.device("cpu"))
    adapted: Any = peft.get_peft_model(
        fresh,
        peft.LoraConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            r=RANK,
            target_modules=list(TARGETS),
            init_lora_weights="eva",
            eva_config=peft.EvaConfig(rho=1.0, use_label_mask=False),
        ),
    )
    with packed_attention(fresh):
        theirs = peft.tuners.lora.eva.get_eva_state_dict(
            adapted, [{"input_ids": ids}], forward_fn=read, show_progress_bar=False
        )
    for layer, rows in found.rows.items():
        wanted = theirs[f"base_model.model.{layer}"]
        cosines = torch.cosine_similarity(rows, wanted.float()).abs()
        assert torch.allclose(cosines, torch.ones(RANK), atol=1e-4), layer


def test_reading_ends_with_the_rows_or_after_eight_reads(
    setting: Setting, layers: list[str]
) -> None:
    """Directions of which there are more than vary in any order never stay."""
    few = input_directions(setting.base, layers, 20, texts(100, seed=3))
    assert few.num_reads == 2  # of 50 texts
    assert few.unsettled
    many = input_directions(setting.base, layers, 20, texts(10 * ROWS_AT_ONCE, seed=3))
    assert many.num_reads == 8
    assert {*many.unsettled} <= {*layers}
    assert many.rows[layers[0]].shape == (20, 48)


def test_layers_with_the_same_input_begin_alike(setting: Setting, layers: list[str]) -> None:
    found = input_directions(setting.base, layers, RANK, texts(60, seed=4)).rows
    first = [name for name in layers if "layers.0." in name]
    q, k, v, o = (found[name] for name in first)
    assert torch.equal(q, k)
    assert torch.equal(q, v)
    assert not torch.equal(q, o)


def test_the_base_has_no_hooks_afterwards(setting: Setting, layers: list[str]) -> None:
    before = [len(module._forward_pre_hooks) for module in setting.base.modules()]
    with pytest.raises(ModelError, match=r"rank 32 needs 64 inputs and tokens: a layer has 48"):
        input_directions(setting.base, layers, 32, setting.examples(config()))
    assert [len(module._forward_pre_hooks) for module in setting.base.modules()] == before


def test_a_rank_above_the_layer_s_has_all_there_is() -> None:
    layer = nn.Linear(6, 5, bias=False)
    for begin in (leading_vectors, orthogonal_basis):
        lora_A, lora_B = begin(layer, 8, 0.5)
        assert (lora_A.shape, lora_B.shape) == ((5, 6), (5, 5))
        scaling = 0.5 if begin is leading_vectors else 1.0
        assert torch.allclose(scaling * lora_B @ lora_A, layer.weight, atol=1e-5)


def test_a_layer_that_reads_nothing_is_named(setting: Setting, layers: list[str]) -> None:
    """As an expert that no token is sent to."""
    unread = "lm_head"  # the base is read without its head
    with pytest.raises(ModelError, match="without lm_head, so EVA cannot begin there"):
        input_directions(setting.base, [*layers, unread], RANK, texts(20, seed=5))


def test_factors_of_a_lower_rank_leave_the_rest_of_the_adapter_zero() -> None:
    """Keys of 2 features have updates of rank 2 at most, whatever the adapter's rank."""
    adapter = Adapter(
        {"k": LinearShape(5, 2)},
        rank=4,
        scaling=1.0,
        dropout=0.0,
        seed=0,
        device=CPU,
        dtype=torch.bfloat16,
    )
    lora_A, lora_B = torch.randn(2, 5), torch.randn(2, 2)
    adapter.start_from({"k": (lora_A, lora_B)})
    A, B = adapter.factors["k"]
    assert torch.equal(A[:2], lora_A)
    assert torch.equal(B[:, :2], lora_B)
    assert not A[2:].any()
    assert not B[:, 2:].any()
    assert torch.equal(adapter.copies["k"].lora_A, A.bfloat16())
