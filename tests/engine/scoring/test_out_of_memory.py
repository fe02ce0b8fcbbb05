"""Scoring when memory runs out: smaller steps, the same answers, and progress that is told once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.frozen_adapters import FrozenBank
from rankwise.engine.scoring.decode.decoder import Decoder
from rankwise.engine.scoring.divergence import log_probabilities
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.engine.scoring.tree import reader as reader_module
from rankwise.engine.scoring.tree.reader import TreeReader
from rankwise.heads.interventions import Head
from rankwise.heads.scorer import Ablation, HeadScorer
from rankwise.tasks.questions import Continuation, GenerationSettings, Prompt, RightAnswer
from tests.support.fake_cuda import CUDA, fake_cuda
from tests.support.plain_answers import ITEMS
from tests.support.saved_adapters import saved
from tests.support.tiny_models import tiny
from tests.support.tiny_tasks import tiny_tokenizer

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]
PROMPTS = [
    Prompt(tuple(range(3, 3 + length)), GenerationSettings(6)) for length in (4, 9, 4, 6, 12)
]


@pytest.fixture
def scorer(tmp_path: Path) -> ResidentScorer:
    made = ResidentScorer(tiny("Llama"), tiny_tokenizer(), max_batch_tokens=256)
    saved(tmp_path / "a")
    made.put_on("a", AdapterFolder(tmp_path / "a"))
    return made


def failing(real: Callable[..., Any], error: Exception, times: int) -> Callable[..., Any]:
    """Raises the error at every second call, so many times."""
    calls, left = 0, times

    def step(*arguments: Any) -> Any:
        nonlocal calls, left
        calls += 1
        if left and calls % 2 == 0:
            left -= 1
            raise error
        return real(*arguments)

    return step


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_log_likelihoods_are_read_in_smaller_steps(
    scorer: ResidentScorer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    scorer._reader.max_tokens = 128
    told: list[int] = []
    expected = scorer.log_likelihoods([None, "a"], ITEMS, told.append)
    total = sum(told)
    told.clear()
    monkeypatch.setattr(TreeReader, "_step", failing(TreeReader._step, error, 1))
    found = scorer.log_likelihoods([None, "a"], ITEMS, told.append)
    assert scorer._reader.max_tokens == 64
    for own, same in zip(found, expected, strict=True):
        assert [a.nats for a in own] == pytest.approx([a.nats for a in same], abs=1e-4)
        assert [a.is_greedy for a in own] == [a.is_greedy for a in same]
    assert (sum(told), min(told) > 0) == (total, True)


def test_only_the_step_that_did_not_fit_is_read_again(
    scorer: ResidentScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer._reader.max_tokens = 128
    long = [Continuation(tuple((n * k) % 60 + 3 for k in range(40)), (5, 6)) for n in range(1, 11)]
    read: list[tuple[int, int]] = []
    step = TreeReader._step

    def failing_once(reader: TreeReader, given: Any, adapters: Any) -> Any:
        read.append((given.layout.start, given.layout.stop))
        if len(read) == 2:
            raise ERRORS[0]
        return step(reader, given, adapters)

    monkeypatch.setattr(TreeReader, "_step", failing_once)
    scorer.log_likelihoods([None], long)
    (first, failed, *after) = read
    assert after[0] == (failed[0], failed[0] + 64)
    done = [first, *after]
    assert [stop for _, stop in done[:-1]] == [start for start, _ in done[1:]]


def test_a_card_s_first_step_fits_into_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a token: keys and values of two layers, and vectors of a layer, in bfloat16."""
    of_token = 2 * (2 * 2 * 2 * 8 + 4 * (32 + 48))
    with fake_cuda(), torch.device(CUDA):
        torch.set_default_dtype(torch.bfloat16)  # a fake model cannot be cast
        try:
            model = tiny("Llama")
        finally:
            torch.set_default_dtype(torch.float32)
        for free, expected in ((10**10, 4096), (2 * 1024 * of_token, 1024), (1, 64)):
            monkeypatch.setattr(reader_module, "free_bytes", lambda _, free=free: free)
            made = TreeReader(model, FrozenBank(), max_tokens=4096, cache_bytes=0)
            assert made.max_tokens == expected


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_texts_are_written_fewer_at_once(
    scorer: ResidentScorer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    told: list[int] = []
    expected = scorer.generate([None, "a"], PROMPTS, told.append)
    total, rows = sum(told), scorer._decoder._max_rows
    told.clear()
    monkeypatch.setattr(Decoder, "_step", failing(Decoder._step, error, 3))
    assert scorer.generate([None, "a"], PROMPTS, told.append) == expected
    assert scorer._decoder._max_rows == rows // 8
    assert (sum(told), min(told) > 0) == (total, True)


def test_heads_are_read_in_smaller_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = HeadScorer(tiny("Llama"), max_batch_tokens=128)
    changes, told = [Ablation(Head(0, 1)), Ablation(Head(1, 2))], list[int]()
    expected = scorer.log_likelihoods(ITEMS, changes, advance=told.append)
    total = sum(told)
    told.clear()
    monkeypatch.setattr(TreeReader, "_step", failing(TreeReader._step, ERRORS[0], 1))
    found = scorer.log_likelihoods(ITEMS, changes, advance=told.append)
    assert scorer._reader.max_tokens == 64
    for own, same in zip(found, expected, strict=True):
        assert [a.nats for a in own] == pytest.approx([a.nats for a in same], abs=1e-4)
    assert (sum(told), min(told) > 0) == (total, True)


def test_distributions_are_read_in_smaller_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [RightAnswer("task", n, (n, *range(3, 50)) * 2, (n, n + 1)) for n in range(3, 7)]
    told: list[int] = []
    expected = log_probabilities(tiny("Llama"), answers, max_batch_tokens=128, advance=told.append)
    total = sum(told)
    told.clear()
    monkeypatch.setattr(TreeReader, "_step", failing(TreeReader._step, ERRORS[0], 1))
    found = log_probabilities(tiny("Llama"), answers, max_batch_tokens=128, advance=told.append)
    for own, same in zip(found, expected, strict=True):
        assert torch.allclose(own, same, atol=1e-4)
    assert (sum(told), min(told) > 0) == (total, True)


def always(error: Exception, calls: list[int]) -> Callable[..., Any]:
    def step(*_: Any) -> Any:
        calls.append(1)
        raise error

    return step


def ask(scorer: ResidentScorer, what: type) -> None:
    if what is TreeReader:
        scorer.log_likelihoods([None], ITEMS)
    else:
        scorer.generate([None], PROMPTS)


@pytest.mark.parametrize("what", [TreeReader, Decoder])
def test_what_does_not_fit_in_the_smallest_step_is_an_error(
    scorer: ResidentScorer, monkeypatch: pytest.MonkeyPatch, what: type
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(what, "_step", always(ERRORS[0], calls))
    with pytest.raises(torch.OutOfMemoryError):
        ask(scorer, what)
    assert 2 < len(calls) < 20


@pytest.mark.parametrize("what", [TreeReader, Decoder])
def test_another_error_is_not_tried_again(
    scorer: ResidentScorer, monkeypatch: pytest.MonkeyPatch, what: type
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(what, "_step", always(RuntimeError("shapes differ"), calls))
    with pytest.raises(RuntimeError, match="shapes differ"):
        ask(scorer, what)
    assert len(calls) == 1
