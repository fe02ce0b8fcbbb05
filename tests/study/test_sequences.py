"""Tasks trained one after the other: on the same adapter, on a new one beside it, or from the base.

The peer is PEFT: the saved adapter is loaded and trained on, or merged before a new one is trained.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.seeds import seed_of
from rankwise.engine.models.trained_adapters import drawn_rows
from rankwise.engine.training.trainees import effective_batches
from rankwise.errors import ConfigError, PlanError
from rankwise.integrations.formats import export_study
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun
from rankwise.records.study_file import load_config
from rankwise.report.page import study_page
from rankwise.report.rendering import rendered
from rankwise.study.stages.graph import stages
from rankwise.study.stages.training import Train
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

TARGETS = ["q_proj", "v_proj", "o_proj"]
SETTINGS = f"""
train:
  sequence: {{tasks: [colours, sums], adapter: [same, new, fresh]}}
  max_examples: 12
  epochs: 2
  learning_rate: {{lora: 1e-2, full: 1e-3}}
  precision: float32
  batch_size: 2
  gradient_accumulation_steps: 2
methods:
  lora: {{ranks: [2, 8], target_modules: {TARGETS}}}
evaluation: {{held_out_text: [], retention: [hues], num_train_items: 0, trained_format: false}}
analysis: {{spectra: false, heads: false}}
"""
SAME, NEW = "sums after colours", "sums on colours"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Finished:
    root = tmp_path_factory.mktemp("sequence")
    return finished_study(root, tiny_model_folder, SETTINGS, ONE_BY_ONE)


def run_of(finished: Finished, source: str, rank: int | None) -> PlannedRun:
    (found,) = (run for run in finished.study.runs if (run.train_task, run.rank) == (source, rank))
    return found


def batches(finished: Finished, run: PlannedRun) -> list[list[tuple[torch.Tensor, int]]]:
    """The tokens of each example of each step, and how many of them are learned."""
    plan = planned(finished.file, ONE_BY_ONE)
    steps = effective_batches(plan.examples_of(run), run, plan.record.config.train)
    return [[(torch.tensor([e.tokens]), e.num_loss_tokens) for e in step] for step in steps]


def train(model: Any, steps: list[list[tuple[torch.Tensor, int]]], rate: float) -> list[Any]:
    """Plain torch: AdamW, linear decay after a tenth of the steps, gradients clipped to 1."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, len(steps))
    for step in steps:
        count = sum(number for _, number in step)
        for tokens, number in step:
            logits = model(tokens).logits[0, -number - 1 : -1]
            (cross_entropy(logits, tokens[0, -number:], reduction="sum") / count).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return weights


def base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_what_is_planned(finished: Finished) -> None:
    study = finished.study
    assert [*study.tasks] == ["colours", SAME, NEW, "sums"]
    assert len(study.runs) == 4 * 3 - 1  # a new adapter is no other full fine-tuning
    first, same, new = (run_of(finished, source, 8) for source in ("colours", SAME, NEW))
    assert first.after is None
    assert same.after is not None
    assert new.after is not None
    assert (same.after.name, same.after.is_beside, same.after.rank) == (first.name, False, 0)
    assert (new.after.name, new.after.is_beside, new.after.rank) == (first.name, True, 8)
    assert run_of(finished, "sums", 8).after is None
    # what is trained first is trained in an earlier pass, and every stage says what it needs
    graph = [stage for stage in stages(study) if isinstance(stage, Train)]
    trained_by = {run.name: stage for stage in graph for run in stage.runs}
    assert trained_by[same.name] is trained_by[new.name]
    assert trained_by[same.name].needs == (trained_by[first.name].id,)
    assert graph.index(trained_by[same.name]) > graph.index(trained_by[first.name])
    assert not trained_by[first.name].needs
    # each task is in-domain for what was trained on it last, and scored for all
    assert study.tasks[SAME]["in_domain"] == ("sums",)
    assert study.earlier == {SAME: ("colours",), NEW: ("colours",)}
    assert "colours" in study.scored_tasks(SAME)
    assert "colours" not in study.tasks[SAME].get("out_of_domain", ())
    assert "colours" in study.tasks["sums"]["out_of_domain"]
    assert "sums" in study.tasks["colours"]["out_of_domain"]


def test_the_same_adapter_is_trained_on_as_peft_does(
    finished: Finished, tiny_model_folder: Path
) -> None:
    first, same = run_of(finished, "colours", 8), run_of(finished, SAME, 8)
    model: Any = peft.PeftModel.from_pretrained(
        base(tiny_model_folder), str(finished.folder.weights(first)), is_trainable=True
    )
    train(model, batches(finished, same), 1e-2)
    theirs = peft.get_peft_model_state_dict(model)
    ours, before = weights_of(finished.folder, same), weights_of(finished.folder, first)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert distance(weight, theirs[name]) < 1e-5
        assert distance(weight, before[name]) > 1e-2


