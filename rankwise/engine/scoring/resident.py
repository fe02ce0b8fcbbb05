"""The resident engine: one base model in memory, scored with all attached adapters."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Sequence, Set
from typing import Any

import torch
from torch import nn

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.devices import STEP_TOKENS, free_bytes, in_smaller_steps
from rankwise.engine.models.frozen_adapters import (
    FrozenAdapter,
    FrozenBank,
    carrying,
    load_frozen_adapter,
)
from rankwise.engine.models.head import CompletionHead
from rankwise.engine.models.lanes import Lanes, opened
from rankwise.engine.models.packed_attention import check_packable
from rankwise.engine.models.placed import devices_of
from rankwise.engine.scoring.decode.decoder import Decoder, ScoringWork
from rankwise.engine.scoring.tree.answers import LogLikelihoodSums, Targets, add_answers
from rankwise.engine.scoring.tree.prefixes import PrefixTree, side_by_side
from rankwise.engine.scoring.tree.reader import TreeReader
from rankwise.errors import ModelError
from rankwise.tasks.questions import Advance, Continuation, Generation, LogLikelihood, Prompt

CACHE_SHARE = 0.25
"""The share of the free memory that cached keys and values may take. There is a cache for
log-likelihoods and one for texts, and the activations of a pass need room besides."""

# Fewer distinct tokens are not shared out: a lane's modules take longer to make than to use.
_LANE_TOKENS = 256


class ResidentScorer:
    """A frozen base model and adapters, scored together; see ``tasks.questions.Scorer``.

    Attributes:
        attached: the names of the adapters that are on the model.
        reading: what log-likelihoods took so far.
        decoding: what generations took so far.
    """

    def __init__(
        self,
        base_model: nn.Module,
        tokenizer: Any,
        *,
        max_batch_tokens: int | None = None,
        cache_bytes: int | None = None,
        max_lanes: int = 1,
    ) -> None:
        """Check that the model can read sequences in parts.

        Args:
            base_model: frozen, in eval mode, without adapters; computes on its own device in its
                own precision.
            tokenizer: its own.
            max_batch_tokens: of one forward pass, all models together; None: ``STEP_TOKENS``.
            cache_bytes: for cached keys and values; None is a quarter of what is free. A single
                sequence of a single model is read even if it needs more.
            max_lanes: parts of the continuations that are read side by side, on a CPU.

        Raises:
            ModelError: attention or head of the model are not of a kind that is known here.
        """
        self._model = base_model
        check_packable(base_model)
        decoder = decoder_of(base_model)
        self._head = CompletionHead(decoder)
        self._device: torch.device = decoder.device
        self._max_lanes = max_lanes
        self._adapters: dict[str, FrozenAdapter] = {}
        self.attached: Set[str] = self._adapters.keys()
        self._bank = FrozenBank()
        if cache_bytes is None:
            cache_bytes = int(CACHE_SHARE * min(map(free_bytes, devices_of(base_model))))
        self._reader = TreeReader(
            base_model,
            self._bank,
            max_tokens=max_batch_tokens or STEP_TOKENS[self._device.type],
            cache_bytes=cache_bytes,
            # the time in which a card reads a step is not much more than that of its layout
            keeps_layouts=self._device.type == "cuda",
        )
        self._decoder = Decoder(decoder, tokenizer, self._bank, cache_bytes=cache_bytes)
        self.reading, self.decoding = ScoringWork(), self._decoder.work

    def put_on(self, name: str, adapter: AdapterFolder) -> None:
        """Attach an adapter from disk.

        Raises:
            ModelError: it cannot be read, does not fit, or is more than plain LoRA.
        """
        dtype = next(self._model.parameters()).dtype
        self.hold(name, load_frozen_adapter(self._model, adapter, dtype))

    def hold(self, name: str, adapter: FrozenAdapter) -> None:
        """Attach an adapter that is in memory, in the model's dtype."""
        self._adapters[name] = adapter

    def take_off(self, name: str) -> None:
        """Detach an adapter and free its memory."""
        del self._adapters[name]

    @torch.inference_mode()
    def log_likelihoods(
        self,
        models: Sequence[str | None],
        items: Sequence[Continuation],
        advance: Advance = lambda _: None,
    ) -> list[list[LogLikelihood]]:
        """Score continuations; every distinct token is read once by every model.

        If memory runs out in a step, smaller ones go on from there.
        """
        if not items:
            return [[] for _ in models]
        texts = [item.tokens_read for item in items]
        shares = side_by_side(texts, self._max_lanes, _LANE_TOKENS)  # of each lane
        parts = [
            Targets(PrefixTree([texts[n] for n in share]), [items[n] for n in share])
            for share in shares
        ]
        with opened(len(parts)) as lanes:
            by_part = in_smaller_steps(
                lambda tell: self._read(models, parts, lanes, tell),
                self._reader.shrink,
                advance,
                self._device,
            )
        self._reader.forget_layouts()
        self.reading.tokens_read += sum(num_read for num_read, _ in by_part)
        self.reading.distinct_tokens += sum(len(part.tree) for part in parts) * len(models)
        places = sorted(range(len(items)), key=[*itertools.chain(*shares)].__getitem__)
        by_model = zip(*(answers for _, answers in by_part), strict=True)
        answers = ([*itertools.chain(*of_model)] for of_model in by_model)
        return [[of_model[place] for place in places] for of_model in answers]

    def _read(
        self, models: Sequence[str | None], parts: Sequence[Targets], lanes: Lanes, advance: Advance
    ) -> list[tuple[int, list[list[LogLikelihood]]]]:
        """The tokens that were read of each part, and the answers by model and item."""
        with self._carried(models) as adapters:
            readers = [self._reader]
            if len(parts) > 1:
                readers = [self._reader.beside(len(parts)) for _ in parts]
            found = lanes.map(
                lambda of, tell: self._read_part(*of, adapters, tell),
                [*zip(readers, parts, strict=True)],
                advance,
            )
            peak = sum(reader.peak_cache_bytes for reader in readers)
            self._reader.peak_cache_bytes = max(self._reader.peak_cache_bytes, peak)
        return found

    @torch.inference_mode()  # here too, as each thread has its own mode
    def _read_part(
        self,
        reader: TreeReader,
        targets: Targets,
        adapters: Sequence[FrozenAdapter | None],
        advance: Advance,
    ) -> tuple[int, list[list[LogLikelihood]]]:
        """The tokens that were read, and the answers by model and item."""
        tree = targets.tree
        answers: list[list[LogLikelihood]] = []
        num_read = 0
        size = reader.together(tree, len(adapters))
        for start in range(0, len(adapters), size):
            group = adapters[start : start + size]
            sums = LogLikelihoodSums(len(group), len(tree.lasts), self._device)
            for read in reader.read(tree, group):
                add_answers(self._head, read, targets, sums)
                num_read += len(group) * (read.stop - read.start)
                advance(len(group) * targets.tokens_finished(read.start, read.stop))
            answers += sums.log_likelihoods()
        return num_read, answers

    def generate(
        self,
        models: Sequence[str | None],
        prompts: Sequence[Prompt],
        advance: Advance = lambda _: None,
    ) -> list[list[Generation]]:
        """Continue prompts, all models together; again with fewer at once if memory runs out."""

        def write(tell: Advance) -> list[list[Generation]]:
            with self._carried(models) as adapters:
                return self._decoder.generate(adapters, prompts, tell)

        return in_smaller_steps(write, self._decoder.shrink, advance, self._device)

    @contextlib.contextmanager
    def _carried(self, models: Sequence[str | None]) -> Generator[list[FrozenAdapter | None]]:
        """Within the block, the layers carry the adapters of these models."""
        if unknown := [n for n in models if n is not None and n not in self._adapters]:
            raise ModelError(f"no adapter {', '.join(unknown)} is attached to the resident model.")
        adapters = [None if name is None else self._adapters[name] for name in models]
        with carrying(self._model, adapters, self._bank):
            yield adapters
