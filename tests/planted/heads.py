"""What a study may know of its runs' heads, with planted answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from rankwise.heads.effects import estimates
from rankwise.records.heads import (
    CHANGE_MEASURES,
    ChangeMap,
    ChangeMeasure,
    HeadChanges,
    HeadEffect,
    HeadMap,
    HeadMode,
    Screen,
    ScreenedHead,
    ShareMap,
    TaskHeadEffects,
)
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.study import Interval

LAYERS, HEADS = 5, 8


def as_map(values: np.ndarray) -> HeadMap:
    return tuple(tuple(row) for row in values.reshape(LAYERS, -1).tolist())


def changes(
    name: str, size: float, noise: float = 0.02, seed: int = 0, width: int = HEADS
) -> HeadChanges:
    """Changes that grow from head to head; the halves of the prompts differ by noise."""
    rng = np.random.default_rng(seed)
    count = LAYERS * width
    pattern = size * np.linspace(0.1, 1.0, count)

    def measured(measure: ChangeMeasure) -> ChangeMap:
        first, second = (
            as_map(pattern + rng.normal(scale=noise * size, size=count)) for _ in range(2)
        )
        return ChangeMap(measure=measure, values=as_map(pattern), halves=(first, second))

    shares = np.linspace(0, 1, count) ** 3
    return HeadChanges(
        model=name,
        fingerprint="f",
        tasks=("kinship",),
        num_prompts=8,
        num_tokens=99,
        num_groups=(2,) * LAYERS,
        base_entropy=as_map(np.ones(count)),
        base_first_token_mass=as_map(np.full(count, 0.3)),
        changes=tuple(measured(measure) for measure in CHANGE_MEASURES),
        shares=(ShareMap(of="all", values=as_map(shares / shares.sum())),),
        not_analysed=None,
        analysis_seconds=1.0,
    )


def effects(
    name: str,
    task: str,
    follow: float = 1.0,
    mode: HeadMode = "ablate",
    *,
    width: int = HEADS,
    top: int | None = None,
) -> TaskHeadEffects:
    """Effects that grow with the change (follow = 1), shrink with it (-1), or neither (0).

    With ``top`` a screen has chosen so many heads; it has ordered them as they are.
    """
    rng = np.random.default_rng(7)
    count = LAYERS * width
    places = [divmod(number, width) for number in range(count)]
    sizes = np.linspace(0.1, 1.0, count)[:: -1 if follow < 0 else 1]
    if follow == 0:
        sizes = rng.permutation(sizes)
    rows = -sizes[:, None] + rng.normal(scale=0.05, size=(count, 30))
    base = rng.normal(scale=0.05, size=(count, 30))
    found = [
        estimates(each, item_size=0.0, confidence=0.95, family=count)
        for each in (rows, base, rows - base)
    ]
    scored = np.argsort(-sizes, kind="stable")[:top]
    heads = tuple(
        HeadEffect(
            layer=places[n][0],
            head=places[n][1],
            effect=found[0][n],
            control=found[1][n],
            beyond_control=found[2][n],
        )
        for n in sorted(scored.tolist())
    )
    screened = tuple(
        ScreenedHead(layer=layer, head=head, expected_nats=-sizes[n], is_scored=n in scored)
        for n, (layer, head) in enumerate(places)
    )
    screen = Screen(heads=screened, rank_correlation=Interval(estimate=0.9, lower=0.8, upper=0.95))
    return TaskHeadEffects(
        model=name,
        fingerprint="f",
        mode=mode,
        task=task,
        task_fingerprint=None,
        relation="in_domain" if task == "kinship" else "out_of_domain",
        metric="acc",
        unit="points",
        num_items=30,
        confidence=0.95,
        num_heads=(width,) * LAYERS,
        base_score=0.5,
        adapted_score=0.7,
        base_answer_nats=-1.0,
        adapted_answer_nats=-0.5,
        scores=heads,
        answers=heads,
        screen=None if top is None else screen,
        score_seconds=1.0,
    )


def looked_into(
    results: StudyResults,
    updates: Mapping[int, Mapping[str, object]] = MappingProxyType({}),
    *,
    width: int = HEADS,
) -> StudyResults:
    """The study with changes of every run, larger at higher ranks, and more of single runs."""
    runs: list[ModelResults] = []
    for number, model in enumerate(results.runs):
        size = 0.1 * (number + 1)
        found = changes(model.name, size, seed=number, width=width)
        own = {"head_changes": found, **updates.get(number, {})}
        runs.append(model.model_copy(update=own))
    return results.model_copy(update={"models": tuple(runs)})


def with_effects(
    results: StudyResults, number: int, *found: TaskHeadEffects, width: int = HEADS
) -> StudyResults:
    """The same with what one run's heads do."""
    return looked_into(results, {number: {"head_effects": found}}, width=width)


def named(found: Sequence[object], part: str) -> list[str]:
    """Those of some sentences that have these words."""
    return [str(each) for each in found if part in str(each)]
