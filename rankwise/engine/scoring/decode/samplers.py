"""The next token of every row, and where its text ends.

It is chosen as transformers' ``generate`` chooses it, each row by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    GenerationMode,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from rankwise.engine.models.devices import moved, moved_together
from rankwise.engine.models.seeds import seed_of
from rankwise.errors import ModelError
from rankwise.tasks.questions import GenerationSettings, Prompt

# These depend on the scores alone, so that all rows go through them together.
_OF_SCORES_ALONE = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
)
# Options that use more than a row's own tokens and scores, or make several texts of one.
_REFUSED = ("guidance_scale", "watermarking_config", "max_time", "stop_strings", "token_healing")
# lm-eval searches this many tokens more than a stop string itself takes: the model may have
# written it in other tokens.
_MORE_TOKENS = 2
# Columns in a group of ``first_largest``: few compared with a vocabulary, so that both of its
# argmaxes, over groups and in a group, are short.
_COLUMNS = 128


class RowSampling(NamedTuple):
    """How the next token of one row is chosen.

    Attributes:
        sampler: of its settings.
        processors: of transformers, for a prompt of this length.
        generator: the row's own random numbers.
    """

    sampler: Sampler
    processors: LogitsProcessorList
    generator: torch.Generator


class Sampler:
    """Chooses the next tokens of rows with equal settings, greedily or at random.

    The model's own generation config counts, as in ``generate``; its repetition penalty also for
    greedy decoding.

    Attributes:
        end_tokens: ids that end a text.
        stops: strings that end it.
        is_random: whether tokens are drawn.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: GenerationSettings) -> None:
        """Read the settings.

        Raises:
            ModelError: an option is unknown, out of its range, or asks for something other than
                greedy decoding or plain sampling.
        """
        self._model, self._settings = model, settings
        self.stops = StopStrings(tokenizer, settings.stops)
        self._device = next(model.parameters()).device
        try:
            config, unknown = _config_of(model, settings)
        except ValueError as error:
            raise ModelError(f"generation options {dict(settings.options)}: {error}") from error
        refused = sorted(unknown)
        refused += [name for name in _REFUSED if getattr(config, name, None) not in (None, False)]
        refused = [n for n in refused if not (n == "guidance_scale" and config.guidance_scale == 1)]
        if (config.num_return_sequences or 1) > 1:
            refused.append("num_return_sequences")
        mode = config.get_generation_mode()
        if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            refused.append(str(mode.value))
        if refused:
            raise ModelError(
                f"cannot generate with {', '.join(refused)}: texts are decoded greedily or "
                "sampled. Change generation_kwargs of the task or generation_config.json."
            )
        model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=self._device)
        self._config = config
        eos = config._eos_token_tensor
        self.end_tokens: frozenset[int] = frozenset(() if eos is None else eos.tolist())
        self.is_random = bool(config.do_sample)

    def begin(self, prompt: Prompt) -> RowSampling:
        """How the row of this prompt chooses.

        Raises:
            ModelError: an option is out of its range.
        """
        config = copy.copy(self._config)
        config.max_length = len(prompt.tokens) + self._settings.max_new_tokens
        try:
            processors = self._model._get_logits_processor(
                config,
                input_ids_seq_length=len(prompt.tokens),
                encoder_input_ids=torch.tensor([prompt.tokens], device=self._device),
                device=str(self._device),
                model_kwargs={},
            )
        except ValueError as error:
            raise ModelError(
                f"generation options {dict(self._settings.options)}: {error}"
            ) from error
        generator = torch.Generator().manual_seed(seed_of(prompt.draw, prompt.tokens))
        return RowSampling(self, processors, generator)

    def next_tokens(
        self,
        logits: Float[Tensor, "rows vocabulary"],
        rows: Sequence[RowSampling],
        tokens: Iterable[list[int]],
    ) -> Int[Tensor, " rows"]:
        """Choose a token for every row, on the device of the logits.

        Args:
            logits: of the next token, in any dtype.
            rows: from ``begin``.
            tokens: of the rows, prompt included.
        """
        if not self.is_random and not rows[0].processors:
            return first_largest(logits)
        scores = self._processed(logits.float(), rows, tokens)
        if not self.is_random:
            return scores.argmax(dim=-1)
        return _drawn(scores, [row.generator for row in rows])

    def _processed(
        self,
        scores: Float[Tensor, "rows vocabulary"],
        rows: Sequence[RowSampling],
        tokens: Iterable[list[int]],
    ) -> Float[Tensor, "rows vocabulary"]:
        """Scores after the processors.

        Equal settings give every row the same kinds of processors, so those of scores alone run
        once for all rows, provided that they come last, and so does a penalty for repetition. All
        others run row by row.
        """
        own = [[p for p in row.processors if type(p) not in _OF_SCORES_ALONE] for row in rows]
        together = [p for p in rows[0].processors if type(p) in _OF_SCORES_ALONE]
        if rows[0].processors[: len(own[0])] != own[0]:
            own, together = [list(row.processors) for row in rows], []
        if own[0] and all(type(p) is RepetitionPenaltyLogitsProcessor for p in own[0]):
            # Which tokens there are is all that counts: repeating one makes rows equally long.
            texts = list(tokens)
            longest = max(map(len, texts))
            ids = np.array([[*text, *text[-1:] * (longest - len(text))] for text in texts])
            (input_ids,) = moved_together([ids], scores.device)
            scores = _applied(own[0], input_ids, scores)
        elif own[0]:
            ids = (moved(torch.tensor([of_row]), scores.device) for of_row in tokens)
            by_row = zip(own, ids, scores.split(1), strict=True)
            scores = torch.cat([_applied(*row) for row in by_row])
        # processors take the tokens too; these do not look at them
        nothing = torch.empty((len(scores), 0), dtype=torch.long, device=scores.device)
        return _applied(together, nothing, scores)


