"""Lengths of own answers: planted answers of a base and its models."""

from __future__ import annotations

import pytest

from rankwise.findings.answer_lengths import TrainTaskLengths, answer_lengths
from rankwise.findings.options import option_gains
from rankwise.records.answer_lengths import AnswerLengths
from rankwise.records.results import ModelResults
from rankwise.report.sections.gauges import answer_length_section
from rankwise.tasks.short_prompts import short_prompts
from tests.planted.results import planted_study
from tests.support.tables import csv_rows

NUMBER = len(short_prompts())


def test_what_is_shipped_is_short() -> None:
    prompts = short_prompts()
    assert 20 <= len(prompts) <= 40
    assert len({*prompts}) == len(prompts)
    assert 10 < min(map(len, prompts)) < max(map(len, prompts)) < 120


def answers(model: str, num_long: int) -> AnswerLengths:
    """``num_long`` of the answers have 15 tokens, the others 3."""
    lengths = [15] * num_long + [3] * (NUMBER - num_long)
    return AnswerLengths(
        model=model,
        prompts=short_prompts(),
        texts=("",) * NUMBER,
        num_tokens=tuple(lengths),
        is_finished=(True,) * NUMBER,
        score_seconds=1.0,
        fingerprint="",
    )


@pytest.fixture(scope="module")
def part() -> TrainTaskLengths:
    results = planted_study({4: 0.8, 64: 0.8}, {4: 0.9, 64: 0.9})

    def changed(model: ModelResults) -> ModelResults:
        num_long = {4: 0, 64: 15}[model.run.planned.rank or 0] if model.run else 0
        return model.model_copy(update={"answer_lengths": answers(model.name, num_long)})

    results = results.model_copy(
        update={"base": changed(results.base), "models": tuple(map(changed, results.runs))}
    )
    (source,) = option_gains(results)
    found = answer_lengths(source)
    assert found is not None
    return found


def test_differences_are_paired_by_prompt(part: TrainTaskLengths) -> None:
    same, longer = part.models
    assert (same.base, same.adapted, same.difference.estimate) == (3.0, 3.0, 0.0)
    assert longer.num_prompts == NUMBER
    assert longer.adapted == pytest.approx(3 + 12 * 15 / NUMBER)
    assert longer.difference.estimate == pytest.approx(12 * 15 / NUMBER)
    assert 0.0 < longer.difference.lower < longer.difference.estimate < longer.difference.upper
    assert part.statements == ()  # no preferences are trained


def test_the_section_has_every_model(part: TrainTaskLengths) -> None:
    (table,) = answer_length_section([part]).tables
    (group,) = table.table.groups
    assert len(group.rows) == 2
    assert len(csv_rows("answer-lengths", planted_study(), answer_lengths=[part])) == 2


def test_a_study_without_answers_has_none() -> None:
    (source,) = option_gains(planted_study({4: 0.8}, {4: 0.9}))
    assert answer_lengths(source) is None
