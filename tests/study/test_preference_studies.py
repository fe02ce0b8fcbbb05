"""Studies of pairs of answers: from the study file to the verdict, killed and resumed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from rankwise.errors import ConfigError, PlanError, TaskError
from rankwise.records import quantities
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.reading import read_results
from rankwise.tasks.judgement import judge
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.studies import run
from tests.support.tiny_models import tiny_mixture

SETTINGS = """
train:
  data: pairs.jsonl
  objective: dpo
  epochs: 3
  batch_size: 4
  gradient_accumulation_steps: 1
  held_out_fraction: 0.25
  learning_rate: {lora: 2e-2, full: 2e-3}
  precision: float32
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, v_proj]}, full: {}}
analysis: {spectra: false, heads: false}
evaluation: {retention: [sums], num_train_items: 8}
"""
ROWS = [
    {"prompt": f"Say {n}.", "chosen": f" yes, {n}", "rejected": f" no, not {n}"} for n in range(32)
]


LENGTHS = (
    "evaluation.own={short_prompts: {data: bundled/short_prompts, judged_by: length, "
    "role: out_of_domain}}"
)


@pytest.fixture
def study_file(tmp_path: Path, tiny_model_folder: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return write_study(tmp_path, tiny_model_folder, SETTINGS)


def with_train(file: Path, **settings: Any) -> Path:
    content = yaml.safe_load(file.read_text())
    content["train"] |= settings
    file.write_text(yaml.safe_dump(content))
    return file


def test_pairs_are_judged_against_the_base_up_to_the_verdict(
    study_file: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    outcome, _ = run(study_file, tmp_path / "study", LENGTHS)
    results, folder = outcome.results, StudyFolder(tmp_path / "study")
    base = results.base.items["data_pairs"]
    assert (base.metric, base.unit, set(base.values)) == ("preference", "points", {0.5})
    assert results.study.ending_items == {}  # both answers of a pair end alike
    of_base = {
        line["doc_id"]: [each[0][0] for each in line["resps"]]
        for line in folder.read_samples(BASE, "data_pairs")
    }
    assert len(results.runs) == 3
    for model in results.runs:
        items = model.items["data_pairs"]
        lines = folder.read_samples(model.name, "data_pairs")
        for line, value in zip(lines, items.values, strict=True):
            chosen, rejected = (each[0][0] for each in line["resps"])
            base_chosen, base_rejected = of_base[line["doc_id"]]
            margin = chosen - base_chosen - (rejected - base_rejected)
            assert line["margin_nats"] == pytest.approx(margin, abs=1e-9)
            assert value == (margin > 0)
        lines = folder.metrics_file(model.name).read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        assert metrics[0]["loss_nats"] == pytest.approx(math.log(2), abs=1e-5)
        assert metrics[-1]["loss_nats"] < 0.5
        assert sum(items.values) / len(items.values) > 0.9
        assert 0.5 < model.evaluations["data_pairs@train"].decision.value <= 1
    assert results.study.tasks["pairs"]["in_domain"] == ("data_pairs",)
    assert len(outcome.recommendation.by_train_task) == 1
    again = read_results(folder)
    assert again.runs[0].items == results.runs[0].items
    # own answers, which get longer or shorter
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)

    def lengths(name: str) -> list[tuple[float, float]]:
        lines = folder.read_samples(name, "short_prompts")
        for line in lines:
            text = line["filtered_resps"][0]
            assert line["tokens"] == len(tokenizer.encode(text, add_special_tokens=False))
            assert line["words"] == len(text.split())
        return [(line["tokens"], line["words"]) for line in lines]

    before = lengths(BASE)
    assert len(before) == 30
    assert results.base.items["short_prompts"].unit == "tokens"
    (said,) = (
        reason
        for reason in outcome.recommendation.by_train_task[0].reasons
        if "short_prompts" in reason
    )
    for model in results.runs:
        change = sum(its[0] for its in lengths(model.name)) - sum(its[0] for its in before)
        assert f" {quantities.formatted(change / 30, '+.1f')} tokens (" in said


def test_experts_that_dpo_would_not_balance_are_refused(
    study_file: Path, tmp_path: Path, tiny_model_folder: Path, sentence: Sentences
) -> None:
    base = tmp_path / "experts"
    shutil.copytree(tiny_model_folder, base)
    (base / "model.safetensors").unlink()
    config = tiny_mixture("Qwen3Moe").config
    config.vocab_size = json.loads((tiny_model_folder / "config.json").read_text())["vocab_size"]
    content = yaml.safe_load(study_file.read_text()) | {"base_model": str(base)}
    content["methods"]["full"] = None
    study_file.write_text(yaml.safe_dump(content))
    config.save_pretrained(base)
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file))
    sentence(caught.value, names=("train.objective", "router_aux_loss_coef"))
    config.router_aux_loss_coef = 0.0
    config.save_pretrained(base)
    assert plan_study(load_config(study_file)).record.runs


def test_pairs_without_the_bases_answers_are_not_judged(study_file: Path) -> None:
    plan = plan_study(load_config(study_file))
    task = plan.tasks["data_pairs"]
    with pytest.raises(TaskError, match="base"):
        judge(task, [((-1.0, False),)] * len(task.instances), None)


def test_the_other_answer_is_another_training(study_file: Path, tmp_path: Path) -> None:
    def fingerprints() -> set[str]:
        return {run.fingerprint for run in plan_study(load_config(study_file)).record.runs}

    before = fingerprints()
    with_train(study_file, objective={"dpo": {"beta": 0.2}})
    stronger = fingerprints()
    with_train(study_file, objective="dpo")
    assert fingerprints() == before
    rows = [row | {"rejected": f"{row['rejected']}!"} for row in ROWS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert not fingerprints() & before
    assert not stronger & before


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"data": None, "task": "colours"}, "objective"),
        ({"judged_by": "loss"}, "judged_by"),
        ({"objective": None, "judged_by": "preference"}, "judged_by"),
        ({"loss_on": "all"}, "loss_on"),
        ({"columns": {"prompt": "p", "completion": "c"}}, "columns"),
        ({"objective": "ppo"}, "objective"),
        ({"objective": {"dpo": {"loss": "ipo", "label_smoothing": 0.1}}}, "label_smoothing"),
        ({"objective": {"dpo": {"beta": 0}}}, "beta"),
        ({"judged_by": ["preference", "loss"]}, "judged_by"),
    ],
    ids=[
        "a task", "another judge", "another objective", "loss on all", "columns", "no objective",
        "smoothing of ipo", "beta", "two judges",
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(
    study_file: Path, settings: dict[str, Any], named: str, sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(with_train(study_file, **settings))
    sentence(caught.value, names=("train", named))


@pytest.mark.parametrize("arm", ["kl: {at: own_texts}", "replay: {share: 0.1}"])
def test_arms_that_read_rows_of_one_answer_are_refused(
    study_file: Path, arm: str, sentence: Sentences
) -> None:
    study_file.write_text(f"{study_file.read_text()}mitigations: [{{{arm}}}]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(study_file)
    sentence(caught.value, names=("mitigations",))


def test_a_bad_pair_is_a_problem_of_the_plan(
    study_file: Path, tmp_path: Path, sentence: Sentences
) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a"}))
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file))
    sentence(caught.value, names=("train.data", "chosen", "rejected"))
