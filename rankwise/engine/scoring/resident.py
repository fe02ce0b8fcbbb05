"""The resident engine: one base model in memory, scored with all adapters that were put on it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn

from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.frozen_adapters import (
    FrozenAdapter,
    FrozenBank,
    carrying,
    load_frozen_adapter,
)
from rankwise.engine.models.head import CompletionHead
from rankwise.engine.models.packed_attention import check_packable, packed_attention
from rankwise.engine.scoring.decode.decoder import Decoder, DecodeWork
from rankwise.engine.scoring.tree.answers import Answers, Targets, answer
from rankwise.engine.scoring.tree.prefixes import PrefixTree
from rankwise.engine.scoring.tree.reader import TreeReader
from rankwise.errors import ModelError
from rankwise.tasks.questions import Advance, Continuation, Generation, LogLikelihood, Prompt

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

    def hold(self, name: str, adapter: FrozenAdapter) -> None:
        """Make an adapter known that is in memory already, in the model's dtype."""
        self._adapters[name] = adapter

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
        targets = Targets(tree, items)
        found: list[list[LogLikelihood]] = []
        with self._carried(models) as adapters:
            for group in _groups(adapters, self._reader.together(tree, len(models))):
                answers = Answers(len(group), len(items), self._device)
                for read in self._reader.read(tree, group):
                    answer(self._head, read, targets, answers)
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
