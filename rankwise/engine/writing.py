"""Writing what is learned: every trainee of a pass continues the prompts of its next step.

All write together over one frozen base, each under its own weights as they are: the decoder
multiplies with the tensors that the optimizer changes. A text depends on the run's seed, the step,
the row and the number of the text, and on the weights of its own trainee; not on which others are
in the pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.devices import free_bytes, in_smaller_steps
from rankwise.engine.models.frozen_adapters import FrozenAdapter, FrozenBank, carrying
from rankwise.engine.models.head import CompletionHead
from rankwise.engine.models.placed import devices_of
from rankwise.engine.models.seeds import seed_of
from rankwise.engine.scoring.decode.decoder import Decoder, WrittenText
from rankwise.engine.training.micro_batches import read_losses
from rankwise.engine.training.trainees import AdapterTrainee, Trainee
from rankwise.engine.training.written import TextMetrics, WrittenTexts, token_weights
from rankwise.errors import RewardError
from rankwise.records.config.objectives import GrpoConfig, SdftConfig
from rankwise.records.config.training import TrainConfig
from rankwise.tasks.questions import GenerationSettings, Prompt
from rankwise.tasks.training_rows import AskedRow, Example, OwnText

# Of the free memory, for the keys and values of texts that are being written: it is given back
# before the step is trained.
_CACHE_SHARE = 0.25


Judge = Callable[
    [Sequence[AskedRow], Sequence[str], Sequence[Sequence[int]]],
    tuple[Sequence[float], Mapping[str, Any]],
]
"""From the row that each text answers, the texts, and their tokens, to the advantage of each, and
the fields of ``TextMetrics`` on rewards; raises RewardError."""


class Writer:
    """Writes the texts of a step for the trainees of a pass: a ``TextWriter``.

    Attributes:
        settings: how texts are written.
        other: the model that trainees are held to and its head, where it is not the base without
            adapters.
        is_reverse: KL(model || other) is taken.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: TrainConfig,
        judge: Judge | None = None,
        *,
        other: Any = None,
        is_base: bool = True,
        max_tokens: int,
        cache_bytes: int | None = None,
    ) -> None:
        """Computes nothing yet.

        Args:
            model: the frozen base that carries adapters, or the model whose weights are trained.
            tokenizer: its own.
            config: whose objective is one of its own texts.
            judge: says what texts are worth; None: a teacher reads them.
            other: the base or a teacher, where it is not ``model`` without adapters.
            is_base: ``model`` without adapters is the base.
            max_tokens: that the base reads at once.
            cache_bytes: for keys and values; None: a quarter of what is free.
        """
        assert config.written is not None
        self.settings, self._config, self._judge = config.written, config, judge
        temperature = self.settings.temperature
        self.other = None if other is None else (other, CompletionHead(other, temperature))
        self._base = self.other
        if other is None and is_base:
            self._base = model, CompletionHead(model, temperature)
        sdft = self.settings if isinstance(self.settings, SdftConfig) else None
        self.is_reverse = sdft is not None and sdft.direction == "reverse"
        self._model, self._max_tokens = model, max_tokens
        decoder = decoder_of(model)
        self._device: torch.device = decoder.device
        if cache_bytes is None:
            cache_bytes = int(_CACHE_SHARE * min(map(free_bytes, devices_of(model))))
        self._decoder = Decoder(decoder, tokenizer, FrozenBank(), cache_bytes=cache_bytes)
        self._temperature = temperature

    def write(self, trainees: Sequence[Trainee]) -> dict[Trainee, RewardError]:
        """Write the texts of the next step of those that have none yet.

        Returns:
            The trainees whose rewards failed, which have no texts, and why.
        """
        waiting = [trainee for trainee in trainees if trainee.written is None]
        if not waiting:
            return {}
        prompts = [self._prompts(trainee) for trainee in waiting]
        with self._carried(waiting) as adapters:
            texts = in_smaller_steps(
                lambda tell: self._decoder.write(adapters, prompts, tell),
                self._decoder.shrink,
                lambda _: None,
                self._device,
            )
        failed: dict[Trainee, RewardError] = {}
        for trainee, written in zip(waiting, texts, strict=True):
            try:
                trainee.written = self.learned(trainee.batch, written)
            except RewardError as error:
                failed[trainee] = error
        self._read_base([trainee for trainee in waiting if trainee not in failed])
        return failed

    def _prompts(self, trainee: Trainee) -> list[Prompt]:
        """The prompts of a step, those of a row next to each other."""
        prompts: list[Prompt] = []
        for place, example in enumerate(trainee.batch):
            asks = _asked(example)
            settings = GenerationSettings(
                asks.max_new_tokens, (asks.end,), plain_temperature=self._temperature
            )
            for number in range(asks.num_texts):
                draw = seed_of(trainee.run.seed, "own text", trainee.step, place, number)
                prompts.append(Prompt(example.tokens, settings, draw))
        return prompts

    @contextlib.contextmanager
    def _carried(self, trainees: Sequence[Trainee]) -> Generator[list[FrozenAdapter | None]]:
        """Within the block, the layers carry these trainees' adapters as they are now."""
        adapters: list[FrozenAdapter | None] = []
        for trainee in trainees:
            if not isinstance(trainee, AdapterTrainee):
                adapters.append(None)
                continue
            adapter = trainee.adapter
            layers = {
                name: ScaledFactors(factors.lora_A, factors.lora_B, adapter.scaling_left)
                for name, factors in adapter.copies.items()
            }
            adapters.append(FrozenAdapter(layers, is_zero_update=False))
        with carrying(self._model, adapters, self._decoder.bank):
            yield adapters

    def learned(self, rows: Sequence[Example], written: Sequence[WrittenText]) -> WrittenTexts:
        """What is learned from the texts of a step.

        Args:
            rows: of the step.
            written: ``num_texts`` of each, those of a row next to each other.

        Raises:
            RewardError: a reward fails, or gives what is no reward.
        """
        asked = [_asked(row) for row in rows for _ in range(_asked(row).num_texts)]
        prompts = [row.tokens for row in rows for _ in range(_asked(row).num_texts)]
        lengths = [len(text.tokens) for text in written]
        size = self.settings.num_generations
        weights = token_weights(lengths, size * self._config.batch_size, self.settings)
        values: Sequence[float] = [0.0] * len(written)
        rewards: Mapping[str, Any] = {}
        if self._judge is not None:
            texts, tokens = [each.text for each in written], [each.tokens for each in written]
            values, rewards = self._judge(asked, texts, tokens)
        examples = tuple(
            Example(
                (*prompt, *text.tokens),
                len(text.tokens),
                is_truncated=False,
                own=OwnText(weight, value, teacher=row.teacher),
            )
            for prompt, text, weight, value, row in zip(
                prompts, written, weights, values, asked, strict=True
            )
        )
        metrics = TextMetrics(
            num_texts=len(written),
            num_tokens=sum(lengths),
            cut_share=sum(not text.is_finished for text in written) / len(written),
            **rewards,
        )
        return WrittenTexts(examples, metrics)

    def _read_base(self, trainees: Sequence[Trainee]) -> None:
        """Let the base read what GRPO holds on to; else one text of each row, for the gauge."""
        if not isinstance(self.settings, GrpoConfig) or self._base is None:
            return
        base, head = self._base
        is_held = self.settings.beta > 0
        every = 1 if is_held else self.settings.num_generations
        of = {
            (trainee, place): example._replace(own=None)
            for trainee in trainees
            if trainee.written is not None
            for place, example in enumerate(trainee.written.examples)
            if place % every == 0
        }
        nats: dict[Example, tuple[float, ...]] = {}
        reads = read_losses(base, head, of.values(), max_tokens=self._max_tokens)
        for batch, losses in reads:
            for item, of_text in batch.of_texts(losses.cpu()):
                nats[item.example] = tuple(of_text.tolist())
        for trainee in trainees:
            assert trainee.written is not None
            places = [place for each, place in of if each is trainee]
            of_base = {place: nats[of[trainee, place]] for place in places}
            trainee.written = trainee.written.with_base(of_base, is_held=is_held)


def _asked(example: Example) -> AskedRow:
    assert example.asks is not None
    return example.asks
