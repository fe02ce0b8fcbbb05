"""What has no end, or blocks who reads it, is refused: pipes, devices, and links to them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.training.states import read_state
from rankwise.errors import ModelError, RankwiseError, StorageError
from rankwise.integrations.sources import read_source
from rankwise.records.config.own_rows import CheckConfig
from rankwise.records.config.study import BaseModelConfig
from rankwise.records.files import digest_of, read_items, read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.lm_eval_samples import read_sample_file
from rankwise.records.study import StudyRecord
from rankwise.records.study_file import load_config
from rankwise.tasks.answer_checks import checker
from rankwise.tasks.resolution import load_tasks
from rankwise.tasks.row_files import read_raw_rows
from tests.support.sentences import Sentences

Make = Callable[[Path], Any]

KINDS: dict[str, Make] = {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}
READERS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": read_raw_rows,
    "rows.csv": read_raw_rows,
    "rows.parquet": read_raw_rows,
    "study.yaml": load_config,
    "another_tool.yaml": read_source,
    "study.json": lambda path: read_record(path, StudyRecord),
    "items.jsonl": lambda path: read_items(path, None),
    "weights.safetensors": digest_of,
    "samples_x_2026.jsonl": read_sample_file,
    "training.pt": read_state,
    "schema.json": lambda path: checker(
        CheckConfig.model_validate({"json": {"schema": str(path)}}), {}, "rows.jsonl"
    ),
    "check.py": lambda path: checker(
        CheckConfig(code=f"{path}:score"), {}, "rows.jsonl", allow_code=True
    ),
}


pytestmark = pytest.mark.usefixtures("ends")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_nothing_reads_it(tmp_path: Path, name: str, kind: str) -> None:
    KINDS[kind](tmp_path / name)
    with pytest.raises((RankwiseError, OSError)) as caught:
        READERS[name](tmp_path / name)
    assert "not a regular file" in str(caught.value) or name == "training.pt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["own.yaml", "base.yaml", "rows.jsonl", "prompts.yaml"])
def test_no_task_file_leads_to_it(tmp_path: Path, no_index: None, name: str, kind: str) -> None:
    folder, other = tmp_path / "tasks", tmp_path / name
    folder.mkdir()
    rows = tmp_path / "rows.jsonl"
    if name != "rows.jsonl":
        rows.write_text('{"question": "Is it?"}\n' * 3)
    text = (
        "task: own\ndataset_path: json\noutput_type: generate_until\ntest_split: test\n"
        "doc_to_text: question\ndoc_to_target: question\n"
        f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
    )
    text += {"base.yaml": f"include: {other}\n", "prompts.yaml": f"use_prompt: '{other}:x'\n"}.get(
        name, ""
    )
    if name == "own.yaml":
        other = folder / name
    else:
        (folder / "own.yaml").write_text(text)
    KINDS[kind](other)
    assert str(other) in str(load_tasks(["own"], [folder])["own"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "notes.txt"])
def test_no_model_holds_it(
    tmp_path: Path, tiny_model_folder: Path, name: str, kind: str, sentence: Sentences
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    (folder / name).unlink(missing_ok=True)
    KINDS[kind](folder / name)
    with pytest.raises(ModelError) as caught:
        find_base_model(BaseModelConfig(name=str(folder)))
    sentence(caught.value, names=(name,))


@pytest.mark.parametrize("kind", KINDS)
def test_no_losses_are_read_from_it_or_written_to_it(
    tmp_path: Path, kind: str, sentence: Sentences
) -> None:
    folder = StudyFolder(tmp_path)
    folder.metrics_file("run").parent.mkdir(parents=True)
    KINDS[kind](folder.metrics_file("run"))
    assert folder.read_losses("run") == []
    with pytest.raises(StorageError) as caught:
        folder.append_metrics("run", {"step": 2})
    sentence(caught.value)
