"""p(right) decides where there are options: planted studies as their folders have them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.claims import paper_claims
from rankwise.errors import RecordError
from rankwise.findings.options import OptionGains, Runs, option_gains
from rankwise.findings.recommendation import recommend, recommend_for
from rankwise.findings.signatures.found import failure_signatures
from rankwise.findings.study import study_findings
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults, StudyResults
from rankwise.report.page import write_report
from rankwise.study.reading import read_results
from tests.planted.results import planted_study
from tests.support.sentences import Sentences

Margins = Callable[[ModelResults, str], Any]
"""Nats by which each item's right option is ahead of the only other; wrong items stay below 0."""


def small(model: ModelResults, task: str) -> Any:
    """1 nat ahead where it is right, 1 behind where it is wrong."""
    return np.where(np.array(model.items[task].values) > 0, 1.0, -1.0)


def written(folder: StudyFolder, results: StudyResults, margins: Margins = small) -> StudyFolder:
    """The study's folder with answers: the right option is the first of two.

    Records are as they have always been: the task's own metric decides.
    """
    folder.write(folder.study_file, results.study)
    for model in (results.base, *results.runs):
        if model.run is not None:
            folder.write(folder.run_file(model.name), model.run)
        for task, evaluation in model.evaluations.items():
            items = model.items[task]
            has_options = evaluation.output_type == "multiple_choice"
            ahead = margins(model, task) if has_options else np.zeros(len(items.values))
            lines = [
                {
                    "doc_id": doc_id,
                    "target": 0 if has_options else "prose",
                    "filter": "none",
                    "metrics": [items.metric],
                    "resps": [[[-5.0 + nats, False]], [[-5.0, False]]] if has_options else [[-9.0]],
                    "num_loss_tokens": 8,
                    items.metric: value,
                }
                for doc_id, value, nats in zip(items.doc_ids, items.values, ahead, strict=True)
            ]
            folder.write_evaluation(evaluation, lines)
    return folder


def configured(results: StudyResults, **metric: str) -> StudyResults:
    """The study with ``evaluation.metric``."""
    config = results.study.config
    evaluation = config.evaluation.model_copy(update={"metric": metric})
    config = config.model_copy(update={"evaluation": evaluation})
    return results.model_copy(update={"study": results.study.model_copy(update={"config": config})})


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study")


def test_a_folder_from_before_is_judged_by_p_right(folder: StudyFolder) -> None:
    planted = planted_study()
    results = read_results(written(folder, planted))
    one, right = 1 / (1 + math.exp(-1.0)), planted.base.items["kinship"]
    items = results.base.items["kinship"]
    assert (items.metric, items.unit) == ("p_right", "points")
    assert items.values == pytest.approx([one if value else 1 - one for value in right.values])
    assert items.accuracy == right.model_copy(update={"choices": items.choices})
    record = results.base.evaluations["kinship"]
    assert record.decision.metric == "p_right"
    assert record.decision.value == pytest.approx(np.mean(items.values))
    assert record.decision.stderr == pytest.approx(np.std(items.values, ddof=1) / math.sqrt(300))
    assert [score.metric for score in record.metrics] == ["acc", "p_right"]
    # every item moves 2 p - 1 as far as in accuracy
    (part,) = recommend(results).by_train_task
    for verdict, known in zip(
        part.verdicts, recommend_for(planted.of("kinship")).verdicts, strict=True
    ):
        assert verdict.gain.estimate == pytest.approx((2 * one - 1) * known.gain.estimate)


def test_what_needs_right_and_wrong_items_is_made_from_accuracy(folder: StudyFolder) -> None:
    planted = planted_study()
    results = read_results(written(folder, planted))
    before, now = recommend(planted), recommend(results)
    for row, known in zip(
        now.by_train_task[0].comparisons, before.by_train_task[0].comparisons, strict=True
    ):
        counted = (
            "num_learned", "num_forgotten", "num_kept_right", "num_kept_wrong", "mcnemar_p_value",
        )  # fmt: skip
        assert row.model_dump(include=set(counted)) == known.model_dump(include=set(counted))
        if row.unit == "nats":
            assert row == known
            continue
        assert row.accuracy is not None
        assert row.accuracy.metric == "acc"
        assert not row.accuracy.is_opposite
        same = ("base_score", "adapted_score")
        assert all(getattr(row.accuracy, name) == getattr(known, name) for name in same)
        assert row.accuracy.difference.estimate == known.difference.estimate
        if row.task != "kinship":  # of which the other study has a verdict
            assert row.accuracy.difference == known.difference
        assert (
            abs(row.difference.estimate) < abs(known.difference.estimate)
            or not known.difference.estimate
        )
    findings, earlier = study_findings(results, now), study_findings(planted, before)
    assert findings.transfer is not None
    assert earlier.transfer is not None
    cells, others = findings.transfer.cells, earlier.transfer.cells
    assert [cell.change.estimate for cell in cells] == [cell.change.estimate for cell in others]
    away = [[cell for cell in its if cell.tasks != ("kinship",)] for its in (cells, others)]
    assert away[0] == away[1]
    agreement = [part.agreement for part in findings.mechanisms]
    for mine, known in zip(
        agreement[0], [each for part in earlier.mechanisms for each in part.agreement], strict=True
    ):
        assert (mine.same_outcome, mine.kappa) == (known.same_outcome, known.kappa)
    without = {"no-rank-is-best-everywhere"}  # rests on the recommendation's bounds
    claims = [
        [c for c in paper_claims(option_gains(of), judged) if c.name not in without]
        for of, judged in ((results, now), (planted, before))
    ]
    assert claims[0] == claims[1]


