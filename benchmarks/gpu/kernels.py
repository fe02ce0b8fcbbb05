"""Packed attention: every kernel against float64, sequence by sequence, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.setting import Found, Setup, largest, now
from rankwise.engine.models import packed_kernels
from rankwise.engine.models.attention import AttentionTerms
from rankwise.engine.models.packed_layout import PackedLayout

KERNELS: dict[str, Callable[..., Tensor]] = {
    "varlen": packed_kernels.varlen_attention,
    "flex": packed_kernels.flex_attention,
    "grouped": packed_kernels.grouped_attention,
}
# Around the sizes of blocks (128), and short ones, which have kernels of their own.
LENGTHS = (1000, 12, 1, 127, 129, 128)
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
WHY = (
    "of the largest entry: sums of a thousand products in float32 round by 1e-6, bfloat16 has 8 "
    "bits, 4e-3"
)


class Case(NamedTuple):
    """Heads of queries and of keys, their width, and the terms."""

    heads: int
    kv_heads: int
    width: int
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether there is neither a softcap nor sinks."""
        return self.softcap is None and not self.sinks

    @property
    def is_flash(self) -> bool:
        """Whether flash attention has it: no softcap, no sinks, and no wider heads than 256."""
        return self.is_plain and self.width <= 256

    @property
    def name(self) -> str:
        terms = [f"window{self.window}"] * (self.window is not None)
        terms += ["softcap"] * (self.softcap is not None) + ["sinks"] * self.sinks
        return "-".join([f"{self.heads}x{self.kv_heads}x{self.width}", *terms])


LLAMA, WIDE, WIDEST = Case(32, 8, 128), Case(4, 1, 256), Case(16, 2, 512)
QUICK = (LLAMA, WIDE, WIDEST)  # Llama-3.1-8B, Gemma 3, the global layers of Gemma 4
CASES = (
    *QUICK,
    Case(28, 4, 128),  # Qwen2.5-7B
    Case(8, 8, 64),
    Case(9, 3, 64),  # SmolLM2
    Case(32, 8, 128, window=100),
    Case(8, 4, 256, softcap=50.0),  # Gemma 2
    Case(8, 4, 256, window=100, softcap=50.0),
    Case(64, 8, 64, window=128, sinks=True),  # gpt-oss
)
TINY = (Case(6, 2, 16), Case(6, 2, 16, window=6, softcap=2.0, sinks=True))


def attention(setup: Setup, found: Found) -> None:
    """Every kernel in every case: output and gradients of query, key and value."""
    cases = TINY if setup.is_tiny else QUICK if setup.is_quick else CASES
    lengths = (17, 1, 9) if setup.is_tiny else LENGTHS
    for case in cases:
        expected = _exact(case, lengths, setup.device)
        for dtype, limit in LIMITS.items():
            sdpa = None
            if case.is_plain and case.window is None:
                sdpa = _error(_sdpa(case, lengths, setup.device, dtype), expected)
            for name, kernel in KERNELS.items():
                key = f"attention.{name}.{str(dtype).removeprefix('torch.')}.{case.name}"
                if name == "varlen" and (dtype != torch.bfloat16 or not case.is_flash):
                    continue
                if name != "grouped" and not setup.is_cuda:
                    found.skip(key, "it has no gradients on a CPU")
                    continue
                try:
                    ours = _packed(kernel, case, lengths, setup.device, dtype)
                except Exception as error:  # noqa: BLE001  of compilers: this kernel's, not the others'
                    found.failed(key, error)
                    continue
                error = _error(ours, expected)
                beside = {} if sdpa is None else {"over_sdpa": round(error / max(sdpa, 1e-9), 2)}
                found.check(key, error, limit, WHY, **beside)


def recompilations(setup: Setup, found: Found) -> None:
    """How often flex attention is compiled in sixty layouts, and how long the first takes."""
    if not setup.is_cuda:
        found.skip("recompilations", "nothing is compiled on a CPU")
        return
    from torch._dynamo.utils import counters

    case, generator = LLAMA, torch.Generator().manual_seed(0)
    counters.clear()
    for number in range(61):
        lengths = tuple(torch.randint(1, 400, (5,), generator=generator).tolist())
        query, key, value = _inputs(case, lengths, setup.device, torch.bfloat16)
        started = now(setup.device)
        terms = AttentionTerms(case.width**-0.5, None, None, None)
        out = packed_kernels.flex_attention(query, key, value, PackedLayout(lengths), terms)
        out.sum().backward()
        if number == 0:
            found.timings["attention_warm_up_s"] = round(now(setup.device) - started, 2)
    found.check(
        "recompilations",
        counters["stats"]["unique_graphs"],
        6,
        "torch stops compiling at 8 graphs of one function, and a study needs others besides",
    )


def _inputs(
    case: Case, lengths: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Query, key and value, (1, heads, tokens, width); rounded to bfloat16 for every dtype."""
    generator = torch.Generator().manual_seed(0)
    made: list[Tensor] = []
    for heads in (case.heads, case.kv_heads, case.kv_heads):
        x = torch.randn(1, heads, sum(lengths), case.width, generator=generator).bfloat16()
        made.append(x.to(device, dtype).requires_grad_())
    return made


def _sinks(case: Case, device: torch.device) -> Tensor | None:
    return torch.linspace(-1, 2, case.heads, device=device) if case.sinks else None


def _with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """``out`` is (1, tokens, heads, width); with the gradients of a fixed sum of it."""
    weighting = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    gradients = torch.autograd.grad(out, inputs, weighting.to(out.device, out.dtype))
    return [out.detach(), *gradients]


def _packed(
    kernel: Callable[..., Tensor],
    case: Case,
    lengths: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    inputs = _inputs(case, lengths, device, dtype)
    terms = AttentionTerms(case.width**-0.5, case.window, case.softcap, _sinks(case, device))
    return _with_gradients(kernel(*inputs, PackedLayout(lengths), terms), inputs)


def _exact(case: Case, lengths: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """By the definition, in float64."""
    inputs = _inputs(case, lengths, device, torch.float64)
    sinks = _sinks(case, device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT * case.width**-0.5  # (1, heads, length, length)
        if case.softcap is not None:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        at = torch.arange(q.shape[2], device=device)
        behind = at[:, None] - at
        unseen = (behind < 0) | (behind >= (case.window or len(at)))
        scores = scores.masked_fill(unseen, -torch.inf)
        if sinks is not None:  # one more key, which has no value
            of_head = sinks.double()[None, :, None, None].expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, of_head], dim=-1)
        return scores.softmax(-1)[..., : len(at)] @ v

    return _with_gradients(_by_sequence(attend, case, lengths, inputs), inputs)


def _sdpa(
    case: Case, lengths: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    inputs = _inputs(case, lengths, device, dtype)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    return _with_gradients(_by_sequence(attend, case, lengths, inputs), inputs)


def _by_sequence(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    case: Case,
    lengths: tuple[int, ...],
    inputs: list[Tensor],
) -> Tensor:
    """Each sequence alone, its keys repeated for every head; (1, tokens, heads, width)."""

    def rows() -> Iterator[Tensor]:
        for q, k, v in zip(*(x.split(lengths, dim=2) for x in inputs), strict=True):
            k, v = (x.repeat_interleave(case.heads // case.kv_heads, dim=1) for x in (k, v))
            yield attend(q, k, v)

    return torch.cat(list(rows()), dim=2).transpose(1, 2)


def _error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference over the largest entry, of output and gradients."""
    pairs: Any = zip(found, expected, strict=True)
    return largest([float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs])
