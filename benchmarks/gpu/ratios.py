"""How fast: training, scoring and texts of five adapters, beside what others would use."""

from __future__ import annotations

import importlib.util
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity

from benchmarks.gpu.scoring import scorer_of
from benchmarks.gpu.setting import (
    ALL_LINEAR,
    TARGETS,
    Found,
    Setup,
    big_model,
    finite,
    frozen_adapter,
    median_seconds,
    micro_batch,
    now,
    questions,
    random_tokens,
    shapes_of,
    vocabulary,
)
from benchmarks.gpu.training import train
from rankwise.engine.models.devices import device_name
from rankwise.engine.models.trained_adapters import Adapter
from rankwise.engine.scoring.tree import attention as tree_attention
from rankwise.engine.training import liger
from rankwise.engine.training.trainees import AdapterTrainee
from rankwise.tasks.questions import Continuation, GenerationSettings, Prompt
from rankwise.tasks.training_rows import Example
from tests.support.tiny_tasks import tiny_tokenizer

PEER_BATCHES = (8, 32, 64)
NEW_TOKENS = 48
# Tokens of a micro-batch that a card of 80 GB leaves to 25 adapters, about.
WIDE_MICRO_BATCH = 6144
# Dense bfloat16 by NVIDIA's data sheets, for the cards that the 8B model fits on; the first that
# is in the card's name counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "A100": 312.0,
    "B200": 2250.0,
}


def ranks_of(setup: Setup) -> tuple[int, ...]:
    """Five adapters, as in ``benchmarks.training``."""
    return (2, 4) if setup.is_tiny else (8, 16, 32, 64, 128)


def mfu(tokens_per_second: float, num_parameters: int, card: str) -> float | None:
    """The share of a card's peak that LoRA training uses; None: its peak is not known.

    A token takes 4 FLOP for each weight of the base, as in ``rankwise.study.needs.assumed_rate``.
    """
    peaks = (peak for name, peak in PEAK_TFLOPS.items() if name in card)
    peak = next(peaks, None)
    return peak and round(4 * num_parameters * tokens_per_second / (peak * 1e12), 4)


def copy_rate(setup: Setup) -> float:
    """Bytes per second that a copy reads and writes."""
    size = 1 << (20 if setup.is_tiny else 30)
    source = torch.empty(size, dtype=torch.uint8, device=setup.device)
    return 2 * size / median_seconds(setup.device, source.clone)


def roofline(setup: Setup, found: Found) -> None:
    """Operations per second of a large product, and bytes per second of a copy."""
    size = 256 if setup.is_tiny else 8192
    dtype = torch.bfloat16 if setup.is_cuda else torch.float32
    one, other = (torch.randn(size, size, device=setup.device).to(dtype) for _ in range(2))
    product = median_seconds(setup.device, lambda: one @ other)
    found.timings["product_tflop_per_s"] = finite(2 * size**3 / product / 1e12)
    found.timings["copy_gb_per_s"] = finite(copy_rate(setup) / 1e9)


def training(setup: Setup, found: Found) -> None:
    """Five adapters and one on q, k, v and o, against peft with transformers' Trainer."""
    ranks = ranks_of(setup)
    _beside_peft(setup, found, {"five_adapters": ranks, "one_adapter": ranks[:1]}, TARGETS)


def all_linear_training(setup: Setup, found: Found) -> None:
    """Three adapters on all linear layers, as studies have them, against the same."""
    _beside_peft(setup, found, {"all_linear": ranks_of(setup)[:3]}, ALL_LINEAR)


def _beside_peft(
    setup: Setup, found: Found, cases: Mapping[str, Sequence[int]], targets: Sequence[str]
) -> None:
    """Time some adapters in a pass, and one after the other by the peer; in turn, on one base."""
    from benchmarks import training_peer
    from benchmarks.training_peer import STEP_SIZE, random_examples, train_peer

    model, steps, ranks = big_model(setup), 2 if setup.is_tiny else 8, ranks_of(setup)
    rows = random_examples(steps * STEP_SIZE, vocabulary(model))

    def peer(ranks: Sequence[int], rows: Sequence[Example], batch_size: int) -> float:
        with mock.patch.object(training_peer, "TARGETS", targets):
            return sum(train_peer(model, rank, rows, 0, batch_size)[0] for rank in ranks)

    # kernels are compiled for their first shapes
    train_seconds(setup, model, rows, ranks[:1], targets)
    peer(ranks[:1], rows[:STEP_SIZE], 2)
    for name, chosen in cases.items():
        pairs: list[tuple[float, float]] = []
        for _ in range(1 if setup.is_tiny else 3):
            seconds = train_seconds(setup, model, rows, chosen, targets)
            pairs.append((seconds, min(peer(chosen, rows, size) for size in (2, 1))))
        mine = statistics.median(seconds for seconds, _ in pairs)
        _note_rate(setup, found, name, model, len(chosen) * _num_tokens(rows) / mine)
        ratio = statistics.median(theirs / seconds for seconds, theirs in pairs)
        found.timings[f"train_{setup.size}_{name}_ratio_peft"] = finite(ratio)


