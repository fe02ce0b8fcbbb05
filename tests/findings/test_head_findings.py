"""What a study says of its heads: planted maps and effects, in words."""

from __future__ import annotations

import itertools

import pytest

from rankwise.findings.heads import TrainTaskHeads, head_findings
from rankwise.findings.options import option_gains
from rankwise.records.heads import CHANGE_MEASURES
from rankwise.records.results import StudyResults
from tests.planted.heads import changes, effects, looked_into, named, with_effects
from tests.planted.results import Key, planted_study


def found(results: StudyResults) -> TrainTaskHeads:
    (source,) = option_gains(results)
    heads = head_findings(source)
    assert heads is not None
    return heads


def test_a_study_without_heads_says_nothing() -> None:
    assert head_findings(option_gains(planted_study())[0]) is None


def test_changes_grow_with_rank_and_are_like_full_fine_tunings() -> None:
    ranks = (2, 4, 8, 16, 32, 64, 128)
    keys: list[Key] = [*ranks, "full"]
    own, kept, other, held_out = (dict.fromkeys(keys, each) for each in (0.8, 0.9, 0.5, 2.5))
    results = looked_into(planted_study(own, kept, other, held_out))
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
    assert any(each.startswith("Heads change more at higher ranks (") for each in heads.statements)
    assert heads.runs[0].top_share == pytest.approx(
        sum(sorted(itertools.chain(*changes("", 1).shares[0].values))[-4:])
    )


@pytest.mark.parametrize(
    ("follow", "verdict"),
    [
        (1.0, "The heads that changed most matter most ("),
        (-1.0, "The heads that changed most matter least ("),
        (0.0, "No evidence that the heads that changed most matter most ("),
    ],
)
def test_whether_heads_that_changed_most_matter_most(follow: float, verdict: str) -> None:
    study = planted_study()
    name = study.runs[0].name
    heads = found(with_effects(study, 0, effects(name, "kinship", follow)))
    by_measure = {(e.measure, e.is_beyond_control): e for e in heads.matters}
    assert set(by_measure) == {(m, b) for m in (*CHANGE_MEASURES, "share") for b in (False, True)}
    rho = by_measure["output", False].correlation
    assert rho is not None
    assert rho.estimate == pytest.approx(follow, abs=0.35)
    (statement,) = (each for each in heads.statements if "heads that changed most" in each)
    assert statement.startswith(verdict)


def test_runs_without_maps_are_named_with_the_reason() -> None:
    study = planted_study()
    unknown = changes(study.runs[0].name, 1.0).model_copy(
        update={"changes": (), "shares": (), "not_analysed": "its heads are laid out oddly"}
    )
    results = looked_into(study, {0: {"head_changes": unknown}})
    heads = found(results)
    assert study.runs[0].name not in {run.run for run in heads.runs}
    assert heads.not_analysed == {study.runs[0].name: "its heads are laid out oddly"}


def test_of_heads_that_a_screen_chose_nothing_is_said_of_change_and_effect() -> None:
    study = planted_study()
    name = study.runs[0].name
    heads = found(with_effects(study, 0, effects(name, "kinship", top=12)))
    assert len(heads.matters) == 10
    assert all(each.correlation is None for each in heads.matters)
    reason = "only the 12 heads that a screen chose were scored"
    assert {each.reason for each in heads.matters} == {reason}
    (statement,) = named(heads.statements, "matter most")
    assert reason in statement
    assert statement.startswith("Not tested whether ")


def test_a_screen_that_passed_no_head_over_chose_none() -> None:
    study = planted_study()
    name = study.runs[0].name
    heads = found(with_effects(study, 0, effects(name, "kinship", top=40)))
    assert all(each.correlation is not None for each in heads.matters)


def test_runs_that_differ_by_seed_alone_are_told_apart() -> None:
    study = planted_study(seeds=(0, 1))
    first, second = (study.runs[number].name for number in (0, 1))
    both = {
        number: {"head_effects": (effects(name, "kinship"),)}
        for number, name in enumerate((first, second))
    }
    heads = found(looked_into(study, both))
    assert heads.labels[first] == "rank 4, seed 0"
    assert heads.labels[second] == "rank 4, seed 1"
    assert [run.label for run in heads.runs[:2]] == ["rank 4, seed 0", "rank 4, seed 1"]
    assert {run.option.label for run in heads.runs[:2]} == {"rank 4"}
    statements = named(heads.statements, "matter most")
    assert [sum("seed 0" in each for each in statements)] == [1]
    assert [sum("seed 1" in each for each in statements)] == [1]


def test_a_run_is_called_by_its_label_where_it_has_effects_and_no_maps() -> None:
    study = planted_study()
    name = study.runs[0].name
    without = {"head_changes": None, "head_effects": (effects(name, "kinship"),)}
    assert found(looked_into(study, {0: without})).labels[name] == "rank 4"
