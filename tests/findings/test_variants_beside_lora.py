"""Variants beside LoRA: the differences that were planted, best rates, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from rankwise.findings.gauges import gauges
from rankwise.findings.models import model_groups
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend
from rankwise.findings.variants import TrainTaskVariants, VariantRow, variants_beside_lora
from rankwise.records.axes import run_labels
from rankwise.records.config.variants import VariantName, VariantsConfig
from rankwise.records.results import Divergence, ModelResults, StudyResults
from rankwise.records.study import PlannedRun
from rankwise.report.sections.gauges import gauge_section
from tests.planted.grid import grid_run, planted_grid, relations
from tests.planted.results import planted_evaluation, planted_items, planted_run_record
from tests.support.sentences import Sentences

SIZE, BASE, RETAINED = 200, 0.4, 0.8
LORA = {"2e-4": 0.20, "4e-4": 0.30}


def of_variant(run: PlannedRun, name: VariantName) -> PlannedRun:
    """The run of LoRA as a variant beside it."""
    changed = {
        "name": f"{run.name}-{name}",
        "fingerprint": f"{run.fingerprint}{name}",
        "role": "variant",
        "variant": name,
        "beside_ranks": (run.rank,),
        "alpha": run.alpha if name != "vera" else None,
        "alpha_labels": run.alpha_labels if name != "vera" else (),
        "num_trainable_parameters": 7_000,
    }
    return run.model_copy(update=changed)


def planted(
    gains: Mapping[tuple[VariantName, str], float],
    *,
    seeds: Sequence[int] = (0, 1),
    diverged: Sequence[VariantName] = (),
    beside: tuple[int, ...] = (16,),
) -> StudyResults:
    """LoRA of rank 8 and 16 at two rates, and variants like rank 16; all gains are known."""
    plans = [
        grid_run("sums", rank, rate_labels=(rate,), seed=seed)
        for rank in (8, 16)
        for rate in LORA
        for seed in seeds
    ]

    def score(plan: PlannedRun | None, task: str) -> float:
        if task != "sums":
            return RETAINED
        return BASE if plan is None else BASE + LORA[plan.rate_labels[0]]

    results = planted_grid(
        plans, {"sums": relations(["sums"], (), ["capitals"])}, score, sizes=SIZE
    )
    variants: list[ModelResults] = []
    for (name, rate), gain in gains.items():
        for seed in seeds:
            plan = of_variant(grid_run("sums", 16, rate_labels=(rate,), seed=seed), name)
            plan = plan.model_copy(update={"beside_ranks": beside})
            run = planted_run_record(plan, name in diverged and seed == seeds[-1])
            shares = {"sums": BASE + gain, "capitals": RETAINED - 0.05}
            items = {
                task: planted_items(task, plan.name, share, SIZE, nats=False, noise=0.0)
                for task, share in (shares.items() if run.status == "trained" else ())
            }
            evaluations = {task: planted_evaluation(plan.name, i, run) for task, i in items.items()}
            variants.append(
                ModelResults(name=plan.name, run=run, evaluations=evaluations, items=items)
            )
    names: tuple[VariantName, ...] = tuple(dict.fromkeys(name for name, _ in gains))
    study = results.study
    methods = study.config.methods.model_copy(update={"variants": VariantsConfig(names=names)})
    config = study.config.model_copy(update={"methods": methods})
    runs = tuple(model.run.planned for model in variants if model.run is not None)
    study = study.model_copy(update={"config": config, "models": (*study.models, *runs)})
    return results.model_copy(update={"study": study, "models": (*results.models, *variants)})


def found_in(results: StudyResults) -> TrainTaskVariants:
    (source,), (part,) = option_gains(results), recommend(results).by_train_task
    found = variants_beside_lora(source, part)
    assert found is not None
    return found


def rows_of(found: TrainTaskVariants) -> dict[str, VariantRow]:
    return {row.label: row for row in found.rows}


def test_a_variant_is_set_against_lora_at_the_rate_at_which_lora_gains_most(
    sentence: Sentences,
) -> None:
    found = found_in(
        planted({("dora", "2e-4"): 0.35, ("dora", "4e-4"): 0.28, ("vera", "2e-4"): 0.1})
    )
    rows = rows_of(found)
    assert [*rows] == ["rank 16, DoRA, rate 2e-4", "rank 16, DoRA, rate 4e-4", "rank 16, VeRA"]
    assert {row.against for row in rows.values()} == {"rank 16, rate 4e-4"}
    leads = [row.lead.estimate for row in rows.values() if row.lead is not None]
    assert leads == [pytest.approx(x) for x in (5.0, -2.0, -20.0)]
    kept = [row.retention_lead.estimate for row in rows.values() if row.retention_lead is not None]
    assert kept == [pytest.approx(-5.0)] * 3
    assert [row.is_best_rate for row in rows.values()] == [True, False, True]
    assert [row.num_rates for row in rows.values()] == [2, 2, 1]
    assert all(row.num_seeds == 2 for row in rows.values())
    assert len(found.statements) == 3
    sentence(found.statements[2], "first")
    sentence(found.statements[0], "second")
    assert "chosen on the items" not in found.statements[1]
    assert found.left_out == ()


def test_a_best_rate_between_others_is_at_no_edge() -> None:
    gains: dict[tuple[VariantName, str], float] = {
        ("dora", "1e-4"): 0.2, ("dora", "2e-4"): 0.35, ("dora", "4e-4"): 0.28,
    }  # fmt: skip
    assert not any(
        "edge" in said or "lie beyond" in said for said in found_in(planted(gains)).statements
    )


def test_a_variant_with_a_diverged_seed_is_left_out_and_named() -> None:
    gains: dict[tuple[VariantName, str], float] = {("dora", "2e-4"): 0.3, ("adalora", "2e-4"): 0.3}
    found = found_in(planted(gains, diverged=["dora"]))
    assert [row.label for row in found.rows] == ["rank 16, AdaLoRA"]
    assert found.left_out == ("rank 16, DoRA",)


def test_the_verdict_is_the_same_with_and_without_variants() -> None:
    results = planted({("dora", "2e-4"): 0.5})
    with_variants = recommend(results).by_train_task[0]
    assert {verdict.rank for verdict in with_variants.verdicts} == {8, 16}
    alone = results.model_copy(
        update={
            "models": results.runs,
            "study": results.study.model_copy(update={"models": results.study.runs}),
        }
    )
    assert recommend(alone).by_train_task[0] == with_variants


def test_runs_and_variants_together_have_labels_of_their_own() -> None:
    run = grid_run("sums", 16)
    runs = [run, *(of_variant(run, name) for name in ("dora", "vera"))]
    assert [*run_labels(runs).values()] == [
        "rank 16",
        "rank 16, DoRA",
        "rank 16, VeRA",
    ]


def test_one_training_is_set_against_lora_at_each_rank_that_it_is_beside() -> None:
    found = found_in(planted({("vera", "2e-4"): 0.35, ("vera", "4e-4"): 0.25}, beside=(8, 16)))
    assert [(row.beside_rank, row.against, row.num_rates) for row in found.rows] == [
        (8, "rank 8, rate 4e-4", 2),
        (8, "rank 8, rate 4e-4", 2),
        (16, "rank 16, rate 4e-4", 2),
        (16, "rank 16, rate 4e-4", 2),
    ]
    assert [row.is_best_rate for row in found.rows] == [True, False, True, False]


def test_a_variant_at_one_rank_is_called_by_the_rank_beside_it_where_there_are_several() -> None:
    """VeRA's rank is limited; its rate may follow from LoRA's rank, under one label."""
    first, second = (
        of_variant(grid_run("sums", rank), "vera").model_copy(update={"rank": 64})
        for rank in (8, 16)
    )
    assert [*run_labels([first, second]).values()] == [
        "rank 64, VeRA, beside rank 8",
        "rank 64, VeRA, beside rank 16",
    ]
    merged = first.model_copy(update={"beside_ranks": (4, 8)})
    labels = [*run_labels([merged, second]).values()]
    assert labels == ["rank 64, VeRA, beside rank 4 and rank 8", "rank 64, VeRA, beside rank 16"]


def test_gauges_of_variants_are_shown_as_models_of_their_own() -> None:
    results = planted({("vera", "2e-4"): 0.3, ("vera", "4e-4"): 0.2})
    kl = {"2e-4": 0.25, "4e-4": 0.75}

    def gauged(model: ModelResults) -> ModelResults:
        assert model.run is not None
        record = Divergence(
            model=model.name,
            reference="base",
            train_task="sums",
            fingerprint="",
            num_items=2,
            num_tokens=2,
            tasks=("sums",) * 2,
            doc_ids=(0, 1),
            kl_nats=(kl[model.run.planned.rate_labels[0]],) * 2,
            top1_agreement=(1.0,) * 2,
            rise_nats=(0.0,) * 2,
            item_tokens=(1, 1),
            score_seconds=1.0,
        )
        return model.model_copy(update={"from_base": record})

    results = results.model_copy(update={"models": tuple(map(gauged, results.of_role("variant")))})
    (source,) = option_gains(results)
    (first, second) = model_groups(source, lambda model: model.from_base is not None)
    assert (first.kind, second.kind) == ("variant", "variant")
    found = gauges(source)
    assert found is not None
    assert [
        (model.label, model.rank, model.num_seeds, model.kl_prompts and model.kl_prompts.estimate)
        for model in found.models
    ] == [("rank 16, VeRA, rate 2e-4", 16, 2, 0.25), ("rank 16, VeRA, rate 4e-4", 16, 2, 0.75)]
    (table,) = gauge_section([found]).tables
    assert [(group.title, len(group.rows)) for group in table.table.groups] == [
        ("Variants of LoRA", 2)
    ]
