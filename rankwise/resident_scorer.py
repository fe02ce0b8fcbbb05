"""The resident engine: one base model in memory, scored with all adapters that were put on it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.attention_interface import decoder_of
from rankwise.completion_loss import BLOCK_BYTES, CHUNK_BYTES, CompletionHead
from rankwise.decoding import Decoder, DecodeWork
from rankwise.errors import ModelError
from rankwise.frozen_adapters import (
    FrozenAdapter,
    FrozenBank,
    carrying,
    load_frozen_adapter,
)
from rankwise.packed_attention import check_packable, packed_attention
from rankwise.prefix_tree import PrefixTree
from rankwise.scoring import Advance, Continuation, Generation, LogLikelihood, Prompt
from rankwise.tree_reader import ReadPlaces, TreeReader

# Of the free memory, what cached keys and values may take.
_CACHE_SHARE = 0.25


class ReadingWork(NamedTuple):
    """What log-likelihoods took, models together.

    Attributes:
        tokens_read: that went through the model.
        distinct_tokens: of those asked for, the ones that differ by what they stand behind.
    """

    tokens_read: int = 0
    distinct_tokens: int = 0


class ResidentScorer:
    """A frozen base model and adapters, scored together; as ``scoring.Scorer`` says.

    Attributes:
        reading: what log-likelihoods took so far.
    """

    def __init__(
        self,
        base_model: nn.Module,
        tokenizer: Any,
        *,
        max_batch_tokens: int,
        cache_bytes: int | None = None,
    ) -> None:
        """Check that the model can be read in parts.

        Args:
            base_model: frozen, in eval mode, without adapters; computes on its own device in its
                own precision.
            tokenizer: its own.
            max_batch_tokens: in one forward pass, all models together.
            cache_bytes: for cached keys and values; None is a quarter of what is free. A single
                sequence of a single model is read whatever it takes.

        Raises:
            ModelError: attention or head of the model are not of a kind that is known here.
        """
        self._model = base_model
        check_packable(base_model)
        decoder = decoder_of(base_model)
        with packed_attention(base_model):
            self._head = CompletionHead(decoder)
        self._adapters: dict[str, FrozenAdapter] = {}
        self._bank = FrozenBank()
        cache_bytes = _free_share(decoder.device) if cache_bytes is None else cache_bytes
        self._reader = TreeReader(
            base_model, self._bank, max_tokens=max_batch_tokens, cache_bytes=cache_bytes
        )
        self._decoder = Decoder(decoder, tokenizer, self._bank, cache_bytes=cache_bytes)
        self.reading = ReadingWork()

    @property
    def decoding(self) -> DecodeWork:
        """What generations took so far."""
        return self._decoder.work

    @property
    def peak_cache_bytes(self) -> int:
        """The most keys and values that were kept for log-likelihoods at once."""
        return self._reader.peak_cache_bytes

    def put_on(self, name: str, folder: Path) -> None:
        """Make an adapter known; as ``scoring.Scorer``."""
        dtype = next(self._model.parameters()).dtype
        self._adapters[name] = load_frozen_adapter(self._model, folder, dtype)

    def take_off(self, name: str) -> None:
        """Forget an adapter and give its memory back."""
        del self._adapters[name]

    @torch.inference_mode()
    def log_likelihoods(
        self,
        models: Sequence[str | None],
        items: Sequence[Continuation],
        advance: Advance = lambda _: None,
    ) -> list[list[LogLikelihood]]:
        """Score continuations; every distinct token is read once by every model."""
        if not items:
            return [[] for _ in models]
        tree = PrefixTree([item.tokens_read for item in items])
        targets = _Targets(tree, items)
        found: list[list[LogLikelihood]] = []
        with self._carried(models) as adapters:
            for group in _groups(adapters, self._reader.together(tree, len(models))):
                answers = _Answers(len(group), len(items), self._device)
                for read in self._reader.read(tree, group):
                    self._answer(read, targets, answers)
                    num_read = len(group) * (read.stop - read.start)
                    self.reading = self.reading._replace(
                        tokens_read=self.reading.tokens_read + num_read
                    )
                    advance(len(group) * targets.tokens_finished(read.start, read.stop))
                found += answers.log_likelihoods()
        distinct = self.reading.distinct_tokens + len(tree) * len(models)
        self.reading = self.reading._replace(distinct_tokens=distinct)
        return found

    def generate(
        self,
        models: Sequence[str | None],
        prompts: Sequence[Prompt],
        advance: Advance = lambda _: None,
    ) -> list[list[Generation]]:
        """Continue prompts, all models together."""
        with self._carried(models) as adapters:
            return self._decoder.generate(adapters, prompts, advance)

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    @contextlib.contextmanager
    def _carried(self, models: Sequence[str | None]) -> Generator[list[FrozenAdapter | None]]:
        """Within the block, the layers carry the adapters of these models."""
        if unknown := [n for n in models if n is not None and n not in self._adapters]:
            raise ModelError(f"no adapter {', '.join(unknown)} was put on the resident model.")
        adapters = [None if name is None else self._adapters[name] for name in models]
        with carrying(self._model, [a for a in adapters if a is not None], self._bank):
            yield adapters

    def _answer(self, read: ReadPlaces, targets: _Targets, answers: _Answers) -> None:
        """Logits of the places behind which a token is scored, in chunks of a few places."""
        places, of_places = targets.within(read.start, read.stop)
        size = self._head.vocab_size * read.hidden.element_size() * len(read.hidden)
        chunk = max(1, CHUNK_BYTES[self._device.type] // size)
        for start in range(0, len(places), chunk):
            own = slice(start, min(start + chunk, len(places)))
            rows = torch.from_numpy(places[own] - read.start).to(self._device)
            logits = self._head.logits(read.hidden[:, rows].flatten(0, 1)).unflatten(
                0, (len(read.hidden), -1)
            )
            first, last = of_places[own.start], of_places[own.stop]
            answers.add(logits, targets.part(first, last, places[own]))


class _Scored(NamedTuple):
    """Tokens that are scored behind a few places.

    Attributes:
        rows: of each, the number of its place among these.
        tokens: their ids.
        items: whose they are.
    """

    rows: Int[np.ndarray, " tokens"]
    tokens: Int[np.ndarray, " tokens"]
    items: Int[np.ndarray, " tokens"]


class _Targets:
    """The tokens that are scored, in the order of the places behind which they are predicted."""

    def __init__(self, tree: PrefixTree, items: Sequence[Continuation]) -> None:
        paths = [
            tree.path(last)[-len(item.continuation) :]
            for last, item in zip(tree.lasts, items, strict=True)
        ]
        places = np.concatenate(paths)
        tokens = np.asarray([t for item in items for t in item.continuation], dtype=np.int64)
        owners = np.repeat(np.arange(len(items)), [len(item.continuation) for item in items])
        order = np.argsort(places, kind="stable")
        self._places, self._tokens, self._items = places[order], tokens[order], owners[order]
        self._lasts = np.sort(np.asarray(tree.lasts, dtype=np.int64))
        by_last = np.argsort(np.asarray(tree.lasts, dtype=np.int64), kind="stable")
        self._read = [0, *accumulate(len(items[index].tokens_read) for index in by_last)]

    def within(
        self, start: int, stop: int
    ) -> tuple[Int[np.ndarray, " places"], Int[np.ndarray, " places+1"]]:
        """Scored places from ``start`` to ``stop``, and the first target of each and the end."""
        first, last = np.searchsorted(self._places, [start, stop])
        places, firsts = np.unique(self._places[first:last], return_index=True)
        return places, np.append(firsts + first, last)

    def part(self, first: int, last: int, places: Int[np.ndarray, " places"]) -> _Scored:
        """The targets from ``first`` to ``last``, which are behind these places."""
        own = slice(first, last)
        rows = np.searchsorted(places, self._places[own])
        return _Scored(rows, self._tokens[own], self._items[own])

    def tokens_finished(self, start: int, stop: int) -> int:
        """Tokens of the items whose last place is from ``start`` to ``stop``."""
        first, last = np.searchsorted(self._lasts, [start, stop])
        return self._read[last] - self._read[first]


class _Answers:
    """Sums of log-probabilities, and whether all were the greatest, by model and item."""

    def __init__(self, num_models: int, num_items: int, device: torch.device) -> None:
        self._nats = torch.zeros(num_models, num_items, dtype=torch.float64, device=device)
        self._misses = torch.zeros(num_models, num_items, dtype=torch.long, device=device)

    def add(self, logits: Float[Tensor, "models places vocab"], scored: _Scored) -> None:
        """Add the scored tokens' log-probabilities, in float32 and a block of places at a time.

        By ``log_softmax``, as lm-eval: its rounding, about 1e-5 nats a token on a CPU, is the
        same way for every token and adds up over a long text; ``logsumexp`` has none of it.
        """
        rows, tokens, items = (torch.from_numpy(x).to(logits.device) for x in scored)
        block = max(1, BLOCK_BYTES[logits.device.type] // (4 * logits.shape[-1]))
        bounds = range(0, logits.shape[1] + block, block)
        firsts = np.searchsorted(scored.rows, bounds)
        for number, of_model in enumerate(logits):
            for start, first, last in zip(bounds, firsts[:-1], firsts[1:], strict=False):
                some = of_model[start : start + block]
                at = rows[first:last] - start, tokens[first:last]
                found = some.float().log_softmax(dim=-1)[at]
                self._nats[number].index_add_(0, items[first:last], found.double())
                misses = some[at] < some.amax(dim=-1)[at[0]]
                if not bool(misses.all()):  # the first of equal greatest ones is the greedy choice
                    misses |= some.argmax(dim=-1)[at[0]] != at[1]
                self._misses[number].index_add_(0, items[first:last], misses.long())

    def log_likelihoods(self) -> list[list[LogLikelihood]]:
        """By model and item."""
        pairs = zip(self._nats.tolist(), (self._misses == 0).tolist(), strict=True)
        return [[LogLikelihood(*each) for each in zip(*pair, strict=True)] for pair in pairs]


def _groups(
    adapters: Sequence[FrozenAdapter | None], size: int
) -> Iterator[Sequence[FrozenAdapter | None]]:
    for start in range(0, len(adapters), size):
        yield adapters[start : start + size]


def _free_share(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    return int(_CACHE_SHARE * free)
