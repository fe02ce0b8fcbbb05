"""Scoring: log-likelihoods, the guard, texts and heads against plain forward passes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.setting import (
    CPU,
    Found,
    Setup,
    allocated_bytes,
    frozen_adapter,
    largest,
    no_long_passes,
    no_other_reads,
    questions,
    random_tokens,
    short_of_memory,
    small_model,
)
from benchmarks.gpu.training import new_trainee, train
from rankwise.engine.models.frozen_adapters import FrozenAdapter, FrozenBank, FrozenPiece, wearing
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.engine.scoring.tree import attention as tree_attention
from rankwise.errors import UnchangedOutputsError
from rankwise.heads.interventions import Head
from rankwise.heads.layouts import head_layouts
from rankwise.heads.scorer import Ablation, HeadScorer
from rankwise.tasks.questions import Continuation, GenerationSettings, LogLikelihood, Prompt
from rankwise.tasks.update_guard import refuse_unapplied
from tests.support.tiny_tasks import tiny_tokenizer

ROUNDING = "sums of float32 log-probabilities over four tokens, each rounded by 1e-6 to 1e-5"
VOCABULARY = 400


def items_of(setup: Setup) -> list[Continuation]:
    """What is asked in most checks."""
    sizes = {"items": 6, "shared": 30, "own": 12} if setup.is_tiny else {
        "items": 60, "shared": 300, "own": 80,
    }  # fmt: skip
    return questions(VOCABULARY, **sizes)


def scorer_of(model: Any, adapters: dict[str, FrozenAdapter] | None = None) -> ResidentScorer:
    """The engine with adapters that are in memory."""
    scorer = ResidentScorer(model, tiny_tokenizer(), max_batch_tokens=4096)
    for name, adapter in (adapters or {}).items():
        scorer.hold(name, adapter)
    return scorer


def nats(found: Sequence[LogLikelihood]) -> torch.Tensor:
    """The numbers alone, in float64."""
    return torch.tensor([each.nats for each in found], dtype=torch.float64)


@torch.no_grad()
def plainly(model: Any, items: Sequence[Continuation]) -> torch.Tensor:
    """One forward pass of transformers for every item."""
    device = next(model.parameters()).device
    sums: list[float] = []
    for item in items:
        tokens = torch.tensor([item.tokens_read], device=device)
        logits = model(tokens, use_cache=False).logits[0, -len(item.continuation) :]
        wanted = torch.tensor(item.continuation, device=device)
        picked = logits.float().log_softmax(-1).gather(1, wanted[:, None])
        sums.append(float(picked.double().sum()))
    return torch.tensor(sums, dtype=torch.float64)


def log_likelihoods(setup: Setup, found: Found) -> None:
    """Against transformers with sdpa on the device and on the CPU; bfloat16 beside sdpa's own."""
    items = items_of(setup)
    for family in ("Llama", "Gemma2"):
        model = small_model(setup, family)
        ours = nats(scorer_of(model).log_likelihoods([None], items)[0])
        for where, peer in (("device", model), ("cpu", small_model(setup, family, CPU))):
            off = float((ours - plainly(peer, items)).abs().max())
            found.check(f"score.{where}.{family}", off, 1e-3, ROUNDING)
        half = model.bfloat16()
        mine = nats(scorer_of(half).log_likelihoods([None], items)[0]) - ours
        theirs = plainly(half, items) - ours
        found.check(
            f"score.bfloat16.{family}",
            float(mine.abs().mean() / theirs.abs().mean()),
            1.2,
            "mean distance from float32 over transformers' own: two roundings alike, of many items",
        )


def flex(setup: Setup, found: Found) -> None:
    """The tree by flex attention against products, in float32, for which it is forced."""
    items = items_of(setup)
    for family in ("Llama", "Gemma2"):
        scorer = scorer_of(small_model(setup, family))
        products = nats(scorer.log_likelihoods([None], items)[0])
        with mock.patch.object(tree_attention, "_takes_flex", return_value=True):
            ours = nats(scorer.log_likelihoods([None], items)[0])
        off = float((ours - products).abs().max())
        found.check(f"score.flex.{family}", off, 1e-3, ROUNDING)


def company(setup: Setup, found: Found) -> None:
    """An adapter alone, and among five and twenty-five."""
    items, model = items_of(setup), small_model(setup)
    adapters = {f"a{n}": frozen_adapter(model, 2 + n % 7, n) for n in range(25)}
    scorer = scorer_of(model, adapters)
    alone = nats(scorer.log_likelihoods(["a3"], items)[0])
    for count in (5, 25):
        together = nats(scorer.log_likelihoods(list(adapters)[:count], items)[3])
        found.check(f"score.company.{count}", float((alone - together).abs().max()), 1e-3, ROUNDING)
    with wearing(model, adapters["a3"]):
        off = float((alone - plainly(model, items)).abs().max())
    found.check("score.adapter", off, 1e-3, ROUNDING)


def guard(setup: Setup, found: Found) -> None:
    """Adapters that are put on and not applied are refused, every time."""
    model, probes = small_model(setup), items_of(setup)[:8]
    scorer = scorer_of(model, {"a": frozen_adapter(model, 4, 0)})
    refuse_unapplied(scorer, ["a"], probes)  # this one is applied

    @contextlib.contextmanager
    def nobody(_: FrozenBank, pieces: Sequence[FrozenPiece]) -> Iterator[None]:
        yield

    missed, times = 0, 3 if setup.is_tiny else 20
    with mock.patch.object(FrozenBank, "rows_of", nobody):
        for _ in range(times):
            try:
                refuse_unapplied(scorer, ["a"], probes)
                missed += 1
            except UnchangedOutputsError:
                pass
    found.check("guard", missed, 0, f"of {times} scorings of the base in an adapter's place")


