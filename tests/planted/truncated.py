"""A study with truncated adapters whose gains are planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.study import PlannedRun
from tests.planted.grid import grid_run, planted_grid, relations
from tests.planted.results import planted_evaluation, planted_items, planted_run_record

Gains = Mapping[str, Mapping[int, float | Sequence[float]]]

BASE_SHARE = 0.4
RETAINED_SHARE = 0.8
FORGOTTEN_SHARE = 0.02
"""What truncated adapters forget and trained ones do not."""

ENERGY_ERROR = 0.5
REFINED_STEPS = 3
SIZE = 200


def planted_truncated(
    gains: Gains,
    *,
    seeds: Sequence[int] = (0,),
    plans: Sequence[PlannedRun] = (),
    ranks: Sequence[int] = (),
    diverged: Sequence[int] = (),
) -> StudyResults:
    """Runs of "sums" at the trained ranks, and the largest one truncated and refined.

    Args:
        gains: "trained", "truncated" and "refined" -> rank -> gain as a share of the items, one
            for all seeds or one for each; a rank that is not in it gains a tenth.
        seeds: of every run.
        plans: the runs, where they are not those of ``gains``.
        ranks: that the largest is truncated to, where they are not those of ``gains``.
        diverged: ranks whose runs have diverged.
    """

    def gain(series: str, rank: int | None, seed: int | None) -> float:
        value = gains[series].get(rank or 0, 0.1)
        return value[seeds.index(seed or 0)] if isinstance(value, Sequence) else value

    def score(plan: PlannedRun | None, task: str) -> float:
        if task != "sums":
            is_cut = plan is not None and plan.role == "truncated"
            return RETAINED_SHARE - FORGOTTEN_SHARE * is_cut
        learned = 0.0 if plan is None else gain(_series(plan), plan.rank, plan.seed)
        return BASE_SHARE + learned

    plans = plans or [grid_run("sums", r, seed=s) for r in gains["trained"] for s in seeds]
    names = [plan.name for plan in plans if plan.rank in diverged]
    tasks = {"sums": relations(["sums"], (), ["capitals"])}
    results = planted_grid(plans, tasks, score, sizes=SIZE, diverged=names)
    largest = max(plan.rank or 0 for plan in plans)
    truncated = [
        _truncated(plan, series, rank)
        for plan in results.study.runs
        if plan.rank == largest
        for series in ("truncated", "refined")
        for rank in ranks or gains[series]
    ]
    models = [_results(plan, score, is_diverged=largest in diverged) for plan in truncated]
    study = results.study.model_copy(update={"models": (*results.study.models, *truncated)})
    return results.model_copy(update={"study": study, "models": (*results.models, *models)})


def _series(plan: PlannedRun) -> str:
    if plan.role != "truncated":
        return "trained"
    return "refined" if plan.num_steps else "truncated"


def _truncated(plan: PlannedRun, series: str, rank: int) -> PlannedRun:
    name = f"{plan.name}-{series}-r{rank:03d}"
    return plan.model_copy(
        update={
            "name": name,
            "fingerprint": name,
            "rank": rank,
            "role": "truncated",
            "of": plan.as_whole,
            "num_steps": REFINED_STEPS if series == "refined" else 0,
        }
    )


def _results(
    plan: PlannedRun, score: Callable[[PlannedRun | None, str], float], *, is_diverged: bool
) -> ModelResults:
    run = planted_run_record(plan, is_diverged)
    run = run.model_copy(update={"truncation_error": None if is_diverged else ENERGY_ERROR})
    items = {
        task: planted_items(task, plan.name, score(plan, task), SIZE, nats=False, noise=0.0)
        for task in (() if is_diverged else ("sums", "capitals"))
    }
    return ModelResults(
        name=plan.name,
        run=run,
        evaluations={task: planted_evaluation(plan.name, i, run) for task, i in items.items()},
        items=items,
    )
