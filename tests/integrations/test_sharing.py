"""What a study gives away of the machine that made it: no folder, no home, no user.

The study lies in folders whose names tell something, and so do its model, tasks, rows and adapter.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rankwise.integrations.hub import write_shared
from rankwise.integrations.sharing import shared_outcome
from rankwise.integrations.study_files import study_files
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.places import LocalFolders
from rankwise.records.study import StudyRecord
from tests.planted import folders
from tests.planted.results import planted_study
from tests.support.command_line import rankwise
from tests.support.records import change
from tests.support.small_studies import write_study
from tests.support.studies import run

TELLING = ("alice smith", "secret-merger", "bob-payroll")
SETTINGS = """
train: {{task: colours, epochs: 1, learning_rate: {{lora: 1e-2}}, precision: float32}}
methods:
  lora: {{ranks: [2], target_modules: [q_proj, k_proj, v_proj, o_proj]}}
  imported: [{{adapter: {adapter}, name: theirs}}]
evaluation:
  out_of_domain: [sums]
  num_train_items: 0
  own: {{mine: {{data: {data}, judged_by: loss, role: out_of_domain}}}}
analysis: {{spectra: false, heads: false}}
"""
RUN = "colours-lora-r002-a004-s0"


@pytest.fixture(scope="module")
def told(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study that warns of its model, its adapter and its rows, and whose records name more."""
    root = tmp_path_factory.mktemp("given") / "alice smith" / "secret-merger"
    model = root / "models" / "tiny"
    shutil.copytree(tiny_model_folder, model)
    weights = model / "model.safetensors"
    save_file(load_file(weights) | {"more": torch.zeros(2)}, weights, metadata={"format": "pt"})
    adapter = root / "adapters" / "theirs"
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings).save_pretrained(
        adapter
    )
    data = root / "rows" / "mine.jsonl"
    data.parent.mkdir()
    rows = [{"prompt": f"{number} + 1 =", "completion": str(number + 1)} for number in range(8)]
    data.write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    run(write_study(root, model, SETTINGS.format(adapter=adapter, data=data)), root / "study")
    study = StudyFolder(root / "study")
    said = [
        f"see {root}/notes.txt and {root.parent}", f"file://{root}/a.txt", "~/secret-merger/x",
        "../../secret-merger/x.csv", "/home/bob-payroll is full", f"{Path.home()}/secret-merger/y",
        "/scratch/secret-merger/bob-payroll/z: gone", "PATH=/x/secret-merger/bin:/y/bob-payroll/b",
    ]  # fmt: skip
    warnings = [*study.read_study().warnings, *said]
    assert any(str(model) in warning for warning in warnings)
    change(study.study_file, warnings=warnings)
    for name, kind, _ in study_files(study, study.read_study()):
        record = None if kind is None else read_record(name, kind)
        if getattr(record, "message", "") is None:
            change(name, message=f"no memory for {model}, see {root}/log.txt")
    return study


def everything(folder: Path) -> Iterator[tuple[str, str]]:
    """Each file's name, and what is in it: also what is packed."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield path.name, path.relative_to(folder).as_posix()
        yield path.name, path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            yield path.name, str(parquet.read_table(path).to_pydict())
        if path.suffix == ".html":
            for packed in re.findall(r"H4sI[A-Za-z0-9+/=]{20,}", path.read_text("utf-8")):
                yield path.name, gzip.decompress(base64.b64decode(packed)).decode()


def telling(folder: Path) -> list[str]:
    """The files that name a folder, in any spelling."""
    return sorted(
        {
            f"{name}: {text[max(at - 60, 0) : at + 60]!r}"
            for name, text in everything(folder)
            for word in TELLING
            for spelling in (word, word.replace(" ", "%20"), word.replace(" ", "\\ "))
            for at in [text.find(spelling)]
            if at >= 0
        }
    )


def test_the_study_itself_names_its_folders(told: StudyFolder) -> None:
    """So the searches below would find them."""
    assert telling(told.root)
    assert rankwise("report", told.root).exit_code == 0
    assert [each for each in telling(told.root) if each.startswith("report.html")]


@pytest.mark.parametrize("with_items", [False, True])
def test_the_hub_gets_no_folder(told: StudyFolder, tmp_path: Path, with_items: bool) -> None:
    write_shared(told, tmp_path, RUN, with_items=with_items)
    assert telling(tmp_path) == []
    study = read_record(tmp_path / "study" / "study.json", StudyRecord)
    assert study.config.base_model.name == "./tiny"
    assert any(
        warning.startswith("base_model: ./tiny holds 1 tensor") for warning in study.warnings
    )


def test_a_report_without_texts_names_no_folder(told: StudyFolder, tmp_path: Path) -> None:
    assert rankwise("report", told.root, "--output", tmp_path, "--without-texts").exit_code == 0
    assert telling(tmp_path) == []
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "./tiny holds 1 tensor" in page
    assert "rankwise extend study" in page or "rankwise run study" in page


@pytest.mark.parametrize(
    "kind", ["csv", "parquet", "markdown", "latex", "figures", "lm-eval", "model-card"]
)
def test_no_format_for_others_names_a_folder(told: StudyFolder, tmp_path: Path, kind: str) -> None:
    options = ("--run", RUN) if kind == "model-card" else ()
    done = rankwise("export", told.root, "--format", kind, "--output", tmp_path, *options)
    assert done.exit_code == 0, done.stderr
    assert telling(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        (
            "acc/loss of org/name, see https://host/a/b",
            "acc/loss of org/name, see https://host/a/b",
        ),
        ("a rate of (r/32)^-1/2, 1 /2", "a rate of (r/32)^-1/2, 1 /2"),
        ("/data holds 2", "/data holds 2"),
        ("/srv/models/tiny-b is none", "./tiny-b is none"),
        ("/srv/models/tiny, /srv/models/tiny/a.safetensors", "./tiny, ./a.safetensors"),
        ("/srv/my models/big holds 1 tensor", "./big holds 1 tensor"),
        ("/srv/my models holds 1", ". holds 1"),
        ("'/home/carol/x y'", "'./x y'"),
        ("studies/carol/one: no such file", "./one: no such file"),
        ("/a task/of/mine", "/a task/of/mine"),
    ],
)
def test_paths_in_sentences(text: str, shared: str) -> None:
    known = ["/srv/models/tiny", "/srv/my models/big", "studies/carol/one"]
    assert LocalFolders(known, ["/a task/of/mine"]).out_of(text) == shared


def test_files_of_one_name_stay_apart() -> None:
    files = {"/srv/a/scores.csv": "1", "/srv/b/scores.csv": "2"}
    shared = LocalFolders(files).out_of(files)
    assert shared == {"./scores.csv": "1", "./scores.csv (2)": "2"}


def test_commands_name_the_study(tmp_path: Path) -> None:
    planted = planted_study(num_in_domain=200)
    folders.write_study(StudyFolder(tmp_path / "secret-merger"), planted)
    (part,) = shared_outcome(StudyFolder(tmp_path / "secret-merger")).recommendation.by_train_task
    assert f"`rankwise extend {planted.study.config.name} --" in part.statement
    assert not re.search(r"\bDIR\b|secret", part.statement)
