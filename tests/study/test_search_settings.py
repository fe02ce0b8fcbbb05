"""What a study file lets a search choose from."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.records.config.study import StudyConfig
from rankwise.records.study_file import load_config
from rankwise.study.planning.checks import check_settings
from rankwise.study.planning.issues import Issues
from rankwise.study.searches.policy import Measures
from rankwise.study.searches.settings import searched, terms_of


def config_of(tmp_path: Path, *overrides: str) -> StudyConfig:
    file = tmp_path / "study.yaml"
    file.write_text("base_model: m\ntrain: {task: t, learning_rate: {lora: 1e-3, tune: true}}\n")
    return load_config(file, overrides)


@pytest.mark.parametrize(
    ("alpha", "centres"),
    [
        # r^-1/2: four times the rank halves the rate, to the nearest step of sqrt(10)
        ("{policy: proportional}", {2: 3.16e-3, 32: 1e-3, 512: 3.16e-4}),
        ("{policy: rslora, alpha: 16}", {2: 3.16e-3, 32: 1e-3, 512: 3.16e-4}),
        ("{policy: fixed, alpha: 16}", {2: 1e-3, 32: 1e-3, 512: 1e-3}),
    ],
)
def test_rates_begin_where_the_best_is_expected(
    tmp_path: Path, alpha: str, centres: dict[int, float]
) -> None:
    config = config_of(
        tmp_path, "methods.lora.ranks=[512, 2, 32]", f"methods.lora.alpha={alpha}",
        "methods.full=null",
    )  # fmt: skip
    found = {setting.rank: setting.rates for setting, _ in searched(config)}
    assert list(found) == [2, 32, 512]  # smallest first
    for rank, centre in centres.items():
        low, middle, high = found[rank]
        assert middle == pytest.approx(centre, rel=1e-5)
        assert (low, high) == (
            pytest.approx(centre / 10**0.5, rel=5e-3),
            pytest.approx(centre * 10**0.5, rel=5e-3),
        )


def test_a_rule_says_where_to_begin(tmp_path: Path) -> None:
    rule = "train.learning_rate.lora={rule: r^-1/2, reference_rank: 8, value: 1e-3}"
    config = config_of(tmp_path, "methods.lora.ranks=[32]", "methods.full=null", rule)
    ((setting, _),) = searched(config)
    assert setting.rates[1] == pytest.approx(5e-4)


def test_what_is_not_tuned_has_one_rate(tmp_path: Path) -> None:
    overrides = ("train.learning_rate.tune=false", "search.policy=narrow")
    settings = searched(config_of(tmp_path, *overrides))
    assert {len(setting.rates) for setting, _ in settings} == {1}


def test_a_ladder_of_several_settings_of_a_rank_is_refused(tmp_path: Path) -> None:
    alphas = "methods.lora.alpha=[{policy: proportional, ratio: 1}, {policy: fixed, alpha: 16}]"
    for override in (alphas, "train.epochs=[1, 2]"):
        issues = Issues()
        check_settings(config_of(tmp_path, "search.policy=ladder", override), issues)
        assert [problem.partition(":")[0] for problem in issues.problems] == ["search.policy"]
    for policy in ("narrow", "ladder"):
        issues = Issues()
        settings = [f"search.policy={policy}", *([alphas] if policy == "narrow" else [])]
        check_settings(config_of(tmp_path, *settings), issues)
        assert issues.problems == []


def test_the_study_s_margins_are_the_search_s(tmp_path: Path) -> None:
    margins = ("recommendation.delta_points=2", "recommendation.epsilon_points=4")
    terms = terms_of(config_of(tmp_path, *margins, "evaluation.retention=[x]"), Measures())
    assert (terms.delta, terms.epsilon, terms.point) == (2, 4, 1.0)
    without = terms_of(config_of(tmp_path, *margins), Measures())
    assert without.epsilon is None
    nats = terms_of(config_of(tmp_path), Measures("nats"))
    assert (nats.delta, nats.point) == (0.05, 0.01)
    by_letters = terms_of(config_of(tmp_path), Measures("points", ("exact_match",)))
    assert (by_letters.delta, terms_of(config_of(tmp_path), Measures()).delta) == (5.0, 3.0)