def texts(setup: Setup, found: Found) -> None:
    """Greedy texts in float32 against transformers' ``generate``, token by token."""
    draw, tokenizer, number = random.Random(1), tiny_tokenizer(), 6 if setup.is_tiny else 32
    shared = random_tokens(draw, VOCABULARY, 20)
    contexts = [
        shared[: draw.choice((0, 20))] + random_tokens(draw, VOCABULARY, draw.randint(2, 30))
        for _ in range(number)
    ]
    for family in ("Llama", "Gemma2", "Qwen2"):
        model = small_model(setup, family)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        for penalty in (1.0, 1.3):
            options = (("do_sample", False), ("repetition_penalty", penalty))
            settings = GenerationSettings(24, (), options)
            prompts = [Prompt(tokens, settings) for tokens in contexts]
            adapter = frozen_adapter(model, 4, 1)
            ours = scorer_of(model, {"a": adapter}).generate([None, "a"], prompts)
            peer = [_by_transformers(model, tokenizer, prompts)]
            with wearing(model, adapter):
                peer.append(_by_transformers(model, tokenizer, prompts))
            differ = sum(
                own.text != text
                for mine, theirs in zip(ours, peer, strict=True)
                for own, text in zip(mine, theirs, strict=True)
            )
            found.check(
                f"decode.{family}.penalty{penalty:g}", differ, 0,
                f"texts of {2 * number} that differ: logits of random weights hardly ever tie",
            )  # fmt: skip


@torch.no_grad()
def _by_transformers(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    found: list[str] = []
    for prompt in prompts:
        tokens = torch.tensor([prompt.tokens], device=model.device)
        written = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=prompt.settings.max_new_tokens,
            **dict(prompt.settings.options),
        )[0, len(prompt.tokens) :]
        found.append(tokenizer.decode(written, skip_special_tokens=True))
    return found


def heads(setup: Setup, found: Found) -> None:
    """Heads switched off against hooks."""
    items, model = items_of(setup)[:40], small_model(setup)
    layouts = head_layouts(model)
    chosen = [Head(layer, head) for layer in range(len(layouts)) for head in range(4)][:8]
    scorer = HeadScorer(model, max_batch_tokens=4096)
    ablated = scorer.log_likelihoods(items, [Ablation(head) for head in chosen])[1:]
    off: list[float] = []
    for head, without in zip(chosen, ablated, strict=True):
        span = layouts[head.layer].columns(head.head).span

        def silence(_: Any, inputs: tuple[torch.Tensor, ...], span: slice = span) -> Any:
            hidden = inputs[0].clone()
            hidden[..., span] = 0
            return (hidden,)

        output = model.get_submodule(layouts[head.layer].output)
        handle = output.register_forward_pre_hook(silence)
        off.append(float((nats(without) - plainly(model, items)).abs().max()))
        handle.remove()
    found.check("heads.ablated", largest(off), 1e-3, ROUNDING)


def out_of_memory(setup: Setup, found: Found) -> None:
    """A quarter of what a step needs is there: it is made smaller, and the answers stay."""
    model, most = small_model(setup), 512 if setup.is_tiny else 1 << 15
    sizes = {"items": 20, "shared": 20, "own": 30} if setup.is_tiny else {
        "items": 200, "shared": 100, "own": 200,
    }  # fmt: skip
    items = questions(VOCABULARY, **sizes)

    def scores() -> torch.Tensor:
        scorer = ResidentScorer(model, tiny_tokenizer(), max_batch_tokens=most, cache_bytes=1 << 28)
        return nats(scorer.log_likelihoods([None], items)[0])

    scores()
    before = allocated_bytes(setup)
    plain = scores()
    needed = allocated_bytes(setup, peak=True) - before
    with short_of_memory(setup, needed // 4, no_long_passes(model, most // 4)):
        limited = scores()
    found.check("oom.score", float((limited - plain).abs().max()), 1e-3, ROUNDING)


def host_reads(setup: Setup, found: Found) -> None:
    """Three steps of each loop in which the host waits for the card only where it is meant to."""
    model = small_model(setup)
    items = items_of(setup)
    adapters = {f"a{n}": frozen_adapter(model, 4, n) for n in range(3)}
    scorer, who = scorer_of(model, adapters), [None, *adapters]
    prompts = [Prompt(item.context, GenerationSettings(3)) for item in items[:16]]

    def training() -> Callable[[], Any]:
        trainees = [new_trainee(model, rank, num_steps=3) for rank in (4, 8)]
        return lambda: train(model, trainees)

    work: dict[str, tuple[Callable[[], Callable[[], Any]], int]] = {
        "train": (training, 6),
        "tree": (lambda: lambda: scorer.log_likelihoods(who, items), 4),
        "texts": (lambda: lambda: scorer.generate(who, prompts), 12),
    }
    for name, (prepared, limit) in work.items():
        prepared()()  # what is made once may wait
        do = prepared()
        try:
            with no_other_reads(setup) as read:
                do()
        except RuntimeError as error:
            found.failed(f"host_reads.{name}", error)
            continue
        if not setup.is_cuda:
            found.skip(f"host_reads.{name}", f"{len(read)} reads, and a CPU has no host to wait")
            continue
        why = "two reads in a training step, and few in a scoring call and a step of texts"
        found.check(f"host_reads.{name}", len(read), limit, why)
