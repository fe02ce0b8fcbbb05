"""Each kernel for packed rows against full scores, and which one a device gets."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention import flex_attention as flex
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from rankwise.engine.models import packed_attention
from rankwise.engine.models import packed_kernels as module
from rankwise.engine.models.attention import AttentionTerms
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.errors import ModelError
from tests.support.fake_cuda import fake_cuda
from tests.support.packed_texts import (
    CPU,
    LENGTHS,
    attended,
    by_definition,
    farthest,
    inputs,
    with_gradients,
)

WINDOWS = [None, 1, 7, 100, 250, 1000]


@pytest.mark.parametrize("window", WINDOWS)
def test_blocks_of_a_long_sequence_give_what_the_whole_gives(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (300, 300, 40)
    expected = by_definition(lengths, window)
    sizes = []
    for block_tokens in (64, 96, 1000):
        monkeypatch.setattr(module, "_BLOCK_TOKENS", block_tokens)
        sizes.append(len(module._blocks(torch.empty(1, 900, 2), torch.empty(1, 300, 2), window, 0)))
        assert farthest(with_gradients(lengths, sliding_window=window), expected) < 2e-6
    assert sizes == [5, 3, 1]


@pytest.mark.parametrize("window", [None, 30])
def test_weights_computed_again_give_what_kept_ones_give(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saved_elements() -> int:
        sizes: list[int] = []
        pack: Callable[[Tensor], Tensor] = lambda x: (sizes.append(x.numel()), x)[1]  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            attended((300, 20), inputs((300, 20)), sliding_window=window)
        return sum(sizes)

    kept, many = with_gradients((300, 20), sliding_window=window), saved_elements()
    monkeypatch.setattr(module, "_KEPT_PER_TOKEN", 0)
    again, few = with_gradients((300, 20), sliding_window=window), saved_elements()
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert few == 320 * 16 * (6 + 2 + 2)
    assert many > 2 * few


def test_bfloat16_gradients_are_close() -> None:
    expected = by_definition((300, 40), None)
    found = with_gradients((300, 40), torch.bfloat16)
    assert {x.dtype for x in found} == {torch.bfloat16}
    assert farthest([x.double() for x in found], expected) < 0.03


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 6},
    "softcap": {"softcap": 1.5, "scaling": 0.4},
    "sinks": {"s_aux": torch.linspace(-1, 2, 6)},
    "all": {"softcap": 1.5, "sliding_window": 6, "s_aux": torch.linspace(-1, 2, 6)},
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_flex_attention_gives_what_grouped_products_give(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = with_gradients(LENGTHS, **settings)
    use(monkeypatch, module.flex_attention)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)  # refuses gradients on a CPU
    assert farthest(with_gradients(LENGTHS, **settings), expected) < 2e-6


# the third and the fourth share five tokens of the second, the last one two of the one before it
SHARED = PackedLayout((5, 9, 130, 1, 17, 4), (0, 0, 5, 5, 0, 2))


def of_all_tokens(layout: PackedLayout) -> tuple[PackedLayout, list[int], list[int]]:
    """The same without sharing: its layout, where each row comes from, and which are own ones."""
    source: list[int] = []
    own: list[int] = []
    lengths: list[int] = []
    for index, (length, shared) in enumerate(zip(layout.lengths, layout.shared, strict=True)):
        start = layout.starts[layout.trunks[index]]
        source += range(start, start + shared)
        own += range(len(source), len(source) + length)
        source += range(layout.starts[index], layout.starts[index] + length)
        lengths.append(shared + length)
    return PackedLayout(tuple(lengths)), source, own


def shared_and_not(layout: PackedLayout, **settings: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients, from a layout that shares, and from tokens that are repeated."""
    whole, source, own = of_all_tokens(layout)
    given = inputs(layout.lengths)
    found: list[list[Tensor]] = []
    for each, rows in ((layout, given), (whole, [x[:, :, source] for x in given])):
        out, _ = packed_attention.attend_packed(
            torch.nn.Identity(), *rows, None, packed_layout=each, **settings
        )
        out = out if each is layout else out[:, own]
        weighting = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
        found.append([out, *torch.autograd.grad(out, given, weighting)])
    return found[0], found[1]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("lengths", [SHARED.lengths, (5, 9, 17, 17, 17, 4)])
