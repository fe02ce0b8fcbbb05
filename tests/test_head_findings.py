"""What a study says of its heads: planted maps and effects, in words and on the page."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from planted_results import planted_study

from rankwise.findings import study_findings
from rankwise.head_effects import estimates
from rankwise.head_findings import TrainTaskHeads, flat, head_findings
from rankwise.head_records import (
    CHANGE_MEASURES,
    ChangeMap,
    HeadChanges,
    HeadEffect,
    HeadMap,
    HeadRepair,
    RepairedTask,
    Screen,
    ScreenedHead,
    ShareMap,
    TaskHeadEffects,
)
from rankwise.recommendation import recommend
from rankwise.report.head_section import head_section
from rankwise.results import ModelResults, StudyResults

LAYERS, HEADS = 5, 8
PLACES = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def as_map(values: np.ndarray) -> HeadMap:
    return tuple(tuple(row) for row in values.reshape(LAYERS, HEADS).tolist())


def changes(name: str, size: float, noise: float = 0.02, seed: int = 0) -> HeadChanges:
    """Changes that grow from head to head; the halves of the prompts differ by noise."""
    rng = np.random.default_rng(seed)
    pattern = size * np.linspace(0.1, 1.0, len(PLACES))

    def measured(measure: str) -> ChangeMap:
        halves = [as_map(pattern + rng.normal(scale=noise * size, size=40)) for _ in range(2)]
        return ChangeMap(measure=measure, values=as_map(pattern), halves=tuple(halves))

    shares = np.linspace(0, 1, 40) ** 3
    return HeadChanges(
        model=name,
        fingerprint="f",
        tasks=("kinship",),
        num_prompts=8,
        num_tokens=99,
        num_groups=(2,) * LAYERS,
        base_entropy=as_map(np.ones(40)),
        base_first_token_mass=as_map(np.full(40, 0.3)),
        changes=tuple(measured(measure) for measure in CHANGE_MEASURES),
        shares=(ShareMap(of="all", values=as_map(shares / shares.sum())),),
        not_analysed=None,
        analysis_seconds=1.0,
    )


def effects(name: str, task: str, follow: float, mode: str = "ablate") -> TaskHeadEffects:
    """Effects that grow with the change (follow = 1), shrink with it (-1), or neither (0)."""
    rng = np.random.default_rng(7)
    sizes = np.linspace(0.1, 1.0, 40)[:: -1 if follow < 0 else 1]
    if follow == 0:
        sizes = rng.permutation(sizes)
    rows = -sizes[:, None] + rng.normal(scale=0.05, size=(40, 30))
    base = rng.normal(scale=0.05, size=(40, 30))
    found = [estimates(x, item_size=0.0, confidence=0.95) for x in (rows, base, rows - base)]
    heads = tuple(
        HeadEffect(
            layer=layer,
            head=head,
            effect=found[0][n],
            control=found[1][n],
            beyond_control=None if mode == "revert" else found[2][n],
        )
        for n, (layer, head) in enumerate(PLACES)
    )
    return TaskHeadEffects(
        model=name,
        fingerprint="f",
        mode=mode,
        keys_and_values=False,
        task=task,
        relation="in_domain" if task == "kinship" else "out_of_domain",
        metric="acc",
        unit="points",
        num_items=30,
        confidence=0.95,
        num_heads=(HEADS,) * LAYERS,
        base_score=0.5,
        adapted_score=0.7,
        base_answer_nats=-1.0,
        adapted_answer_nats=-0.5,
        scores=heads,
        answers=heads,
        first_half_nats=tuple(float(x) for x in rows[:, ::2].mean(axis=1)),
        screen=Screen(
            heads=(ScreenedHead(layer=0, head=0, expected_nats=0.1, is_scored=True),),
            rank_correlation=0.9,
            lower=0.8,
            upper=0.95,
        ),
        score_seconds=1.0,
    )


def repair(name: str) -> HeadRepair:
    (estimate,) = estimates(np.full((1, 9), 0.2), item_size=0.0, confidence=0.95)
    return HeadRepair(
        model=name,
        fingerprint="f",
        keys_and_values=False,
        in_domain=("kinship",),
        others=("syllogism",),
        heads=((1, 2), (3, 4)),
        selection_gain_nats=(0.1, 0.2),
        num_selection_items=20,
        tasks=(
            RepairedTask(
                task="syllogism",
                relation=None,
                unit="points",
                num_items=10,
                base_score=50.0,
                adapted_score=40.0,
                repaired_score=49.0,
                effect=estimate,
                effect_nats=estimate,
                random_nats=0.01,
            ),
        ),
        num_random_sets=4,
        folder="runs/x/heads/repaired",
        projection_error=0.0,
        statement="Reverting 2 heads restores syllogism.",
    )


def looked_into(results: StudyResults, **updates: dict[str, object]) -> StudyResults:
    """The study with changes of every run, larger at higher ranks, and more of single runs."""
    runs: list[ModelResults] = []
    for number, model in enumerate(results.runs):
        more = updates.get(str(number), {})
        own = {"head_changes": changes(model.name, 0.1 * (number + 1), seed=number), **more}
        runs.append(model.model_copy(update=own))
    return results.model_copy(update={"runs": tuple(runs)})


def found(results: StudyResults) -> TrainTaskHeads:
    (only,) = head_findings(results)
    return only


def test_a_study_without_heads_says_nothing() -> None:
    assert head_findings(planted_study()) == ()


def test_changes_grow_with_rank_and_are_like_full_fine_tunings() -> None:
    ranks = (2, 4, 8, 16, 32, 64, 128)
    shares = [dict.fromkeys((*ranks, "full"), share) for share in (0.8, 0.9, 0.5, 2.5)]
    results = looked_into(planted_study(*shares))
    heads = found(results)
    assert [run.option.rank for run in heads.runs] == [*ranks, None]
    output = [{m.measure: m for m in run.measures}["output"] for run in heads.runs]
    assert [each.mean for each in output] == pytest.approx([0.055 * n for n in range(1, 9)])
    assert all(each.agreement is not None and each.agreement.estimate > 0.95 for each in output)
    assert output[-1].like_full is None
    assert all(
        each.like_full is not None and each.like_full.estimate > 0.99 for each in output[:-1]
    )
    against = {each.measure: each for each in heads.against_rank}["output"]
    assert against.correlation is not None
    assert against.correlation.estimate == pytest.approx(1.0)
    assert any("higher the rank is shown" in each for each in heads.statements)
    assert heads.runs[0].top_share == pytest.approx(
        sum(sorted(flat(changes("", 1).shares[0].values))[-4:])
    )


@pytest.mark.parametrize(
    ("follow", "verdict"), [(1.0, "is shown"), (-1.0, "is refuted"), (0.0, "is not shown")]
)
def test_whether_heads_that_changed_most_matter_most(follow: float, verdict: str) -> None:
    study = planted_study()
    name = study.runs[0].name
    heads = found(
        looked_into(study, **{"0": {"head_effects": (effects(name, "kinship", follow),)}})
    )
    by_measure = {(e.measure, e.is_beyond_control): e for e in heads.matters}
    assert set(by_measure) == {(m, b) for m in (*CHANGE_MEASURES, "share") for b in (False, True)}
    rho = by_measure["output", False].correlation
    assert rho is not None
    assert rho.estimate == pytest.approx(follow, abs=0.35)
    (statement,) = (each for each in heads.statements if "matter most" in each)
    assert verdict in statement


def test_the_section_has_maps_tables_and_files() -> None:
    study = planted_study()
    name = study.runs[1].name
    own = (effects(name, "kinship", 1.0), effects(name, "syllogism", 0.0),
           effects(name, "syllogism", 1.0, "revert"))  # fmt: skip
    results = looked_into(study, **{"1": {"head_effects": own, "head_repair": repair(name)}})
    findings = study_findings(results, recommend(results))
    section = head_section(findings.heads, results)
    assert [figure.name.rpartition("-")[2] for figure in section.figures] == [
        "output", "attention", "ablate", "revert",
    ]  # fmt: skip
    assert all(figure.chart is not None for figure in section.figures)
    titles = [table.title for table in section.tables]
    assert titles[:2] == ["Change of the heads", "Change and effect"]
    assert sum(title.startswith("Heads set to zero") for title in titles) == 2
    assert titles[-1].startswith("Repair of")
    assert any("Reverting 2 heads restores syllogism" in each for each in section.remarks)
    rows = list(csv.DictReader(io.StringIO(section.files["heads.csv"])))
    assert len(rows) == len(results.runs) * 40
    assert float(rows[39]["output_change"]) == pytest.approx(0.1)
    assert rows[0]["delta_share_query"] == ""
    rows = list(csv.DictReader(io.StringIO(section.files["head-effects.csv"])))
    assert len(rows) == 3 * 2 * 40
    assert rows[-1]["beyond_control_estimate"] == ""


def test_runs_without_maps_are_named_with_the_reason() -> None:
    study = planted_study()
    unknown = changes(study.runs[0].name, 1.0).model_copy(
        update={"changes": (), "shares": (), "not_analysed": "its heads are laid out oddly"}
    )
    results = looked_into(study, **{"0": {"head_changes": unknown}})
    heads = found(results)
    assert study.runs[0].name not in {run.run for run in heads.runs}
    assert heads.left_out == {study.runs[0].name: "its heads are laid out oddly"}
    assert any("oddly" in each for each in head_section([heads], results).remarks)
