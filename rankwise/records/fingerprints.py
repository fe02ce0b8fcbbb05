"""What a result depends on, as one number: equal fingerprints, equal results."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rankwise.records.study import PlannedRun, Record, StudyRecord

# Raised when a change to the code changes what is scored from equal settings.
SCORING_REVISION = 3
# The same for how far a model is from full fine-tuning, and for what is found in weights.
DIVERGENCE_REVISION = 2
SPECTRA_REVISION = 2
HEADS_REVISION = 1


def fingerprint(content: Any) -> str:
    """A sha256 over canonical JSON: equal content, equal fingerprint, whatever its key order."""
    if isinstance(content, Record):
        content = content.model_dump(mode="json")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def scoring_fingerprint(study: StudyRecord, model_fingerprint: str, task: str) -> str:
    """Of everything that a model's scores on a task depend on in this study."""
    return fingerprint([model_fingerprint, study.task_fingerprints.get(task)])


def divergence_fingerprint(study: StudyRecord, model: str, reference: PlannedRun) -> str:
    """Of everything that a model's divergence from a full fine-tuning depends on."""
    answers = study.answers_fingerprints.get(reference.train_task)
    return fingerprint([model, reference.fingerprint, answers])


def spectra_fingerprint(study: StudyRecord, run: PlannedRun) -> str:
    """Of everything that is found in a run's weights."""
    full, settings = study.full_run_of(run), study.config.analysis
    return fingerprint(
        {
            "revision": SPECTRA_REVISION,
            "base_model": study.base_model_fingerprint,
            "run": run.fingerprint,
            "full": None if full is None else full.fingerprint,
            "modules": study.adapted_modules if run.method == "full" else None,
            "top_k": settings.top_k,
            "null_draws": settings.null_draws,
        }
    )


def head_changes_fingerprint(study: StudyRecord, run: PlannedRun) -> str:
    """Of everything that the changes of a run's heads depend on."""
    in_domain = study.tasks[run.train_task].get("in_domain", ())
    return fingerprint(
        {
            "revision": HEADS_REVISION,
            "base_model": study.base_model_fingerprint,
            "run": run.fingerprint,
            "prompts": [study.task_fingerprints.get(task) for task in in_domain],
            "num_prompts": study.config.analysis.head_prompts,
        }
    )