def test_shared_tokens_give_what_repeated_ones_give(
    settings: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    found, expected = shared_and_not(PackedLayout(lengths, SHARED.shared), **settings)
    assert farthest(found, expected) < 2e-6


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_flex_attention_shares_tokens_too(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, module.flex_attention)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    found, expected = shared_and_not(SHARED, **settings)
    assert farthest(found, expected) < 2e-6


@pytest.mark.parametrize("window", [None, 1, 6, 100, 250, 1000])
@pytest.mark.parametrize(
    "layout", [SHARED, PackedLayout((400, 30, 300, 200, 7), (0, 390, 250, 0, 128))]
)
def test_masks_of_shared_tokens_leave_out_nothing_that_is_seen(
    layout: PackedLayout, window: int | None
) -> None:
    _, source, own = of_all_tokens(layout)
    whole = torch.tensor(layout.lengths) + torch.tensor(layout.shared)
    of = torch.arange(len(whole)).repeat_interleave(whole)
    at, total = torch.arange(len(of)), layout.num_tokens
    behind = at[:, None] - at
    seen_by_own = ((of[:, None] == of) & (behind >= 0) & (behind < (window or len(at))))[own]
    seen = torch.zeros(total, total, dtype=torch.bool)
    for query, keys in enumerate(seen_by_own):
        seen[query, [source[key] for key in keys.nonzero()[:, 0].tolist()]] = True
    found = module._block_mask(layout, window, CPU)
    of_tokens = flex.create_mask(found.mask_mod, 1, 1, total, total, device="cpu")[0, 0]
    assert torch.equal(of_tokens, seen)
    # no block that is skipped has a key that is seen, none that counts as full one that is not
    size = module.MASK_BLOCK
    skipped, full = torch.ones_like(seen), torch.zeros_like(seen)
    for counts, indices, is_full in (
        (found.kv_num_blocks, found.kv_indices, False),
        (found.full_kv_num_blocks, found.full_kv_indices, True),
    ):
        for block, count in enumerate(counts[0, 0].tolist()):
            for key in indices[0, 0, block, :count].tolist():
                part = (
                    slice(block * size, (block + 1) * size),
                    slice(key * size, (key + 1) * size),
                )
                skipped[part] = False
                full[part] = is_full
    assert not (skipped & seen).any()
    assert not (full & ~seen).any()


def use(patch: pytest.MonkeyPatch, kernel: Callable[..., Tensor]) -> None:
    patch.setattr(packed_attention, "kernel_for", lambda *_: kernel)


# flex attention


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    "lengths",
    [(1,), (127, 1), (128,), (129,), (64,) * 6, (300, 300, 40), (1000, 24, 7, 1, 1), (3, 700)],
)
def test_block_masks_are_those_that_torch_finds_from_all_tokens(
    lengths: tuple[int, ...], window: int | None
) -> None:
    found = module._block_mask(PackedLayout(lengths), window, CPU)
    total = sum(lengths)
    at, of = (
        torch.arange(total),
        torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
    )
    behind = at[:, None] - at
    seen = (of[:, None] == of) & (behind >= 0) & (behind < (window or total))
    expected = flex.create_block_mask(
        lambda b, h, q, k: seen[q, k], None, None, total, total, "cpu"
    )
    of_tokens = flex.create_mask(found.mask_mod, 1, 1, total, total, device="cpu")
    assert torch.equal(of_tokens[0, 0], seen)
    assert found.shape == expected.shape
    for part in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"):
        for name in (part, f"full_{part}"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_more_variants_than_planned_are_an_error_and_not_an_eager_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = torch.compile(lambda x, **_: 2 * x, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda _: compiled)
    attend = module._compiled_flex.__wrapped__()
    assert torch.equal(attend(torch.ones(2)), 2 * torch.ones(2))
    monkeypatch.setattr(module, "_FLEX_KERNELS", 1)
    with pytest.raises(FailOnRecompileLimitHit):
        attend(torch.ones(2, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_trial_goes_backward_where_the_model_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    case = module.FlexCase(CPU, torch.float32, (16, 24), 3, window=7, softcap=2.0, has_sinks=True)
    with pytest.raises(ModelError, match=r"flex attention failed: .*CPU.* install gcc"):
        module.check_flex(case)  # a CPU has no kernel for it
    module.check_flex(case._replace(is_trained=False))
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    asked = list[Any]()
    attend = flex.flex_attention
    monkeypatch.setattr(
        flex,
        "flex_attention",
        lambda *x, **given: (asked.append((x, given)), attend(*x, **given))[1],
    )
    module.check_flex(case)
    ((query, key, value), given) = asked[0]
    assert [x.shape[1::2] for x in (query, key, value)] == [(6, 16), (2, 16), (2, 24)]
    assert query.grad is not None
    assert given["enable_gqa"]
    assert given["score_mod"](torch.tensor(9.0), 0, 0, 0, 0) == 2 * torch.tanh(torch.tensor(4.5))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_takes_one_softcap_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch makes a number that changes one of the graph's inputs, which flex attention refuses."""
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)  # refuses gradients on a CPU
    for softcap, lengths in ((0.5, (3, 5)), (2.0, (4, 7)), (30.0, (9, 2))):
        expected = with_gradients(lengths, softcap=softcap)
        with monkeypatch.context() as patch:
            use(patch, module.flex_attention)
            assert farthest(with_gradients(lengths, softcap=softcap), expected) < 2e-6


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_trial_within_a_checkpointed_layer_is_none_of_its_tensors(
    tried: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)  # refuses gradients on a CPU
    use(monkeypatch, module.flex_or_grouped)
    expected = with_gradients(LENGTHS)
    module._tiles_left.clear()
    check, attended_to = module.check_flex, packed_attention.attend_packed
    monkeypatch.setattr(module, "check_flex", lambda *of: (tried.append(of), check(*of))[1])
    monkeypatch.setattr(
        "tests.support.packed_texts.attend_packed",
        lambda *of, **given: checkpoint(attended_to, *of, use_reentrant=False, **given),
    )
    assert farthest(with_gradients(LENGTHS), expected) == 0
    assert len(tried) == 1


CASE = module.FlexCase(CPU, torch.bfloat16, (512, 512))
OUT_OF_RESOURCE = "out of resource: shared memory, Required: 263168, Hardware limit: 232448"


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tiles of each trial; triton is there, and nothing was tried yet."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(module, "_tiles_left", {})
    monkeypatch.setattr(module, "_said", set())
    return []


@pytest.mark.parametrize("fails", [0, 1, 2, 3])
def test_tiles_are_tried_from_the_largest_on_and_then_products(
    fails: int,
    tried: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def check(_: module.FlexCase, tiles: Any) -> None:
        tried.append(tiles)
        if tiles in module._TILES[:fails]:
            raise ModelError(OUT_OF_RESOURCE)

    monkeypatch.setattr(module, "check_flex", check)
    expected = None if fails == 3 else module._TILES[fails]
    assert module.flex_tiles(CASE) is module.flex_tiles(CASE) is expected
    assert tried == [*module._TILES[: fails + 1]]
    assert OUT_OF_RESOURCE in caplog.text or fails < 3
    assert module.flex_tiles(CASE._replace(window=7)) is expected
    assert len(caplog.records) == (fails == 3)


def test_nothing_is_tried_without_triton_nor_said(
    tried: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(module, "check_flex", lambda *_: tried.append(1))
    assert module.flex_tiles(CASE) is None
    assert not tried
    assert not caplog.records


def test_a_full_card_says_nothing_of_its_kernels(
    tried: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module, "check_flex", full)
    with pytest.raises(torch.OutOfMemoryError):
        module.flex_tiles(CASE)
    monkeypatch.setattr(module, "check_flex", lambda *_: None)
    assert module.flex_tiles(CASE) == module._TILES[0]


def test_a_failed_backward_pass_takes_the_next_tiles_of_what_is_trained(
    tried: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "check_flex", lambda *_: None)
    error, scored = RuntimeError(OUT_OF_RESOURCE), CASE._replace(is_trained=False)
    assert not module.flex_failed(error)
    for case in (CASE, scored):
        module.flex_tiles(case)
    for other in (torch.OutOfMemoryError("CUDA out of memory."), ModelError("no such layer")):
        assert not module.flex_failed(other)
    found = [(module.flex_failed(error), module.flex_tiles(CASE)) for _ in range(4)]
    assert found == [
        (True, module._TILES[1]),
        (True, module._TILES[2]),
        (True, None),
        (False, None),
    ]
    assert module.flex_tiles(scored) == module._TILES[0]


# varlen attention


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What the documentation of torch's ``varlen_attn`` says; that one runs on CUDA only.

    A window is how many tokens are seen before and after the own one, and -1 is all, as flash
    attention has it.
    """
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    lengths = cu_seq_q.diff().tolist()
    assert cu_seq_q.tolist() == cu_seq_k.tolist()
    assert (int(cu_seq_q[0]), int(cu_seq_q[-1])) == (0, len(query))
    assert max_q == max_k == max(lengths)
    per_key = query.shape[1] // key.shape[1]
    assert enable_gqa == (per_key > 1)
    outs: list[Tensor] = []
    for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        at = torch.arange(len(q))
        before, after = (len(q) if size < 0 else size for size in window_size)
        behind = at[:, None] - at
        seen = (behind <= before) & (-behind <= after)
        k, v = (x.repeat_interleave(per_key, dim=1).transpose(0, 1) for x in (k, v))
        scores = q.transpose(0, 1) @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outs.append((weights @ v).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("window", WINDOWS)
def test_varlen_attention_gives_what_full_scores_give(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, module.varlen_attention)
    monkeypatch.setattr(module, "_varlen", lambda: plain_varlen)
    lengths = (300, 1, 300, 40)
    assert (
        farthest(with_gradients(lengths, sliding_window=window), by_definition(lengths, window))
        < 2e-6
    )
    scaled = with_gradients(LENGTHS, sliding_window=window, scaling=0.4)
    use(monkeypatch, module.grouped_attention)
    assert farthest(scaled, with_gradients(LENGTHS, sliding_window=window, scaling=0.4)) < 2e-6


@pytest.mark.parametrize(
    ("window", "expected"), [(None, (-1, 0)), (1, (0, 0)), (16, (15, 0)), (17, (-1, 0))]
)
def test_a_window_that_hides_nothing_is_none(
    window: int | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    plain = lambda *tensors, **named: (given.update(named), plain_varlen(*tensors, **named))[1]  # noqa: E731
    monkeypatch.setattr(module, "_varlen", lambda: plain)
    use(monkeypatch, module.varlen_attention)
    attended(LENGTHS, inputs(LENGTHS), sliding_window=window)
    assert given == {"scale": 16**-0.5, "window_size": expected, "enable_gqa": True}


class FlashCalls(TorchDispatchMode):
    """What flash attention's operator was given, tensors left out."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._flash_attention_forward.default:
            self.given += [*args[5:], kwargs]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("has_module", [True, False])
def test_an_older_torch_gets_flash_attentions_operator(
    has_module: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.10 has ``varlen_attn`` without a scale, and torch before it none."""
    if has_module:
        monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, is_causal: None)
    else:
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    monkeypatch.setattr(module, "_varlen", module._varlen.__wrapped__)
    module._bounds.cache_clear()
    with fake_cuda(), FlashCalls() as calls, torch.no_grad():
        sizes = [(1, heads, sum(LENGTHS), 16) for heads in (6, 2, 2)]
        q, k, v = (torch.empty(x, dtype=torch.bfloat16, device="cuda") for x in sizes)
        for window in (None, 6):
            terms = AttentionTerms(0.4, window, None, None)
            out = module.varlen_attention(q, k, v, PackedLayout(LENGTHS), terms)
            assert (out.shape, out.is_cuda) == ((1, sum(LENGTHS), 6, 16), True)
    module._bounds.cache_clear()
    windows = ({"window_size_left": left, "window_size_right": 0} for left in (-1, 5))
    plain, windowed = ({"scale": 0.4, **window} for window in windows)
    assert calls.given == [17, 17, 0.0, True, False, plain, 17, 17, 0.0, False, False, windowed]


def test_the_installed_torch_has_the_arguments_that_are_asked_for() -> None:
    assert module._varlen.__wrapped__() is varlen.varlen_attn


# which kernel


FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("device", "dtype", "widths", "is_plain", "has_flash", "expected"),
    [
        ("cpu", FLOAT32, (128, 128), True, False, "grouped"),
        ("cpu", BFLOAT16, (128, 128), False, False, "grouped"),
        ("cuda", BFLOAT16, (128, 128), True, True, "varlen"),
        ("cuda", FLOAT16, (64, 64), True, True, "varlen"),
        ("cuda", BFLOAT16, (256, 256), True, True, "varlen"),
        ("cuda", BFLOAT16, (264, 264), True, True, "flex"),
        ("cuda", BFLOAT16, (100, 100), True, True, "flex"),  # no multiple of 8
        ("cuda", BFLOAT16, (192, 128), True, True, "flex"),
        ("cuda", BFLOAT16, (128, 128), False, True, "flex"),  # softcap or sinks
        ("cuda", FLOAT32, (128, 128), True, True, "flex"),
        ("cuda", FLOAT16, (128, 128), True, False, "flex"),  # a card from before Ampere
        ("cuda", BFLOAT16, (8, 8), True, True, "grouped"),
        ("cuda", FLOAT32, (12, 16), True, True, "grouped"),
        ("cuda", FLOAT32, (16, 12), True, True, "grouped"),
    ],
)
def test_a_device_gets_its_kernel(
    device: str,
    dtype: torch.dtype,
    widths: tuple[int, int],
    is_plain: bool,
    has_flash: bool,
    expected: str,
) -> None:
    terms = {"is_plain": is_plain, "has_flash": has_flash}
    assert module.chosen_kernel(device, dtype, widths, **terms) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "varlen_attention"),
        ({"softcap": 1.0}, "flex_or_grouped"),
        ({"sinks": torch.zeros(2)}, "flex_or_grouped"),
    ],
)
def test_the_kernel_is_chosen_by_the_tensors_and_the_terms(
    settings: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_has_flash", lambda _: True)
    terms = AttentionTerms(
        **{"scale": 1.0, "window": None, "softcap": None, "sinks": None} | settings
    )
    with fake_cuda():
        x = torch.empty((1, 2, 3, 16), dtype=torch.bfloat16, device="cuda")
        assert module.kernel_for(x, x, PackedLayout((3,)), terms) is getattr(module, expected)
        shared = PackedLayout((2, 1), (0, 1))  # which flash attention cannot do
        assert module.kernel_for(x, x, shared, terms) is module.flex_or_grouped
    x = torch.empty(1, 2, 3, 16)
    assert module.kernel_for(x, x, PackedLayout((3,)), terms) is module.grouped_attention
