"""Planted studies under names of their own, each with its stack, for comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankwise.findings.comparison import StudySource
from rankwise.findings.recommendation import recommend
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.fingerprints import scoring_fingerprint
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.study import StudyRecord
from tests.planted.results import BASE_FINGERPRINT, PROVENANCE, planted_study

MARGINS = RecommendationConfig(delta_points=5.0, epsilon_points=6.0)


def on_torch(version: str) -> Any:
    """A provenance that differs from others by torch alone."""
    return PROVENANCE.model_copy(update={"package_versions": {"torch": version}})


def compared_results(
    name: str = "first",
    in_domain: float = 0.80,
    retention: float = 0.90,
    *,
    torch: str = "2.13.0",
    precision: str = "float32",
    weights: str = BASE_FINGERPRINT,
    items: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    **planted: Any,
) -> StudyResults:
    """A study of rank 16 alone, with nested outcomes: ``in_domain`` and ``retention`` are shares.

    Args:
        name: of the study.
        torch: the version that made everything.
        precision: of the study.
        weights: fingerprint of the base model.
        items: task -> fingerprint of its items, where they are not the usual ones.
        settings: of the study file, by section: ``{"train": {"epochs": (3,)}}``.
    """
    scores = {"in_domain_accuracy": {16: in_domain}, "retention_accuracy": {16: retention}}
    results = planted_study(**{**scores, "noise": 0.0, "recommendation": MARGINS, **planted})
    config = results.study.config
    changed: dict[str, Any] = {"name": name}
    for section, values in (settings or {}).items():
        changed[section] = getattr(config, section).model_copy(update=values)
    study = results.study.model_copy(
        update={
            "config": config.model_copy(update=changed),
            "base_model_fingerprint": weights,
            "precision": precision,
            "task_fingerprints": {**results.study.task_fingerprints, **(items or {})},
        }
    )
    models = [_made(model, study, torch) for model in (results.base, *results.runs)]
    return results.model_copy(
        update={"study": study, "base": models[0], "models": tuple(models[1:])}
    )


def compared(name: str = "first", *scores: float, **planted: Any) -> StudySource:
    """The same, judged."""
    return judged(compared_results(name, *scores, **planted))


def judged(results: StudyResults) -> StudySource:
    return StudySource(results.study.config.name, results, recommend(results))


def _made(model: ModelResults, study: StudyRecord, torch: str) -> ModelResults:
    """On this stack, with the fingerprints that the study gives."""
    run = model.run
    return model.model_copy(
        update={
            "run": run and run.model_copy(update={"provenance": on_torch(torch)}),
            "evaluations": {
                task: each.model_copy(
                    update={
                        "provenance": on_torch(torch),
                        "fingerprint": scoring_fingerprint(study, run and run.planned, task),
                    }
                )
                for task, each in model.evaluations.items()
            },
        }
    )