def test_accuracy_has_the_clusters_of_the_items(folder: StudyFolder) -> None:
    items = read_results(written(folder, planted_study())).base.items["kinship"]
    grouped = items.model_copy(update={"clusters": tuple(range(150)) * 2})
    assert grouped.by_accuracy.metric == "acc"
    assert grouped.by_accuracy.clusters == grouped.clusters


def test_accuracy_is_said_beside_it(folder: StudyFolder) -> None:
    results = read_results(written(folder, planted_study({4: 0.70, 16: 0.80})))
    (part,) = recommend(results).by_train_task
    assert any("points are of p(right)" in reason for reason in part.reasons)
    (sentence,) = (reason for reason in part.reasons if reason.startswith("By accuracy"))
    assert "rank 4 +20.0 points (" in sentence
    assert "; rank 16 +30.0 points (" in sentence
    assert "on retention" in sentence


def test_the_configured_metric_wins(
    folder: StudyFolder, tmp_path: Path, sentence: Sentences
) -> None:
    planted = configured(planted_study(), kinship="acc")
    results = read_results(written(folder, planted))
    assert results.base.items["kinship"].accuracy is None
    assert results.base.items["kinship"].values == planted.base.items["kinship"].values
    assert results.base.items["capitals"].metric == "p_right"
    (part,) = recommend(results).by_train_task
    (known,) = recommend(planted).by_train_task
    assert part.comparisons[0] == known.comparisons[0]

    asked = configured(planted_study(), kinship="p_right", pydoc_topics="p_right")
    with pytest.raises(RecordError) as caught:
        read_results(written(StudyFolder(tmp_path / "asked"), asked))
    sentence(caught.value, names=("pydoc_topics", "p_right"))


def surer_but_less_often(model: ModelResults, task: str) -> Any:
    """Every run loses items narrowly, and is far surer of those that it has right."""
    right = np.array(model.items[task].values) > 0
    sure, narrow = (1.0, -1.0) if model.run is None or task != "kinship" else (4.0, -0.1)
    return np.where(right, sure, narrow)


def test_opposite_signs_are_named(folder: StudyFolder) -> None:
    planted = planted_study({4: 0.42}, base={"kinship": 0.50, "capitals": 0.9, "elements": 0.9})
    results = read_results(written(folder, planted, surer_but_less_often))
    recommendation = recommend(results)
    (part,) = recommendation.by_train_task
    row = next(row for row in part.comparisons if row.task == "kinship")
    assert row.accuracy is not None
    assert row.difference.lower > 0.0 > row.accuracy.difference.upper
    assert row.accuracy.is_opposite
    others = [row.accuracy for row in part.comparisons if row.task != "kinship"]
    assert not any(accuracy.is_opposite for accuracy in others if accuracy is not None)
    found = failure_signatures(OptionGains(results.of("kinship")), part)
    (signature,) = (each for each in found if each.name == "metrics_disagree")
    assert (signature.label, signature.task) == ("rank 4", "kinship")
    assert signature.estimate == pytest.approx(row.difference.estimate)
    assert "−8.0 points" in signature.statement
    assert "evaluation.metric.kinship=acc" in signature.advice
    page = write_report(
        folder.root, results, recommendation, study_findings(results, recommendation)
    )
    assert "p(right) and accuracy disagree" in page.read_text(encoding="utf-8")
    header, first, *_ = (folder.root / "report" / "differences.csv").read_text().splitlines()
    columns = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(columns["accuracy_difference"]) == pytest.approx(-8.0)
    assert columns["accuracy_is_opposite"] == "True"


def test_leads_vary_less_in_p_right(folder: StudyFolder) -> None:
    """Planted, for no stored answers of real models are here: margins with a share of noise.

    An item's margin is a logistic draw that all models share, plus each model's own quarter of it.
    """
    planted = planted_study({4: 0.5, 16: 0.5, 64: 0.5}, out_of_domain_tasks=(), noise=0.0)
    shared = np.random.default_rng(7).logistic(0.0, 2.0, 300)

    def margins(model: ModelResults, task: str) -> Any:
        size = len(model.items[task].values)
        own = np.random.default_rng([len(task), *model.name.encode()])
        return shared[:size] + own.logistic(0.0, 0.5, size)

    def answered(model: ModelResults) -> ModelResults:
        items = dict(model.items)
        for task, each in model.items.items():
            if each.unit == "points":
                right = tuple((margins(model, task) >= 0).astype(float).tolist())
                items[task] = each.model_copy(update={"values": right})
        return model.model_copy(update={"items": items})

    planted = planted.model_copy(
        update={"base": answered(planted.base), "models": tuple(map(answered, planted.runs))}
    )
    source = OptionGains(read_results(written(folder, planted, margins)).of("kinship"))

    def spread(of: OptionGains, runs: Runs, others: Runs, task: str) -> float:
        (lead,) = of.leads(runs, others, [task])
        return float(lead.var())

    ratios = [
        spread(source.by_accuracy, one.runs, other.runs, task)
        / spread(source, one.runs, other.runs, task)
        for task in ("kinship", "capitals", "elements")
        for one, other in itertools.combinations(source.options, 2)
    ]
    assert len(ratios) == 9
    assert np.median(ratios) > 2.0
