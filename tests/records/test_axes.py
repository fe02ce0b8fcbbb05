"""Grids and pairs of settings: which runs they come to, and what these are called."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models.structure import (
    LinearShape,
    adaptable_shapes,
    model_skeleton,
    resolved_targets,
)
from rankwise.errors import ConfigError
from rankwise.records.axes import full_settings, lora_settings, run_labels
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.training import RateRuleConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from tests.support.observers import Silent
from tests.support.sentences import Sentences


def config(**methods: Any) -> StudyConfig:
    train = methods.pop("train", {})
    return StudyConfig.model_validate(
        {"base_model": "m", "train": {"task": "t"} | train, "methods": {"lora": methods}}
    )


@pytest.mark.parametrize(
    ("rule", "rank", "rate"),
    [
        ("constant", 128, 2e-4),
        ("r^-1/2", 32, 2e-4),
        ("r^-1/2", 128, 1e-4),
        ("r^-1/2", 8, 4e-4),
        ("r^-1/4", 512, 1e-4),
        ("r^-1/4", 2, 4e-4),
    ],
)
def test_rate_rules_by_hand(rule: Any, rank: int, rate: float) -> None:
    assert math.isclose(RateRuleConfig(rule=rule, value=2e-4).rate_of(rank), rate)


def test_lists_make_a_grid() -> None:
    grid = config(
        ranks=[4, 8],
        alpha=[{"ratio": 2}, {"policy": "fixed", "alpha": 16}, {"policy": "rslora", "alpha": 16}],
        target_modules=["attention", ["q_proj", "v_proj"]],
        train={"epochs": [1, 3], "learning_rate": {"lora": [1e-4, 2e-4], "full": [1e-5, 5e-5]}},
    )
    found = lora_settings(grid)
    assert len(found) == len(set(found)) == 2 * 3 * 2 * 2 * 2
    assert {v.target_modules for v in found} == {("attention",), ("q_proj", "v_proj")}
    assert {(v.alpha.label, v.alpha.scaling_of(8)) for v in found} == {
        ("2r", 2.0),
        ("16", 2.0),
        ("16 (rslora)", 16 / math.sqrt(8)),
    }
    assert full_settings(grid) == ((1e-5, 1), (1e-5, 3), (5e-5, 1), (5e-5, 3))


def test_a_list_of_names_is_one_set_of_modules() -> None:
    assert config(target_modules=["attention", "mlp"]).methods.lora == (
        config(target_modules=[["attention", "mlp"]]).methods.lora
    )


def test_pairs_belong_together_and_multiply_with_the_grid() -> None:
    pairs = [{"rank": 8, "learning_rate": 4e-4}, {"rank": 64, "learning_rate": 1e-4}]
    found = lora_settings(config(_=pairs, alpha=[{"ratio": 1}, {"ratio": 2}]))
    assert [(v.rank, v.peak_rate, v.alpha.label) for v in found] == [
        (8, 4e-4, "1r"),
        (8, 4e-4, "2r"),
        (64, 1e-4, "1r"),
        (64, 1e-4, "2r"),
    ]


def test_a_rule_keeps_ranks_on_one_value_of_the_axis() -> None:
    rule = {"rule": "r^-1/2", "reference_rank": 8, "value": 1e-3}
    found = lora_settings(config(ranks=[8, 32], train={"learning_rate": {"lora": rule}}))
    assert [v.peak_rate for v in found] == [1e-3, 5e-4]
    assert {v.rate_label for v in found} == {"1e-3 × (r/8)^-1/2"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "methods: {lora: {ranks: [4], _: [{rank: 8}]}}",
            "methods.lora.ranks: given here and in methods.lora._ as 'rank'; give it in one",
        ),
        (
            "methods: {lora: {_: [{rank: 8}, {rank: 16, epochs: 2}]}}",
            "methods.lora: every entry of '_' sets the same axes, at least one",
        ),
        (
            "methods: {lora: {_: [{ranks: 8}]}}",
            "methods.lora._[0].ranks: unknown key; did you mean 'rank'?",
        ),
        (
            "methods: {lora: {alpha: [{ratio: 1}, {ratio: 1}]}}",
            "is given twice; give each value once",
        ),
        (
            "methods: {lora: {alpha: [{ratio: 1}, {policy: fixed}]}}",
            "methods.lora.alpha[1]: policy 'fixed' needs 'alpha'",
        ),
        ("methods: {lora: {ranks: 0}}", "methods.lora.ranks: 0 is not a rank; use a whole number"),
        ("methods: {imported: [{}]}", "methods.imported[0]: neither of 'adapter' and 'checkpoint'"),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"base_model: m\ntrain: {{task: t}}\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("rate", "problem"),
    [
        ("{rule: r^-1/3, value: 1e-4}", "train.learning_rate.lora.rule: 'r^-1/3' given"),
        ("{rule: constant}", "train.learning_rate.lora.value: is missing; add it"),
        ("{rul: constant, value: 1}", "lora.rul: unknown key; did you mean 'rule'?"),
        ("[1e-4, -1]", "train.learning_rate.lora[1]: -1 given; input should be greater than 0"),
        ("fast", "train.learning_rate.lora: 'fast' given; input should be a valid number"),
    ],
)
def test_a_wrong_rate_is_said_once(tmp_path: Path, rate: str, problem: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"base_model: m\ntrain: {{task: t, learning_rate: {{lora: {rate}}}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert problem in str(caught.value)


def test_kinds_of_modules_become_the_model_s_own_names(tiny_model_folder: Path) -> None:
    shapes = adaptable_shapes(model_skeleton(tiny_model_folder))
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    mlp = ("gate_proj", "up_proj", "down_proj")
    assert resolved_targets(shapes, ["attention"]) == attention
    assert resolved_targets(shapes, ["mlp"]) == mlp
    assert resolved_targets(shapes, ["all-linear"]) == (*attention, *mlp)
    assert resolved_targets(shapes, ["q_proj", "attention"]) == attention


def test_a_name_that_two_kinds_share_is_given_with_its_parent() -> None:
    shape = LinearShape(4, 4)
    shapes = dict.fromkeys(
        ("h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"), shape
    )
    assert resolved_targets(shapes, ["attention"]) == ("c_attn", "attn.c_proj")
    assert resolved_targets(shapes, ["mlp"]) == ("c_fc", "mlp.c_proj")


def test_settings_that_meet_are_trained_once_under_both_names(study_file: Path) -> None:
    overrides = ["methods.lora.alpha=[{ratio: 2}, {policy: fixed, alpha: 8}]", "methods.full=null"]
    runs = plan_study(load_config(study_file, overrides)).record.runs
    assert [(run.rank, run.alpha_labels) for run in runs] == [
        (2, ("2r",)),
        (4, ("2r", "8")),
        (2, ("8",)),
    ]
    assert sorted(run_labels(runs).values()) == [
        "rank 2, alpha 2r",
        "rank 2, alpha 8",
        "rank 4, alpha 2r = 8",
    ]


def test_labels_name_only_what_differs(study_file: Path) -> None:
    def labels(*overrides: str) -> set[str]:
        plan = plan_study(load_config(study_file, overrides))
        return set(run_labels(plan.record.runs).values())

    assert labels() == {"rank 2", "rank 4", "full fine-tuning"}
    assert labels("seeds=[0,1]") == {"rank 2", "rank 4", "full fine-tuning"}
    modules = "methods.lora.target_modules=[[q_proj], mlp]"
    grid = ["train.epochs=[1,2]", "methods.lora.ranks=2", modules]
    assert labels(*grid) == {
        "rank 2, on q, epochs 1",
        "rank 2, on q, epochs 2",
        "rank 2, on gate/up/down, epochs 1",
        "rank 2, on gate/up/down, epochs 2",
        "full fine-tuning, epochs 1",
        "full fine-tuning, epochs 2",
    }


def test_a_grid_over_two_tasks_is_trained_scored_and_judged(
    study_file: Path, tmp_path: Path
) -> None:
    overrides = [
        "train.task=[colours, sums]",
        "train.epochs=[1,2]",
        "train.learning_rate.lora={rule: r^-1/2, reference_rank: 2, value: 1e-2}",
        "evaluation.out_of_domain=[]",
        "methods.full=null",
    ]
    plan = plan_study(load_config(study_file, overrides))
    outcome = run_study(plan, StudyFolder(tmp_path / "study"), Silent())
    study = outcome.results.study
    assert study.tasks["colours"]["out_of_domain"] == ("sums",)
    assert study.tasks["sums"]["out_of_domain"] == ("colours",)
    steps = {(r.train_task, r.rank, r.epochs): (r.num_steps, r.learning_rate) for r in study.runs}
    assert len(steps) == 8
    assert steps["colours", 2, 1] == (3, 1e-2)
    assert steps["colours", 4, 2] == (6, 7.07107e-3)
    assert steps["sums", 4, 1] == (2, 7.07107e-3)
    first, second = outcome.recommendation.by_train_task
    assert (first.train_task, second.train_task) == ("colours", "sums")
    assert [v.label for v in first.verdicts] == [
        "rank 2, epochs 1",
        "rank 2, epochs 2",
        "rank 4, epochs 1",
        "rank 4, epochs 2",
    ]
    for model in outcome.results.of("sums").runs:
        scored = {"sums", "colours", "small_prose", "sums@train", "sums@end"}
        assert set(model.evaluations) == scored
        assert (tmp_path / "study" / "runs" / model.name / "eval" / "sums@train.json").exists()


def test_in_domain_of_several_tasks_is_each_its_own(study_file: Path, sentence: Sentences) -> None:
    several = ["train.task=[colours, sums]", "evaluation.out_of_domain=[]"]
    with pytest.raises(ConfigError) as caught:
        load_config(study_file, [*several, "evaluation.in_domain=[sums]"])
    sentence(caught.value, names=("in_domain",))


def test_what_is_trained_on_may_be_retention_of_the_others(
    study_file: Path, sentence: Sentences
) -> None:
    overrides = [
        "train.task=[colours, sums]",
        "train.split={sums: train}",
        "evaluation.out_of_domain=[]",
        "evaluation.retention=[sums]",
    ]
    record = plan_study(load_config(study_file, overrides)).record
    assert record.tasks["colours"]["retention"] == ("sums",)
    assert record.tasks["colours"]["out_of_domain"] == ()
    assert record.tasks["sums"]["retention"] == ()
    assert record.tasks["sums"]["out_of_domain"] == ("colours",)
    assert any("'sums' is trained on and was left out" in warning for warning in record.warnings)
    with pytest.raises(ConfigError) as caught:
        load_config(study_file, [*overrides, "train.split={other: train}"])
    sentence(caught.value, names=("train", "other"))
