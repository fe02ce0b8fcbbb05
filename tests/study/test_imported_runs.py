"""Models trained elsewhere, scored and judged as runs of a study."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.errors import ConfigError, ModelError, PlanError
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.reading import read_results
from rankwise.study.run import run_study
from rankwise.weights.lowrank import read_updates
from tests.support.observers import Silent
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study

ONE_RANK = [
    "methods.lora.ranks=[2]",
    "methods.full={}",
    "evaluation.out_of_domain=[]",
    "train.epochs=1",
]


def run(study_file: Path, folder: Path, *overrides: str) -> Any:
    plan = plan_study(load_config(study_file, overrides))
    return run_study(plan, StudyFolder(folder), Silent())


def imports(*entries: dict[str, str]) -> str:
    return f"methods.imported={json.dumps(entries)}"


SETTINGS = """
train: {task: colours, learning_rate: {lora: 1e-2, full: 1e-3}, precision: float32}
methods: {lora: {target_modules: [q_proj, k_proj, v_proj, o_proj]}}
evaluation: {held_out_text: [small_prose]}
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> tuple[Any, Path]:
    """A finished study, and its folder."""
    root = tmp_path_factory.mktemp("first")
    outcome = run(write_study(root, tiny_model_folder, SETTINGS), root / "study", *ONE_RANK)
    return outcome.results, root / "study"


@pytest.fixture
def trained(first: tuple[Any, Path], tmp_path: Path) -> tuple[Any, Path, Path]:
    """The same, and copies of its adapter and its checkpoint, which tests change."""
    results, root = first
    folder = StudyFolder(shutil.copytree(root, tmp_path / "first"))
    lora, full = results.study.runs
    return results, folder.weights_folder(lora), folder.weights_folder(full)


def test_imported_models_score_as_where_they_were_trained(
    study_file: Path, tmp_path: Path, trained: tuple[Any, Path, Path]
) -> None:
    first, adapter, checkpoint = trained
    entries = imports({"adapter": str(adapter), "name": "theirs"}, {"checkpoint": str(checkpoint)})
    nothing = ["methods.lora=null", "methods.full=null"]
    outcome = run(study_file, tmp_path / "second", *ONE_RANK, *nothing, entries)
    results = outcome.results
    assert [model.run.planned.method for model in results.runs] == ["lora", "full"]
    for mine, theirs in zip(results.runs, first.runs, strict=True):
        assert mine.items == theirs.items
        assert mine.run.planned.num_trainable_parameters == (
            theirs.run.planned.num_trainable_parameters
        )
        assert (mine.run.status, mine.run.num_steps) == ("trained", 0)
    (part,) = outcome.recommendation.by_train_task
    (verdict,) = part.verdicts
    assert (verdict.rank, verdict.alpha, verdict.scaling) == (2, 4.0, 2.0)
    assert verdict.label == "imported theirs"
    assert verdict.learning_rate is None
    copied = tmp_path / "second" / "runs" / results.runs[0].name / "adapter"
    assert sorted(path.name for path in copied.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    shutil.rmtree(adapter)  # the study is complete without it
    assert read_results(StudyFolder(tmp_path / "second")) == results


def test_an_import_stands_beside_trained_ranks(
    study_file: Path, tmp_path: Path, trained: tuple[Any, Path, Path]
) -> None:
    entry = imports({"adapter": str(trained[1]), "name": "theirs"})
    outcome = run(study_file, tmp_path / "second", *ONE_RANK, "methods.full=null", entry)
    (part,) = outcome.recommendation.by_train_task
    assert [verdict.label for verdict in part.verdicts] == ["imported theirs", "rank 2"]
    first, second = part.verdicts
    assert first.gain == second.gain  # it is the same training
    two = run(study_file, tmp_path / "third", *ONE_RANK, "methods.full=null", entry, "seeds=[0,1]")
    (part,) = two.recommendation.by_train_task
    # it has one run beside two of the rank, and takes part with it
    assert [len(verdict.runs) for verdict in part.verdicts] == [1, 2]
    assert [verdict.label for verdict in part.verdicts] == ["imported theirs", "rank 2"]


def test_what_cannot_be_imported_is_said_at_planning(
    study_file: Path, tmp_path: Path, trained: tuple[Any, Path, Path], sentence: Sentences
) -> None:
    _, adapter, checkpoint = trained

    def changed(name: str, **settings: Any) -> Path:
        copy = tmp_path / name
        shutil.copytree(adapter, copy)
        config = json.loads((copy / "adapter_config.json").read_text()) | settings
        (copy / "adapter_config.json").write_text(json.dumps(config))
        return copy

    ia3 = changed("ia3", peft_type="IA3")
    unranked, pickled = changed("unranked", r=None), changed("pickled")
    (pickled / "adapter_model.safetensors").unlink()
    stranger, wide = changed("stranger"), changed("wide")
    weights = load_file(str(adapter / "adapter_model.safetensors"))
    save_file(
        {name.replace("q_proj", "w_proj"): tensor for name, tensor in weights.items()},
        str(stranger / "adapter_model.safetensors"),
    )
    save_file(
        {n: torch.zeros(2, 99) if n.endswith("lora_A.weight") else t for n, t in weights.items()},
        str(wide / "adapter_model.safetensors"),
    )
    deeper = tmp_path / "deeper"
    shutil.copytree(checkpoint, deeper)
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    folders = ("nowhere", ia3, unranked, pickled, stranger, wide)
    entries = [{"adapter": str(folder)} for folder in folders]
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, [imports(*entries, {"checkpoint": str(deeper)})]))
    assert len(caught.value.problems) == 7
    facts = ("adapter_config.json", "IA3", "r: None", "adapter_model.safetensors", "w_proj")
    facts = (*facts, "(2, 99)", "num_hidden_layers 9")
    for number, (problem, fact) in enumerate(zip(caught.value.problems, facts, strict=True)):
        assert problem.startswith(f"methods.imported[{number}]: ")
        assert fact in problem
    sentence(caught.value, OTHERS=r"(?<=cannot be read: ).*(?=\. )")


