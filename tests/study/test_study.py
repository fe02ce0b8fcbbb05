"""The study end to end: resume after kill -9, extension, guards, and what planning refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.engine.training import memory
from rankwise.engine.training.rehearsal import Peaks
from rankwise.errors import PlanError, StudyLockedError
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.reading import read_results
from rankwise.study.stages.graph import stages
from rankwise.tasks import resolution
from tests.support.sentences import Sentences
from tests.support.studies import run
from tests.support.study_contents import comparable

# Kills its own process at a chosen moment of a chosen function, then does nothing else.
DRIVER = """
import os, signal, sys
from pathlib import Path
from rankwise.engine.scoring import divergence
from rankwise.records import folder as store
from rankwise.study import run as study
from rankwise.engine.models import peft_adapters
from rankwise.tasks import evaluation
from rankwise.weights import matrix
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from tests.support.observers import Silent

moment, count = sys.argv[1], int(sys.argv[2])
study_file, folder = Path(sys.argv[3]), Path(sys.argv[4])

def killing(function):
    calls = 0
    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

if moment == "training":
    store.StudyFolder.append_metrics = killing(store.StudyFolder.append_metrics)
elif moment == "saving":
    peft_adapters.save_adapter = killing(peft_adapters.save_adapter)
elif moment == "scoring":
    evaluation.evaluate = killing(evaluation.evaluate)
elif moment == "comparing":
    divergence.TreeReader.read = killing(divergence.TreeReader.read)
elif moment == "analysing":
    matrix.matrix_spectrum = killing(matrix.matrix_spectrum)
elif moment == "writing":
    os.fsync = killing(os.fsync)
elif moment == "renaming":
    Path.replace = killing(Path.replace)

