"""The next token of every row: as transformers' ``generate`` chooses it, each row by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationMode,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from rankwise.engine.models.seeds import seed_of
from rankwise.errors import ModelError
from rankwise.tasks.questions import GenerationSettings, Prompt

# They look at nothing but the scores, so that rows go through them together.
_OF_SCORES_ALONE = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
)
# What decides by something else than a row's own tokens and scores, or makes several texts of one.
_REFUSED = ("guidance_scale", "watermarking_config", "max_time", "stop_strings", "token_healing")
# Columns whose maximum is taken first; see ``first_largest``.
_COLUMNS = 128


class Choice(NamedTuple):
    """One row's way to choose.

    Attributes:
        processors: of transformers, for a prompt of this length.
        generator: its own random numbers.
    """

    processors: LogitsProcessorList
    generator: torch.Generator


class Sampler:
    """Chooses the next tokens of rows with equal settings, greedily or at random.

    The model's own generation config counts, as in ``generate``: its repetition penalty also
    where the choice is greedy.

    Attributes:
        end_tokens: that end a text.
        is_random: whether tokens are drawn.
    """

    def __init__(self, model: Any, settings: GenerationSettings) -> None:
        """Read the settings.

        Raises:
            ModelError: an option is unknown, out of its range, or asks for what is not greedy
                decoding or plain sampling.
        """
        self._model, self._settings = model, settings
        self._device = next(model.parameters()).device
        try:
            config, unknown = model._prepare_generation_config(None, **dict(settings.options))
        except ValueError as error:
            raise ModelError(f"generation options {dict(settings.options)}: {error}") from error
        self._refuse(config, unknown)
        model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=self._device)
        self._config = config
        eos = config._eos_token_tensor
        self.end_tokens: frozenset[int] = frozenset(() if eos is None else eos.tolist())
        self.is_random = bool(config.do_sample)

    def _refuse(self, config: Any, unknown: dict[str, Any]) -> None:
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

    def begin(self, prompt: Prompt) -> Choice:
        """What a row behind this prompt chooses by."""
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
        return Choice(
            processors, torch.Generator().manual_seed(seed_of(prompt.draw, prompt.tokens))
        )

    def next_tokens(
        self,
        logits: Float[Tensor, "rows vocabulary"],
        choices: Sequence[Choice],
        tokens: Iterable[list[int]],
    ) -> list[int]:
        """Choose.

        Args:
            logits: of the next token, in any dtype.
            choices: of the rows.
            tokens: of the rows, prompt included.
        """
        if not self.is_random and not choices[0].processors:
            return first_largest(logits).tolist()
        scores = self._processed(logits.float(), choices, tokens)
        if not self.is_random:
            return scores.argmax(dim=-1).tolist()
        return _drawn(scores, [choice.generator for choice in choices]).tolist()

    def _processed(
        self,
        scores: Float[Tensor, "rows vocabulary"],
        choices: Sequence[Choice],
        tokens: Iterable[list[int]],
    ) -> Float[Tensor, "rows vocabulary"]:
        """Equal settings give every row the same processors, up to the lengths in them."""
        own = [[p for p in c.processors if type(p) not in _OF_SCORES_ALONE] for c in choices]
        together = [p for p in choices[0].processors if type(p) in _OF_SCORES_ALONE]
        in_front = len(own[0]) == 0 or choices[0].processors[: len(own[0])] == own[0]
        if not in_front:  # a processor behind those of scores alone: all row by row
            own, together = [list(choice.processors) for choice in choices], []
        if own[0]:
            rows = zip(own, tokens, scores.split(1), strict=True)
            scores = torch.cat([self._row_processed(*row) for row in rows])
        nothing = torch.empty((len(scores), 0), dtype=torch.long, device=scores.device)
        for processor in together:
            scores = processor(nothing, scores)
        return scores

    def _row_processed(
        self, processors: Sequence[Any], tokens: list[int], scores: Tensor
    ) -> Tensor:
        input_ids = torch.tensor([tokens], device=scores.device)
        for processor in processors:
            scores = processor(input_ids, scores)
        return scores


def first_largest(logits: Float[Tensor, "rows vocabulary"]) -> Int[Tensor, " rows"]:
    """The first column of each row's maximum, as argmax finds it.

    A maximum is vectorised where argmax is not: the best group of columns comes first, then the
    best column in it.
    """
    size = logits.shape[1]
    whole = size // _COLUMNS * _COLUMNS
    if whole == 0:
        return logits.argmax(dim=-1)
    best = logits[:, :whole].unflatten(1, (-1, _COLUMNS)).amax(dim=-1)
    if whole < size:
        best = torch.cat([best, logits[:, whole:].amax(dim=-1, keepdim=True)], dim=1)
    start = (best.argmax(dim=-1) * _COLUMNS).clamp_(max=size - _COLUMNS)[:, None]
    columns = start + torch.arange(_COLUMNS, device=logits.device)
    return start[:, 0] + logits.gather(1, columns).argmax(dim=-1)


def _drawn(
    scores: Float[Tensor, "rows vocabulary"], generators: Sequence[torch.Generator]
) -> Int[Tensor, " rows"]:
    """One token per row from the softmax of its scores, by one uniform number of its own."""
    shares = scores.softmax(dim=-1).double().cumsum(dim=-1)
    # single precision, so that the product stays below the total
    uniform = torch.stack([torch.rand((1,), generator=generator) for generator in generators])
    threshold = uniform.to(shares) * shares[:, -1:]
    return torch.searchsorted(shares, threshold, right=True)[:, 0]