def test_a_new_adapter_is_trained_as_on_the_merged_base(
    finished: Finished, tiny_model_folder: Path
) -> None:
    first, new = run_of(finished, "colours", 8), run_of(finished, NEW, 8)
    model: Any = peft.PeftModel.from_pretrained(
        base(tiny_model_folder), str(finished.folder.weights(first))
    )
    merged = model.merge_and_unload()
    settings = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(merged, settings)
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    assert new.seed is not None
    with torch.no_grad():
        for name, layer in layers.items():
            lora_A = layer.lora_A["default"].weight
            lora_A.copy_(drawn_rows(name, 8, lora_A.shape[1], seed_of(new.seed, "beside", 1)))
    train(model, batches(finished, new), 1e-2)
    saved = AdapterFolder(finished.folder.weights(new)).factors
    before = AdapterFolder(finished.folder.weights(first)).factors
    for name, (lora_A, lora_B, scaling) in saved.items():
        assert (lora_A.shape[0], scaling) == (16, 2.0)
        layer = layers[name]
        assert distance(lora_A[:8], layer.lora_A["default"].weight.detach()) < 1e-4
        assert distance(lora_B[:, :8], layer.lora_B["default"].weight.detach()) < 1e-4
        # what it was trained beside is there as it was
        assert torch.equal(lora_A[8:], before[name].lora_A)
        assert torch.equal(lora_B[:, 8:], before[name].lora_B)
        # and has other directions
        assert float(torch.cosine_similarity(lora_A[:8], lora_A[8:]).abs().max()) < 0.8
    # on the base as it is, the saved adapter answers as the new one on the merged base
    loaded: Any = peft.PeftModel.from_pretrained(
        base(tiny_model_folder), str(finished.folder.weights(new))
    )
    ((tokens, _), *_), *_ = batches(finished, new)
    with torch.no_grad():
        ours, theirs = loaded(tokens).logits, model(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_full_fine_tuning_goes_on_from_its_own_weights(finished: Finished) -> None:
    first, same = run_of(finished, "colours", None), run_of(finished, SAME, None)
    model = base(finished.folder.weights(first))
    before = [weight.detach().clone() for weight in model.parameters()]
    trained = train(model, batches(finished, same), 1e-3)
    ours = base(finished.folder.weights(same))
    for weight, theirs, old in zip(ours.parameters(), trained, before, strict=True):
        change = (theirs - old).norm()
        assert float((weight - theirs).norm()) <= 1e-3 * float(change)


def test_what_is_left_of_the_earlier_task(finished: Finished) -> None:
    """Against means and differences of the samples themselves."""
    outcome = finished.outcome
    found = {each.train_task: each for each in outcome.findings.sequences}
    assert [*found] == [SAME, NEW]
    rows = {row.label: row for row in found[SAME].rows}
    assert [*rows] == ["rank 2", "rank 8", "full fine-tuning"]
    for source, rank in ((SAME, 2), (SAME, 8), (SAME, None), (NEW, 8)):
        (row,) = (row for row in found[source].rows if row.rank == rank)
        start, later = run_of(finished, "colours", rank), run_of(finished, source, rank)
        base, before, after = (
            mean(finished.folder, name, "colours") for name in ("base", start.name, later.name)
        )
        assert row.earlier == "colours"
        assert row.lead is not None
        assert row.lead.estimate == pytest.approx(100 * (after - before), rel=1e-4)
        assert row.gain.estimate == pytest.approx(100 * (after - base), rel=1e-4)
        if row.kept.estimate is not None:
            assert row.kept.estimate == pytest.approx((after - base) / (before - base), rel=1e-4)
    html = rendered(study_page(outcome.results, outcome.recommendation, outcome.findings, {}))
    assert "What a later task leaves of an earlier one" in html
    card = next(card for card in outcome.findings.cards if card.train_task == SAME)
    lines = [*outcome.findings.card_lines(card)]  # in the terminal
    assert [f"- {said}" for said in found[SAME].statements] == lines[-len(rows) - 1 :]


CHAIN = """
train:
  sequence: [colours, sums]
  max_examples: 8
  epochs: 2
  batch_size: 2
  gradient_accumulation_steps: 1
  learning_rate: {lora: 1e-2}
  precision: float32
methods:
  lora: {ranks: [2], target_modules: [q_proj, v_proj]}
  full: null
evaluation: {held_out_text: [], num_train_items: 0, trained_format: false}
analysis: {spectra: false, heads: false}
"""
THREE = "train.sequence=[colours, sums, hues]"


@pytest.fixture
def chain(tmp_path: Path, tiny_model_folder: Path) -> Finished:
    return finished_study(tmp_path, tiny_model_folder, CHAIN)


def test_one_more_task_repeats_nothing(chain: Finished) -> None:
    before = {run.name: weights_of(chain.folder, run) for run in chain.study.runs}
    outcome, recorder = run(chain.file, chain.folder.root, THREE)
    trained = [model for model, stage in recorder.stages if stage == "training"]
    third = chain.study.runs[-1]
    assert trained == [third.name]
    assert third.train_task == "hues after sums after colours"
    for name, weights in before.items():
        (again,) = (each for each in chain.study.runs if each.name == name)
        assert all(map(torch.equal, weights.values(), weights_of(chain.folder, again).values()))
    rows = outcome.findings.sequences[-1].rows
    assert [row.earlier for row in rows] == ["sums after colours", "colours"]
    second, first = (
        100 * (mean(chain.folder, third.name, task) - mean(chain.folder, start.name, task))
        for task, start in zip(("sums", "colours"), chain.study.runs[1::-1], strict=True)
    )
    leads = [row.lead.estimate for row in rows if row.lead is not None]
    assert leads == pytest.approx([second, first], rel=1e-4)


def mean(folder: StudyFolder, model: str, task: str) -> float:
    """Of colours and hues the mean probability of the right option, of sums the share right."""
    lines = [*folder.read_samples(model, task)]
    if task == "sums":
        return statistics.fmean(line["exact_match"] for line in lines)
    options = [torch.tensor([r[0][0] for r in line["resps"]]).softmax(0) for line in lines]
    right = (int(line["target"]) for line in lines)
    return statistics.fmean(float(own[at]) for own, at in zip(options, right, strict=True))


def test_a_new_adapter_beside_two_has_what_both_have(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    tasks = "[colours, sums, hues]"
    pattern = "methods.lora.rank_pattern={layers.0.*: 1, .*: 3}"
    chain = finished_study(
        tmp_path,
        tiny_model_folder,
        CHAIN,
        f"train.sequence={{tasks: {tasks}, adapter: new}}",
        pattern,
    )
    for place in (0, 1):  # rank 2, and the pattern
        runs = chain.study.runs[place::2]
        first, second, third = (AdapterFolder(chain.folder.weights(each)).factors for each in runs)
        for name, factors in third.items():
            own = len(first[name].lora_A)
            assert len(factors.lora_A) == 3 * own
            assert torch.equal(factors.lora_A[own:], second[name].lora_A)
            assert torch.equal(second[name].lora_A[own:], first[name].lora_A)
            assert torch.equal(factors.lora_B[:, own:], second[name].lora_B)


def test_what_goes_on_from_a_run_that_diverged_has_diverged(
    tmp_path: Path, tiny_model_folder: Path, sentence: Sentences
) -> None:
    rates = "train.learning_rate.lora=[1e-2, 1e30]"
    modules = "methods.lora.target_modules=all-linear"
    chain = finished_study(tmp_path, tiny_model_folder, CHAIN, rates, modules)
    bad = [each for each in chain.study.runs if each.learning_rate == 1e30]
    records = [chain.folder.finished_run(each) for each in bad]
    assert [record and record.status for record in records] == ["diverged", "diverged"]
    (first, later), (_, second) = bad, records
    assert second is not None
    sentence(second.message or "", names=(first.name,))
    assert later.after is not None
    (found,) = chain.outcome.findings.sequences
    assert [row.label for row in found.rows] == ["rank 2, rate 1e-2"]


def test_a_damaged_first_run_is_trained_again_and_the_later_one_stays(chain: Finished) -> None:
    first, later = chain.study.runs
    before = {name: weight.clone() for name, weight in weights_of(chain.folder, first).items()}
    file = chain.folder.weights_folder(first) / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 255
    file.write_bytes(content)
    kept = (chain.folder.weights_folder(later) / "adapter_model.safetensors").stat().st_mtime_ns
    _, recorder = run(chain.file, chain.folder.root)
    trained = [model for model, stage in recorder.stages if stage == "training"]
    assert trained == [first.name]
    assert all(map(torch.equal, before.values(), weights_of(chain.folder, first).values()))
    now = (chain.folder.weights_folder(later) / "adapter_model.safetensors").stat().st_mtime_ns
    assert now == kept


def test_arms_are_trained_at_later_tasks_and_may_read_rows_of_the_first(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    arms = "mitigations=[{replay: {rows: {task: colours}, share: 0.5}}]"
    trained = "evaluation.num_train_items=8"  # which are what is replayed
    keep = "evaluation.retention=hues"
    chain = finished_study(tmp_path, tiny_model_folder, CHAIN, arms, keep, trained)
    plan = planned(chain.file, arms, keep, trained)
    ((_, replayed),) = plan.others.items()
    assert replayed == plan.examples["colours"]
    (arm,) = chain.study.of_role("mitigated")
    first, later = chain.study.runs
    assert arm.after == later.after
    assert arm.after is not None
    assert arm.after.name == first.name
    rows = chain.outcome.findings.sequences[0].rows
    assert [row.label for row in rows] == ["rank 2", "rank 2, 50 % colours"]
    lead = 100 * (
        mean(chain.folder, arm.name, "colours") - mean(chain.folder, first.name, "colours")
    )
    assert rows[1].lead is not None
    assert rows[1].lead.estimate == pytest.approx(lead, rel=1e-4)


def test_an_earlier_task_is_neither_retention_nor_out_of_domain(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    file = write_study(tmp_path, tiny_model_folder, CHAIN)
    for relation in ("retention", "out_of_domain"):
        study = planned(file, f"evaluation.{relation}=[colours, hues]").record
        assert study.tasks["sums after colours"][relation] == ("hues",)
        assert study.earlier == {"sums after colours": ("colours",)}


LEAK = """
include: colours.yaml
task: leak
training_split: test
test_split: train
"""


def test_scored_items_are_looked_for_in_the_rows_of_all_tasks_so_far(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    file = write_study(tmp_path, tiny_model_folder, CHAIN)
    (tmp_path / "tasks" / "leak.yaml").write_text(LEAK)

    def overlaps(*sequence: str) -> dict[str, int]:
        study = planned(file, f"train.sequence=[{', '.join(sequence)}]").record
        return {
            task: number for task, number in study.overlaps[[*study.tasks][-1]].items() if number
        }

    # rows of the later task are items of the earlier one, and the other way round
    assert overlaps("colours", "leak") == {"colours": 8, "leak": 8}
    # and so it is with a task between
    assert overlaps("colours", "sums", "leak") == {"colours": 8, "leak": 8}
    assert overlaps("colours", "sums") == {}


@pytest.mark.parametrize(
    "override",
    [
        "train.sequence=[colours]",
        "train.sequence=[colours, colours]",
        "train.sequence={tasks: [colours, sums], adapter: other}",
        "train.task=colours",
        "train.max_examples=[4, 8]",
        "train={sequence: {tasks: [colours, sums], adapter: new}, dropout: 0.1}",
        "train.learning_rate.tune=true",
        "methods.variants={names: [pissa]}",
        "evaluation.reference={share: 0.5}",
        "train.split={hues: train}",
    ],
)
def test_what_a_sequence_does_not_go_with(
    override: str, tmp_path: Path, tiny_model_folder: Path, sentence: Sentences
) -> None:
    file = write_study(tmp_path, tiny_model_folder, CHAIN)
    with pytest.raises(ConfigError) as refused:
        load_config(file, [override])
    sentence(refused.value)


def test_a_later_task_that_is_unknown(
    tmp_path: Path, tiny_model_folder: Path, sentence: Sentences
) -> None:
    file = write_study(tmp_path, tiny_model_folder, CHAIN)
    with pytest.raises(PlanError) as refused:
        planned(file, "train.sequence=[colours, summs]")
    sentence(refused.value, names=("train.sequence[1]", "summs"))


@pytest.mark.parametrize("adapter", ["same", "new"])
def test_a_later_run_that_is_killed_half_way_goes_on_where_it_was(
    adapter: str, tmp_path: Path, tiny_model_folder: Path
) -> None:
    tasks = f"{{tasks: [colours, sums], adapter: {adapter}}}"
    settings = CHAIN.replace("[colours, sums]", tasks).replace(
        "precision: float32",
        "precision: float32\n  save_every: 0.001s\n  max_micro_batch_tokens: 1",
    )
    whole = finished_study(tmp_path, tiny_model_folder, settings)
    root, later = tmp_path / "killed", whole.study.runs[-1]
    process = started(run_until_path, whole.file, root, (later.name, "training.pt"), 6)
    process.join()
    assert process.exitcode != 0
    assert [path.parent.name for path in root.rglob("training.pt")] == [later.name]
    run(whole.file, root)
    ours, theirs = weights_of(StudyFolder(root), later), weights_of(whole.folder, later)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_export_says_what_comes_before(finished: Finished, tmp_path: Path) -> None:
    for source, how in ((SAME, "train on from its weights"), (NEW, "merge it into the base first")):
        later, first = run_of(finished, source, 8), run_of(finished, "colours", 8)
        (exported,) = export_study(finished.folder, "trl", tmp_path / source, later.name)
        said = " ".join(exported.remarks)
        assert f"goes on from {first.name}: {how}" in said
        assert "the task sums;" in said
