"""A study with a rank for each layer: planned as PEFT reads it, trained beside ranks, judged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.errors import ConfigError, PlanError
from rankwise.records.axes import run_labels
from rankwise.records.folder import StudyFolder
from rankwise.records.names import find_run
from rankwise.records.study import PlannedRun
from rankwise.records.study_file import load_config
from rankwise.report.page import study_page
from rankwise.report.rendering import rendered
from rankwise.weights.lowrank import read_updates, save_updates
from rankwise.weights.repairs import cut_to_energy
from tests.support.killed_studies import run_until_path, started
from tests.support.sentences import Sentences
from tests.support.small_studies import (
    ONE_BY_ONE,
    Finished,
    finished_study,
    planned,
    weights_of,
    write_study,
)
from tests.support.studies import run

SETTINGS = """
train:
  task: colours
  max_examples: 12
  epochs: 2
  learning_rate: {lora: 1e-2}
  precision: float32
  batch_size: 2
  gradient_accumulation_steps: 2
methods:
  lora:
    ranks: [2, 8]
    target_modules: [q_proj, v_proj, o_proj]
    rank_pattern: {layers.0.*.q_proj: 1, v_proj: 6, .*: 3}
  full: null
evaluation: {held_out_text: [], retention: [sums], num_train_items: 0, trained_format: false}
analysis: {spectra: false, heads: false}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Finished:
    root = tmp_path_factory.mktemp("pattern")
    return finished_study(root, tiny_model_folder, SETTINGS, ONE_BY_ONE)


def pattern_of(finished: Finished) -> PlannedRun:
    (found,) = (each for each in finished.study.runs if each.layer_ranks)
    return found


def loaded(base: Path, folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, str(folder))