def _config_of(model: Any, settings: GenerationSettings) -> tuple[Any, Mapping[str, Any]]:
    """The ``GenerationConfig`` by which to write, and the options that are unknown."""
    if settings.plain_temperature is None:
        return model._prepare_generation_config(None, **dict(settings.options))
    own = model.generation_config
    tokens = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    temperature = settings.plain_temperature
    return GenerationConfig(do_sample=True, temperature=temperature, top_k=0, **tokens), {}


def _applied(processors: Sequence[Any], input_ids: Tensor, scores: Tensor) -> Tensor:
    for processor in processors:
        scores = processor(input_ids, scores)
    return scores


class StopStrings:
    """Says when a text has ended by a stop string, and what of it is kept.

    lm-eval decodes the last tokens after each step, special tokens included, and searches them for
    the string. Decoding is slow, so it is done only where the newest token can have completed the
    string: where its own text contains the string's last character.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        """``stops`` may be of any length and number; empty ones are ignored."""
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._reach = [
            len(tokenizer.encode(stop, add_special_tokens=False)) + _MORE_TOKENS
            for stop in self._stops
        ]
        # token -> numbers of the strings that it can complete
        self._may_complete: dict[int, tuple[int, ...]] = {}

    def are_in(self, new_tokens: Sequence[int]) -> bool:
        """Whether the newest token completes a stop string."""
        if not self._stops:
            return False
        newest = new_tokens[-1]
        if newest not in self._may_complete:  # in doubt, it can complete a string
            # Some tokenizers drop a leading space at the beginning of a text, and a part of a
            # character is decoded to the replacement character.
            text = " " + self._tokenizer.decode([newest])
            unclear = text == " " or "\N{REPLACEMENT CHARACTER}" in text
            stops = enumerate(self._stops)
            self._may_complete[newest] = tuple(
                i for i, stop in stops if unclear or stop[-1] in text
            )
        return any(
            self._stops[i] in self._tokenizer.decode(new_tokens[-self._reach[i] :])
            for i in self._may_complete[newest]
        )

    def kept(self, text: str) -> str:
        """The text up to the first stop string, as lm-eval cuts it: one string after the other."""
        for stop in self._stops:
            text = text.split(stop)[0]
        return text


def first_largest(logits: Float[Tensor, "rows vocabulary"]) -> Int[Tensor, " rows"]:
    """The first column of each row's maximum, as argmax finds it.

    On a CPU amax is vectorised and argmax is not: amax finds the best group of columns, and argmax
    the best column in it.
    """
    size = logits.shape[1]
    whole = size // _COLUMNS * _COLUMNS
    if whole == 0 or logits.is_cuda:
        return logits.argmax(dim=-1)
    best = logits[:, :whole].unflatten(1, (-1, _COLUMNS)).amax(dim=-1)  # (rows, groups)
    if whole < size:
        best = torch.cat([best, logits[:, whole:].amax(dim=-1, keepdim=True)], dim=1)
    # The last group may be short: its window begins earlier, among columns with lower logits.
    start = (best.argmax(dim=-1) * _COLUMNS).clamp_(max=size - _COLUMNS)[:, None]  # (rows, 1)
    columns = start + torch.arange(_COLUMNS, device=logits.device)  # (rows, _COLUMNS)
    return start[:, 0] + logits.gather(1, columns).argmax(dim=-1)


def _drawn(
    scores: Float[Tensor, "rows vocabulary"], generators: Sequence[torch.Generator]
) -> Int[Tensor, " rows"]:
    """One token per row from the softmax of its scores, by a uniform number of its generator.

    By inversion: the first token at which the cumulative sum of probabilities is above the number.
    """
    # float64: in float32 a sum over a whole vocabulary would lose the smallest probabilities
    shares = scores.softmax(dim=-1).double().cumsum(dim=-1)
    # Drawn in float32, so at most 1 - 2**-24: its product with the total stays below the total.
    uniform = torch.stack([torch.rand((1,), generator=generator) for generator in generators])
    threshold = moved(uniform.to(shares.dtype), shares.device) * shares[:, -1:]
    return torch.searchsorted(shares, threshold, right=True)[:, 0]
