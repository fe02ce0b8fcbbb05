"""The runs of a study: what each trains, what it costs, and the fingerprint that names it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rankwise.engine.models.structure import LinearShape
from rankwise.engine.models.variants import VARIANTS
from rankwise.engine.training.loop import num_optimizer_steps
from rankwise.engine.training.memory import PassMemory, estimate_training_memory
from rankwise.engine.training.micro_batches import shared_tokens
from rankwise.records.axes import (
    LoraSettings,
    VariantChoice,
    full_settings,
    lora_settings,
    pattern_settings,
    rate_label,
    variant_choices,
)
from rankwise.records.config.objectives import GrpoConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.training import TrainConfig, TrainedPart
from rankwise.records.fingerprints import fingerprint, training_fingerprint
from rankwise.records.study import GoesOnFrom, Method, PlannedRun
from rankwise.study.planning.model import StudyModel
from rankwise.tasks.training_rows import Example


class Trainable(NamedTuple):
    """The base model, and how it is trained.

    Attributes:
        model: without its weights.
        layers: the adaptable layers of each set of target modules that the study names.
        memory: of training on it.
    """

    model: StudyModel
    layers: Mapping[tuple[str, ...], TargetLayers]
    memory: PassMemory


class TargetLayers(NamedTuple):
    """A set of target modules: as PEFT takes them, and the shapes of the layers they match.

    ``pattern`` has the rank of each layer that the study's rank pattern adapts, if it has one.
    """

    target_modules: tuple[str, ...]
    shapes: Mapping[str, LinearShape]
    pattern: Mapping[str, int] = MappingProxyType({})

    @property
    def sides(self) -> int:
        """The weights of rank 1: in_features + out_features of every layer."""
        return sum(map(sum, self.shapes.values()))

    @property
    def pattern_weights(self) -> int:
        """The weights of the rank pattern."""
        return sum(rank * sum(self.shapes[name]) for name, rank in self.pattern.items())

    @property
    def mean_rank(self) -> float:
        """The rank at which as many weights are trained as by the pattern."""
        return self.pattern_weights / self.sides


def plan_runs(config: StudyConfig, makers: Iterable[RunMaker]) -> tuple[PlannedRun, ...]:
    """Every combination of settings, for each trained task and seed.

    Args:
        config: the study.
        makers: one for each trained task.
    """
    runs: list[PlannedRun] = []
    for maker, seed in itertools.product(makers, config.seeds):
        runs += [maker.lora(settings, seed) for settings in lora_settings(config)]
        runs += [maker.pattern(settings, seed) for settings in maker.pattern_settings]
        if maker.part.has_full:
            runs += [maker.full(rate, epochs, seed) for rate, epochs in full_settings(config)]
    return _each_once(runs)


def plan_beside(config: StudyConfig, makers: Iterable[RunMaker]) -> tuple[PlannedRun, ...]:
    """What is trained beside the runs: LoRA on fewer rows, and its variants; see ``plan_runs``."""
    of_seeds = list(itertools.product(makers, config.seeds))
    fewer = [
        maker.lora(settings, seed, number)
        for maker, seed in of_seeds
        for number in maker.numbers_below_all
        for settings in lora_settings(config)
    ]
    fewer += [
        maker.pattern(settings, seed, number)
        for maker, seed in of_seeds
        for number in maker.numbers_below_all
        for settings in maker.pattern_settings
    ]
    variants = [
        maker.variant(choice, seed)
        for maker, seed in of_seeds
        for choice in variant_choices(config)
    ]
    return *_each_once(fewer), *_each_once(variants)


def first_rows(
    examples: Sequence[Example], order: Sequence[int], number: int
) -> tuple[Example, ...]:
    """So many of the examples, as they stand there: the first of an order, the same for all."""
    return tuple(examples[place] for place in sorted(order[:number]))


def examples_digest(examples: Sequence[Example]) -> str:
    """The digest of tokenised rows: what a training depends on."""
    sequences = itertools.chain.from_iterable(example.sequences for example in examples)
    return fingerprint(
        [
            (each.tokens, each.learned or each.num_loss_tokens, *(each.asks or ()))
            for each in sequences
        ]
    )


_TOKENS = ("num_tokens", "num_shared_tokens", "num_written_tokens", "num_beside_tokens")
"""Of what a run trains on, as ``PlannedRun`` has them."""


def tokens_of(
    example: Example, train: TrainConfig, kind: str, *, is_full: bool
) -> tuple[int, int, int, int]:
    """The tokens of an example in one epoch, by ``_TOKENS``.

    Args:
        example: of a trained task.
        train: says how it is trained.
        kind: of device: ``cpu`` or ``cuda``.
        is_full: all weights are trained, so that the base is another model.
    """
    asks, own, beginning = example.asks, train.written, example
    num_others, times, written, beside = len(example.sequences) - 1, 1, 0, 0
    if asks is not None and own is not None:
        num_others = asks.num_texts - 1
        beginning = example._replace(tokens=(*example.tokens, 0), num_loss_tokens=1)
        asked, read = len(asks.teacher), asks.num_texts  # by a teacher
        if isinstance(own, GrpoConfig):
            times, asked = own.num_iterations, len(example.tokens)
            read = asks.num_texts if own.beta else int(not is_full)
        written = asks.num_texts * asks.max_new_tokens
        beside = read * (asked + asks.max_new_tokens)
    shared = 0 if train.dropout else num_others * shared_tokens(beginning, kind)
    return times * example.num_tokens, times * shared, written, beside


def stopped(run: PlannedRun, step: int) -> PlannedRun:
    """A run after ``step`` of its optimizer steps, as a model of its own."""
    digest = fingerprint([run.fingerprint, step])
    return run.model_copy(
        update={
            "name": f"{run.name}-step{step:05d}",
            "fingerprint": digest,
            "of": run.as_whole,
            "num_steps": step,
            **{name: round(getattr(run, name) * step / run.num_steps) for name in _TOKENS},
        }
    )


def checkpoint_steps(run: PlannedRun, places: Sequence[int | float]) -> tuple[int, ...]:
    """The optimizer steps of a run at these places, before its end.

    Args:
        run: a whole training.
        places: numbers of steps, and shares of all steps in 0..1.
    """
    steps = {
        place if isinstance(place, int) else max(round(place * run.num_steps), 1)
        for place in places
    }
    return tuple(sorted(step for step in steps if step < run.num_steps))


def _each_once(runs: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """Settings that come to the same run are trained once, under all their labels and ranks."""
    once: dict[str, PlannedRun] = {}
    for run in runs:
        same = once.setdefault(run.fingerprint, run)
        labels = {
            field: tuple(dict.fromkeys((*getattr(same, field), *getattr(run, field))))
            for field in ("alpha_labels", "rate_labels", "beside_ranks")
        }
        once[run.fingerprint] = same.model_copy(update=labels)
    return tuple(once.values())


class RunMaker:
    """Plans runs on one trained task, and has what they share.

    Args:
        config: of the study.
        base: the model, and how it is trained.
        part: what is trained on.
        examples: its rows, all that are trained on.
        order: their places; runs on fewer rows take the first.
        judge: says all that rewards its own texts, or who its teacher is; None: it has neither.
        before: plans the runs from whose weights these go on, each from that of its settings and
            seed; None: from the base.
    """

    def __init__(
        self,
        config: StudyConfig,
        base: Trainable,
        part: TrainedPart,
        examples: Sequence[Example],
        order: Sequence[int],
        judge: str | None,
        before: RunMaker | None = None,
    ) -> None:
        self._judge, self._before = judge, before
        self._config, self._base, self.part = config, base, part
        self._rows = {len(examples): tuple(examples)}
        self._rows |= {
            number: first_rows(examples, order, number)
            for number in sorted(config.train.max_examples)
            if number < len(examples)
        }
        self._digests = {number: examples_digest(rows) for number, rows in self._rows.items()}
        self._num_rows = len(examples)

    @property
    def numbers_below_all(self) -> tuple[int, ...]:
        """The numbers of rows that are fewer than all, smallest first."""
        return tuple(number for number in self._rows if number < self._num_rows)

    def lora(self, settings: LoraSettings, seed: int, num_rows: int | None = None) -> PlannedRun:
        """A LoRA run with these settings; ``num_rows`` are fewer than all."""
        num_trainable = settings.rank * self._base.layers[settings.target_modules].sides
        of: dict[str, Any] = {}
        if num_rows is not None:
            of = self._on_fewer(self.lora(settings, seed), num_rows)
        if self._before is not None:
            of["after"] = self._goes_on_from(self._before.lora(settings, seed))
        return self._lora(settings, seed, num_trainable=num_trainable, **of)

    @property
    def pattern_settings(self) -> Sequence[LoraSettings]:
        """The settings of the rank pattern, whose rank is the mean one; empty without a pattern."""
        ranks = {
            names: max(1, round(layers.mean_rank))
            for names, layers in self._base.layers.items()
            if layers.pattern
        }
        return pattern_settings(self._config, ranks) if ranks else ()

    def pattern(self, settings: LoraSettings, seed: int, num_rows: int | None = None) -> PlannedRun:
        """A LoRA run whose layers have ranks of their own, as ``lora``."""
        layers = self._base.layers[settings.target_modules]
        of: dict[str, Any] = {}
        if num_rows is not None:
            of = self._on_fewer(self.pattern(settings, seed), num_rows)
        if self._before is not None:
            of["after"] = self._goes_on_from(self._before.pattern(settings, seed))
        return self._lora(
            settings,
            seed,
            num_trainable=layers.pattern_weights,
            layer_ranks=tuple(layers.pattern.items()),
            mean_rank=layers.mean_rank,
            **of,
        )

    def _goes_on_from(self, run: PlannedRun) -> GoesOnFrom:
        rank = 0
        if self.part.adapter == "new" and run.method == "lora":
            rank = run.highest_rank + (0 if run.after is None else run.after.rank)
        return GoesOnFrom(name=run.name, fingerprint=run.fingerprint, rank=rank)

    def _on_fewer(self, whole: PlannedRun, num_rows: int) -> dict[str, Any]:
        return {"role": "fewer_rows", "of": whole.as_whole, "num_examples": num_rows}

    def _lora(self, settings: LoraSettings, seed: int, **of: Any) -> PlannedRun:
        layers = self._base.layers[settings.target_modules]
        return self._run(
            "lora",
            settings.epochs,
            rank=settings.rank,
            alpha=settings.alpha.alpha_of(settings.rank),
            alpha_labels=(settings.alpha.label,),
            scaling=settings.alpha.scaling_of(settings.rank),
            learning_rate=settings.peak_rate,
            rate_labels=(settings.rate_label,),
            target_modules=layers.target_modules,
            seed=seed,
            **of,
        )

    def variant(self, choice: VariantChoice, seed: int) -> PlannedRun:
        """A variant with the settings of LoRA beside which it is trained.

        Its rate is that of LoRA's rank, and so is its scaling, but for rsLoRA's, which is its own.
        """
        row, lora, section = VARIANTS[choice.name], choice.lora, self._config.methods.variants
        assert section is not None
        layers = self._base.layers[lora.target_modules]
        shapes = tuple(layers.shapes.values())
        rank = lora.rank
        if section.match == "parameters":
            rank = row.rank_with(lora.rank * sum(map(sum, shapes)), shapes)
        scaled: dict[str, Any] = {}
        if row.has_scaling:
            alpha, root = lora.alpha.alpha_of(rank), choice.name == "rslora"
            scaled = {
                "alpha": alpha,
                "alpha_labels": (lora.alpha.label,),
                "scaling": alpha / math.sqrt(rank) if root else lora.alpha.scaling_of(rank),
            }
        return self._run(
            "lora",
            lora.epochs,
            num_trainable=row.num_weights(shapes, rank),
            role="variant",
            variant=choice.name,
            beside_ranks=(lora.rank,),
            rank=rank,
            learning_rate=lora.peak_rate,
            rate_labels=(lora.rate_label,),
            target_modules=layers.target_modules,
            seed=seed,
            **scaled,
        )

    def full(self, learning_rate: float, epochs: int, seed: int) -> PlannedRun:
        """A full fine-tuning."""
        before = self._before
        after = before and self._goes_on_from(before.full(learning_rate, epochs, seed))
        return self._run(
            "full",
            epochs,
            after=after,
            num_trainable=self._base.model.num_parameters,
            learning_rate=learning_rate,
            rate_labels=(rate_label(learning_rate),),
            full=self._base.memory.full,
            seed=seed,
        )

    def _run(
        self, method: Method, epochs: int, *, num_trainable: int, **settings: Any
    ) -> PlannedRun:
        train, number = self._config.train, settings.setdefault("num_examples", self._num_rows)
        of_epoch = num_optimizer_steps(number, train, 1)
        num_steps = epochs * of_epoch
        if train.rows_at == "steps":
            num_steps = num_optimizer_steps(self._num_rows, train, epochs)
            epochs = math.ceil(num_steps / of_epoch)
        kind = self._base.model.machine.device.type
        tokens_of_epoch = [
            tokens_of(each, train, kind, is_full=method == "full") for each in self._rows[number]
        ]
        tokens = dict(zip(_TOKENS, map(sum, zip(*tokens_of_epoch, strict=True)), strict=True))
        run = PlannedRun(
            name="unnamed",
            fingerprint="",
            method=method,
            train_task=self.part.name,
            epochs=epochs,
            num_steps=num_steps,
            **{name: round(count * num_steps / of_epoch) for name, count in tokens.items()},
            num_trainable_parameters=num_trainable,
            trainable_share=num_trainable / self._base.model.num_parameters,
            estimated_memory_bytes=0,  # follows
            **settings,
        )
        memory = estimate_training_memory(
            self._base.memory,
            method=method,
            rank=(run.highest_rank or 1) + (0 if run.after is None else run.after.rank),
            num_trainable=run.num_held_weights,
            num_beside=run.num_beside,
            max_tokens=train.max_micro_batch_tokens or self._base.memory.likely_tokens,
        )
        digest = training_fingerprint(
            self._config,
            run,
            base_model=self._base.model.base.fingerprint,
            precision=self._base.model.precision,
            examples=self._digests[number],
            judge=self._judge,
            ends_within=num_steps if num_steps < epochs * of_epoch else None,
        )
        named = {"name": run_name(run, digest), "fingerprint": digest}
        return run.model_copy(update={**named, "estimated_memory_bytes": memory})


def run_name(run: PlannedRun, digest: str) -> str:
    """The name of a run and of its folder: what it is, and the beginning of its fingerprint.

    Of a task's name it has letters and digits of English only, and not too many for a file system.
    """
    size = f"r{run.rank:03d}-" if run.rank else ""
    size += f"a{run.alpha:03g}-" if run.alpha else ""
    if run.layer_ranks:
        size = "pattern-"
    which = f"s{run.seed}" if run.imported is None else run.imported.label
    name = f"{run.train_task[:100]}-{run.variant or run.method}-{size}{which}-{digest[:8]}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("-.")  # an option begins with a dash