def test_layers_have_the_ranks_that_peft_gives_them(
    finished: Finished, tiny_model_folder: Path
) -> None:
    settings = peft.LoraConfig(
        r=3,
        rank_pattern={"layers.0.*.q_proj": 1, "v_proj": 6, ".*": 3},
        target_modules=["q_proj", "v_proj", "o_proj"],
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    ranks = {
        name.removeprefix("base_model.model."): module.r["default"]
        for name, module in peft.get_peft_model(base, settings).named_modules()
        if isinstance(module, LoraLayer)
    }
    pattern = pattern_of(finished)
    assert dict(pattern.layer_ranks) == ranks
    assert {*ranks.values()} == {1, 3, 6}
    saved = weights_of(finished.folder, pattern)
    assert pattern.num_trainable_parameters == sum(weight.numel() for weight in saved.values())
    # of rank 2 and of rank 8 it is between
    per_rank = finished.study.runs[0].num_trainable_parameters / 2
    assert pattern.mean_rank == pytest.approx(pattern.num_trainable_parameters / per_rank)
    assert pattern.rank == round(pattern.mean_rank or 0)
    # memory is that of the highest rank in every layer
    assert (pattern.highest_rank, pattern.num_held_weights) == (6, 6 * per_rank)
    uniform = planned(
        finished.file,
        "methods.lora={ranks: [6], target_modules: [q_proj, v_proj, o_proj]}",
        ONE_BY_ONE,
    )
    assert pattern.estimated_memory_bytes == pytest.approx(
        uniform.record.runs[0].estimated_memory_bytes, rel=0.05
    )


def test_peft_loads_it_with_one_scaling(finished: Finished, tiny_model_folder: Path) -> None:
    folder = finished.folder.weights(pattern_of(finished))
    model = loaded(tiny_model_folder, folder)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert {name: layer.r["default"] for name, layer in layers.items()} == dict(
        pattern_of(finished).layer_ranks
    )
    assert {layer.scaling["default"] for layer in layers.values()} == {2.0}
    tokens = torch.tensor([[5, 9, 7, 3, 11]])
    factors = AdapterFolder(folder).factors
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    with torch.no_grad():
        for name, (lora_A, lora_B, scaling) in factors.items():
            base.get_submodule(name).weight += scaling * lora_B @ lora_A
        torch.testing.assert_close(model(tokens).logits, base(tokens).logits, rtol=1e-4, atol=1e-4)


def test_uniform_ranks_are_trained_and_named_as_without_it(
    finished: Finished, tmp_path: Path
) -> None:
    run(finished.file, tmp_path / "without", ONE_BY_ONE, "methods.lora.rank_pattern=null")
    without = StudyFolder(tmp_path / "without")
    for each in without.read_study().runs:
        theirs, ours = weights_of(without, each), weights_of(finished.folder, each)
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    # the study that has one rank and the pattern adds nothing to what is trained
    run(finished.file, tmp_path / "one", ONE_BY_ONE, "methods.lora.ranks=[2]")
    one = StudyFolder(tmp_path / "one")
    alone, beside = (
        weights_of(one, pattern_of(finished)),
        weights_of(finished.folder, pattern_of(finished)),
    )
    for name, weight in alone.items():
        torch.testing.assert_close(weight, beside[name], rtol=1e-5, atol=1e-7)


def test_the_options_are_ordered_by_trained_weights_and_named(finished: Finished) -> None:
    (part,) = finished.outcome.recommendation.by_train_task
    mean = f"{pattern_of(finished).mean_rank:.1f}"
    name = f"rank pattern (mean {mean})"
    assert [verdict.label for verdict in part.verdicts] == ["rank 2", name, "rank 8"]
    assert part.verdicts[1].mean_rank == pattern_of(finished).mean_rank
    outcome = finished.outcome
    page = study_page(outcome.results, outcome.recommendation, outcome.findings, {})
    html = rendered(page)
    assert f"LoRA {name}" in html
    assert f"2, pattern (mean {mean}), 8" in html
    assert re.search(rf"\brank {pattern_of(finished).rank}\b", html) is None


def test_a_number_names_no_pattern(finished: Finished) -> None:
    study = finished.study
    assert find_run(study, "pattern") == pattern_of(finished)
    assert find_run(study, "8").layer_ranks == ()
    with pytest.raises(ConfigError, match=f"no run named '{pattern_of(finished).rank}'"):
        find_run(study, str(pattern_of(finished).rank))


def test_a_folder_s_ranks_are_taken_and_what_it_leaves_out_is_not_adapted(
    finished: Finished, tmp_path: Path, tiny_model_folder: Path
) -> None:
    settings = peft.LoraConfig(
        r=2,
        lora_alpha=7,
        rank_pattern={"layers.1.self_attn.v_proj": 4},
        target_modules=["layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"],
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    peft.get_peft_model(base, settings).save_pretrained(str(tmp_path / "adapter"))
    run(
        finished.file,
        tmp_path / "study",
        f"methods.lora.rank_pattern={tmp_path / 'adapter'}",
        "methods.lora.ranks=[2]",
    )
    folder = StudyFolder(tmp_path / "study")
    (_, pattern) = sorted(folder.read_study().runs, key=lambda each: bool(each.layer_ranks))
    q_proj, v_proj = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
    assert dict(pattern.layer_ranks) == {q_proj: 2, v_proj: 4}
    assert pattern.target_modules == ("q_proj", "v_proj", "o_proj")
    model = loaded(tiny_model_folder, folder.weights(pattern))
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert {name: each.r["default"] for name, each in layers.items()} == {q_proj: 2, v_proj: 4}
    # the study's alpha, not the folder's
    assert {each.scaling["default"] for each in layers.values()} == {2.0}
    uniform = weights_of(folder, folder.read_study().runs[0])
    assert pattern.num_trainable_parameters < sum(weight.numel() for weight in uniform.values())


def test_the_ranks_of_a_cut_adapter_are_trained(finished: Finished, tmp_path: Path) -> None:
    """As ``rankwise repair --by energy`` writes it; the key is relative to the study file."""
    study = finished.study
    uniform = finished.folder.weights(find_run(study, "8"))
    updates = read_updates(AdapterFolder(uniform))
    cut = cut_to_energy(updates, 0.6)
    save_updates(cut, finished.file.parent / "cut", source=AdapterFolder(uniform))
    plan = planned(finished.file, "methods.lora.rank_pattern=./cut")
    (pattern,) = (each for each in plan.record.runs if each.layer_ranks)
    assert dict(pattern.layer_ranks) == {name: update.rank for name, update in cut.items()}
    assert len({rank for _, rank in pattern.layer_ranks}) > 1
    assert (pattern.mean_rank or 8) < 8


def test_killed_while_it_trains_it_goes_on_to_the_same_weights(
    finished: Finished, tmp_path: Path, tiny_model_folder: Path
) -> None:
    settings = SETTINGS.replace(
        "precision: float32",
        "precision: float32\n  save_every: 0.001s\n  max_micro_batch_tokens: 1",
    )
    file = write_study(tmp_path, tiny_model_folder, settings)
    root = tmp_path / "study"
    process = started(run_until_path, file, root, ("-pattern-", "training.pt"), 4)
    process.join()
    assert process.exitcode != 0
    assert any("-pattern-" in path.parent.name for path in root.rglob("training.pt"))
    run(file, root)
    again = StudyFolder(tmp_path / "study")
    (pattern,) = (each for each in again.read_study().runs if each.layer_ranks)
    ours, theirs = weights_of(again, pattern), weights_of(finished.folder, pattern_of(finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "override",
    [
        "{q_porj: 4, .*: 2}",
        "{.*: 2, q_proj: 4}",
        "{q_proj: 4}",
        "/nowhere/adapter",
    ],
    ids=["unknown layer", "behind all", "not all layers", "no adapter"],
)
def test_a_pattern_that_does_not_fit_the_model(
    finished: Finished, override: str, sentence: Sentences
) -> None:
    with pytest.raises(PlanError) as caught:
        planned(finished.file, f"methods.lora.rank_pattern={override}")
    sentence(caught.value, names=("methods.lora.rank_pattern",), part=True)


def test_a_pattern_that_takes_long(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr("rankwise.study.planning.rank_patterns.MOST_SECONDS", 0.01)
    with pytest.raises(PlanError) as caught:
        planned(finished.file, "methods.lora.rank_pattern={'(?:.|.)*(?!.|$)': 4, .*: 2}")
    sentence(caught.value, names=("methods.lora.rank_pattern", "0.01"), part=True)


def test_several_sets_of_modules_and_rows_and_arms(finished: Finished) -> None:
    """One pattern for each set of modules; runs on fewer rows and arms have it too."""
    plan = planned(
        finished.file,
        "methods.lora.target_modules=[[q_proj], [q_proj, v_proj]]",
        "methods.lora.rank_pattern={q_proj: 1, v_proj: 6}",
        "train.max_examples=[6, 12]",
        "mitigations=[{learning_rate_factor: 0.3}]",
    )
    patterns = [each for each in plan.record.models if each.layer_ranks]
    assert {each.role for each in patterns} == {"trained", "fewer_rows", "mitigated"}
    of_set = {each.target_modules: {*dict(each.layer_ranks).values()} for each in patterns}
    assert of_set == {("q_proj",): {1}, ("q_proj", "v_proj"): {1, 6}}
    labels = run_labels(plan.record.runs)
    assert sorted({labels[each.name] for each in patterns if each.role == "trained"}) == [
        "rank pattern (mean 1.0), on q",
        "rank pattern (mean 3.1), on q/v",  # v_proj is smaller,
    ]


def test_a_rank_above_a_layer_s_width_is_warned_of(finished: Finished, sentence: Sentences) -> None:
    plan = planned(finished.file, "methods.lora.rank_pattern={.*: 1000}")
    (said,) = [text for text in plan.record.warnings if "rank_pattern" in text]
    sentence(said, names=("1000",))


def test_a_folder_beyond_the_target_modules_is_refused(
    finished: Finished, sentence: Sentences
) -> None:
    folder = finished.folder.weights(pattern_of(finished))
    overrides = f"methods.lora.rank_pattern={folder}", "methods.lora.target_modules=[q_proj]"
    with pytest.raises(PlanError) as caught:
        planned(finished.file, *overrides)
    sentence(caught.value, names=("target_modules", "q_proj"), part=True)
    plan = planned(finished.file, overrides[0], ONE_BY_ONE)  # its own ranks: the same training
    assert pattern_of(finished).name in {each.name for each in plan.record.runs}


BAD = {
    "zero": "rank_pattern={q_proj: 0}",
    "negative": "rank_pattern={q_proj: -2}",
    "no layer": "rank_pattern={}",
    "no expression": "rank_pattern={'(': 2}",
    "a list": "rank_pattern=[4]",
    "a number": "rank_pattern=4",
    "a scaling for each": "alpha={policy: rslora, alpha: 16}",
}


@pytest.mark.parametrize("override", BAD.values(), ids=BAD)
def test_a_bad_pattern(finished: Finished, override: str, sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(finished.file, [f"methods.lora.{override}"])
    sentence(caught.value, names=("methods.lora",))


def test_paired_ranks_have_no_place_for_it(finished: Finished, sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(finished.file, ["methods.lora={_: [{rank: 4}], rank_pattern: {.*: 3}}"])
    sentence(caught.value, names=("methods.lora",))


def test_a_search_has_no_place_for_it(finished: Finished, sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(finished.file, ["search.policy=ladder"])
    sentence(caught.value, names=("methods.lora.rank_pattern",))