def test_another_content_is_another_run(study_file: Path, trained: tuple[Any, Path, Path]) -> None:
    adapter = trained[1]
    entry = imports({"adapter": str(adapter)})

    def imported() -> Any:
        return plan_study(load_config(study_file, [entry])).record.runs[-1]

    before = imported()
    weights = load_file(str(adapter / "adapter_model.safetensors"))
    save_file(
        {name: tensor * 2 for name, tensor in weights.items()},
        str(adapter / "adapter_model.safetensors"),
    )
    after = imported()
    assert before.imported.label == after.imported.label == "adapter"
    assert before.fingerprint != after.fingerprint


def test_with_several_trained_tasks_an_import_says_to_which_it_belongs(
    study_file: Path, trained: tuple[Any, Path, Path], sentence: Sentences
) -> None:
    several = ["train.task=[colours, sums]", "evaluation.out_of_domain=[]"]
    entry = {"adapter": str(trained[1])}
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, [*several, imports(entry)]))
    sentence(caught.value, names=("methods.imported[0]", "colours, sums"))
    plan = plan_study(load_config(study_file, [*several, imports(entry | {"train_task": "sums"})]))
    assert plan.record.runs[-1].train_task == "sums"


@pytest.mark.parametrize("size", [1e30, 3e38])
def test_an_adapter_so_large_that_its_answers_overflow_has_diverged(
    size: float,
    study_file: Path,
    tmp_path: Path,
    trained: tuple[Any, Path, Path],
    sentence: Sentences,
) -> None:
    adapter = trained[1]
    path = adapter / "adapter_model.safetensors"
    save_file({name: t.fill_(size) for name, t in load_file(path).items()}, path)
    entry = imports({"adapter": str(adapter), "name": "huge"})
    overrides = [*ONE_RANK, "methods.full=null", entry]
    outcome = run(study_file, tmp_path / "second", *overrides)
    huge = outcome.results.runs[-1].run
    assert (huge.planned.imported.label, huge.status) == ("huge", "diverged")
    sentence(huge.message, "scored")
    assert run(study_file, tmp_path / "second", *overrides).results.runs == outcome.results.runs
    with pytest.raises(ModelError) as caught:
        read_updates(AdapterFolder(adapter))
    sentence(caught.value, "read", names=(adapter,))


def test_a_checkpoint_so_large_that_its_answers_overflow_has_diverged(
    study_file: Path, tmp_path: Path, trained: tuple[Any, Path, Path]
) -> None:
    checkpoint = trained[2]
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"].fill_(3e38)
    save_file(weights, path, {"format": "pt"})
    overrides = [*ONE_RANK, "methods.full=null", imports({"checkpoint": str(checkpoint)})]
    outcome = run(study_file, tmp_path / "second", *overrides)
    assert outcome.results.runs[-1].run.status == "diverged"


def test_the_base_that_an_adapter_records_is_compared_with_the_study_s(
    study_file: Path, tmp_path: Path, trained: tuple[Any, Path, Path], sentence: Sentences
) -> None:
    path = trained[1] / "adapter_config.json"
    config = json.loads(path.read_text())

    def plan(recorded: str) -> Any:
        path.write_text(json.dumps(config | {"base_model_name_or_path": recorded}))
        return plan_study(load_config(study_file, [imports({"adapter": str(trained[1])})]))

    with pytest.raises(PlanError) as caught:
        plan("org/other")
    sentence(caught.value, "another", names=("methods.imported[0]", "org/other"))
    gone = str(tmp_path / "gone")
    (warning,) = [text for text in plan(gone).record.warnings if "imported" in text]
    sentence(warning, "gone", names=("methods.imported[0]", gone))


def test_a_name_that_cannot_be_shown_or_be_a_folder_is_a_problem(
    study_file: Path, tmp_path: Path, trained: tuple[Any, Path, Path], sentence: Sentences
) -> None:
    shown = tmp_path / ("long" * 40)
    shutil.copytree(trained[1], shown)
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, [imports({"adapter": str(shown)})]))
    sentence(caught.value, "long", names=("methods.imported[0]", "`name`"), LONG="(long){40}")
    with pytest.raises(ConfigError) as refused:
        load_config(study_file, [imports({"adapter": str(tmp_path / "a\x1b[2Jb")})])
    sentence(refused.value, "control", names=("methods.imported[0].adapter",))
