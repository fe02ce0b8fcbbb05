"""What a result depends on, as one number: equal fingerprints, equal results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from rankwise.records.axes import SETTING
from rankwise.records.base import Record
from rankwise.records.config.objectives import ObjectiveConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.variants import VariantName
from rankwise.records.fields import ADDED
from rankwise.records.study import PlannedRun, StudyRecord

# Each is raised when a change to the code changes what equal settings give, so that records made
# before are not mistaken for new ones. So are the revisions of what is fingerprinted elsewhere.
TRAINING_REVISION = 2
HEAD_EFFECTS_REVISION = 4
REPAIR_REVISION = 2
VARIANT_REVISIONS: dict[VariantName, int] = {"eva": 2}  # 1 for the others

# Settings of the train section that reach a run through its examples or its own fields instead.
_NOT_IN_TRAINING = {
    "task",
    "sequence",
    "split",
    "data",
    "columns",
    "judged_by",
    "max_new_tokens",
    "objective",
    "turns",
    "max_examples",
    "rows_at",
    "drop_overlapping",
    "held_out_fraction",
    "learning_rate",
    "epochs",
    "precision",
    "base_precision",
    "max_micro_batch_tokens",
    "gradient_checkpointing",
    "save_every",
    "score_checkpoints",
    "stop",
}
_IN_NO_RESULT: Any = {
    "tasks_path": True,
    "allow_task_code": True,
    "train": {"save_every"},
    "evaluation": {"clusters", "max_batch_tokens", "slice"},
    "tracking": True,
}
_RUN_IDENTITY = {"method", "seed", *SETTING}


def fingerprint(content: Any) -> str:
    """A sha256 over canonical JSON: equal content, equal fingerprint, whatever its key order."""
    if isinstance(content, Record):
        content = content.model_dump(mode="json", context=ADDED)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def study_fingerprint(config: StudyConfig) -> str:
    """The fingerprint of a study file's settings, without those that affect no result."""
    return fingerprint(config.model_dump(mode="json", exclude=_IN_NO_RESULT, context=ADDED))


def training_fingerprint(
    config: StudyConfig,
    run: PlannedRun,
    *,
    base_model: str,
    precision: str,
    examples: str,
    judge: str | None = None,
    ends_within: int | None = None,
) -> str:
    """The fingerprint of everything that a run's weights depend on; its name does not count.

    ``base_model`` and ``examples``, the tokenised rows, are fingerprints; ``judge`` says all that
    own texts are rewarded by, or who their teacher is, wherever files lie. ``ends_within`` is the
    last step of a run whose last epoch is not read to its end.
    """
    objective = config.train.objective
    unused = _NOT_IN_TRAINING | ({"dropout"} if run.method == "full" else set())
    of_variant: dict[str, Any] = {}
    if run.variant is not None:
        of_variant["variant"] = [VARIANT_REVISIONS.get(run.variant, 1), run.variant]
    return fingerprint(
        {
            **of_variant,
            **({} if objective is None else _of_objective(objective)),
            **({"layer_ranks": [*map(list, run.layer_ranks)]} if run.layer_ranks else {}),
            **({} if judge is None else {"judge": judge}),
            **({} if (it := run.after) is None else {"after": [it.fingerprint, it.is_beside]}),
            **({} if ends_within is None else {"ends_within": ends_within}),
            "training_revision": TRAINING_REVISION,
            "base_model": base_model,
            "precision": precision,
            "train": config.train.model_dump(mode="json", exclude=unused, context=ADDED),
            "examples": examples,
            "run": run.model_dump(mode="json", include=_RUN_IDENTITY),
            "full": None if run.full is None else run.full.model_dump(mode="json"),
        }
    )


def _of_objective(objective: ObjectiveConfig) -> dict[str, Any]:
    """Its settings; not where files lie."""
    paths: Any = {"grpo": {"rewards"}, "sdft": {"teacher"}}
    return objective.model_dump(mode="json", exclude=paths, exclude_none=True, context=ADDED)


def scoring_fingerprint(
    study: StudyRecord, model: PlannedRun | None, task: str, weights: str | None = None
) -> str:
    """The fingerprint of all that a model's scores on a task depend on; None is the base.

    ``weights`` is the fingerprint of its weights, where these are not as they were trained.
    """
    own = study.base_model_fingerprint if model is None else model.fingerprint
    part = study.part_of(model, task)
    items = study.task_fingerprints.get(task) if part is None else part.fingerprint
    return fingerprint([weights or own, items])


def head_effects_fingerprint(study: StudyRecord, run: PlannedRun, **asked: Any) -> str:
    """The fingerprint of everything that the effects of a run's heads on a task depend on.

    ``asked`` is the task's digest, its items and metric, and what is done to the heads.
    """
    return fingerprint(
        {
            "revision": HEAD_EFFECTS_REVISION,
            "base_model": study.base_model_fingerprint,
            "run": run.fingerprint,
            "precision": study.precision,
            "confidence": study.config.recommendation.confidence,
            **asked,
        }
    )


def repair_scores_fingerprint(
    study: StudyRecord, run: PlannedRun, task: str, repairs: Any, cluster_field: str | None
) -> str:
    """The fingerprint of everything that the scores of a run's repairs on a task depend on.

    ``repairs`` is what they are: the families, and the fingerprints of the runs in an average.
    """
    return fingerprint(
        {
            "revision": REPAIR_REVISION,
            "base_model": study.base_model_fingerprint,
            "scoring": fingerprint([run.fingerprint, study.task_fingerprints.get(task)]),
            "repairs": repairs,
            "metric": study.config.evaluation.metric_of(task),
            "cluster_field": cluster_field,
        }
    )


def repair_fingerprint(scores: Sequence[str], max_loss_points: float, confidence: float) -> str:
    """The fingerprint of a choice of repair: its scores, and the limit."""
    return fingerprint([REPAIR_REVISION, list(scores), max_loss_points, confidence])
