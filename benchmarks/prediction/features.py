"""What can be measured on a base model and its training rows before any rank is trained."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.prediction.activations import activation_features
from benchmarks.prediction.gradients import gradient_features
from benchmarks.prediction.margins import choices
from benchmarks.prediction.matrices import read_matrices
from benchmarks.prediction.probe import ProbeSetting, Reference, probe_features, train_probe
from benchmarks.prediction.rows import NUM_ROWS, as_examples
from rankwise.engine.models.structure import LinearShape, adaptable_shapes, target_shapes
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.engine.training.trainees import effective_batches
from rankwise.errors import DivergedError
from rankwise.tasks.questions import RightAnswer
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.training_rows import Example


class Untrained(NamedTuple):
    """A study of one trained task before training.

    Attributes:
        base_model: frozen, in eval mode.
        tokenizer: its own.
        setting: of the probe; its run is the study's largest rank.
        num_parameters: weights of the base model.
        examples: the training rows.
        in_domain: the tasks by which the gain is judged, with their first items.
        retention: those by which forgetting is.
        answers: right answers in-domain.
        texts: ends of held-out texts.
        retained: right answers of retention items.
        overlaps: share of each task's items that are in the training rows.
        max_batch_tokens: of a forward pass of scoring.
    """

    base_model: Any
    tokenizer: Any
    setting: ProbeSetting
    num_parameters: int
    examples: Sequence[Example]
    in_domain: Sequence[PreparedTask]
    retention: Sequence[PreparedTask]
    answers: Sequence[RightAnswer]
    texts: Sequence[RightAnswer]
    retained: Sequence[RightAnswer]
    overlaps: Sequence[float]
    max_batch_tokens: int


def features_of(
    study: Untrained,
    *,
    with_probe: bool,
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """All features that a study has, by the names of ``FEATURES``; each is a finite number.

    Args:
        study: nothing in it is changed.
        with_probe: also train the probe.
        note: hears of what is left out though the study has it.

    Raises:
        ModelError: the model cannot read packed sequences.
        TaskError: a task cannot judge its answers.
    """
    model = study.base_model
    shapes = target_shapes(adaptable_shapes(model), study.setting.run.target_modules)
    found = {**_sizes(study, shapes), **_choices(study), **_first_steps(study, shapes)}
    answers, texts = (
        Reference.of(model, read, max_batch_tokens=study.max_batch_tokens)
        for read in (study.answers, study.texts)
    )
    if answers is not None:
        found["base_loss"] = answers.loss_nats
    if with_probe:
        found |= _probe(study, answers, texts, note)
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _sizes(study: Untrained, shapes: Mapping[str, LinearShape]) -> dict[str, float]:
    """Of the data, the model and its adapters."""
    run, config = study.setting.run, study.base_model.config.get_text_config()
    found = {
        "train_rows": len(study.examples),
        "train_tokens": sum(len(example.tokens) for example in study.examples),
        "train_loss_tokens": sum(example.num_loss_tokens for example in study.examples),
        "train_steps": run.num_steps,
        "model_parameters": study.num_parameters,
        "model_layers": config.num_hidden_layers,
        "model_width": config.hidden_size,
        "adapted_matrices": len(shapes),
        "adapted_parameters": sum(math.prod(shape) for shape in shapes.values()),
        "rank_parameters": sum(map(sum, shapes.values())),
    }
    return found | ({"overlap_share": statistics.fmean(study.overlaps)} if study.overlaps else {})


def _choices(study: Untrained) -> dict[str, float]:
    """What the base answers where there are options."""
    scorer = ResidentScorer(
        study.base_model, study.tokenizer, max_batch_tokens=study.max_batch_tokens
    )
    own, retained = (choices(scorer, tasks) for tasks in (study.in_domain, study.retention))
    found: dict[str, float] = {}
    if own is not None:
        found |= {
            "base_accuracy": own.accuracy,
            "base_p_right": own.p_right,
            "chance": own.chance,
            "near_tie_share": own.near_tie_share,
        }
    if retained is not None:
        found |= {f"retention_{name}": value for name, value in retained._asdict().items()}
    return found


def _first_steps(study: Untrained, shapes: Mapping[str, LinearShape]) -> dict[str, float]:
    """Of the first gradients and of what enters the matrices."""
    setting, read = study.setting, read_matrices(shapes)
    batches = effective_batches(study.examples, setting.run, setting.config.train)
    rows = [example for batch in batches for example in batch][: min(NUM_ROWS, len(study.examples))]
    most = setting.planned.max_tokens
    retained = as_examples(study.retained[:NUM_ROWS])
    return {
        **gradient_features(study.base_model, read, rows, retained, max_tokens=most),
        **activation_features(study.base_model, read, rows, max_tokens=most),
    }


def _probe(
    study: Untrained,
    answers: Reference | None,
    texts: Reference | None,
    note: Callable[[str], None],
) -> dict[str, float]:
    setting = study.setting
    try:
        updates = train_probe(study.base_model, study.examples, setting)
    except DivergedError as error:
        note(f"the probe of rank {setting.run.rank} diverged, so its features are missing: {error}")
        return {}
    rank, num_steps = setting.run.rank, min(setting.num_steps, setting.run.num_steps)
    assert rank is not None
    found = {"probe_rank": rank, "probe_steps": num_steps}
    return {**found, **probe_features(study.base_model, updates, answers, texts)}