def liger_training(setup: Setup, found: Found) -> None:
    """Five adapters without Liger's kernels over the same with them, where they are installed."""
    from benchmarks.training_peer import STEP_SIZE, random_examples

    model, ranks = big_model(setup), ranks_of(setup)
    rows = random_examples((1 if setup.is_tiny else 4) * STEP_SIZE, vocabulary(model))
    if not setup.is_tiny and importlib.util.find_spec("liger_kernel") is None:
        found.skip("train_ratio_liger", "liger-kernel is not installed")
        return
    work: Callable[[], Any] = lambda: train_seconds(setup, model, rows, ranks)  # noqa: E731
    ours = median_seconds(setup.device, work, 1)
    with mock.patch.object(liger, "_fits", return_value=False):
        plain = median_seconds(setup.device, work, 1)
    found.timings["train_ratio_liger"] = finite(plain / ours)


def wide_training(setup: Setup, found: Found) -> None:
    """Twenty-five adapters in a pass."""
    from benchmarks.training_peer import STEP_SIZE, random_examples

    model, ranks = big_model(setup), ranks_of(setup)
    rows = random_examples((1 if setup.is_tiny else 2) * STEP_SIZE, vocabulary(model))
    many, seconds = 2 * ranks if setup.is_tiny else 5 * ranks, 0.0
    for part in (rows[:STEP_SIZE], rows):  # the first step does not count
        seconds = train_seconds(setup, model, part, many, TARGETS, WIDE_MICRO_BATCH)
    _note_rate(setup, found, "25_adapters", model, len(many) * _num_tokens(rows) / seconds)


def profile(setup: Setup, found: Found) -> None:
    """A step of five adapters on all linear layers: the card's share, and what takes longest."""
    from benchmarks.training_peer import STEP_SIZE, random_examples

    model, ranks = big_model(setup), ranks_of(setup)
    rows = random_examples(STEP_SIZE, vocabulary(model))
    kind = ProfilerActivity.CUDA if setup.is_cuda else ProfilerActivity.CPU
    train_seconds(setup, model, rows, ranks, ALL_LINEAR)
    with torch.profiler.profile(activities=[kind], acc_events=True) as profiler:
        seconds = train_seconds(setup, model, rows, ranks, ALL_LINEAR)
    events = profiler.key_averages()
    of_event = "self_device_time_total" if setup.is_cuda else "self_cpu_time_total"
    taken = {str(event.key): float(getattr(event, of_event)) / 1e6 for event in events}
    longest = sorted(taken.items(), key=lambda each: -each[1])[:12]
    found.timings[f"profile_{setup.size}"] = {
        "seconds": finite(seconds),
        "kernel_share": finite(sum(taken.values()) / seconds),
        "kernels": sum(event.count for event in events),
        "longest_ms": {name[:80]: finite(1e3 * took) for name, took in longest},
    }


def train_seconds(
    setup: Setup,
    model: Any,
    rows: Sequence[Example],
    ranks: Sequence[int],
    targets: Sequence[str] = TARGETS,
    max_tokens: int | None = None,
) -> float:
    """Seconds of an epoch of these ranks in one pass."""
    from benchmarks.training_peer import SCALING, SEED, TRAIN, planned

    trainees = [
        AdapterTrainee(
            planned(rank, len(rows)),
            rows,
            TRAIN,
            Adapter(
                shapes_of(model, targets), rank=rank, scaling=SCALING, dropout=0.0, seed=SEED,
                device=setup.device, dtype=next(model.parameters()).dtype,
            ),
        )
        for rank in ranks
    ]  # fmt: skip
    started = now(setup.device)
    train(model, trainees, max_tokens=max_tokens or micro_batch(setup))
    return now(setup.device) - started


def _num_tokens(rows: Sequence[Example]) -> int:
    return sum(len(row.tokens) for row in rows)


def _note_rate(setup: Setup, found: Found, name: str, model: Any, tokens_per_second: float) -> None:
    """Tokens in a second, and the share of the card that they use."""
    size = sum(parameter.numel() for parameter in model.parameters())
    found.timings[f"train_{setup.size}_{name}_tokens_per_s"] = finite(tokens_per_second)
    share = mfu(tokens_per_second, size, device_name(setup.device))
    found.timings[f"train_{setup.size}_{name}_mfu"] = share


def log_likelihoods(setup: Setup, found: Found) -> None:
    """Five adapters on options, few-shot and zero-shot, against the base in HFLM.

    Without lm-eval, against a loop like it.
    """
    shots = {"few_shot": (40, 700), "zero_shot": (160, 0)}
    for name, (items, shared) in shots.items():
        sizes = {"items": 4, "shared": shared and 40, "own": 12} if setup.is_tiny else {
            "items": items, "shared": shared, "own": 80,
        }  # fmt: skip
        _beside_hflm(setup, found, name, sizes)