study.run_study(plan_study(load_config(study_file)), store.StudyFolder(folder), Silent())
"""


def files(folder: Path, pattern: str) -> dict[Path, int]:
    """When each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled by the first test that needs it: the records of a run that nothing stopped."""
    return {}


def test_a_study_from_nothing_to_a_recommendation(study_file: Path, tmp_path: Path) -> None:
    outcome, recorder = run(study_file, tmp_path / "study")
    trained = [model for model, stage in recorder.stages if stage == "training"]
    models = [run.name for run in outcome.results.study.runs]
    assert [name[:-9] for name in models] == [
        "colours-lora-r002-a004-s0",
        "colours-lora-r004-a008-s0",
        "colours-full-s0",
    ]
    assert trained == ["pass 1: 2 adapters", models[2]]
    # two passes; base, adapters, full on three tasks, one thrice; all against the base, all
    # weights, all heads
    assert len(recorder.stages) == 2 + 3 * 5 + 3
    assert recorder.done == pytest.approx(recorder.work[0])
    order = ["base", trained[0], models[2], "gauges", "heads", "weights"]
    assert recorder.models == order
    results = outcome.results
    assert results.study.tasks == {
        "colours": {
            "in_domain": ("colours",),
            "out_of_domain": ("sums",),
            "retention": (),
            "held_out_text": ("small_prose",),
        }
    }
    assert results.study.trained_items == {"colours": {"colours": "colours@train"}}
    for model in results.runs:
        assert model.run is not None
        metrics = (tmp_path / "study" / "runs" / model.name / "metrics.jsonl").read_text()
        losses = [json.loads(line)["loss_nats"] for line in metrics.splitlines()]
        assert len(losses) == model.run.num_steps == 6
        assert losses[0] == model.run.first_loss_nats
        assert losses[-1] == model.run.final_loss_nats
        assert losses[-1] < losses[0]
    shares = [run.num_trainable_parameters for run in results.study.runs]
    hidden, kv, layers = 48, 24, 2
    per_rank = layers * ((hidden + hidden) * 2 + (hidden + kv) * 2)
    assert shares[:2] == [2 * per_rank, 4 * per_rank]
    reread = StudyFolder(tmp_path / "study")
    assert read_results(reread) == results
    assert read_record(reread.recommendation_file, StudyRecommendation) == outcome.recommendation


def test_trainable_parameters_are_peft_s_own_count(study_file: Path, tmp_path: Path) -> None:
    import peft
    import torch

    from rankwise.engine.models.loading import load_frozen

    plan = plan_study(load_config(study_file))
    base = load_frozen(plan.base.folder, "float32", torch.device("cpu"))
    planned = plan.record.runs[1]
    settings = peft.LoraConfig(r=4, target_modules=list(planned.target_modules))
    adapted: Any = peft.get_peft_model(base, settings)  # pyright: ignore[reportArgumentType]
    trainable, _ = adapted.get_nb_trainable_parameters()
    assert planned.num_trainable_parameters == trainable


def test_second_run_repeats_nothing_and_changes_nothing(study_file: Path, tmp_path: Path) -> None:
    run(study_file, tmp_path / "study")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "study" / "runs").rglob("*.json*")}
    _, recorder = run(study_file, tmp_path / "study")
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "study" / "runs").rglob("*.json*")}
    assert recorder.stages == []
    assert recorder.work[0] == recorder.work[1]
    assert before == after


def test_adding_a_rank_a_seed_and_a_task_repeats_nothing(study_file: Path, tmp_path: Path) -> None:
    run(study_file, tmp_path / "study", "methods.lora.ranks=[2]", "evaluation.out_of_domain=[]")
    before = files(tmp_path / "study", "*.json")
    _, recorder = run(study_file, tmp_path / "study", "seeds=[0,1]")
    scored = {model for model, stage in recorder.stages if stage == "colours"}
    assert {name.partition("-s1")[0] for name in scored} == {"colours-full", "pass 1: 4 adapters"}
    new = [path for path in files(tmp_path / "study", "colours.json") if path not in before]
    assert sorted(path.parents[1].name[:-9] for path in new) == [
        "colours-full-s1",
        "colours-lora-r002-a004-s1",
        "colours-lora-r004-a008-s0",
        "colours-lora-r004-a008-s1",
    ]
    kept = [path for path in before if path.name == "colours.json"]
    assert len(kept) == 3
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)
    trained = [model for model, stage in recorder.stages if stage == "training"]
    assert trained[0] == "pass 1: 4 adapters"
    assert [name[:15] for name in trained[1:]] == ["colours-full-s1"]
    old = [stage for model, stage in recorder.stages if model == "base"]
    assert old == ["sums"]


def test_settings_that_matter_make_new_runs(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "rehearsed", lambda *_: Peaks(1, 1, 1))  # ten plans, no training

    def names(*overrides: str) -> set[str]:
        return {r.fingerprint for r in plan_study(load_config(study_file, overrides)).record.runs}

    reference = names()
    assert names("evaluation.limit=5", "name=other", "recommendation.delta_points=3") == reference
    for override in (
        "train.epochs=1",
        "train.max_examples=20",
        "train.dropout=0.1",
        "train.learning_rate={lora: 1e-3, full: 1e-4}",
        "train.precision=bfloat16",
        "methods.lora.alpha={policy: rslora, alpha: 8}",
        "seeds=[7]",
    ):
        changed = names(override)
        only_lora = override.startswith(("methods", "train.dropout"))
        assert len(changed & reference) == only_lora, override  # full fine-tuning stays as it is
        assert changed != reference, override


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        ("training", 3),
        ("training", 9),
        ("saving", 1),
        ("scoring", 2),
        ("scoring", 6),
        ("comparing", 2),
        ("comparing", 3),
        ("analysing", 9),
        ("writing", 1),
        ("writing", 6),
        ("renaming", 8),
        ("renaming", 13),
    ],
)
def test_killed_with_9_and_run_again_ends_with_the_same_records(
    study_file: Path,
    tmp_path: Path,
    moment: str,
    count: int,
    undisturbed: dict[str, Any],
    tiny_model_folder: Path,
) -> None:
    # the folder of the tasks differs from test to test; the records must not
    overrides = [
        "evaluation.out_of_domain=[]",
        "methods.lora.ranks=[2,4]",
        "train.save_every=0.001s",
    ]
    config = yaml.safe_load(study_file.read_text())
    config["evaluation"]["out_of_domain"] = []
    config["methods"]["lora"]["ranks"] = [2, 4]
    config["train"]["save_every"] = "0.001s"
    study_file.write_text(yaml.safe_dump(config))
    if not undisturbed:
        run(study_file, tmp_path / "whole", *overrides)
        undisturbed |= comparable(tmp_path / "whole")
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    command = [sys.executable, str(driver), moment, str(count), str(study_file)]
    killed = subprocess.run(
        [*command, str(tmp_path / "cut")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    partial = comparable(tmp_path / "cut")
    assert partial.keys() != undisturbed.keys()
    _, recorder = run(study_file, tmp_path / "cut", *overrides)
    assert recorder.stages
    ours, theirs = comparable(tmp_path / "cut"), dict(undisturbed)
    for content in (ours, theirs):
        content["study.json"] = {**content["study.json"]}
        content["study.json"]["config"] = {**content["study.json"]["config"], "tasks_path": []}
    assert ours == theirs
    assert not list((tmp_path / "cut").rglob("*tmp"))
    assert not list((tmp_path / "cut").rglob("training.pt"))


def test_two_processes_on_one_folder(study_file: Path, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from rankwise.records.folder import StudyFolder\n"
        "with StudyFolder(Path(sys.argv[1])).lock():\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.root)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StudyLockedError, match=f"process {holder.pid} on "):
            run(study_file, folder.root)
        os.kill(holder.pid, signal.SIGKILL)
    outcome, _ = run(study_file, folder.root, "methods.lora.ranks=[2]", "methods.full=null")
    assert len(outcome.results.runs) == 1


def test_a_diverged_run_is_recorded_and_the_others_go_on(study_file: Path, tmp_path: Path) -> None:
    outcome, _ = run(study_file, tmp_path / "study", "train.learning_rate={lora: 1e-2, full: 1e30}")
    statuses = [model.run.status for model in outcome.results.runs if model.run]
    assert statuses == ["trained", "trained", "diverged"]
    record = outcome.results.runs[2].run
    assert record is not None
    assert "step" in (record.message or "")
    assert not (tmp_path / "study" / "runs" / record.planned.name / "checkpoint").exists()
    _, recorder = run(
        study_file, tmp_path / "study", "train.learning_rate={lora: 1e-2, full: 1e30}"
    )
    assert recorder.stages == []


def test_planning_collects_every_problem(
    study_file: Path, sentence: Sentences, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolution, "lm_evals_own", dict)  # whose index takes seconds to build
    overrides = [
        "train.task=colors",
        "evaluation.retention=[small_prose, summs]",
        "evaluation.held_out_text=[colours]",
        "methods.lora.target_modules=[q_proj, kproj]",
        "methods.lora.ranks=[4, 30]",
    ]
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, overrides))
    keys = ("train.task", "evaluation.retention[1]", "methods.lora.target_modules[1]")
    keys = (*keys, "evaluation.held_out_text")
    assert {problem.partition(": ")[0] for problem in caught.value.problems} == {*keys}
    sentence(caught.value, names=("'colours'", "'sums'", "'k_proj'"))


@pytest.mark.parametrize(("seeds", "warned"), [([0], False), ([0, 1], True), ([0, 1, 2], False)])
def test_two_seeds_are_a_warning(study_file: Path, seeds: list[int], warned: bool) -> None:
    warnings = plan_study(load_config(study_file, [f"seeds={seeds}"])).record.warnings
    assert any(warning.startswith("seeds: ") for warning in warnings) is warned


def test_rank_above_the_smaller_side_is_a_warning(study_file: Path, sentence: Sentences) -> None:
    config = load_config(
        study_file, ["methods.lora.ranks=[4, 30]", "methods.lora.target_modules=[q_proj, k_proj]"]
    )
    plan = plan_study(config)
    (warning,) = plan.record.warnings
    sentence(warning, names=("methods.lora.ranks[1]", "30", "k_proj", "24"))


def test_planning_loads_no_weights(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rankwise.engine.models import loading

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", refuse)
    plan = plan_study(load_config(study_file))
    assert len(plan.record.runs) == 3
    folder = StudyFolder(study_file.parent / "nowhere")
    assert not any(stage.is_finished(folder) for stage in stages(plan.record))


def test_own_data_is_trained_on_and_scored_by_loss(study_file: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}:", "completion": f" {n} and done"} for n in range(40)]
    data = tmp_path / "own rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    config = yaml.safe_load(study_file.read_text())
    config["train"] |= {"data": data.name, "task": None, "judged_by": ["loss", "exact"]}
    config["evaluation"] = {"retention": ["colours"]}
    study_file.write_text(yaml.safe_dump(config))
    outcome, _ = run(study_file, tmp_path / "study", "train.held_out_fraction=0.25")
    assert outcome.results.study.tasks["own rows"]["in_domain"] == (
        "data_own rows",
        "data_own rows_texts",
    )
    base = outcome.results.base.evaluations["data_own rows"]
    assert (base.decision_metric, base.num_examples) == ("loss_nats", 10)
    assert outcome.recommendation.by_train_task[0].unit == "nats"
    gains = [v.gain.estimate for v in outcome.recommendation.by_train_task[0].verdicts]
    assert min(gains) > 0.5


def test_shared_real_items_run_to_a_recommendation(
    study_file: Path, shared_tasks: Path, tmp_path: Path
) -> None:
    outcome, _ = run(
        study_file,
        tmp_path / "study",
        f"tasks_path=[{shared_tasks}]",
        "train.task=local_overruling",
        "train.max_examples=16",
        "train.max_length=128",
        "evaluation.out_of_domain=[local_sciq]",
        "evaluation.retention=[local_arc_easy, local_mmlu_cloze]",
        "evaluation.held_out_text=[]",
        "evaluation.limit=6",
        "methods.lora.ranks=[2]",
        "methods.full=null",
    )
    assert outcome.recommendation.by_train_task[0].num_items_in_domain == 6
    assert outcome.recommendation.by_train_task[0].outcome in ("no_evidence", "cannot_tell")


def test_a_study_says_how_long_each_part_took(study_file: Path, tmp_path: Path) -> None:
    started = time.perf_counter()
    outcome, _ = run(study_file, tmp_path / "study", "methods.lora.ranks=[2]")
    spent = time.perf_counter() - started
    parts = [m.run.train_seconds for m in outcome.results.runs if m.run]
    parts += [e.score_seconds for m in outcome.results.runs for e in m.evaluations.values()]
    assert 0 < sum(parts) < spent
    assert all(m.run.peak_memory_bytes > 50e6 for m in outcome.results.runs if m.run)


def test_a_split_that_is_scored_cannot_be_trained_on_and_scored(
    study_file: Path, tasks_folder: Path, sentence: Sentences
) -> None:
    (tasks_folder / "both.yaml").write_text("group: both\ntask: [colours, sums]\n")
    plan = plan_study(load_config(study_file, ["train.split=train"]))
    assert plan.record.tasks["colours"]["in_domain"] == ("colours",)
    for split, named in (("test", "'colours'"), ("dev", "train, test")):
        with pytest.raises(PlanError) as caught:
            plan_study(load_config(study_file, [f"train.split={split}"]))
        sentence(caught.value, split, names=(f"'{split}'", named))
    held_out = ["train.split=test", "evaluation.out_of_domain=[]", "evaluation.retention=[both]"]
    plan = plan_study(
        load_config(
            study_file,
            [*held_out, "evaluation.in_domain=[small_prose]", "evaluation.held_out_text=[]"],
        )
    )
    assert plan.record.tasks["colours"]["in_domain"] == ("small_prose",)
    assert plan.record.tasks["colours"]["retention"] == ("sums",)
    assert plan.record.runs[0].num_examples == 26
    sentence(plan.record.warnings[0], "left out", names=("'colours'",))


def test_a_group_is_trained_on_in_equal_shares(study_file: Path, tasks_folder: Path) -> None:
    (tasks_folder / "both.yaml").write_text("group: both\ntask: [colours, sums]\n")
    overrides = ["train.task=both", "train.max_examples=10", "evaluation.out_of_domain=[]"]
    plan = plan_study(load_config(study_file, overrides))
    texts = [plan.tokenizer.decode(example.tokens) for example in plan.examples["both"]]
    assert len(texts) == 10
    assert sum("plus" in text for text in texts) == 5
    assert plan.record.tasks["both"]["in_domain"] == ("colours", "sums")
