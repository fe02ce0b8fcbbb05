"""Gauges of forgetting: planted divergences, orders and standard errors computed another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from rankwise.findings.gauges import TrainTaskGauges, gauges
from rankwise.findings.options import option_gains
from rankwise.records.results import Divergence, ModelResults, StudyResults
from rankwise.report.sections.gauges import gauge_section
from tests.planted.results import Scores, planted_study
from tests.support.sentences import Sentences
from tests.support.tables import csv_rows

RETENTION = {1: 0.90, 2: 0.88, 4: 0.84, 8: 0.80, 16: 0.76, 32: 0.70}
KL = {1: 0.1, 2: 0.3, 4: 0.2, 8: 0.5, 16: 0.6, 32: 0.9}  # one pair of neighbours swapped


def planted(retention: dict[int, float], **settings: Any) -> StudyResults:
    """A study of these ranks and their retention accuracies."""
    in_domain: Scores = dict.fromkeys(retention, 0.8)
    return planted_study(in_domain, {**retention}, {}, {}, **settings)


def with_gauges(results: StudyResults, kl: dict[int, float]) -> StudyResults:
    """Two prompts and forty texts each; the rise varies five times as much as the KL."""

    def changed(model: ModelResults) -> ModelResults:
        rank = None if model.run is None else model.run.planned.rank
        if rank is None:
            return model
        noise = np.random.default_rng(rank).normal(0.0, 0.01, 40)
        record = Divergence(
            model=model.name,
            reference="base",
            train_task="kinship",
            fingerprint="",
            num_items=42,
            num_tokens=84,
            tasks=("kinship",) * 2 + ("pydoc_topics",) * 40,
            doc_ids=(0, 1, *range(40)),
            kl_nats=(kl[rank] / 2, kl[rank], *(2 * kl[rank] + noise)),
            top1_agreement=(1.0,) * 42,
            rise_nats=(0.0, 0.0, *(kl[rank] + 5 * noise)),
            item_tokens=(1, 3) + (2,) * 40,
            score_seconds=1.0,
        )
        return model.model_copy(update={"from_base": record})

    return results.model_copy(update={"models": tuple(map(changed, results.runs))})


def found(results: StudyResults) -> TrainTaskGauges:
    (source,) = option_gains(results)
    part = gauges(source)
    assert part is not None
    return part


@pytest.fixture(scope="module")
def part() -> TrainTaskGauges:
    return found(with_gauges(planted(RETENTION), KL))


def test_means_are_over_tokens_and_prompts_are_apart_from_prose(part: TrainTaskGauges) -> None:
    for model in part.models:
        kl = KL[model.rank or 0]
        assert model.kl_prompts is not None
        assert model.kl_prose is not None
        assert model.prose_rise is not None
        assert model.kl_prompts.estimate == pytest.approx((kl / 2 + 3 * kl) / 4)
        assert model.kl_prompts.lower >= 0.0
        assert model.kl_prose.estimate == pytest.approx(2 * kl, abs=0.01)
        assert model.prose_rise.estimate == pytest.approx(kl, abs=0.05)
        assert (model.kl_prompts.num_examples, model.kl_prose.num_examples) == (2, 40)
        assert model.stderr_ratio == pytest.approx(5.0, rel=0.01)
    assert part.stderr_ratio == pytest.approx(5.0, rel=0.01)


def test_retention_loss_is_positive_where_more_is_forgotten(part: TrainTaskGauges) -> None:
    for model in part.models:
        assert model.retention_loss is not None
        expected = 100 * (0.9 - RETENTION[model.rank or 0])
        assert model.retention_loss.estimate == pytest.approx(expected, abs=0.01)


def test_the_order_is_spearman_s(part: TrainTaskGauges, sentence: Sentences) -> None:
    (order,) = [each for each in part.orders if each.gauge == "KL on the task's prompts"]
    loss = [0.9 - RETENTION[rank] for rank in RETENTION]
    spearman: Any = stats.spearmanr([KL[rank] for rank in RETENTION], loss)
    rho = spearman.statistic
    assert rho == pytest.approx(1 - 12 / (6 * 35))
    assert order.num_models == 6
    assert order.correlation is not None
    assert order.correlation.estimate == pytest.approx(rho)
    assert order.correlation.lower < rho < order.correlation.upper
    sentence(part.statements[0])
    gauges_there = [each.gauge for each in part.orders]
    assert "the norm of the update" not in gauges_there  # no weights were analysed


def test_a_gauge_that_goes_the_other_way_is_said_to() -> None:
    falling = {rank: 1.0 - value for rank, value in KL.items()}
    part = found(with_gauges(planted(RETENTION), falling))
    assert "orders in reverse" in part.statements[0]


def test_four_models_have_no_order() -> None:
    few = {rank: RETENTION[rank] for rank in (1, 2, 4, 8)}
    part = found(with_gauges(planted(few), KL))
    assert all(order.correlation is None for order in part.orders)
    assert {order.reason for order in part.orders} == {"4 models, 5 are needed"}
    section = gauge_section([part])
    assert not section.figures
    assert len(section.remarks) == 1 + len(part.statements)


def test_seeds_of_one_option_are_one_model() -> None:
    results = planted(RETENTION, seeds=(0, 1))
    part = found(with_gauges(results, KL))
    assert [model.num_seeds for model in part.models] == [2] * 6
    assert part.orders[0].num_models == 6


def test_without_retention_tasks_gauges_are_shown_alone() -> None:
    results = planted(RETENTION, retention_tasks=())
    part = found(with_gauges(results, KL))
    assert all(model.retention_loss is None for model in part.models)
    assert all(order.correlation is None for order in part.orders)
    assert gauge_section([part]).figures == []


def test_a_study_that_was_not_gauged_has_none() -> None:
    (source,) = option_gains(planted(RETENTION))
    assert gauges(source) is None


def test_the_section_has_every_number(part: TrainTaskGauges) -> None:
    section = gauge_section([part])
    (table,) = section.tables
    assert len(table.table.groups[0].rows) == 6
    (figure,) = section.figures
    assert figure.drawing is not None
    assert len(csv_rows("gauges", planted_study(), gauges=[part])) == 6