def _beside_hflm(setup: Setup, found: Found, shots: str, sizes: Mapping[str, int]) -> None:
    model = big_model(setup)
    items = questions(vocabulary(model), **sizes)
    adapters = {f"r{rank}": frozen_adapter(model, rank, rank, 0.03) for rank in ranks_of(setup)}
    scorer = scorer_of(model, adapters)
    score: Callable[[], Any] = lambda: scorer.log_likelihoods(list(adapters), items)  # noqa: E731
    started = now(setup.device)
    score()
    found.timings[f"score_{setup.size}_{shots}_warm_up_s"] = finite(now(setup.device) - started)
    ours = median_seconds(setup.device, score)
    with mock.patch.object(tree_attention, "_takes_flex", return_value=False):
        products = median_seconds(setup.device, score) / ours
    name = "hflm" if importlib.util.find_spec("lm_eval") else "padded"
    peer = _hflm if name == "hflm" else _padded
    peers = [
        median_seconds(setup.device, lambda size=size: peer(model, items, size), 1)
        for size in PEER_BATCHES
    ]
    num_tokens = len(adapters) * sum(len(item.tokens_read) for item in items)
    found.timings |= {
        f"score_{setup.size}_{shots}_{what}": finite(value)
        for what, value in {
            "ratio_products": products,
            "tokens_per_s": num_tokens / ours,
            f"ratio_{name}": len(adapters) * min(peers) / ours,
        }.items()
    }


def _hflm(model: Any, items: Sequence[Continuation], batch_size: int) -> Any:
    """Log-likelihoods by lm-eval's own back end."""
    from lm_eval.models.huggingface import HFLM

    peer: Any = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=batch_size)
    asked = [(("", ""), list(item.context), list(item.continuation)) for item in items]
    return peer._loglikelihood_tokens(asked, disable_tqdm=True)


@torch.inference_mode()
def _padded(model: Any, items: Sequence[Continuation], batch_size: int) -> list[float]:
    """Log-likelihoods, longest first, ``batch_size`` rows at once, padded on the right."""
    in_order = sorted(items, key=lambda item: -len(item.tokens_read))
    found: list[float] = []
    for start in range(0, len(in_order), batch_size):
        batch = in_order[start : start + batch_size]
        longest = len(batch[0].tokens_read)
        rows = [[*item.tokens_read, *[0] * (longest - len(item.tokens_read))] for item in batch]
        logits = model(torch.tensor(rows, device=model.device), use_cache=False).logits
        for row, item in zip(logits, batch, strict=True):
            stop, wanted = len(item.tokens_read), torch.tensor(item.continuation)
            of_item = row[stop - len(wanted) : stop].float().log_softmax(-1)
            found.append(float(of_item.gather(1, wanted.to(model.device)[:, None]).sum()))
    return found


def prompts_of(setup: Setup, vocab_size: int, number: int, *, share: bool) -> list[Prompt]:
    """Prompts of one length, whose first two thirds they share, or nothing."""
    draw, length = random.Random(2), 12 if setup.is_tiny else 300
    shared = random_tokens(draw, vocab_size, 2 * length // 3 if share else 0)
    settings = GenerationSettings(4 if setup.is_tiny else NEW_TOKENS, (), (("do_sample", False),))
    return [
        Prompt(shared + random_tokens(draw, vocab_size, length - len(shared)), settings)
        for _ in range(number)
    ]


def texts(setup: Setup, found: Found) -> None:
    """128 rows under five adapters, against ``generate`` of the base in one batch.

    Once of prompts that share 200 tokens, and once of prompts that share none.
    """
    for share in (True, False):
        _beside_generate(setup, found, share=share)


def _beside_generate(setup: Setup, found: Found, *, share: bool) -> None:
    model, ranks = big_model(setup), ranks_of(setup)
    model.generation_config.eos_token_id = None  # every text has its full length
    model.generation_config.pad_token_id = 0
    num_rows = 4 if setup.is_tiny else 128
    prompts = prompts_of(setup, vocabulary(model), num_rows // len(ranks), share=share)
    new_tokens = prompts[0].settings.max_new_tokens
    adapters = {f"r{rank}": frozen_adapter(model, rank, rank, 0.03) for rank in ranks}
    scorer = scorer_of(model, adapters)
    ours = median_seconds(setup.device, lambda: scorer.generate(list(adapters), prompts))
    steps = scorer.decoding.steps / 4  # of the four times
    alike = prompts_of(setup, vocabulary(model), num_rows, share=share)
    tokens = torch.tensor([prompt.tokens for prompt in alike], device=model.device)
    generate: Callable[[], Any] = lambda: model.generate(  # noqa: E731
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new_tokens, do_sample=False
    )
    peer = median_seconds(setup.device, generate)
    rate = len(adapters) * len(prompts) * new_tokens / ours
    weights = sum(parameter.nbytes for parameter in model.parameters())
    floor = weights / copy_rate(setup)
    name = f"texts_{setup.size}_{'shared' if share else 'apart'}"
    found.timings[f"{name}_tokens_per_s"] = finite(rate)
    found.timings[f"{name}_ratio_generate"] = finite(rate / (num_rows * new_tokens / peer))
    found.timings[f"{name}_step_over_floor"] = finite(ours / steps / floor)
