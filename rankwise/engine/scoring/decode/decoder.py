"""Continuous batching: prompts are continued together, each row under its own model.

A row is a prompt and a model. Every forward pass has the newest token of each active row and the
prompts of rows that begin; when a row has ended, the next one takes its place.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankwise.engine.models.attention import attention_of, decoder_of, refuse_unpackable
from rankwise.engine.models.devices import moved_together
from rankwise.engine.models.frozen_adapters import FrozenAdapter, FrozenBank, FrozenPiece
from rankwise.engine.scoring.decode.attention import DECODE_ATTENTION, DecodeLayout
from rankwise.engine.scoring.decode.cache import BLOCK_TOKENS, BlockCache, Read, Segment
from rankwise.engine.scoring.decode.rows import Row, RowBatch, RowLimits, shared_prefixes
from rankwise.engine.scoring.decode.samplers import Sampler
from rankwise.engine.scoring.tree.prefixes import PrefixTree
from rankwise.errors import ModelError
from rankwise.tasks.questions import Advance, Generation, GenerationSettings, Prompt

# Rows that are active at once: with more, a step gets no cheaper per row.
_MAX_ROWS = 128
# Tokens of prompts that are read in the same pass: they would hold up the active rows if more.
_MAX_READ_TOKENS = 1024


@dataclass
class ScoringWork:
    """What log-likelihoods took so far, or texts; the last three are of texts alone.

    Attributes:
        tokens_read: tokens of prompts, all models together.
        distinct_tokens: likewise, a common prefix counted once for each model.
        steps: forward passes.
        rows: active rows, summed over the steps.
        places: rows that could have been active (``RowBatch.places``), summed over the steps.
    """

    tokens_read: int = 0
    distinct_tokens: int = 0
    steps: int = 0
    rows: int = 0
    places: int = 0

    @property
    def occupancy(self) -> float:
        """The mean share of places with an active row."""
        return self.rows / self.places if self.places else 1.0


class WrittenText(NamedTuple):
    """A continuation as a model wrote it.

    Attributes:
        tokens: the new ones; the last may be an end token.
        text: without special tokens, up to the first stop string.
        is_finished: it ended by itself, and was not cut at the maximum length.
    """

    tokens: tuple[int, ...]
    text: str
    is_finished: bool


class Decoder:
    """Continues prompts under the adapters of a base model.

    Attributes:
        bank: of the layers that carry adapters.
        work: of all calls so far.
    """

    def __init__(
        self,
        base_model: Any,
        tokenizer: Any,
        bank: FrozenBank,
        *,
        cache_bytes: int,
        max_rows: int = _MAX_ROWS,
        max_read_tokens: int = _MAX_READ_TOKENS,
    ) -> None:
        """Computes nothing yet.

        Args:
            base_model: frozen, in eval mode, on any device.
            tokenizer: its own.
            bank: of the layers that carry adapters.
            cache_bytes: for keys and values; a single row is continued even if it needs more.
            max_rows: rows that are active at once.
            max_read_tokens: of prompts in one pass; a single prompt is read even if it has more.

        Raises:
            ModelError: as ``refuse_unpackable``.
        """
        refuse_unpackable(base_model)
        self._model, self._tokenizer, self.bank = base_model, tokenizer, bank
        self._device = next(base_model.parameters()).device
        self._cache_bytes = cache_bytes
        self._max_rows, self._max_read_tokens = max_rows, max_read_tokens
        self.work = ScoringWork()

    def shrink(self) -> bool:
        """Halve the rows, the prompts of a pass and the cache; False where it is one row."""
        if self._max_rows == 1:
            return False
        self._max_rows //= 2
        self._max_read_tokens = max(1, self._max_read_tokens // 2)
        self._cache_bytes //= 2
        return True

    def generate(
        self,
        adapters: Sequence[FrozenAdapter | None],
        prompts: Sequence[Prompt],
        advance: Advance = lambda _: None,
    ) -> list[list[Generation]]:
        """Continue every prompt under every adapter, None being the base; as ``Scorer.generate``.

        Raises:
            ModelError: attention or settings ask for something that is not supported here.
        """
        written = self.write(adapters, [prompts] * len(adapters), advance)
        return [[Generation(each.text, each.is_finished) for each in of] for of in written]

    @torch.inference_mode()
    def write(
        self,
        adapters: Sequence[FrozenAdapter | None],
        prompts: Sequence[Sequence[Prompt]],
        advance: Advance = lambda _: None,
    ) -> list[list[WrittenText]]:
        """Continue the prompts of each adapter, all adapters together.

        Args:
            adapters: None is the base.
            prompts: of each of them, in the same order.
            advance: receives the tokens of each prompt and ``max_new_tokens``.

        Raises:
            ModelError: as ``generate``.
        """
        samplers = {
            settings: Sampler(self._model, self._tokenizer, settings)
            for settings in dict.fromkeys(prompt.settings for of in prompts for prompt in of)
        }
        if not samplers:
            return [[] for _ in prompts]
        # greedy texts of equal prompts are equal, whichever draw: each is written once
        wanted = [
            [
                prompt if samplers[prompt.settings].is_random else prompt._replace(draw=0)
                for prompt in of
            ]
            for of in prompts
        ]
        counts = Counter((model, prompt) for model, of in enumerate(wanted) for prompt in of)
        texts: dict[tuple[int, Prompt], WrittenText] = {}
        with attention_of(decoder_of(self._model), DECODE_ATTENTION):
            batch = self._batch(counts, samplers)
            while batch.places:
                for row in self._step(batch, adapters):
                    prompt, tokens = row.prompt, tuple(row.written)
                    # what lm-eval keeps: no special tokens, and cut where a stop string begins
                    text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
                    kept = row.sampling.sampler.stops.kept(text)
                    is_finished = row.has_stopped or len(kept) < len(text)
                    texts[row.model, prompt] = WrittenText(tokens, kept, is_finished)
                    num_tokens = len(prompt.tokens) + prompt.settings.max_new_tokens
                    advance(num_tokens * counts[row.model, prompt])
        return [[texts[model, prompt] for prompt in of] for model, of in enumerate(wanted)]

    def _batch(
        self,
        wanted: Collection[tuple[int, Prompt]],
        samplers: Mapping[GenerationSettings, Sampler],
    ) -> RowBatch:
        """All rows: prompts that begin alike follow each other, each under all its models."""
        models: dict[Prompt, list[int]] = defaultdict(list)
        for model, prompt in wanted:
            models[prompt].append(model)
        prompts = sorted(models, key=lambda prompt: (prompt.tokens, prompt.draw))
        chains = shared_prefixes([prompt.tokens for prompt in prompts])
        rows = [
            Row(model, index, prompt, chain, samplers[prompt.settings].begin(prompt))
            for index, (prompt, chain) in enumerate(zip(prompts, chains, strict=True))
            for model in sorted(models[prompt])
        ]
        blocks = self._cache_bytes // (self._bytes_per_token() * BLOCK_TOKENS)
        limits = RowLimits(self._max_rows, blocks, self._max_read_tokens)
        by_model: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for model, prompt in wanted:
            by_model[model].append(prompt.tokens)
        self.work.distinct_tokens += sum(len(PrefixTree(texts)) for texts in by_model.values())
        return RowBatch(rows, limits, self._device)

    def _bytes_per_token(self) -> int:
        """Bytes of a token's keys and values in all layers.

        Measured by reading one token, since configs have many names for these sizes.
        """
        segment, zero = Segment(0, 1), torch.zeros(1, dtype=torch.long, device=self._device)
        reads = [Read(0, 1, segment)]
        self._forward(DecodeLayout(BlockCache(0), zero, zero, zero, zero[:0], None, reads))
        expected = decoder_of(self._model).config.get_text_config().num_hidden_layers
        if len(segment.layers) != expected:
            name = type(decoder_of(self._model)).__name__
            raise ModelError(
                f"{name} keeps keys and values of {len(segment.layers)} of its {expected} layers. "
                "Choose another base model."
            )
        return sum(keys.nbytes + values.nbytes for keys, values in segment.layers.values())

    def _forward(self, layout: DecodeLayout) -> Tensor:
        """Logits behind some of the tokens, (ends, vocabulary)."""
        return self._model(
            input_ids=layout.tokens[None],
            position_ids=layout.positions[None],
            decode_layout=layout,
            logits_to_keep=layout.ends,
            use_cache=False,
        ).logits[0]

    def _step(self, batch: RowBatch, adapters: Sequence[FrozenAdapter | None]) -> list[Row]:
        """Write a token for every row; remove and return the rows that have ended."""
        batch.admit()
        places, rows = batch.places, batch.rows
        layout, ranges = batch.forward_pass()
        pieces = [
            FrozenPiece(adapter, start, stop)
            for model, start, stop in ranges
            if (adapter := adapters[model]) is not None
        ]
        with self.bank.rows_of(pieces):
            logits = self._forward(layout)
        self.work.tokens_read += sum(read.length for read in layout.reads)
        self.work.steps += 1
        self.work.rows += len(rows)
        self.work.places += places
        groups: dict[Sampler, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            groups[row.sampling.sampler].append(index)
        in_groups = [index for members in groups.values() for index in members]
        if len(groups) > 1:
            (order,) = moved_together([np.array(in_groups)], logits.device)
            logits = logits[order]
        by_group = logits.split([len(members) for members in groups.values()])
        new: list[Tensor] = []
        for (sampler, members), of_group in zip(groups.items(), by_group, strict=True):
            group = [rows[index] for index in members]
            samplings, tokens = [row.sampling for row in group], (row.tokens for row in group)
            new.append(sampler.next_tokens(of_group, samplings, tokens))
        for index, token in zip(in_groups, torch.cat(new).tolist(), strict=True):
            rows[index].written.append(token)
        ended = [
            row
            for row in rows
            if len(row.written) >= row.prompt.settings.max_new_tokens or row.has_stopped
        ]
        batch.remove(ended)
        return ended
