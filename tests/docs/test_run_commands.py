"""Everything on a page that is not marked runs, from top to bottom, on things that take seconds.

The embedded model is a tiny one here, and the finished studies are of it. Where an answer is an
exit code, any answer will do: the model is random. What is marked as training for minutes runs too,
with settings that make it short.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import peft
import pytest
import torch

from rankwise.engine.models import base_folder
from rankwise.engine.models.loading import load_frozen
from rankwise.records.study_file import preset_text
from tests.planted import tool_configs
from tests.support.command_line import rankwise
from tests.support.documented import ROOT, Block, blocks, pages
from tests.support.tiny_tasks import write_tiny_tasks

ANSWERS = {"check": (0, 1, 3)}
"""Verbs whose exit code is an answer; of all others it is 0."""

SMALL = (
    "train.max_examples=8",
    "train.epochs=1",
    "train.precision=float32",
    "methods.lora.ranks=[4,16]",
    "methods.full=null",
    "evaluation.limit=8",
    "evaluation.out_of_domain=[]",
    "evaluation.retention=[capitals]",
    "evaluation.held_out_text=[]",
    "analysis={spectra: false, heads: false, gauges: false}",
)
TRAINS = "trains for minutes"
RUN = [
    page
    for page in pages()
    if any(not each.why_not_run and each.language != "yaml" for each in blocks(page))
]
TRAINED = [page for page in pages() if any(each.why_not_run == TRAINS for each in blocks(page))]


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, patch: pytest.MonkeyPatch
) -> Path:
    """What the pages take for granted: a model, an adapter, rows, two studies, sample files."""
    root = tmp_path_factory.mktemp("stage")
    patch.setattr(base_folder, "embedded_model_folder", lambda *_: tiny_model_folder)
    patch.chdir(root)
    shutil.copytree(tiny_model_folder, "my-base")
    shutil.copytree(ROOT / "docs" / "scores", "scores")
    write_tiny_tasks(Path("my_tasks"))
    Path("study.yaml").write_text(preset_text("quickstart"), encoding="utf-8")
    Path("my_axolotl.yaml").write_text(tool_configs.AXOLOTL, encoding="utf-8")
    _save_adapter("my-base", "my-adapter")
    for name, modules in (("quickstart", "all-linear"), ("attention", "attention")):
        more = (f"methods.lora.target_modules={modules}", "--study-dir", f"studies/{name}")
        done = rankwise("run", "study.yaml", *SMALL, *more, "--quiet")
        assert done.exit_code == 0, done.output
    models_of = {"base": "base", "r4": "runs/*-r004-*", "r16": "runs/*-r016-*"}
    for name, folder in models_of.items():
        [samples] = Path("studies/quickstart").glob(f"{folder}/eval/kinship.samples.jsonl")
        Path(name).mkdir()
        shutil.copy(samples, Path(name) / "samples_kinship_1.jsonl")
    return root


def _save_adapter(base: str, folder: str) -> None:
    model = load_frozen(Path(base), "float32", torch.device("cpu"))
    model.name_or_path = base
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(folder)


@pytest.fixture
def place(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the stage is the current folder."""
    shutil.copytree(stage, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")


@pytest.mark.parametrize("page", RUN)
@pytest.mark.usefixtures("place")
def test_a_page_runs(page: str) -> None:
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.why_not_run is None:
            run(block, names)


@pytest.mark.parametrize("page", TRAINED)
@pytest.mark.usefixtures("place")
def test_what_trains_on_a_page_runs(page: str) -> None:
    for block in blocks(page):
        if block.language == "console" and block.why_not_run in (None, TRAINS):
            run(block, {}, SMALL)


def run(block: Block, names: dict[str, object], settings: Sequence[str] = ()) -> None:
    """Do what a block says; the YAML of a page is read by another test."""
    if block.language == "python":
        exec(compile(block.text, block.place, "exec"), names)
    for command in block.commands:
        program, *arguments = shlex.split(command, comments=True)
        assert program == "rankwise", f"{block.place}: mark it as not run: {command}"
        verb = arguments[0]
        if verb == "init":
            Path(arguments[1]).unlink(missing_ok=True)
        if verb == "run":
            arguments[2:2] = settings
        done = rankwise(*(_found(argument) for argument in arguments))
        assert done.exit_code in ANSWERS.get(verb, (0,)), f"{block.place}: {command}\n{done.output}"


def _found(argument: str) -> str:
    """As a shell would have it: a pattern becomes what it matches, if that is one file."""
    matching = list(Path().glob(argument)) if "*" in argument else []
    return str(matching[0]) if len(matching) == 1 else argument


def test_a_wrong_command_and_an_unmarked_one_fail(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stage)
    [wrong] = blocks("planted.md", "```console\n$ rankwise status studies/none\n```\n")
    with pytest.raises(AssertionError, match=r"planted.md:1: rankwise status studies/none"):
        run(wrong, {})
    [other] = blocks("planted.md", "```console\n$ make demo\n```\n")
    with pytest.raises(AssertionError, match="mark it as not run: make demo"):
        run(other, {})
    [code] = blocks("planted.md", "```python\nimport rankwise as rw\nrw.open('none')\n```\n")
    with pytest.raises(ValueError, match="none"):
        run(code, {})
