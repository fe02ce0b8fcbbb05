"""The mechanisms: planted answers by hand, what is shown of them, and a tiny study end to end."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa

from rankwise.findings.mechanisms import TrainTaskMechanisms, mechanisms
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend, recommend_for
from rankwise.findings.study import StudyFindings, study_findings
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.p_right import option_nats
from rankwise.records.results import (
    Divergence,
    ModelResults,
    StudyResults,
    TaskItems,
    task_items,
)
from rankwise.records.study import TaskEvaluation
from rankwise.report.page import study_sections, write_report
from tests.planted.results import Key, planted_evaluation, planted_items, planted_study
from tests.support.pages import Page, words
from tests.support.sentences import Sentences
from tests.support.studies import run

TRAINED = "kinship@train"


def key_of(model: ModelResults) -> Key | str:
    return "base" if model.run is None else (model.run.planned.rank or "full")


def replaced(results: StudyResults, **changes: Any) -> StudyResults:
    """The study with each model changed by functions of the model, field by field."""
    models = [
        model.model_copy(update={name: change(model) for name, change in changes.items()})
        for model in (results.base, *results.runs)
    ]
    return results.model_copy(update={"base": models[0], "models": tuple(models[1:])})


def with_trained_items(
    results: StudyResults, scores: Mapping[Key | str, float], size: int = 100
) -> StudyResults:
    """Rows that were trained on, scored as the test items are; every model right on the first."""

    def items(model: ModelResults) -> dict[str, TaskItems]:
        right = round(scores[key_of(model)] * size)
        values = tuple(float(index < right) for index in range(size))
        made = planted_items(TRAINED, model.name, 0.5, size, nats=False, noise=0.0)
        return model.items | {TRAINED: made.model_copy(update={"values": values})}

    def evaluations(model: ModelResults) -> dict[str, TaskEvaluation]:
        made = planted_evaluation(model.name, items(model)[TRAINED], model.run)
        return model.evaluations | {TRAINED: made}

    study = results.study.model_copy(update={"trained_items": {"kinship": {"kinship": TRAINED}}})
    changed = replaced(results, items=items, evaluations=evaluations)
    return changed.model_copy(update={"study": study})


def with_divergences(
    results: StudyResults, kl_nats: Mapping[Key | str, Sequence[float]]
) -> StudyResults:
    study = results.study

    def divergences(model: ModelResults) -> tuple[Divergence, ...]:
        full = [study.full_run_of(model.run.planned)] if model.run else study.full_runs_compared
        values = kl_nats.get(key_of(model), ())
        return tuple(
            Divergence(
                model=model.name,
                reference=each.name,
                train_task="kinship",
                fingerprint="",
                num_items=len(values),
                num_tokens=len(values),
                tasks=("kinship",) * len(values),
                doc_ids=tuple(range(len(values))),
                kl_nats=tuple(values),
                top1_agreement=tuple(float(value < 0.5) for value in values),
                rise_nats=(0.0,) * len(values),
                item_tokens=(1,) * len(values),
                score_seconds=1.0,
            )
            for each in full
            if each is not None
        )

    return replaced(results, divergences=divergences)


def with_values(results: StudyResults, values: Mapping[Key | str, Sequence[float]]) -> StudyResults:
    """The in-domain items by hand; who is right chooses option 0, who is wrong option 1."""

    def items(model: ModelResults) -> dict[str, TaskItems]:
        mine = tuple(values[key_of(model)])
        changes = {"values": mine, "choices": tuple(int(value == 0.0) for value in mine)}
        return model.items | {"kinship": model.items["kinship"].model_copy(update=changes)}

    return replaced(results, items=items)


def found(results: StudyResults) -> TrainTaskMechanisms:
    (source,) = option_gains(results)
    part = mechanisms(source, recommend_for(source.results))
    assert part is not None
    return part


# the gap between trained and test items


def test_a_planted_gap_is_found_and_grows_with_rank(sentence: Sentences) -> None:
    planted = planted_study({4: 0.7, 64: 0.7, "full": 0.7}, base={"kinship": 0.5})
    scores = {"base": 0.5, 4: 0.72, 64: 0.95, "full": 1.0}
    part = found(with_trained_items(planted, scores))
    assert [gap.option.label for gap in part.gaps] == ["rank 4", "rank 64", "full fine-tuning"]
    low, high, _ = part.gaps
    assert low.trained.estimate == pytest.approx(22.0)
    assert low.test.estimate == pytest.approx(20.0)
    assert (low.trained.num_examples, low.test.num_examples) == (100, 300)
    assert low.gap.estimate == pytest.approx(2.0)
    assert high.gap.estimate == pytest.approx(25.0)
    assert low.gap.lower < 0.0 < low.gap.upper
    assert high.gap.lower > 0.0
    (trend,) = (each for each in part.trends if each.of == "train-test gap")
    assert (trend.smallest_rank, trend.largest_rank, trend.answer) == (4, 64, "shown")
    assert trend.change.estimate == pytest.approx(23.0)
    sentence(part.statements[0], names=("64",))
    assert "+23.0 points" in part.statements[0]


def test_a_gap_s_interval_adds_the_variances_of_both_kinds_of_items() -> None:
    planted = planted_study({4: 0.7}, base={"kinship": 0.5})
    results = with_trained_items(planted, {"base": 0.5, 4: 0.8})
    (gap,) = found(results).gaps
    run, base = results.runs[0], results.base

    def variance(task: str) -> tuple[float, int]:
        one, other = run.items[task], base.items[task]
        d = 100.0 * (np.asarray(one.values) - np.asarray(other.values))
        return (d.var(ddof=1) + 2.0 * 100.0**2 / len(d)) / len(d), len(d)

    (first, n), (second, m) = variance(TRAINED), variance("kinship")
    width = gap.gap.upper - gap.gap.lower
    assert width >= 2 * 1.96 * math.sqrt(first + second)
    assert width < 2 * 2.15 * math.sqrt(first + second)
    assert (n, m) == (100, 300)


def test_a_gap_that_shrinks_contradicts() -> None:
    planted = planted_study({4: 0.6, 64: 0.9}, base={"kinship": 0.5})
    part = found(with_trained_items(planted, {"base": 0.5, 4: 0.9, 64: 0.95}))
    assert [trend.answer for trend in part.trends] == ["contradicted"]


def test_a_gap_needs_one_metric() -> None:
    results = with_trained_items(planted_study({4: 0.6}), {"base": 0.5, 4: 0.9})

    def items(model: ModelResults) -> dict[str, TaskItems]:
        other = model.items[TRAINED].model_copy(update={"metric": "acc_norm"})
        return model.items | {TRAINED: other}

    assert found(replaced(results, items=items)).gaps == ()


# what is kept at equal gain


def equal_gains(**settings: Any) -> StudyResults:
    return planted_study(
        {8: 0.80, 32: 0.80, 128: 0.60, "full": 0.80},
        {8: 0.90, 32: 0.84, 128: 0.90, "full": 0.84},
        num_in_domain=2000,
        num_retention=1000,
        recommendation=RecommendationConfig(delta_points=3.0),
        **settings,
    )


def test_only_pairs_of_equal_gain_are_compared() -> None:
    part = found(equal_gains(noise=0.01))
    assert part.matched is not None
    assert part.matched.match == "within delta"
    pairs = {(pair.option.label, pair.other.label): pair for pair in part.matched.pairs}
    assert list(pairs) == [
        ("rank 8", "rank 32"),
        ("rank 8", "full fine-tuning"),
        ("rank 32", "full fine-tuning"),
    ]
    more = pairs["rank 8", "full fine-tuning"]
    assert more.answer == "shown"
    assert more.kept.estimate == pytest.approx(6.0)
    assert -3.0 < more.gain.lower < 0.0 < more.gain.upper < 3.0
    assert (more.gain.num_examples, more.kept.num_examples) == (2000, 2000)
    same = pairs["rank 32", "full fine-tuning"]
    assert same.answer == "undecided"
    assert same.kept.estimate == pytest.approx(0.0)
    assert any("keep more in 2, to keep less in 0; undecided in 1" in s for s in part.statements)


def test_pairs_that_are_only_not_told_apart_are_marked() -> None:
    results = planted_study(
        {8: 0.80, 32: 0.78, "full": 0.30},
        num_in_domain=60,
        recommendation=RecommendationConfig(delta_points=1.0),
    )
    part = found(results)
    assert part.matched is not None
    assert part.matched.match == "not distinguished"
    assert [(p.option.label, p.other.label) for p in part.matched.pairs] == [("rank 8", "rank 32")]
    assert any("not distinguished" in sentence for sentence in part.statements)


def test_seeds_widen_what_is_kept() -> None:
    alike = found(equal_gains(seeds=(0, 1, 2))).matched
    spread = planted_study(
        {8: 0.80, "full": 0.80},
        {8: [0.95, 0.90, 0.85], "full": [0.84, 0.84, 0.84]},
        num_in_domain=2000,
        num_retention=1000,
        seeds=(0, 1, 2),
    )
    varying = found(spread).matched
    assert alike is not None
    assert varying is not None
    assert alike.pairs[1].answer == "shown"
    assert varying.pairs[0].answer == "undecided"
    assert varying.pairs[0].kept.estimate == pytest.approx(6.0)


def test_without_retention_nothing_is_compared() -> None:
    results = with_trained_items(
        planted_study({4: 0.7, 64: 0.7}, retention_tasks=()), {"base": 0.5, 4: 0.8, 64: 0.8}
    )
    assert found(results).matched is None


# agreement with full fine-tuning


def by_name(part: TrainTaskMechanisms) -> dict[str, Any]:
    return {"base" if row.option is None else row.option.label: row for row in part.agreement}


def test_a_run_that_does_what_full_does_agrees_in_everything() -> None:
    full = [1.0] * 40 + [0.0] * 20
    values = {"base": [0.0] * 30 + [1.0] * 30, 4: [1.0] * 30 + [0.0] * 30, 64: full, "full": full}
    results = with_values(planted_study({4: 0.5, 64: 0.5, "full": 0.5}, num_in_domain=60), values)
    results = with_divergences(results, {"base": [0.9] * 20, 4: [0.4, 0.6] * 10, 64: [0.0] * 20})
    rows = by_name(found(results))
    assert list(rows) == ["base", "rank 4", "rank 64"]
    same = rows["rank 64"]
    assert same.same_outcome.estimate == same.same_option.estimate == 100.0
    assert same.same_outcome.lower == pytest.approx(100 * 60 / (60 + 1.959964**2))  # Wilson
    assert same.same_outcome.upper == pytest.approx(100.0)
    assert (same.kappa.estimate, same.kappa.upper) == (pytest.approx(1.0), 1.0)
    assert same.kappa.lower < 1.0
    assert (same.kl.estimate, same.kl.lower, same.kl.upper) == (0.0, 0.0, 0.0)
    assert same.same_next_token.estimate == 100.0
    less = rows["rank 4"]
    assert less.same_outcome.estimate == pytest.approx(100 * 50 / 60)
    # observed 5/6; both right 2/3 * 1/2, both wrong 1/3 * 1/2: expected 1/2
    assert less.kappa.estimate == pytest.approx((5 / 6 - 1 / 2) / (1 / 2))
    assert less.kl.estimate == pytest.approx(0.5)
    assert less.same_next_token.estimate == pytest.approx(50.0)
    assert rows["base"].same_outcome.estimate == pytest.approx(0.0 + 100 * 10 / 60)
    assert rows["base"].kl.estimate == pytest.approx(0.9)


def test_kappa_and_its_error_are_statsmodels_own() -> None:
    random = np.random.default_rng(3)
    full = (random.uniform(size=400) < 0.7).astype(float)
    lora = np.where(random.uniform(size=400) < 0.8, full, 1.0 - full)
    values = {"base": list(lora), 4: list(lora), "full": list(full)}
    results = planted_study({4: 0.5, "full": 0.5}, num_in_domain=400)
    row = by_name(found(with_values(results, values)))["rank 4"]
    table = np.array([[np.sum((full == a) & (lora == b)) for b in (1, 0)] for a in (1, 0)])
    theirs = cohens_kappa(table)
    assert row.kappa.estimate == pytest.approx(theirs.kappa)
    width = row.kappa.upper - row.kappa.lower
    # ours has two pseudo-items and Student's t
    assert width == pytest.approx(2 * 1.96 * math.sqrt(theirs.var_kappa), rel=0.05)
    assert width > 2 * 1.96 * math.sqrt(theirs.var_kappa)


def test_a_model_that_is_always_right_has_no_kappa() -> None:
    values = {"base": [1.0] * 20, 4: [1.0] * 20, "full": [1.0] * 20}
    results = with_values(planted_study({4: 0.5, "full": 0.5}, num_in_domain=20), values)
    assert by_name(found(results))["rank 4"].kappa is None
    assert by_name(found(results))["rank 4"].same_outcome.estimate == 100.0


def test_more_rank_is_shown_to_be_nearer_or_not() -> None:
    results = planted_study({4: 0.60, 64: 0.81, "full": 0.81}, noise=0.02)
    random = np.random.default_rng(0)
    kl = {"base": [1.0] * 50, 4: list(random.gamma(2.0, 0.3, 50)), 64: list(np.full(50, 0.1))}
    trends = {each.of: each for each in found(with_divergences(results, kl)).trends}
    assert set(trends) == {"same outcome", "same option", "same next token", "KL"}
    assert trends["same outcome"].answer == "shown"
    assert trends["same outcome"].change.estimate > 10.0
    assert trends["KL"].answer == "shown"
    assert trends["KL"].change.estimate == pytest.approx(0.1 - np.mean(kl[4]))
    back = {"base": kl["base"], 4: kl[64], 64: kl[4]}
    trends = {each.of: each for each in found(with_divergences(results, back)).trends}
    assert trends["KL"].answer == "contradicted"
    alike = planted_study({4: 0.81, 64: 0.81, "full": 0.81}, noise=0.02)
    assert {t.answer for t in found(alike).trends} == {"undecided"}


def test_several_seeds_are_compared_each_with_its_own_and_full_with_its_next() -> None:
    results = planted_study({4: 0.7, 64: 0.8, "full": 0.8}, seeds=(0, 1, 2))
    rows = found(results).agreement
    labels = [None if row.option is None else row.option.label for row in rows]
    assert labels == [None, "rank 4", "rank 64", "full fine-tuning"]
    assert [row.num_seeds for row in rows] == [3, 3, 3, 2]
    mean = rows[2].same_outcome
    assert mean is not None
    full = {r.run.planned.seed: r for r in results.runs if r.run and not r.run.planned.rank}
    lora = {r.run.planned.seed: r for r in results.runs if r.run and r.run.planned.rank == 64}
    by_seed = [
        np.mean(np.equal(lora[s].items["kinship"].values, full[s].items["kinship"].values))
        for s in (0, 1, 2)
    ]
    assert mean.estimate == pytest.approx(100 * np.mean(by_seed))
    assert mean.num_seeds == 3


def test_a_rank_without_its_full_run_takes_no_part() -> None:
    results = planted_study({4: 0.7, "full": 0.8}, seeds=(0, 1), diverged=[("full", 1)])
    assert found(results).agreement == ()
    assert found(results).left_out == ("full fine-tuning",)


def test_without_full_and_without_retention_there_is_nothing() -> None:
    results = planted_study({4: 0.7}, retention_tasks=())
    findings = study_findings(results, recommend(results))
    assert findings.mechanisms == ()
    names = [section.name for section in study_sections(results, findings)]
    assert "mechanisms" not in names


def test_a_loss_has_no_outcomes_but_a_gap() -> None:
    results = planted_study(
        {4: 2.0, 64: 1.9, "full": 1.8},
        base={"kinship": 2.5},
        in_domain_unit="nats",
    )
    part = found(with_divergences(results, {4: [0.2] * 9, 64: [0.1] * 9, "base": [1.0] * 9}))
    row = by_name(part)["rank 4"]
    assert row.same_outcome is row.kappa is row.same_option is None
    assert row.kl.estimate == pytest.approx(0.2)
    assert {trend.of for trend in part.trends} == {"same next token", "KL"}


def test_the_option_that_is_chosen_is_the_most_probable_one() -> None:
    evaluation = planted_study({4: 0.5}).base.evaluations["kinship"]

    def chosen(lines: list[dict[str, Any]]) -> tuple[int, ...] | None:
        return task_items(evaluation, lines, list(map(option_nats, lines))).choices

    lines = [
        {"doc_id": 0, "acc": 1.0, "metrics": ["acc"], "resps": [[[-3, False]], [[-1, False]]]},
        {"doc_id": 1, "acc": 0.0, "metrics": ["acc"], "resps": [[[-1, True]], [[-1, True]]]},
    ]
    assert chosen(lines) == (1, 0)
    # every option once more, without its context
    mutual = {
        "doc_id": 0,
        "acc": 1.0,
        "metrics": ["acc", "acc_mutual_info"],
        "resps": [[[-3, False]], [[-2, False]], [[-1, False]], [[-1, False]]],
    }
    assert chosen([mutual]) == (1,)


# on the page


@pytest.fixture
def planted() -> StudyResults:
    results = with_trained_items(
        planted_study({4: 0.7, 16: 0.8, 64: 0.81, "full": 0.81}, seeds=(0, 1)),
        {"base": 0.5, 4: 0.75, 16: 0.85, 64: 0.95, "full": 1.0},
    )
    random = np.random.default_rng(0)
    size = {"base": 1.0, 4: 0.5, 16: 0.3, 64: 0.1}
    return with_divergences(results, {k: list(random.gamma(1.0, v, 80)) for k, v in size.items()})


def test_the_page_says_all_of_it(planted: StudyResults, tmp_path: Path) -> None:
    recommendation = recommend(planted)
    findings = study_findings(planted, recommendation)
    (part,) = findings.mechanisms
    (near,) = (said for said in part.statements if said.startswith("High ranks approach full"))
    changes = near.partition(": from rank 4 to rank 64 ")[2].split("; ")
    assert len(changes) > 1
    assert all(" changes by " in change for change in changes)
    page = write_report(tmp_path, planted, recommendation, findings).read_text(encoding="utf-8")
    assert '<h2 id="mechanisms">Mechanisms</h2>' in page
    for sentence in part.statements:
        assert sentence.replace("&", "&amp;") in page
    for title in (
        "From the smallest to the largest rank",
        "Trained and test items",
        "Kept at equal gain",
        "Agreement with full fine-tuning",
    ):
        assert f"<h3>{title}</h3>" in page
    assert "full fine-tuning, next seed" in page
    shown = Page(page)
    for name in ("mechanism-gap", "mechanism-kept", "mechanism-agreement"):
        assert name in shown.charts
        assert "n\u00a0=\u00a0" in shown.titles[name] + " ".join(words(shown.charts[name]))
    with (tmp_path / "report" / "mechanism-agreement.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["option"] for row in rows][:2] == ["base", "rank 4"]
    first = part.agreement[1].kl
    assert first is not None
    assert float(rows[1]["kl"]) == first.estimate
    assert rows[-1]["kl"] == ""
    text = (tmp_path / "report" / "mechanism-gaps.csv").read_text()
    assert len(text.splitlines()) == 1 + len(part.gaps)
    assert part.matched is not None
    text = (tmp_path / "report" / "mechanism-pairs.csv").read_text()
    assert len(text.splitlines()) == 1 + len(part.matched.pairs)


def test_what_was_not_measured_has_no_figure_and_no_sentence(sentence: Sentences) -> None:
    results = with_trained_items(
        planted_study({4: 0.7, 64: 0.8}, retention_tasks=()), {"base": 0.5, 4: 0.8, 64: 0.8}
    )
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    sections = {s.name: s for s in study_sections(results, findings)}
    remarks = " ".join(sections["mechanisms"].remarks)
    sentence(remarks)
    assert "not measured" not in remarks
    assert "not compared" not in remarks
    assert [figure.name for figure in sections["mechanisms"].figures] == ["mechanism-gap"]


# end to end


def test_a_tiny_study_tests_its_mechanisms(study_file: Path, tmp_path: Path) -> None:
    overrides = (
        "evaluation.out_of_domain=[]",
        "evaluation.retention=[sums]",
        "evaluation.metric={colours: acc_norm}",
        "analysis.divergence=true",
    )
    outcome, _ = run(study_file, tmp_path / "study", *overrides)
    items = outcome.results.base.items
    assert items["colours"].metric == items["colours@train"].metric == "acc_norm"
    assert items["colours"].choices is not None
    assert items["sums"].choices is None
    (part,) = outcome.findings.mechanisms
    assert [gap.trained.num_examples for gap in part.gaps] == [24, 24, 24]
    assert [gap.test.num_examples for gap in part.gaps] == [26, 26, 26]
    rows = by_name(part)
    assert list(rows) == ["base", "rank 2", "rank 4"]
    assert all(row.kl.num_examples == 26 for row in rows.values())
    assert all(0.0 <= row.same_option.estimate <= 100.0 for row in rows.values())
    assert {trend.of for trend in part.trends} == {
        "train-test gap", "same outcome", "same option", "same next token", "KL",
    }  # fmt: skip
    folder = StudyFolder(tmp_path / "study")
    assert read_record(folder.findings_file, StudyFindings) == outcome.findings
    page = write_report(folder.root, outcome.results, outcome.recommendation, outcome.findings)
    assert "Mechanisms" in page.read_text(encoding="utf-8")
