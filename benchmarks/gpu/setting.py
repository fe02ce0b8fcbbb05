"""What all sections share: the setup, what they find, models, adapters and texts at random."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import torch

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.engine.models.frozen_adapters import FrozenAdapter
from rankwise.engine.models.structure import LinearShape, adaptable_shapes, target_shapes
from rankwise.tasks.questions import Continuation
from tests.support.tiny_models import tiny

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*TARGETS, "gate_proj", "up_proj", "down_proj")
CPU = torch.device("cpu")
# Large enough for every kernel (heads of 64), small enough for float32 on a CPU beside it.
SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "vocab_size": 400,
    "initializer_range": 0.05,
}
# What differs from Llama-3.1-8B: Llama-3.2-3B and -1B.
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {},
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
}
# Tokens of a micro-batch: what the planner likes best; on a card of less than 60 GB what fits
# beside five adapters on all linear layers, by arithmetic: 1.7 and 3.4 MB a token, and 3 and 7 GB.
MICRO_BATCH = 8192
SMALL_MICRO_BATCH = {"8b": 512, "3b": 2048, "1b": 4096}
TINY: dict[str, Any] = {"vocab_size": 400, "max_position_embeddings": 512}


class Setup(NamedTuple):
    """Where and how large.

    Attributes:
        device: that is checked.
        is_tiny: toy sizes, so that everything runs on a CPU in seconds.
        is_quick: fewer cases.
        size: of the random model that is timed, see ``SHAPES``.
    """

    device: torch.device
    is_tiny: bool = False
    is_quick: bool = False
    size: str = "8b"

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


class Found:
    """What a section finds: checks, which can fail, and timings, which cannot."""

    def __init__(self) -> None:
        self.checks: dict[str, dict[str, Any]] = {}
        self.timings: dict[str, Any] = {}

    def check(self, name: str, value: float, limit: float, why: str, **figures: Any) -> None:
        """A number that may not be above its limit; ``why`` says why it is this limit."""
        self.checks[name] = {
            "ok": value <= limit,  # not so if it is NaN
            "value": finite(value),
            "limit": limit,
            "why": why,
            **figures,
        }

    def skip(self, name: str, reason: str) -> None:
        self.checks[name] = {"skipped": reason}

    def failed(self, name: str, error: BaseException) -> None:
        self.checks[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}


def finite(value: float) -> float | str:
    """The number, or its name where JSON has none."""
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)


def now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median_seconds(device: torch.device, work: Callable[[], Any], repeats: int = 3) -> float:
    """The median of some repeats, after one that is not counted."""
    work()
    seconds: list[float] = []
    for _ in range(repeats):
        started = now(device)
        work()
        seconds.append(now(device) - started)
    return statistics.median(seconds)


def small_model(
    setup: Setup, family: str = "Llama", device: torch.device | None = None, **changes: Any
) -> Any:
    """A random model in float32, the same on every device; on the setup's unless one is given."""
    model = tiny(family, **((TINY if setup.is_tiny else SMALL) | changes))
    model.set_attn_implementation("eager" if family == "Gemma2" else "sdpa")
    return model.requires_grad_(False).to(setup.device if device is None else device)


def big_model(setup: Setup) -> Any:
    """Random weights of a Llama's shape, made on the card; a small model in a tiny setup.

    The parts of a section share it, as making it takes as long as some of them.
    """
    return small_model(setup) if setup.is_tiny else _random_llama(setup.size, setup.device)


