"""Log-likelihoods from a tree: which tokens are scored behind which places, and their sums."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankwise.engine.models.devices import moved_together
from rankwise.engine.models.head import BLOCK_BYTES, CHUNK_BYTES, CompletionHead
from rankwise.engine.scoring.tree.prefixes import PrefixTree
from rankwise.engine.scoring.tree.reader import ReadPlaces
from rankwise.tasks.questions import Continuation, LogLikelihood


class ScoredTokens(NamedTuple):
    """Tokens that are scored behind a few places.

    Attributes:
        rows: number of each token's place among these places, ascending.
        tokens: token ids.
        items: number of each token's item.
    """

    rows: Int[np.ndarray, " tokens"]
    tokens: Int[np.ndarray, " tokens"]
    items: Int[np.ndarray, " tokens"]


class Targets:
    """The tokens that are scored, in the order of the places behind which they are predicted.

    Attributes:
        tree: of all items.
    """

    def __init__(self, tree: PrefixTree, items: Sequence[Continuation]) -> None:
        self.tree = tree
        # A sequence's last token is not read, so the n tokens of its continuation are predicted
        # behind the last n places of its path.
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
        """The scored places from ``start`` to ``stop``, and the bounds of each one's targets.

        Targets ``bounds[i]`` to ``bounds[i + 1]`` are those behind the i-th of these places.
        """
        first, last = np.searchsorted(self._places, [start, stop])
        places, firsts = np.unique(self._places[first:last], return_index=True)
        return places, np.append(firsts + first, last)

    def part(self, first: int, last: int, places: Int[np.ndarray, " places"]) -> ScoredTokens:
        """The targets from ``first`` to ``last``, which are behind these places."""
        span = slice(first, last)
        rows = np.searchsorted(places, self._places[span])
        return ScoredTokens(rows, self._tokens[span], self._items[span])

    def tokens_finished(self, start: int, stop: int) -> int:
        """Tokens of the items whose last place is from ``start`` to ``stop``."""
        first, last = np.searchsorted(self._lasts, [start, stop])
        return self._read[last] - self._read[first]


class LogLikelihoodSums:
    """Sums of log-probabilities in nats, and of tokens that are not greedy, by model and item."""

    def __init__(self, num_models: int, num_items: int, device: torch.device) -> None:
        self._nats = torch.zeros(num_models, num_items, dtype=torch.float64, device=device)
        self._misses = torch.zeros(num_models, num_items, dtype=torch.long, device=device)

    def add(self, logits: Float[Tensor, "models places vocab"], scored: ScoredTokens) -> None:
        """Add the scored tokens' log-probabilities, in float32 and a block of places at a time.

        By ``log_softmax``, as lm-eval: its rounding, about 1e-5 nats a token on a CPU, has the
        same sign for every token and adds up over a long text. ``logsumexp`` would not have it,
        and the numbers would differ from lm-eval's.
        """
        rows, tokens, items = moved_together(scored, logits.device)
        block = max(1, BLOCK_BYTES[logits.device.type] // (4 * logits.shape[-1]))
        bounds = range(0, logits.shape[1] + block, block)
        firsts = np.searchsorted(scored.rows, bounds)  # the first target of every block
        for number, of_model in enumerate(logits):
            for start, first, last in zip(bounds, firsts[:-1], firsts[1:], strict=False):
                part = of_model[start : start + block]  # (block, vocab)
                at = rows[first:last] - start, tokens[first:last]
                nats = part.float().log_softmax(dim=-1)[at]
                # which adds in the order of the tokens on every device; index_add_ does not on CUDA
                at_items = (items[first:last],)
                self._nats[number].index_put_(at_items, nats.double(), accumulate=True)
                misses = part[at] < part.amax(dim=-1)[at[0]]
                # Among equal maxima the first is the greedy choice. argmax is slower than amax on a
                # CPU, so there it is only computed where some token has reached the maximum.
                if part.is_cuda or not bool(misses.all()):
                    misses |= part.argmax(dim=-1)[at[0]] != at[1]
                self._misses[number].index_add_(0, items[first:last], misses.long())

    def log_likelihoods(self) -> list[list[LogLikelihood]]:
        """The log-likelihoods by model and item."""
        pairs = zip(self._nats.tolist(), (self._misses == 0).tolist(), strict=True)
        return [[LogLikelihood(*item) for item in zip(*pair, strict=True)] for pair in pairs]


def add_answers(
    head: CompletionHead, read: ReadPlaces, targets: Targets, sums: LogLikelihoodSums
) -> None:
    """Compute logits where a token is scored, a chunk of places at a time, and add them up."""
    places, bounds = targets.within(read.start, read.stop)
    hidden, device = read.hidden, read.hidden.device
    place_bytes = head.vocab_size * hidden.element_size() * len(hidden)
    chunk = max(1, CHUNK_BYTES[device.type] // place_bytes)
    for start in range(0, len(places), chunk):
        span = slice(start, min(start + chunk, len(places)))
        (rows,) = moved_together([places[span] - read.start], device)
        logits = head.logits(hidden[:, rows].flatten(0, 1))  # (models * places, vocab)
        logits = logits.unflatten(0, (len(hidden), -1))  # (models, places, vocab)
        first, last = int(bounds[span.start]), int(bounds[span.stop])
        sums.add(logits, targets.part(first, last, places[span]))
