"""The base model of a study, as far as planning needs it: everything but its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.attention import refuse_unpackable
from rankwise.engine.models.base_folder import BaseModel, find_base_model, trained_folder
from rankwise.engine.models.devices import Machine, ResolvedPrecision
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.models.start import with_start
from rankwise.engine.models.structure import context_length, model_skeleton
from rankwise.errors import ModelError, PlanError
from rankwise.records.config.objectives import SdftConfig
from rankwise.records.config.study import BaseModelConfig, StudyConfig
from rankwise.records.study import StudyRecord


class StudyModel(NamedTuple):
    """The base model of a study, without weights, and where it computes.

    Attributes:
        base: its name, folder and fingerprint; quantised or with a start, it is another base.
        tokenizer: transformers' tokenizer.
        skeleton: the model on the meta device.
        max_length: tokens that it reads at most.
        machine: that trains and scores.
        precision: of the matrix products.
        start: the adapter that its base starts with, if it does.
    """

    base: BaseModel
    tokenizer: Any
    skeleton: Any
    max_length: int
    machine: Machine
    precision: ResolvedPrecision
    start: AdapterFolder | None = None

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer can render conversations."""
        return bool(self.tokenizer.chat_template)

    @property
    def num_parameters(self) -> int:
        """All weights of the model."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    @property
    def vocab_size(self) -> int:
        """Tokens that it gives probabilities of."""
        return self.skeleton.config.get_text_config().vocab_size


def refuse_scores(study: StudyRecord | None) -> None:
    """Refuse to plan what has scores only: its models were trained elsewhere.

    Raises:
        PlanError: it is such a study.
    """
    if study is not None and study.scores is not None:
        problem = (
            "it has scores of models that were trained elsewhere, and nothing to train; add rows "
            "to the tables, and judge them again: rankwise verdict FILES --output DIR"
        )
        raise PlanError(study.config.name, study.config.base_model.name, [problem])


def study_model(
    config: StudyConfig, report: Callable[[str], None], machine: Machine | None = None
) -> StudyModel:
    """Find a study's base model; one that is not here yet is fetched, without its weights.

    Args:
        config: a checked config.
        report: receives a line for each download and conversion.
        machine: that trains and scores; None: the one that is here.

    Raises:
        PlanError: the model cannot be had.
        ModelError: its tokenizer or config cannot be used.
    """
    base, start = found_base(config, report)
    tokenizer = load_tokenizer(base.folder)
    skeleton: Any = model_skeleton(base.folder)
    max_length = context_length(skeleton.config, tokenizer)
    machine = machine or Machine.here()
    precision = machine.precision(config.train.precision)
    return StudyModel(base, tokenizer, skeleton, max_length, machine, precision, start)


def found_teacher(
    config: StudyConfig, model: StudyModel, report: Callable[[str], None]
) -> BaseModel | None:
    """The model whose distributions are learned; None: the base, or no teacher is asked.

    Raises:
        ModelError: it cannot be had, or has another vocabulary than the base.
    """
    sdft = config.train.written
    if not isinstance(sdft, SdftConfig) or sdft.teacher is None:
        return None
    teacher = find_base_model(BaseModelConfig(name=sdft.teacher), report, weights=False)
    skeleton: Any = model_skeleton(teacher.folder)
    size, vocabulary = skeleton.config.get_text_config().vocab_size, model.tokenizer.get_vocab()
    if size != model.vocab_size or load_tokenizer(teacher.folder).get_vocab() != vocabulary:
        raise ModelError(
            f"{teacher.name} has another vocabulary than {model.base.name}, and a teacher gives "
            "probabilities of the same tokens. Name a model with the same tokenizer."
        )
    refuse_unpackable(skeleton)
    return teacher


def found_base(
    config: StudyConfig, report: Callable[[str], None]
) -> tuple[BaseModel, AdapterFolder | None]:
    """A study's base model on this machine, and the adapter that it starts with, if it does.

    Raises:
        PlanError: they cannot be had.
    """
    name, place, start = config.methods.start, "", None
    try:
        base = find_base_model(config.base_model, report, weights=False)
        if config.train.base_precision != "auto":  # another base, for training and for scoring
            base = base._replace(fingerprint=f"{base.fingerprint}+{config.train.base_precision}")
        if name is not None:
            place = "methods.lora.start: "
            start = AdapterFolder(trained_folder(str(name), report))
            base = with_start(base, str(name), start)
    except ModelError as error:
        raise PlanError(config.name, config.base_model.name, [f"{place}{error}"]) from error
    return base, start
