"""Checkpoints against planted scores: which one is chosen, and what is said of it."""

from __future__ import annotations

import pytest

from rankwise.findings.checkpoints import CheckpointPoint, TrainTaskCheckpoints
from rankwise.findings.recommendation import recommend
from rankwise.findings.study import study_findings
from rankwise.records.results import Divergence, ModelResults, StudyResults
from rankwise.report.sections.by_rank import checkpoint_section
from tests.planted.checkpoints import Shares, with_checkpoints
from tests.support.sentences import Sentences
from tests.support.tables import csv_rows


def found_in(results: StudyResults) -> TrainTaskCheckpoints:
    (found,) = study_findings(results, recommend(results)).checkpoints
    return found


def chosen(found: TrainTaskCheckpoints) -> CheckpointPoint:
    (point,) = (point for point in found.points if point.is_chosen)
    return point


def test_a_step_that_keeps_more_and_gains_as_much_is_said_to(sentence: Sentences) -> None:
    kept = Shares(0.80, 0.90, 0.80, 0.90)
    forgot = Shares(0.80, 0.70, 0.80, 0.70)
    found = found_in(with_checkpoints({8: [(400, kept), (1200, forgot)]}))
    point, (statement,) = chosen(found), found.statements
    assert (point.step, point.num_steps) == (400, 1200)
    assert point.lead is not None
    assert point.retention_lead is not None
    assert point.lead.estimate == pytest.approx(0.0, abs=1e-9)
    assert point.retention_lead.estimate == pytest.approx(20.0)
    assert point.retention_lead.lower > 0
    sentence(statement, names=("400", "1,200"))
    assert "keeps more" in statement
    # on validation items: 30 points, less twice what is lost beyond 5
    assert [point.validation_worth for point in found.points] == pytest.approx([30.0, 0.0])


def test_the_choice_is_made_on_validation_items_alone() -> None:
    """The test items say the reverse: it does not matter to the choice."""
    good_there = Shares(0.60, 0.90, 0.80, 0.90)
    good_here = Shares(0.80, 0.90, 0.60, 0.90)
    found = found_in(with_checkpoints({8: [(10, good_there), (20, good_here)]}))
    point = chosen(found)
    assert point.step == 10
    assert point.lead is not None
    assert point.lead.upper < 0
    assert "gains less" in found.statements[0]


def test_an_end_that_is_best_is_said_to_be(sentence: Sentences) -> None:
    worse, better = Shares(0.60, 0.90, 0.60, 0.90), Shares(0.80, 0.90, 0.80, 0.90)
    found = found_in(with_checkpoints({8: [(10, worse), (20, better)]}))
    point = chosen(found)
    assert (point.step, point.lead) == (20, None)
    sentence(found.statements[0])


def test_a_tie_is_no_reason_to_stop_early() -> None:
    early, end = Shares(0.60, 0.90, 0.70, 0.90), Shares(0.80, 0.90, 0.70, 0.90)
    found = found_in(with_checkpoints({8: [(10, early), (15, early), (20, end)]}))
    assert len({point.validation_worth for point in found.points}) == 1
    assert chosen(found).step == 20


def test_every_point_has_its_kl_to_the_base() -> None:
    """By step, from the gauge's record of each model; a mean over tokens."""
    kept = Shares(0.80, 0.90, 0.80, 0.90)
    results = with_checkpoints({8: [(5, kept), (20, kept)]})
    assert [point.kl_prompts for point in found_in(results).points] == [None, None]

    def gauged(model: ModelResults) -> ModelResults:
        assert model.run is not None
        nats = 0.01 * model.run.num_steps
        record = Divergence(
            model=model.name,
            reference="base",
            train_task="kinship",
            fingerprint="",
            num_items=2,
            num_tokens=4,
            tasks=("kinship", "kinship"),
            doc_ids=(0, 1),
            kl_nats=(nats, 3 * nats),
            top1_agreement=(1.0, 1.0),
            rise_nats=(0.0, 0.0),
            item_tokens=(1, 3),
            score_seconds=1.0,
        )
        return model.model_copy(update={"from_base": record})

    with_gauges = results.model_copy(update={"models": tuple(map(gauged, results.models))})
    points = found_in(with_gauges).points
    by_step = {point.step: point.kl_prompts for point in points}
    for step in (5, 20):
        mean = by_step[step]
        assert mean is not None
        assert mean.estimate == pytest.approx(0.01 * step * (1 + 3 * 3) / 4)
        assert (mean.unit, mean.num_examples) == ("nats", 2)


def test_checkpoints_take_no_part_in_the_verdict() -> None:
    kept, forgot = Shares(0.80, 0.90, 0.80, 0.90), Shares(0.80, 0.70, 0.80, 0.70)
    points = {8: [(10, kept), (20, forgot)], 32: [(10, kept), (20, kept)]}
    (part,) = recommend(with_checkpoints(points)).by_train_task
    assert [verdict.label for verdict in part.verdicts] == ["rank 8", "rank 32"]
    assert part.rank == 32


def test_the_section_has_every_point() -> None:
    kept, forgot = Shares(0.80, 0.90, 0.80, 0.90), Shares(0.80, 0.70, 0.80, 0.70)
    points = {8: [(5, kept), (20, forgot)], 32: [(5, kept), (20, kept)]}
    results = with_checkpoints(points)
    part = found_in(results)
    section = checkpoint_section([part])
    assert len(csv_rows("checkpoints", results, checkpoints=[part])) == 4
    assert [figure.name for figure in section.figures] == [
        "checkpoints-gain",
        "checkpoints-retention",
    ]
    assert "rank 8, 25" in section.figures[0].drawing.words
    (titled,) = section.tables
    chosen = [row[-1].value for group in titled.table.groups for row in group.rows]
    assert chosen == ["yes", "", "", "yes"]  # of rank 32 both are worth the same: the end
