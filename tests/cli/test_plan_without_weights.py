"""A study of a model of which config and tokenizer are here, and no weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences


@pytest.fixture
def without_weights(study_file: Path, tiny_model_folder: Path, tmp_path: Path) -> Path:
    """The tiny study on a copy of the tiny model that has its small files alone."""
    folder = tmp_path / "small files"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "model.safetensors").unlink()
    text = study_file.read_text().replace(str(tiny_model_folder), str(folder))
    study_file.write_text(text)
    return study_file


def test_it_is_planned_as_with_them(
    without_weights: Path, tiny_model_folder: Path, sentence: Sentences
) -> None:
    small = without_weights.parent / "small files"
    planned = rankwise("plan", without_weights, "--json")
    assert planned.exit_code == 0, planned.output
    text = without_weights.read_text()
    without_weights.write_text(text.replace(str(small), str(tiny_model_folder)))
    whole = rankwise("plan", without_weights, "--json")
    one, other = (json.loads(done.stdout) for done in (planned, whole))
    same = ("rank", "num_steps", "num_tokens", "num_trainable_parameters", "trainable_share")
    for with_them, without in zip(other["runs"], one["runs"], strict=True):
        assert {name: without[name] for name in same} == {name: with_them[name] for name in same}
    said = [line for line in planned.stderr.splitlines() if "no weights" in line]
    sentence(said[0].replace(str(small), "FOLDER/small"), names=("planned",))


def test_it_is_not_run(without_weights: Path, sentence: Sentences) -> None:
    place = without_weights.parent / "out"
    done = rankwise("run", without_weights, "--study-dir", place)
    assert done.exit_code != 0
    sentence(words(done.stderr).partition("ModelError")[2], names=("*.safetensors",))
    assert not (place / "study.json").exists()
