"""Packed attention: equal to every sequence alone, and a refusal wherever it would not be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from rankwise.engine.models import packed_kernels
from rankwise.engine.models.attention import refuse_unpackable
from rankwise.engine.models.packed_attention import (
    PACKED_ATTENTION,
    attend_packed,
    check_packable,
    packed_attention,
)
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.errors import DataError, ModelError
from tests.support.packed_texts import (
    CPU,
    LENGTHS,
    attended,
    farthest,
    inputs,
    logits_alone,
    tokens,
)
from tests.support.tiny_models import OWN, tiny


def packed_logits(model: Any, embeds: Tensor, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    positions = PackedLayout(LENGTHS).position_ids(CPU)
    with packed_attention(model):
        called = {"inputs_embeds": embeds, "position_ids": positions, "use_cache": False}
        return model(**called, packed_layout=PackedLayout(lengths)).logits


def gradients(model: Any, logits: Callable[[Any, Tensor], Tensor]) -> list[Tensor]:
    """Of the embeddings and of every weight behind them, for a fixed sum of the logits."""
    embeds = model.get_input_embeddings()(tokens()).detach().requires_grad_()
    found = logits(model, embeds)
    weighting = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    weights = [p for name, p in model.named_parameters() if p.dim() > 1 or "sinks" in name]
    wanted = [embeds, *weights]
    return list(torch.autograd.grad((found * weighting).sum(), wanted, allow_unused=True))


@pytest.mark.parametrize("family", OWN)
def test_packed_logits_are_those_of_each_sequence_alone(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(tokens())
        alone = logits_alone(model, embeds)
        assert (packed_logits(model, embeds) - alone).abs().max() <= 1e-4
        mixed = packed_logits(model, embeds, (sum(LENGTHS),))
        assert (mixed - alone)[:, LENGTHS[0] :].abs().max() > 1e-2
    check_packable(model)


@pytest.mark.parametrize("family", OWN)
def test_gradients_are_those_of_each_sequence_alone(family: str) -> None:
    model = tiny(family)
    assert farthest(gradients(model, packed_logits), gradients(model, logits_alone)) <= 1e-4


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = tiny("Gemma2", attn_logit_softcapping=None).train()
    expected = gradients(model, packed_logits)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.is_gradient_checkpointing

    def outside(model: Any, embeds: Tensor) -> Tensor:
        return packed_logits(model, embeds)

    with packed_attention(model):  # layers are computed again in the backward pass
        assert farthest(gradients(model, outside), expected) <= 1e-6


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss"])
def test_bfloat16_is_close_and_packable(family: str) -> None:
    model = tiny(family, num_hidden_layers=1, layer_types=["full_attention"])
    with torch.no_grad():
        embeds = model.get_input_embeddings()(tokens())
        alone = logits_alone(model, embeds)
        found = packed_logits(model.bfloat16(), embeds.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - alone).abs().mean() < 0.05 * alone.abs().mean()
    check_packable(model)


def test_autocast_computes_attention_in_its_precision() -> None:
    model, seen = tiny("Llama"), []
    seeing = watched(lambda arguments: seen.append(arguments[0].dtype))
    with seeing, torch.autocast("cpu", torch.bfloat16):
        logits = packed_logits(model, model.get_input_embeddings()(tokens()))
    assert seen == [torch.bfloat16] * 2
    logits.float().sum().backward()


@contextmanager
def watched(look: Callable[[Any], None]) -> Iterator[None]:
    """Shows the arguments of the grouped kernel."""
    kernel = packed_kernels.grouped_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_kernels, "grouped_attention", lambda *a: (look(a), kernel(*a))[1])
        yield


def test_a_layout_knows_groups_and_positions() -> None:
    layout = PackedLayout((2, 3, 2))
    assert layout.num_tokens == 7
    assert layout.groups == ((2, 0, (0, 2)), (3, 0, (1,)))
    assert layout.position_ids(CPU).tolist() == [[0, 1, 0, 1, 2, 0, 1]]
    for lengths in ((), (3, 0)):
        with pytest.raises(DataError, match="cannot pack sequences"):
            PackedLayout(lengths)


def test_a_layout_that_shares_tokens_knows_whose() -> None:
    layout = PackedLayout((4, 2, 2, 3, 1), (0, 3, 3, 0, 1))
    assert layout.trunks == (0, 0, 0, 3, 3)
    assert layout.groups == ((4, 0, (0,)), (2, 3, (1, 2)), (3, 0, (3,)), (1, 1, (4,)))
    assert layout.position_ids(CPU).tolist() == [[0, 1, 2, 3, 3, 4, 3, 4, 0, 1, 2, 1]]
    for shared in ((1, 0), (0, 5), (0, -1)):
        with pytest.raises(DataError, match="cannot share"):
            PackedLayout((4, 2), shared)


@pytest.mark.parametrize("family", OWN)
def test_texts_that_share_a_prompt_are_read_as_if_each_had_its_own(family: str) -> None:
    model, layout = tiny(family), PackedLayout((12, 4, 7), (0, 8, 8))
    with torch.no_grad():
        row = tokens()[:, :23]
        with packed_attention(model):
            found = model(
                input_ids=row,
                position_ids=layout.position_ids(CPU),
                packed_layout=layout,
                use_cache=False,
            ).logits
        for start, stop in ((12, 16), (16, 23)):
            alone = torch.cat([row[:, :8], row[:, start:stop]], dim=1)
            expected = model(input_ids=alone, use_cache=False).logits[:, 8:]
            assert (found[:, start:stop] - expected).abs().max() <= 1e-4


# refusals


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("attention_mask", {"attention_mask": torch.ones(1, 1, 37, 37)}),
        ("dropout", {"dropout": 0.1}),
        ("is_causal", {"is_causal": False}),
        ("position_bias", {"position_bias": torch.zeros(1)}),
        ("output_attentions", {"output_attentions": True}),
    ],
)
def test_an_argument_that_is_not_honoured_is_refused(name: str, settings: dict[str, Any]) -> None:
    given = {"attention_mask": None, "packed_layout": PackedLayout(LENGTHS), **settings}
    with pytest.raises(ModelError, match=f"cannot honour {name} of Identity"):
        attend_packed(nn.Identity(), *inputs(LENGTHS), **given)


def test_attention_in_both_directions_is_refused() -> None:
    layer = nn.Identity()
    layer.is_causal = False  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ModelError, match="cannot honour is_causal"):
        attend_packed(layer, *inputs((3,)), None, packed_layout=PackedLayout((3,)))


def test_arguments_without_effect_are_accepted() -> None:
    given = inputs((3, 4))
    expected = attended((3, 4), given)
    others = {"position_ids": torch.zeros(1), "use_cache": False, "position_bias": None}
    assert torch.equal(attended((3, 4), given, **others), expected)


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_missing_layout_and_one_of_another_size_are_refused() -> None:
    model = tiny("Llama")
    with packed_attention(model):
        with pytest.raises(ModelError, match="LlamaAttention was given no packed_layout"):
            model(input_ids=tokens())
        with pytest.raises(ModelError, match="packed is one row of 5"):
            model(input_ids=tokens(), packed_layout=PackedLayout((2, 3)), use_cache=False)
        with pytest.raises(ModelError, match="packed is one row of 3"):
            model(input_ids=tokens()[:, :6].view(2, 3), packed_layout=PackedLayout((3,)))


def test_a_class_with_its_own_attention_is_refused_by_name() -> None:
    config = transformers.BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    with torch.device("meta"):
        model = transformers.BloomForCausalLM(config)
    for refuse in (refuse_unpackable, check_packable):
        with pytest.raises(ModelError, match="BloomForCausalLM brings its own attention"):
            refuse(model)
    with pytest.raises(ModelError, match="BloomForCausalLM"), packed_attention(model):
        pass


def test_what_is_no_model_of_transformers_is_refused() -> None:
    with pytest.raises(ModelError, match="Identity is not a model of transformers"):
        refuse_unpackable(nn.Identity())


@pytest.mark.parametrize("kind", ["chunked_attention", "linear_attention", "conv"])
def test_layers_that_are_no_attention_are_refused(kind: str) -> None:
    with torch.device("meta"):
        model = tiny("Qwen3")
    refuse_unpackable(model)
    model.config.layer_types = ["full_attention", kind]
    with pytest.raises(ModelError, match=f"Qwen3ForCausalLM has layers \\({kind}\\)"):
        refuse_unpackable(model)


def register(patch: pytest.MonkeyPatch, function: Callable[..., Any]) -> None:
    patch.setitem(transformers.AttentionInterface._global_mapping, PACKED_ATTENTION, function)


def test_a_model_that_mixes_the_sequences_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Llama").train()
    check_packable(model)

    def one_sequence(*args: Any, packed_layout: PackedLayout, **others: Any) -> Any:
        attend_packed(*args, packed_layout=packed_layout, **others)
        return attend_packed(
            *args, packed_layout=PackedLayout((packed_layout.num_tokens,)), **others
        )

    register(monkeypatch, one_sequence)
    with pytest.raises(ModelError, match="LlamaForCausalLM mixes the sequences of a packed batch"):
        check_packable(model)
    assert model.config._attn_implementation == "eager"
    assert model.training


@pytest.mark.parametrize("family", ["Qwen2Moe", "Phimoe"])
def test_a_window_that_is_in_the_mask_alone_is_refused(family: str) -> None:
    settings = {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16}
    settings |= {"num_experts_per_tok": 2, "use_sliding_window": True, "max_window_layers": 2}
    with pytest.raises(ModelError, match="limits attention to 8 tokens by its mask alone"):
        check_packable(tiny(family, **settings, sliding_window=8))
    check_packable(tiny(family, **settings, sliding_window=64))  # all that it can read


def test_a_layer_with_another_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def sometimes(layer: Any, *args: Any, **others: Any) -> Any:
        if layer.layer_idx == 0:
            return attend_packed(layer, *args, **others)
        return args[0].transpose(1, 2), None

    register(monkeypatch, sometimes)
    with pytest.raises(ModelError, match="LlamaForCausalLM packs 1 of its 2 layers"):
        check_packable(tiny("Llama"))


@pytest.mark.parametrize("family", ["DiffLlama", "Dory"])
def test_a_layer_that_calls_attention_twice_is_refused(family: str) -> None:
    expected = f"{family}ForCausalLM calls attention 2 times in layer 0"
    with pytest.raises(ModelError, match=expected):
        check_packable(tiny(family))


def test_the_earlier_attention_comes_back_after_an_error() -> None:
    model = tiny("Llama")
    model.set_attn_implementation("sdpa")

    def fail_inside() -> None:
        with packed_attention(model):
            assert model.config._attn_implementation == PACKED_ATTENTION
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert model.config._attn_implementation == "sdpa"
    assert model.model.layers[0].self_attn.config._attn_implementation == "sdpa"


def test_a_wrapped_model_is_packed_too() -> None:
    model = nn.ModuleDict({"base": tiny("Llama")})
    with packed_attention(model):
        assert model["base"].config._attn_implementation == PACKED_ATTENTION