@cache
def _random_llama(size: str, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from benchmarks.training_peer import LLAMA_8B  # which imports transformers' Trainer

    torch.manual_seed(0)
    with device:
        config = LlamaConfig(**(LLAMA_8B | SHAPES[size]))
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    return model.requires_grad_(False).eval()


def micro_batch(setup: Setup) -> int:
    """Tokens of a micro-batch of training that is timed."""
    is_small = setup.is_cuda and card_bytes(setup) < 60e9
    return SMALL_MICRO_BATCH[setup.size] if is_small else MICRO_BATCH


def card_bytes(setup: Setup) -> int:
    """The memory of the card."""
    return torch.cuda.get_device_properties(setup.device).total_memory


def vocabulary(model: Any) -> int:
    """Its size."""
    return len(model.get_input_embeddings().weight)


def shapes_of(model: Any, targets: Sequence[str] = TARGETS) -> dict[str, LinearShape]:
    """The layers that are adapted."""
    return target_shapes(adaptable_shapes(model), targets)


def frozen_adapter(model: Any, rank: int, seed: int, size: float = 0.3) -> FrozenAdapter:
    """A random adapter, the same on every device; ``size`` is of its updates over their weights."""
    weights, generator = next(model.parameters()), torch.Generator().manual_seed(seed)
    layers: dict[str, ScaledFactors] = {}
    for name, shape in shapes_of(model).items():
        A = torch.randn(rank, shape.in_features, generator=generator)
        B = torch.randn(shape.out_features, rank, generator=generator)
        norm = float(((B.T @ B) * (A @ A.T)).sum().sqrt())
        scale = size * float(model.get_submodule(name).weight.float().norm()) / norm
        layers[name] = ScaledFactors(*(x.to(weights.device, weights.dtype) for x in (A, B)), scale)
    return FrozenAdapter(layers, is_zero_update=False)


def random_tokens(draw: random.Random, vocab_size: int, number: int) -> tuple[int, ...]:
    """Ids of no special tokens, which are the first three."""
    return tuple(draw.randrange(3, vocab_size) for _ in range(number))


def questions(
    vocab_size: int, *, items: int, shared: int, own: int, options: int = 4, seed: int = 0
) -> list[Continuation]:
    """Few-shot questions: a prefix that all share, ``own`` tokens of a question, options."""
    draw = random.Random(seed)
    prefix, asked = random_tokens(draw, vocab_size, shared), list[Continuation]()
    for _ in range(items):
        context = prefix + random_tokens(draw, vocab_size, draw.randint(own // 2, own))
        for _ in range(options):
            asked.append(Continuation(context, random_tokens(draw, vocab_size, draw.randint(1, 4))))
    return asked


@contextlib.contextmanager
def short_of_memory(
    setup: Setup, free_bytes: int, on_cpu: contextlib.AbstractContextManager[Any]
) -> Generator[None]:
    """Within the block, torch's allocator takes only so much more than it holds now.

    A CPU has no such limit to set. There ``on_cpu`` makes something raise what the allocator would.
    """
    if not setup.is_cuda:
        with on_cpu:
            yield
        return
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved(setup.device) + free_bytes
    torch.cuda.set_per_process_memory_fraction(allowed / card_bytes(setup), setup.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setup.device)


@contextlib.contextmanager
def no_long_passes(model: Any, most_tokens: int) -> Generator[None]:
    """Within the block, a forward pass of more tokens raises an error of memory."""

    def refuse(_: Any, __: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].numel() > most_tokens:
            raise torch.OutOfMemoryError("planted")

    hook = model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def allocated_bytes(setup: Setup, *, peak: bool = False) -> int:
    """What torch holds on the card, now or at most since the last call; 0 on a CPU."""
    if not setup.is_cuda:
        return 0
    gc.collect()
    held = torch.cuda.memory_allocated(setup.device)
    held = torch.cuda.max_memory_allocated(setup.device) if peak else held
    torch.cuda.reset_peak_memory_stats(setup.device)
    return held


def largest(differences: Sequence[float]) -> float:
    """The largest; NaN if there is any, which ``max`` may lose."""
    return math.nan if any(map(math.isnan, differences)) else max(differences, default=0.0)


@contextlib.contextmanager
def no_other_reads(setup: Setup) -> Generator[list[str]]:
    """Within the block, what makes the host wait for the card is an error, except what is meant.

    Meant are ``tolist`` and ``cpu`` of a whole tensor: the yielded list gets a name for each. On a
    CPU they are counted only.
    """
    read: list[str] = []

    def mode(name: str) -> None:
        if setup.is_cuda:
            torch.cuda.set_sync_debug_mode(name)

    def meant(name: str) -> Callable[..., Any]:
        plain = getattr(torch.Tensor, name)

        def wrapped(tensor: torch.Tensor, *given: Any) -> Any:
            if tensor.device.type == setup.device.type:
                read.append(name)
            mode("default")
            try:
                return plain(tensor, *given)
            finally:
                mode("error")

        return wrapped

    with contextlib.ExitStack() as stack:
        for name in ("tolist", "cpu"):
            stack.enter_context(mock.patch.object(torch.Tensor, name, meant(name)))
        stack.callback(mode, "default")
        mode("error")
        yield read
