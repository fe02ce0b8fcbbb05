"""A finished study in the schema of Every Eval Ever, https://github.com/evaleval/every_eval_ever.

Each model is one record, under the name that their data store gives it. What the records of a study
do not say (the organisation, what the hub knows of a data set) is ``unknown``, never guessed.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rankwise.integrations.exported import Exported, export_models
from rankwise.records.files import write_atomically
from rankwise.records.folder import LOSS_METRIC, StudyFolder
from rankwise.records.p_right import P_RIGHT
from rankwise.records.results import ModelResults
from rankwise.records.study import MetricScore, StudyRecord, TaskEvaluation

SCHEMA_VERSION = "0.3.0"
_UNKNOWN = "unknown"
# lm-eval's metrics that are shares; of the others nobody says how far they go.
_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "f1", "em", P_RIGHT)


def export_evaluations(folder: StudyFolder, place: Path) -> list[Exported]:
    """Write the scores of the base and of every trained run.

    The files are ``<place>/data/<study>/<developer>/<model>/<id>.json``. The same records give
    the same files: the id is made of the model's name and fingerprint. Only the tasks that decide
    are in them.

    Args:
        folder: a finished study's.
        place: the folder to write into.

    Raises:
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written.
    """
    return export_models(folder, place, _write)


def _write(study: StudyRecord, model: ModelResults, output: Path) -> Exported:
    content = evaluation_log(study, model)
    developer, _, name = content["model_info"]["id"].rpartition("/")
    fingerprint = (
        study.base_model_fingerprint if model.run is None else model.run.planned.fingerprint
    )
    digest = hashlib.sha256(f"{model.name} {fingerprint}".encode()).digest()
    place = output / "data" / study.config.name / _part(developer or _UNKNOWN) / _part(name)
    file = place / f"{uuid.UUID(bytes=digest[:16], version=4)}.json"
    write_atomically(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return Exported(model.name, file)


def evaluation_log(study: StudyRecord, model: ModelResults) -> dict[str, Any]:
    """The record of one model: every metric of every task that decides."""
    provenance = study.provenance if model.run is None else model.run.provenance
    date = datetime.fromisoformat(provenance.created_at).astimezone(UTC)
    seconds = str(date.timestamp())
    name = study.config.base_model.name
    identity = name if model.run is None else f"{study.config.name}/{model.name}"
    library = {"name": "rankwise", "version": provenance.rankwise_version}
    if version := provenance.package_versions.get("lm-eval"):
        library |= {"additional_details": {"lm_eval_version": version}}
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{study.config.name}/{identity}/{seconds}",
        "evaluation_timestamp": date.isoformat(),
        "retrieved_timestamp": seconds,
        "source_metadata": {
            "source_name": study.config.name,
            "source_type": "evaluation_run",
            "source_organization_name": _UNKNOWN,
            # who trained a run scored it here
            "evaluator_relationship": "third_party" if model.run is None else "first_party",
        },
        "eval_library": library,
        "model_info": {
            "name": name if model.run is None else model.name,
            "id": identity,
            "inference_engine": {"name": "rankwise", "version": provenance.rankwise_version},
            "additional_details": dict(_details(study, model)),
        },
        "evaluation_results": [
            _result(evaluation, score)
            for evaluation in model.evaluations.values()
            for score in evaluation.metrics
        ],
    }


def _details(study: StudyRecord, model: ModelResults) -> Iterator[tuple[str, str]]:
    """How the model was made; all values are text."""
    yield "deployment_type", "self_deployed"
    yield "model_availability", _UNKNOWN
    yield "base_model", study.config.base_model.name
    yield "precision", study.precision
    if model.run is None:
        return
    planned = model.run.planned
    for key in ("method", "train_task", "rank", "alpha", "scaling", "learning_rate", "epochs"):
        if (value := getattr(planned, key)) is not None:
            yield key, str(value)
    yield "seed", str(planned.seed)
    yield "num_trainable_parameters", str(planned.num_trainable_parameters)
    if planned.target_modules:
        yield "target_modules", ",".join(planned.target_modules)


def _result(evaluation: TaskEvaluation, score: MetricScore) -> dict[str, Any]:
    uncertainty: dict[str, Any] = {"num_samples": score.num_examples}
    if score.stderr is not None:
        uncertainty["standard_error"] = {"value": score.stderr}
    named = f"{evaluation.task},{score.metric},{score.filter}"
    return {
        "evaluation_result_id": named,
        "evaluation_name": evaluation.task,
        "source_data": {"dataset_name": evaluation.task, "source_type": "other"},
        "metric_config": {
            "metric_id": score.metric,
            "metric_name": score.metric,
            "metric_parameters": {"filter": score.filter},
            "lower_is_better": not score.higher_is_better,
            "score_type": "continuous",
            **_bounds(score.metric),
        },
        "score_details": {
            "score": score.value,
            "details": {
                "task_version": evaluation.task_version,
                "num_fewshot": str(evaluation.num_fewshot),
                "chat_template": str(evaluation.chat_template).lower(),
                "decides": str(score == evaluation.decision).lower(),
            },
            "uncertainty": uncertainty,
        },
    }


def _bounds(metric: str) -> dict[str, Any]:
    """How far a metric goes; null is not known."""
    if metric == LOSS_METRIC:
        return {"metric_unit": "nats per token", "min_score": 0.0, "max_score": "Infinity"}
    if metric == "mcc":
        return {"min_score": -1.0, "max_score": 1.0}
    is_share = metric in _SHARES
    return {"min_score": 0.0 if is_share else None, "max_score": 1.0 if is_share else None}


def _part(name: str) -> str:
    """A name made fit to be a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".") or _UNKNOWN
