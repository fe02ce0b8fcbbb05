"""Studies of models that do not fit: planned, scored layer by layer, and written down as such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models.devices import Machine
from rankwise.errors import ModelError
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.study import PlannedRun
from rankwise.records.study_file import load_config
from rankwise.study.context import StudyContext
from rankwise.study.planning import fitting
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import study_model
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from tests.support.observers import Silent
from tests.support.reads import Reads
from tests.support.studies import run

LAYER = 4 * (2 * 48 * 48 + 2 * 24 * 48 + 3 * 48 * 96 + 2 * 48)
"""Bytes of a layer of the tiny model in float32."""
OUTSIDE = 4 * (400 * 48 + 48)
"""Bytes of its embeddings, which are its head too, and of its last norm."""

ONE_RANK = (
    "methods.lora.ranks=[2]",
    "methods.full={}",
    "train.epochs=1",
    "evaluation.out_of_domain=[]",
)
NOTHING_TRAINED = ("methods.lora=null", "methods.full=null")


def asked(
    study_file: Path, memory_bytes: int, *overrides: str, num_cards: int = 1
) -> tuple[int | None, Issues]:
    """What is planned for such cards with so much memory each, where these runs are trained."""
    config, issues = load_config(study_file, overrides), Issues()
    machine = Machine(torch.device("cuda"), memory_bytes)
    model = study_model(config, lambda _: None, machine)
    runs: tuple[PlannedRun, ...] = ()
    if config.methods.lora is not None:
        runs = plan_study(load_config(study_file)).record.runs
    if config.methods.full is None:
        runs = tuple(run for run in runs if run.method == "lora")
    no_passes: Any = None
    cards = machine._replace(num_cards=num_cards).cards
    room = fitting.Room(config, model, None, no_passes, memory_bytes, cards)
    return room.most_weights_bytes(runs, issues), issues


@pytest.fixture
def half_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings and a layer are most of the tiny model."""
    monkeypatch.setattr("rankwise.engine.models.placed.HELD_SHARE", 0.8)


@pytest.mark.usefixtures("half_is_enough")
def test_a_plan_says_what_is_read_layer_by_layer(study_file: Path) -> None:
    whole, full = OUTSIDE + 2 * LAYER, "methods.lora=null"
    assert asked(study_file, whole * 100 // 84, full) == (None, Issues([], []))
    most, issues = asked(study_file, whole * 100 // 86, full)
    assert most == int(0.8 * (whole * 100 // 86))
    (warning,) = issues.warnings
    assert "models take 0.2 MB and there are 0.3 MB" in warning
    assert "2 of 2 layers are read from disk in every forward pass, 0.2 MB" in warning


@pytest.mark.usefixtures("half_is_enough")
def test_the_base_is_whole_while_adapters_are_trained_on_it(study_file: Path) -> None:
    memory = (OUTSIDE + 2 * LAYER) * 100 // 86
    assert asked(study_file, memory) == (None, Issues([], []))
    # a quantised base is another model, which fits; full fine-tuning is not quantised
    assert asked(study_file, memory, "train.base_precision=4bit", "methods.full=null") == (
        None,
        Issues([], []),
    )
    most, issues = asked(study_file, memory, "train.base_precision=4bit")
    assert most is not None
    assert issues.warnings
    # it is scored on the cards that its layers are laid over
    full = "methods.lora=null"
    assert asked(study_file, memory, full)[0] is not None
    assert asked(study_file, memory, full, num_cards=2) == (None, Issues([], []))


def test_not_even_a_layer_fits(study_file: Path) -> None:
    most, issues = asked(study_file, OUTSIDE, "methods.lora=null")
    assert most is None
    (warning,) = issues.warnings
    assert "read layer by layer they take" in warning


def evaluations(folder: Path) -> dict[tuple[str, str], Any]:
    paths = [path for path in folder.glob("**/eval/*.json") if "quarantine" not in path.parts]
    found = [json.loads(path.read_text()) for path in paths]
    return {(each["model"], each["task"]): each for each in found}


def test_a_study_has_the_scores_of_models_in_memory(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(study_file, tmp_path / "first", *ONE_RANK)
    lora, full = first.results.study.runs
    weights = StudyFolder(tmp_path / "first").weights_folder
    imported = [
        {"adapter": str(weights(lora)), "name": "lora"},
        {"checkpoint": str(weights(full)), "name": "full"},
    ]
    most = OUTSIDE + LAYER
    monkeypatch.setattr(fitting, "room_for_weights", lambda *_: most)
    with Reads() as reads:
        second, _ = run(
            study_file,
            tmp_path / "second",
            *ONE_RANK,
            *NOTHING_TRAINED,
            f"methods.imported={json.dumps(imported)}",
        )
    assert second.failures == ()
    # the largest matrix of a pass; two of attention, of base and full fine-tuning, are as large
    assert reads.most_bytes == 4 * 48 * 96 == 2 * 4 * 48 * 48
    assert second.results.study.most_weights_bytes == most
    for mine, theirs in zip(second.results.runs, first.results.runs, strict=True):
        assert mine.items == theirs.items
    found = evaluations(tmp_path / "second")
    assert {model for model, _ in found} == {BASE, *(x.name for x in second.results.study.runs)}
    assert {each["provenance"]["most_weights_bytes"] for each in found.values()} == {most}
    before = evaluations(tmp_path / "first")
    assert {each["provenance"]["most_weights_bytes"] for each in before.values()} == {None}


def test_an_adapter_that_was_damaged_is_trained_on_a_whole_base(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*ONE_RANK, "methods.full=null")
    first, _ = run(study_file, tmp_path, *settings)
    (lora,) = first.results.study.runs
    monkeypatch.setattr(fitting, "room_for_weights", lambda *_: OUTSIDE + LAYER)
    (weights,) = StudyFolder(tmp_path).weights_folder(lora).glob("*.safetensors")
    weights.write_bytes(b"damaged")
    config, folder = load_config(study_file, settings), StudyFolder(tmp_path)
    plan = plan_study(config, folder=folder)
    assert plan.record.most_weights_bytes is not None  # all is trained, as far as it is known
    monkeypatch.setattr("rankwise.study.context.load_streamed", None)
    second = run_study(plan, folder, Silent())
    assert second.failures == ()
    assert second.results.study.most_weights_bytes is None
    (mine,), (theirs,) = second.results.runs, first.results.runs
    assert mine.items == theirs.items


def test_heads_of_what_is_read_layer_by_layer_are_refused(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "room_for_weights", lambda *_: OUTSIDE + LAYER)
    plan = plan_study(load_config(study_file, ["methods.lora=null"]))
    context = StudyContext.of(plan, StudyFolder(tmp_path / "study"), Silent())
    with pytest.raises(ModelError, match="read layer by layer: heads cannot"):
        context.models.adapted(plan.record.runs[0])
