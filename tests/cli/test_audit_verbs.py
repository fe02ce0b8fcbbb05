"""audit from the command line: files and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.records.audits import AuditRecord
from rankwise.records.files import read_record
from rankwise.records.names import MANIFEST
from tests.support.audited_models import adapter, edited, rewritten
from tests.support.command_line import FEW, audited, rankwise, words
from tests.support.pages import Page, without_scripts
from tests.support.pages import words as chart_words
from tests.support.sentences import Sentences
from tests.support.tiny_models import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_adapter_is_audited_in_words_in_json_and_on_a_page(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "mine", r=8)
    before = contents(tmp_path / "mine")
    result = audited(tiny_model_folder, tmp_path / "mine", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    record = read_record(tmp_path / "out" / "audit.json", AuditRecord)
    said = words(result.stdout)
    assert all(words(statement) in said for statement in record.statements)
    page = (tmp_path / "out" / "audit.html").read_text()
    assert str(tmp_path / "out" / "audit.html") in result.stdout.replace("\n", "")
    assert all(words(statement) in words(Page(page).text) for statement in record.statements)
    for part in ("In words", "Weights", "Provenance"):
        assert f">{part}</h2>" in page
    for title in ("Gaussian", "Haar"):
        assert title in {*chart_words(Page(page).charts)}
    assert contents(tmp_path / "mine") == before
    again = audited(tiny_model_folder, tmp_path / "mine", tmp_path / "out", "--json")
    found = AuditRecord.model_validate_json(again.stdout)
    assert found.matrices == record.matrices


def test_the_page_is_self_contained(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "mine")
    audited(tiny_model_folder, tmp_path / "mine", tmp_path / "out")
    page = (tmp_path / "out" / "audit.html").read_text()
    page = without_scripts(page)
    for outside in ("http://", "https://", "<script>", "src=", "<link", "@import"):
        assert outside not in page


def test_by_default_it_is_written_beside_nothing_else(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    adapter(tiny_model_folder, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert rankwise("audit", tiny_model_folder, "mine", *FEW).exit_code == 0
    written = {path.name for path in (tmp_path / "audits" / "mine").iterdir()}
    assert written == {"audit.json", "audit.html", MANIFEST}
    result = audited(tiny_model_folder, Path("mine"), Path("mine/audit"))
    assert result.exit_code == 2
    sentence(words(result.stderr))
    assert not (tmp_path / "mine" / "audit").exists()


# refusals


def test_what_was_given_wrong_exits_with_2(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    dora = tmp_path / "dora"
    adapter(tiny_model_folder, dora, use_dora=True)
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "a", other)
    edited(other, base_model_name_or_path="meta/Llama-9")
    nan = tmp_path / "nan"
    shutil.copytree(tmp_path / "a", nan)
    rewritten(nan, lambda t: [w.fill_(torch.nan) for w in t.values()])
    wrong = ("--tasks", "no_such_task_anywhere", "--tasks-path", tasks_folder / "none")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tiny_model_folder, dora), "use_dora"),
        ((tiny_model_folder, other), "records meta/Llama-9"),
        ((tiny_model_folder, nan), "NaN or infinite"),
        ((tmp_path / "a", tmp_path / "a"), "holds an adapter"),
        ((tiny_model_folder, tmp_path / "nowhere"), "not a folder"),
        ((tiny_model_folder, tmp_path / "a", *wrong), "tasks_path"),
    ]
    for arguments, message in cases:
        result = rankwise("audit", *arguments, "--output", tmp_path / "out", *FEW)
        assert result.exit_code == 2, (message, result.stderr)
        assert message in words(result.stderr).replace("tasks-path", "tasks_path"), result.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_shapes_exits_with_2(
    tiny_model_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    config = json.loads((tiny_model_folder / "config.json").read_text())
    other = LlamaForCausalLM(LlamaConfig(**(config | {"intermediate_size": 80})))
    other.save_pretrained(tmp_path / "other")
    result = audited(tiny_model_folder, tmp_path / "other", tmp_path / "out")
    assert result.exit_code == 2
    sentence(words(result.stderr))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--top-k", "nan"),
        ("--top-k", 0),
        ("--null-draws", -1),
        ("--limit", "inf"),
    ],
)
def test_options_without_meaning_are_refused(
    option: str, value: object, tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    output = ("--output", tmp_path / "out")
    result = rankwise("audit", tiny_model_folder, tmp_path / "a", *output, option, value)
    assert result.exit_code == 2
    assert option in words(result.stderr)
    assert not (tmp_path / "out").exists()


# other architectures


def test_conv1d_of_gpt2_is_audited_in_one_orientation(tmp_path: Path) -> None:
    base = tmp_path / "gpt2"
    tiny("GPT2").save_pretrained(base)
    options: dict[str, Any] = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    model = adapter(base, tmp_path / "a", **options)
    result = audited(base, tmp_path / "a", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    record = read_record(tmp_path / "out" / "audit.json", AuditRecord)
    layer = model.base_model.model.get_submodule("transformer.h.0.attn.c_attn")
    assert record.matrices[0].module == "transformer.h.0.attn.c_attn"
    assert (record.matrices[0].out_features, record.matrices[0].in_features) == (96, 32)
    norm = float(layer.get_delta_weight("default").norm())
    assert record.matrices[0].update.frobenius_norm == pytest.approx(norm, rel=1e-5)
    weight = float(layer.base_layer.weight.norm())
    assert record.matrices[0].base_frobenius_norm == pytest.approx(weight, rel=1e-5)
    assert {CONFIG_FILE, WEIGHTS_FILE} <= {path.name for path in (tmp_path / "a").iterdir()}


def test_what_cannot_be_written_whole_leaves_what_was_there(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    output = tmp_path / "out"
    command = ("audit", tiny_model_folder, tmp_path / "a", *FEW, "--output", output)
    assert rankwise(*command).exit_code == 0  # it may write where it wrote before
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    real = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.name == "audit.html":  # the last one
            raise OSError(28, "No space left on device")
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        result = rankwise(*command)
    assert result.exit_code == 1
    sentence(words(result.stderr), names=(output,))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert rankwise(*command).exit_code == 0
