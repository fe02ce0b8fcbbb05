"""Which fields of answers in JSON got worse: planted, and corrected for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from statsmodels.stats.multitest import multipletests

from rankwise.findings.options import option_gains
from rankwise.findings.slices import slices
from rankwise.integrations.sharing import shared
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults, StudyResults
from rankwise.report.sections.slices import slice_section
from rankwise.study.conclusion import concluded
from tests.planted.results import planted_study
from tests.support.sentences import Sentences

TASK = "capitals"


def study(num_lost: int) -> StudyResults:
    """The base has every city right and no year; a run loses some cities, and learns no year.

    Every second item alone has a year.
    """
    results = planted_study({4: 0.8}, {4: 0.9}, num_retention=200)

    def changed(model: ModelResults) -> ModelResults:
        items = model.items[TASK]
        lost = 0 if model.run is None else num_lost
        fields = {
            "city": tuple(float(doc_id >= lost) for doc_id in items.doc_ids),
            "year": tuple(0.0 if doc_id % 2 else None for doc_id in items.doc_ids),
        }
        own = items.model_copy(update={"fields": fields})
        if model.run is not None:  # in another order than the base's
            backwards = {
                name: tuple(reversed(getattr(own, name))) for name in ("doc_ids", "values")
            } | {"fields": {name: tuple(reversed(its)) for name, its in fields.items()}}
            own = own.model_copy(update=backwards)
        return model.model_copy(update={"items": {**model.items, TASK: own}})

    models = tuple(map(changed, results.models))
    return results.model_copy(update={"base": changed(results.base), "models": models})


def test_without_texts_no_value_of_a_document_is_given_away(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    outcome = concluded(study(30))
    assert "city" in outcome.findings.model_dump_json()
    assert "city" in shared(folder, outcome, with_texts=True).findings.model_dump_json()
    assert "city" not in shared(folder, outcome, with_texts=False).findings.model_dump_json()


def test_the_field_that_got_worse_is_named_with_both_shares(sentence: Sentences) -> None:
    (source,) = option_gains(study(30))
    found = slices(source)
    assert found is not None
    city, year = found.rows
    assert (city.by, city.kind, city.num_examples, city.base) == ("field", "city", 200, 100.0)
    assert city.change.estimate == pytest.approx(-15.0)
    assert (city.verdict, year.verdict) == ("worse", "cannot_tell")
    assert (year.kind, year.num_examples, year.base, year.change.estimate) == ("year", 100, 0.0, 0)
    assert city.change.upper < 0 < year.change.upper
    holm = multipletests([row.p_value for row in found.rows], method="holm")[1]
    assert [row.holm_p_value for row in found.rows] == pytest.approx(list(holm))
    (said,) = found.statements
    sentence(said, names=("15.0",))
    assert "corrected for 2 comparisons" in said
    page = slice_section([found])
    assert page is not None


def test_fields_that_did_not_change_are_said_to_be_undecided() -> None:
    (source,) = option_gains(study(0))
    found = slices(source)
    assert found is not None
    assert found.statements == (
        "No field is shown to have got better or worse (corrected for 2 comparisons).",
    )


def test_a_field_of_one_cluster_is_left_out() -> None:
    """Its items are one number, which has no standard error."""
    planted = study(30)

    def clustered(model: ModelResults) -> ModelResults:
        items = model.items[TASK]
        rare = tuple(0.0 if doc_id < 20 else None for doc_id in items.doc_ids)
        own = items.model_copy(
            update={
                "clusters": tuple(doc_id // 20 for doc_id in items.doc_ids),
                "fields": {**items.fields, "rare": rare},
            }
        )
        return model.model_copy(update={"items": {**model.items, TASK: own}})

    models = tuple(map(clustered, planted.models))
    (source,) = option_gains(
        planted.model_copy(update={"base": clustered(planted.base), "models": models})
    )
    found = slices(source)
    assert found is not None
    assert [row.kind for row in found.rows] == ["city", "year"]


def test_no_fields_and_no_kinds_are_no_finding() -> None:
    (source,) = option_gains(planted_study({4: 0.8}, {4: 0.9}))
    assert slices(source) is None


def test_a_run_that_answered_a_part_is_compared_on_that() -> None:
    planted = study(30)
    (run,) = planted.models
    items = run.items[TASK]
    part = items.without(range(20))
    partly = items.model_copy(update={"scored": part, "fields": part.fields})
    other = run.model_copy(update={"items": {**run.items, TASK: partly}})
    (source,) = option_gains(planted.model_copy(update={"models": (other,)}))
    found = slices(source)
    assert found is not None
    city, year = found.rows
    assert (city.num_examples, year.num_examples) == (180, 90)
    assert city.change.estimate == pytest.approx(-100 * 10 / 180)
