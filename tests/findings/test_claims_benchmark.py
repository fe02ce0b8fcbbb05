"""The paper's claims on planted studies: each can come out either way, and undecided."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import Claim, claims_of, main, paper_claims
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.support.sentences import Sentences

MARGINS = RecommendationConfig(delta_points=5, epsilon_points=5)


def judged(domains: Mapping[str, str], **planted: Any) -> dict[str, Claim]:
    settings: dict[str, Any] = {
        "recommendation": MARGINS,
        "num_in_domain": 2000,
        "num_retention": 2000,
        "noise": 0.02,
    }
    results = planted_study(**(settings | planted))
    study = results.study.model_copy(update={"domains": dict(domains)})
    return on(results.model_copy(update={"study": study}))


def on(results: StudyResults) -> dict[str, Claim]:
    return {claim.name: claim for claim in paper_claims(option_gains(results), recommend(results))}


REASONING = {"kinship": "reasoning", "syllogism": "reasoning"}


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ({8: 0.5, 32: 0.80, 64: 0.81, "full": 0.80}, "supported"),
        ({8: 0.5, 32: 0.50, 64: 0.82, "full": 0.80}, "supported"),  # one of them is enough
        ({8: 0.8, 32: 0.60, 64: 0.61, "full": 0.80}, "contradicted"),
        ({8: 0.8, "full": 0.80}, "not tested"),
    ],
)
def test_praised_ranks_against_full(scores: dict[Any, float], verdict: str) -> None:
    claim = judged(REASONING, in_domain_accuracy=scores)["rank-32-64-matches-full"]
    assert claim.verdict == verdict
    if verdict == "contradicted":
        assert "rank 32 −20.0 (" in claim.evidence[0]
        assert "rank 64 −19.0 (" in claim.evidence[0]


def test_a_small_study_decides_nothing() -> None:
    claims = judged(
        REASONING,
        in_domain_accuracy={32: 0.77, "full": 0.8},
        num_in_domain=60,
        num_retention=60,
        noise=0.3,
        retention_accuracy={32: 0.6, "full": 0.58},
        base={"kinship": 0.75, "capitals": 0.6, "syllogism": 0.3},
        out_of_domain_tasks=("syllogism",),
        out_of_domain_accuracy={32: 0.27, "full": 0.28},
    )
    for name in (
        "rank-32-64-matches-full",
        "lora-retains-more",
        "strong-base-gets-worse",
        "transfer-can-cost-10-percent",
    ):
        assert claims[name].verdict == "undecided", claims[name]


def test_recall_is_flat_or_is_not(sentence: Sentences) -> None:
    recall = {"kinship": "medicine"}
    flat = judged(recall, in_domain_accuracy={8: 0.70, 32: 0.71, 64: 0.70})["recall-is-flat"]
    steep = judged(recall, in_domain_accuracy={8: 0.60, 32: 0.71, 64: 0.72})["recall-is-flat"]
    assert (flat.verdict, steep.verdict) == ("supported", "contradicted")
    assert "rank 64 less rank 8, +12.0 (" in steep.evidence[0]
    reasoning = judged(REASONING, in_domain_accuracy={8: 0.7, 32: 0.7})["recall-is-flat"]
    assert reasoning.verdict == "not tested"
    sentence(reasoning.evidence[0])


@pytest.mark.parametrize(
    ("kept", "verdict"),
    [
        ({8: 0.60, 32: 0.58, "full": 0.45}, "supported"),
        ({8: 0.60, 32: 0.40, "full": 0.50}, "contradicted"),
    ],
)
def test_lora_retains_more_or_does_not(
    kept: dict[Any, float], verdict: str, sentence: Sentences
) -> None:
    claim = judged(
        REASONING,
        in_domain_accuracy={8: 0.7, 32: 0.7, "full": 0.7},
        retention_tasks=("capitals",),
        retention_accuracy=kept,
        base={"capitals": 0.6},
    )["lora-retains-more"]
    assert claim.verdict == verdict
    gap = {"supported": "+15.0", "contradicted": "+10.0"}[verdict]
    sentence(claim.evidence[0], names=(gap,))


def test_a_strong_base_gets_worse_or_does_not(sentence: Sentences) -> None:
    base = {"kinship": 0.9}
    worse = judged(REASONING, in_domain_accuracy={8: 0.85, 32: 0.95}, base=base)
    better = judged(REASONING, in_domain_accuracy={8: 0.94, 32: 0.95}, base=base)
    # no fall is shown, and one as large as δ is excluded
    alike = judged(REASONING, in_domain_accuracy={8: 0.9, 32: 0.95}, base=base)
    name = "strong-base-gets-worse"
    assert alike[name].judgement.startswith("contradicted at δ = ")
    assert (worse[name].verdict, better[name].verdict) == ("supported", "contradicted")
    sentence(worse[name].evidence[0], "kinship", names=("kinship", "90.0", "5.0"))
    # 60 % with four options is less than half of what chance leaves
    weak = judged(REASONING, in_domain_accuracy={8: 0.40, 32: 0.95}, base={"kinship": 0.6})
    assert weak[name].verdict == "not tested"
    sentence(weak[name].evidence[0], "50", names=("50",))


def test_transfer_costs_a_tenth_or_does_not(sentence: Sentences) -> None:
    domains = {"kinship": "medicine", "syllogism": "mathematics"}
    settings: dict[str, Any] = {
        "in_domain_accuracy": {8: 0.7},
        "out_of_domain_tasks": ("syllogism",),
        "base": {"syllogism": 0.5},
    }
    lost = judged(domains, **settings, out_of_domain_accuracy={8: 0.4})
    kept = judged(domains, **settings, out_of_domain_accuracy={8: 0.5})
    name = "transfer-can-cost-10-percent"
    assert (lost[name].verdict, kept[name].verdict) == ("supported", "contradicted")
    assert "medicine → mathematics: rank 8" in lost[name].evidence[0]
    sentence(lost[name].evidence[0], names=("20", "50.0"))


def two_tasks(first: dict[Any, float], second: dict[Any, float]) -> StudyResults:
    """Two trained tasks, kinship and other, in one study."""
    settings: dict[str, Any] = {
        "recommendation": MARGINS,
        "num_in_domain": 2000,
        "noise": 0.02,
        "retention_tasks": (),
        "out_of_domain_tasks": (),
        "held_out_tasks": (),
    }
    one = planted_study(in_domain_accuracy=first, **settings)
    two = planted_study(in_domain_accuracy=second, in_domain_tasks=("other",), **settings)

    def renamed(run: Any) -> Any:
        return run.model_copy(update={"train_task": "other", "name": f"other-{run.name}"})

    runs = [
        model.model_copy(
            update={
                "name": f"other-{model.name}",
                "run": model.run.model_copy(update={"planned": renamed(model.run.planned)}),
            }
        )
        for model in two.runs
        if model.run is not None
    ]
    study = one.study.model_copy(
        update={
            "tasks": one.study.tasks | {"other": two.study.tasks["kinship"]},
            "trained_formats": {"kinship": {}, "other": {}},
            "trained_items": {"kinship": {}, "other": {}},
            "models": (*one.study.runs, *(renamed(run) for run in two.study.runs)),
        }
    )
    base = one.base.model_copy(
        update={
            "items": one.base.items | two.base.items,
            "evaluations": one.base.evaluations | two.base.evaluations,
        }
    )
    return StudyResults(study=study, base=base, models=(*one.runs, *runs))


def test_no_rank_is_best_everywhere_or_one_is(sentence: Sentences) -> None:
    crossed = on(two_tasks({8: 0.8, 32: 0.6}, {8: 0.6, 32: 0.8}))
    same = on(two_tasks({8: 0.6, 32: 0.8}, {8: 0.6, 32: 0.8}))
    name = "no-rank-is-best-everywhere"
    assert (crossed[name].verdict, same[name].verdict) == ("supported", "contradicted")
    sentence(crossed[name].evidence[0], "8", names=("rank 8", "other"))
    sentence(same[name].evidence[1], "32", names=("32",))
    # "contradicted" rests on how near the best is near enough, so the margin is said with it
    sentence(same[name].judgement, "5.0", names=("5.0",))
    assert crossed[name].judgement == "supported"  # that another rank is better needs no margin
    # by hand: two ranks on two tasks are two pairs, each interval at 97.5 %
    results = two_tasks({8: 0.8, 32: 0.6}, {8: 0.6, 32: 0.8})
    source, _ = option_gains(results)
    low, high = source.options
    estimate = source.estimate(source.leads(high.runs, low.runs, ["kinship"]), ["kinship"])
    lead, (lower, upper) = estimate.value, estimate.interval(1 - 0.05 / 2)
    said = f"kinship {lead:.1f} ({lower:.1f} to {upper:.1f})".replace("-", "−")
    assert said in on(results)[name].evidence[0]


def test_every_claim_is_listed_even_if_nothing_can_test_it(tmp_path: Path) -> None:
    claims = judged({}, in_domain_accuracy={8: 0.7}, retention_tasks=(), out_of_domain_tasks=())
    assert len(claims) == 6
    assert [c.name for c in claims.values() if c.verdict != "not tested"] == []


def test_the_command_prints_every_claim_with_its_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study())
    monkeypatch.setattr("sys.argv", ["claims", str(folder.root)])
    main()
    lines = capsys.readouterr().out.splitlines()
    claims = claims_of(folder)
    said = [f"{claim.judgement}: {claim.statement}" for claim in claims]
    assert [line for line in lines if not line.startswith("  - ")] == said
    assert len(lines) == len(said) + sum(len(claim.evidence) for claim in claims)
    assert "supported" in {claim.verdict for claim in claims}
