"""A study with arms against forgetting whose gains and losses are planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.records.config.mitigations import MitigationConfig
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.study import PlannedRun
from tests.planted.grid import grid_run, planted_grid, relations
from tests.planted.results import planted_evaluation, planted_items, planted_run_record

BASE_SHARE = 0.3
RETAINED_SHARE = 0.8
SIZE = 1000


class Change(NamedTuple):
    """A gain in-domain and a change on retention, as shares of the items."""

    gain: float
    retention: float


def planted_mitigated(
    plain: Change,
    arms: Mapping[str, tuple[dict[str, Any], Change]],
    *,
    seeds: Sequence[int] = (0,),
    noise: float = 0.0,
    diverged: Sequence[str] = (),
    epsilon: float | None = None,
) -> StudyResults:
    """A run of "sums" at rank 16 and its arms, scored on "sums" and on "capitals".

    Args:
        plain: of the run as trained.
        arms: name -> its settings, and what it comes to.
        seeds: of every run.
        noise: as in ``planted_grid``.
        diverged: names of arms that have no scores.
        epsilon: the largest retention loss that is accepted, in points.
    """
    changes = {name: change for name, (_, change) in arms.items()}

    def score(plan: PlannedRun | None, task: str) -> float:
        arm = None if plan is None or plan.mitigation is None else plan.mitigation.name
        change = Change(0.0, 0.0) if plan is None else plain if arm is None else changes[arm]
        return BASE_SHARE + change.gain if task == "sums" else RETAINED_SHARE + change.retention

    runs = [grid_run("sums", 16, seed=seed) for seed in seeds]
    asked = (
        RecommendationConfig() if epsilon is None else RecommendationConfig(epsilon_points=epsilon)
    )
    results = planted_grid(
        runs,
        {"sums": relations(["sums"], (), ["capitals"])},
        score,
        sizes=SIZE,
        noise=noise,
        recommendation=asked,
    )
    planned = [
        _arm(run, MitigationConfig.model_validate({"name": name, **settings}))
        for run in results.study.runs
        for name, (settings, _) in arms.items()
    ]
    models: list[ModelResults] = []
    for plan in planned:
        assert plan.mitigation is not None
        is_diverged = plan.mitigation.name in diverged
        record = planted_run_record(plan, is_diverged)
        items = {
            task: planted_items(task, plan.name, score(plan, task), SIZE, nats=False, noise=noise)
            for task in (() if is_diverged else ("sums", "capitals"))
        }
        models.append(
            ModelResults(
                name=plan.name,
                run=record,
                evaluations={t: planted_evaluation(plan.name, i, record) for t, i in items.items()},
                items=items,
            )
        )
    study = results.study.model_copy(update={"models": (*runs, *planned)})
    return results.model_copy(update={"study": study, "models": (*results.models, *models)})


def _arm(run: PlannedRun, arm: MitigationConfig) -> PlannedRun:
    name = f"{run.name}-{arm.name}"
    assert run.learning_rate is not None
    changed = {
        "name": name,
        "fingerprint": name,
        "mitigation": arm,
        "role": "mitigated",
        "of": run.as_whole,
        "learning_rate": run.learning_rate * (arm.learning_rate_factor or 1.0),
    }
    return run.model_copy(update=changed)
