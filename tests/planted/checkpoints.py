"""Runs with checkpoints, and validation items, whose scores are given."""

from __future__ import annotations

from typing import NamedTuple

from rankwise.records.config.study import RecommendationConfig
from rankwise.records.results import ModelResults, StudyResults
from tests.planted.results import planted_evaluation, planted_items, planted_study

NUM_VALIDATION = 100


class Shares(NamedTuple):
    """Shares of items right: in-domain and on retention, on test and on validation items."""

    in_domain: float
    retention: float
    validation_in_domain: float
    validation_retention: float


BASE = Shares(0.5, 0.9, 0.5, 0.9)


def with_checkpoints(points: dict[int, list[tuple[int, Shares]]]) -> StudyResults:
    """A study whose ranks have these checkpoints, by step; the last one is the run's end."""
    ends = {rank: steps[-1][1] for rank, steps in points.items()}
    results = _study(ends)
    runs = tuple(
        _with_validation(_at_step(run, points[_rank(run)][-1][0]), ends[_rank(run)])
        for run in results.runs
    )
    checkpoints = [
        _as_checkpoint(_with_validation(run, shares), end, step)
        for rank, steps in points.items()
        for step, shares in steps[:-1]
        for run in _study({rank: shares}).runs
        for end in runs
        if _rank(end) == rank
    ]
    validation = {
        "in_domain": {"kinship": "kinship@validation"},
        "retention": {"capitals": "capitals@validation"},
    }
    study = results.study.model_copy(
        update={
            "validation_items": {"kinship": validation},
            "models": tuple(m.run.planned for m in (*runs, *checkpoints) if m.run is not None),
        }
    )
    return results.model_copy(
        update={
            "study": study,
            "base": _with_validation(results.base, BASE),
            "models": (*runs, *checkpoints),
        }
    )


def _study(ranks: dict[int, Shares]) -> StudyResults:
    return planted_study(
        {rank: shares.in_domain for rank, shares in ranks.items()},
        {rank: shares.retention for rank, shares in ranks.items()},
        {},
        {},
        retention_tasks=("capitals",),
        out_of_domain_tasks=(),
        held_out_tasks=(),
        recommendation=RecommendationConfig(delta_points=5.0, epsilon_points=5.0),
    )


def _rank(model: ModelResults) -> int:
    assert model.run is not None
    assert model.run.planned.rank is not None
    return model.run.planned.rank


def _with_validation(model: ModelResults, shares: Shares) -> ModelResults:
    items = dict(model.items)
    for task, share in (
        ("kinship@validation", shares.validation_in_domain),
        ("capitals@validation", shares.validation_retention),
    ):
        items[task] = planted_items(task, model.name, share, NUM_VALIDATION, False, 0.05)
    evaluations = {t: planted_evaluation(model.name, each, model.run) for t, each in items.items()}
    return model.model_copy(update={"items": items, "evaluations": evaluations})


def _at_step(model: ModelResults, step: int) -> ModelResults:
    assert model.run is not None
    planned = model.run.planned.model_copy(update={"num_steps": step})
    run = model.run.model_copy(update={"planned": planned, "num_steps": step})
    return model.model_copy(update={"run": run})


def _as_checkpoint(model: ModelResults, end: ModelResults, step: int) -> ModelResults:
    assert model.run is not None
    assert end.run is not None
    of, name = end.run.planned, f"{end.name}-step{step:05d}"
    changed = {"name": name, "role": "checkpoint", "of": of.as_whole, "num_steps": step}
    run = model.run.model_copy(update={"planned": of.model_copy(update=changed), "num_steps": step})
    return model.model_copy(update={"name": name, "run": run})
