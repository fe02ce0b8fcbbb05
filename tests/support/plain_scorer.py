"""The interface of scoring, plainly: one model, one text at a time, by transformers alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence, Set
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from lm_eval.models.utils import postprocess_generated_text

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.frozen_adapters import (
    FrozenAdapter,
    FrozenPiece,
    carrying,
    load_frozen_adapter,
)
from rankwise.tasks.questions import Advance, Continuation, Generation, LogLikelihood, Prompt


class PlainScorer:
    """Remembers the models and the number of items of every call."""

    def __init__(self, model: Any, tokenizer: Any, **_: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.adapters: dict[str, FrozenAdapter] = {}
        self.calls: list[tuple[tuple[str | None, ...], int]] = []

    def put_on(self, name: str, adapter: AdapterFolder) -> None:
        dtype = next(self.model.parameters()).dtype
        self.adapters[name] = load_frozen_adapter(self.model, adapter, dtype)

    @property
    def attached(self) -> Set[str]:
        return self.adapters.keys()

    def take_off(self, name: str) -> None:
        del self.adapters[name]

    def log_likelihoods(
        self,
        models: Sequence[str | None],
        items: Sequence[Continuation],
        advance: Advance = lambda _: None,
    ) -> list[list[LogLikelihood]]:
        self.calls.append((tuple(models), len(items)))
        return [[self._read(name, item, advance) for item in items] for name in models]

    def generate(
        self,
        models: Sequence[str | None],
        prompts: Sequence[Prompt],
        advance: Advance = lambda _: None,
    ) -> list[list[Generation]]:
        self.calls.append((tuple(models), len(prompts)))
        return [[self._write(name, prompt, advance) for prompt in prompts] for name in models]

    def _carrying(self, name: str | None) -> Any:
        if name is None:
            return nullcontext()
        adapter = self.adapters[name]
        stack = ExitStack()
        bank = stack.enter_context(carrying(self.model, [adapter]))
        stack.enter_context(bank.rows_of([FrozenPiece(adapter, 0, sys.maxsize)]))
        return stack

    @torch.no_grad()
    def _read(self, name: str | None, item: Continuation, advance: Advance) -> LogLikelihood:
        continuation = torch.tensor(item.continuation)
        with self._carrying(name):
            logits = self.model(torch.tensor([item.tokens_read]), use_cache=False).logits[0]
        expected = logits[-len(continuation) :].float().log_softmax(-1)
        advance(len(item.tokens_read))
        nats = expected.gather(1, continuation[:, None]).sum()
        return LogLikelihood(float(nats), bool((expected.argmax(-1) == continuation).all()))

    @torch.no_grad()
    def _write(self, name: str | None, prompt: Prompt, advance: Advance) -> Generation:
        settings, options = prompt.settings, dict(prompt.settings.options)
        with self._carrying(name), torch.random.fork_rng():
            torch.manual_seed(prompt.draw % 2**63)
            tokens = self.model.generate(
                input_ids=torch.tensor([prompt.tokens]),
                attention_mask=torch.ones(1, len(prompt.tokens), dtype=torch.long),
                max_new_tokens=settings.max_new_tokens,
                stop_strings=list(settings.stops),
                tokenizer=self.tokenizer,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        new = tokens[0, len(prompt.tokens) :]
        advance(len(prompt.tokens) + settings.max_new_tokens)
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        of_model = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [])}
        is_finished = (
            len(new) < settings.max_new_tokens
            or bool(ends & set(new.tolist()))
            or any(stop in text for stop in settings.stops)
        )
        return Generation(postprocess_generated_text(text, list(settings.stops), None), is_finished)
