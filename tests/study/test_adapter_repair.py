"""A run's adapter repaired from the command line: scores, resuming, damage, what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from rankwise.cli import application
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.findings.repairs import RepairTasks, choose_repair
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.repair_scores import RepairScores
from rankwise.records.repairs import AS_IT_IS, AdapterRepair, Repair
from rankwise.records.study_file import load_config
from rankwise.study.damage import find_damage
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.weights import session
from tests.support import tiny_tasks
from tests.support.command_line import rankwise, words
from tests.support.observers import Recorder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Finished:
    """A study of two seeds that gains on colours, run once."""

    def __init__(self, root: Path, model: Path) -> None:
        tiny_tasks.write_tiny_tasks(root / "tasks")
        self.file = root / "small.yaml"
        self.file.write_text(
            f"base_model: {model}\ntasks_path: tasks\nallow_task_code: true\n"
            "train: {task: colours, epochs: 20, batch_size: 2, gradient_accumulation_steps: 1,\n"
            "  precision: float32, learning_rate: {lora: 1e-2}}\n"
            "methods: {lora: {ranks: [4]}, full: null}\n"
            "seeds: [0, 1]\n"
            "evaluation: {retention: [hues], num_train_items: 0}\n"
            "analysis: {spectra: false, heads: false}\nrecommendation: {confidence: 0.75}\n"
        )
        self.plan = plan_study(load_config(self.file, []))
        self.folder = StudyFolder(root / "study")
        self.results = run_study(self.plan, self.folder, Recorder()).results


@pytest.fixture(scope="module")
def finished(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("repair"), tiny_model_folder)


@pytest.fixture
def folder(finished: Finished, tmp_path: Path) -> StudyFolder:
    """A copy, so that it can be spoilt."""
    shutil.copytree(finished.folder.root, tmp_path / "study")
    return StudyFolder(tmp_path / "study")


def name_of(folder: StudyFolder) -> str:
    return folder.read_study().runs[0].name


def repaired(folder: StudyFolder, *more: object, limit: float = 100.0) -> AdapterRepair:
    done = rankwise(
        "repair", folder.root, "--run", name_of(folder), "--max-loss", limit, "--json",
        *more,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return AdapterRepair.model_validate_json(done.stdout)


def score_files(folder: StudyFolder) -> dict[str, bytes]:
    place = folder.adapter_repair_file(name_of(folder)).parent / "scores"
    return {path.name: path.read_bytes() for path in place.iterdir()}


FEW = ("--by", "scale,energy")


def test_the_adapter_as_it_is_scores_what_the_study_says(
    finished: Finished, folder: StudyFolder
) -> None:
    record = repaired(folder)
    name = name_of(folder)
    of_study = {model.name: model for model in finished.results.runs}[name]
    for task in ("colours", "hues"):
        scores = read_record(folder.repair_scores_file(name, task), RepairScores)
        for items, known in (
            (scores.base, finished.results.base.items[task]),
            (scores.repaired[0].items, of_study.items[task]),
        ):
            assert items.metric == known.metric == "p_right"
            assert items.doc_ids == known.doc_ids
            assert items.values == pytest.approx(known.values, abs=1e-5)
        whole, half = scores.repaired[0], scores.repaired[5]
        assert (whole.repair, half.repair) == (AS_IT_IS, Repair(family="scale", value=0.5))
        assert half.items.values != pytest.approx(whole.items.values, abs=1e-3)
    kinds = {each.repair.family for each in scores.repaired}
    assert kinds >= {"scale", "lines", "energy", "heads", "average"}
    assert record.averaged_with == (folder.read_study().runs[1].name,)
    assert record.base_model == finished.plan.base.name


def test_the_chosen_repair_is_written_and_scores_as_it_says(
    finished: Finished, folder: StudyFolder
) -> None:
    record = repaired(folder, *FEW)
    choice = record.choice
    assert choice.repair is not None, choice.statement
    target = folder.root / str(record.folder)
    assert target == folder.repaired_adapter_folder(name_of(folder))
    assert {*record.files} == {
        f"repair/adapter/{name}"
        for name in ("README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    base: Any = load_frozen(finished.plan.base.folder, "float32", torch.device("cpu"))
    scorer = ResidentScorer(base, finished.plan.tokenizer, max_batch_tokens=512)
    scorer.put_on("again", AdapterFolder(target))
    from rankwise.tasks.evaluation import ScoredModel, evaluate
    from rankwise.weights.adapter_repair import AskedTask, _items

    for judged in choice.tasks:
        task = AskedTask(finished.plan.tasks[judged.task])
        (scoring,) = evaluate(
            scorer, [ScoredModel("again", "f", "again")], task.prepared, metric=None
        )
        values = _items(scoring, task).values
        assert judged.repaired_score == pytest.approx(100 * sum(values) / len(values), abs=1e-3)
    assert peft.PeftModel.from_pretrained(base, str(target)) is not None
    card = (target / "README.md").read_text()
    assert choice.statement in card
    assert name_of(folder) in card


def test_the_page_has_the_repair_of_a_run_as_it_is_now(folder: StudyFolder) -> None:
    record = repaired(folder, *FEW)
    done = rankwise("report", folder.root)
    assert done.exit_code == 0, done.output
    page = words(folder.report_file.read_text())
    assert f"{record.model}: {record.choice.statement}" in page
    rows = (folder.root / "report" / "repairs.csv").read_text().splitlines()
    assert len(rows) == 1 + len(record.choice.curve)

    # trained anew the run is another, and asked anew the task is
    others: list[dict[str, Any]] = [
        {"model_fingerprint": "0" * 64},
        {"task_fingerprints": {**record.task_fingerprints, "hues": "0" * 64}},
    ]
    for change in others:
        folder.write(folder.adapter_repair_file(record.model), record.model_copy(update=change))
        assert rankwise("report", folder.root).exit_code == 0
        assert words(record.choice.statement) not in words(folder.report_file.read_text())


def test_nothing_is_scored_twice(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = repaired(folder, *FEW)
    scores = score_files(folder)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("scored again")

    monkeypatch.setattr(session, "evaluate", refuse)
    assert repaired(folder, *FEW) == first
    other = repaired(folder, *FEW, limit=50.0)
    assert other.fingerprint != first.fingerprint
    assert score_files(folder) == scores
    tight = repaired(folder, *FEW, limit=0.0)
    if tight.choice.repair is None:
        assert tight.folder is None
        assert not folder.repaired_adapter_folder(name_of(folder)).exists()
    assert tight.choice.curve[0].gain == first.choice.curve[0].gain
    monkeypatch.undo()
    assert len(repaired(folder, "--by", "scale").choice.curve) == 10


def test_the_choice_is_that_of_the_recorded_scores(folder: StudyFolder) -> None:
    record = repaired(folder, *FEW, limit=3.0)
    name = name_of(folder)
    scores = [
        read_record(folder.repair_scores_file(name, task), RepairScores)
        for task in ("colours", "hues")
    ]
    tasks = RepairTasks(("colours",), ("hues",))
    again = choose_repair(scores, tasks, max_loss_points=3.0, confidence=0.75)
    assert again == record.choice


@pytest.mark.parametrize("what", ["weights", "record", "scores"])
def test_what_is_damaged_is_set_aside_and_made_again(folder: StudyFolder, what: str) -> None:
    first = repaired(folder, *FEW)
    name = name_of(folder)
    path = {
        "weights": folder.repaired_adapter_folder(name) / "adapter_model.safetensors",
        "record": folder.adapter_repair_file(name),
        "scores": folder.repair_scores_file(name, "hues"),
    }[what]
    content = path.read_bytes()
    path.write_bytes(content[:-3] + b"???")
    (damage,) = find_damage(StudyFolder(folder.root), [name])
    assert damage.path == path
    again = repaired(folder, *FEW)
    assert again.choice.repair == first.choice.repair
    assert find_damage(StudyFolder(folder.root), [name]) == []
    moved = folder.root / "quarantine" / "001" / path.relative_to(folder.root)
    assert moved.read_bytes() == content[:-3] + b"???"


def test_a_study_that_goes_on_keeps_the_repair(finished: Finished, folder: StudyFolder) -> None:
    repaired(folder, *FEW)
    again = Recorder()
    run_study(finished.plan, folder, again)
    assert again.stages == []
    assert folder.adapter_repair_file(name_of(folder)).exists()


def test_the_answer_in_words(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application.stdout, "width", 160)  # no label is on two lines
    asked = ("repair", folder.root, "--run", name_of(folder), *FEW, "--max-loss")
    done = rankwise(*asked, 100)
    assert done.exit_code == 0, done.output
    said = words(done.stdout)
    for word in (
        "scaled by 0.5", "cut to 0.9 of the energy", "cut to 0.9 of the energy over all layers",
        "keeps enough",
    ):  # fmt: skip
        assert word in said
    record = read_record(folder.adapter_repair_file(name_of(folder)), AdapterRepair)
    assert words(record.choice.statement) in said
    assert f"repaired adapter: {record.folder}" in said


def test_what_cannot_be_repaired_is_refused(folder: StudyFolder, tmp_path: Path) -> None:
    limit = ("--max-loss", 1)
    run = ("--run", name_of(folder))
    cases: list[tuple[tuple[object, ...], str]] = [
        ((folder.root, "--run", "nope", *limit), "repair has 1 problem"),
        ((folder.root, *run, *limit, "--tasks", "colours"), "--tasks does not go with --run"),
        ((folder.root, folder.root, *run, *limit), "of one study's folder"),
        ((folder.root, *run, *limit, "--by", "scael"), "did you mean 'scale'"),
        ((folder.root, *run, *limit, "--by", ","), "names no kind"),
        ((folder.root, *run, "--max-loss", "inf"), "not a finite number"),
        ((folder.root, *run, "--max-loss", "nan"), "--max-loss"),
        ((folder.root, *run, "--max-loss", -1), "greater than or"),
        ((folder.root, *run), "--max-loss"),
        ((folder.root, *limit), "give a base and an adapter"),
    ]
    for arguments, message in cases:
        done = rankwise("repair", *arguments)
        assert done.exit_code == 2, (message, done.output)
        assert message in words(done.stderr), done.stderr
    study = json.loads(folder.study_file.read_text())
    assert study["tasks"]["colours"]["retention"] == ["hues"]
