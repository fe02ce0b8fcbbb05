"""audit, truncate and scale-intruders from the command line: files and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.records.audits import AuditRecord, InterventionRecord
from rankwise.records.file_names import MANIFEST
from rankwise.records.files import read_record
from rankwise.weights.lowrank import read_updates
from tests.support.audited_models import Q, adapter, edited, load, plant_intruder, rewritten
from tests.support.command_line import FEW, audited, rankwise, words
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
    for sentence in record.statements:
        assert words(sentence) in said
    page = (tmp_path / "out" / "audit.html").read_text()
    assert str(tmp_path / "out" / "audit.html") in result.stdout.replace("\n", "")
    assert "This rank-8 adapter uses about" in page
    for part in ("How much rank it uses", "Where the update is", "What it turns", "Every matrix"):
        assert f">{part}</h2>" in page
    for each in record.matrices:
        assert each.module in page
    for title in ("Gaussian", "Haar"):
        assert page.count(f">{title}</text>") >= 1
    assert contents(tmp_path / "mine") == before
    again = audited(tiny_model_folder, tmp_path / "mine", tmp_path / "out", "--json")
    found = AuditRecord.model_validate_json(again.stdout)
    assert found.matrices == record.matrices


def test_the_page_is_self_contained(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "mine")
    audited(tiny_model_folder, tmp_path / "mine", tmp_path / "out")
    page = (tmp_path / "out" / "audit.html").read_text()
    for name in ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"):  # no addresses
        page = page.replace(name, "")
    for outside in ("http://", "https://", "<script", "src=", "<link", "@import"):
        assert outside not in page


def test_by_default_it_is_written_beside_nothing_else(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter(tiny_model_folder, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert rankwise("audit", tiny_model_folder, "mine", *FEW).exit_code == 0
    written = {path.name for path in (tmp_path / "audits" / "mine").iterdir()}
    assert written == {"audit.json", "audit.html", MANIFEST}
    result = audited(tiny_model_folder, Path("mine"), Path("mine/audit"))
    assert result.exit_code == 2
    assert "inside what is audited" in words(result.stderr)
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


def test_a_checkpoint_of_other_shapes_exits_with_2(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model_folder / "config.json").read_text())
    other = LlamaForCausalLM(LlamaConfig(**(config | {"intermediate_size": 80})))
    other.save_pretrained(tmp_path / "other")
    result = audited(tiny_model_folder, tmp_path / "other", tmp_path / "out")
    assert result.exit_code == 2
    assert "is no fine-tuning of" in words(result.stderr)


# truncate


def test_truncate_needs_the_adapter_alone(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = adapter(tiny_model_folder, tmp_path / "a", r=8, use_rslora=True)
    edited(tmp_path / "a", base_model_name_or_path="/gone")
    result = rankwise("truncate", tmp_path / "a", "--rank", 3, "--output", tmp_path / "cut")
    assert result.exit_code == 0, result.stderr
    record = read_record(tmp_path / "cut" / "intervention.json", InterventionRecord)
    kept = lost = 0.0
    for module in model.modules():
        if hasattr(module, "get_delta_weight"):
            S = torch.linalg.svdvals(module.get_delta_weight("default").detach().double())
            kept, lost = kept + float(S[:3].square().sum()), lost + float(S[3:].square().sum())
    assert record.relative_error == pytest.approx((lost / (kept + lost)) ** 0.5, rel=1e-4)
    assert record.energy_kept == pytest.approx(kept / (kept + lost), rel=1e-4)
    assert f"keeps {100 * record.energy_kept:.2f} %" in words(result.stdout)
    assert {(each.rank_before, each.rank) for each in record.layers} == {(8, 3)}
    peer: Any = peft.PeftModel.from_pretrained(load(tiny_model_folder), str(tmp_path / "cut"))
    theirs = peer.base_model.model.get_submodule(Q).get_delta_weight("default").double()
    own = read_updates(tmp_path / "cut")[Q]
    assert torch.allclose(theirs, own.lora_B.double() @ own.lora_A.double(), atol=1e-6)


def test_truncate_says_in_json_what_it_wrote(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    out = tmp_path / "cut"
    result = rankwise("truncate", tmp_path / "a", "--rank", 4, "--output", out, "--json")
    record = InterventionRecord.model_validate_json(result.stdout)
    assert record.relative_error < 1e-6
    assert {each.rank for each in record.layers} == {4}


def test_truncate_to_a_higher_rank_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    result = rankwise("truncate", tmp_path / "a", "--rank", 5, "--output", tmp_path / "cut")
    assert result.exit_code == 2
    assert "--rank: 5 given, and the adapter has rank 4; give a lower one" in words(result.stderr)
    assert not (tmp_path / "cut").exists()


def test_truncate_replaces_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    before = contents(tmp_path / "a")
    result = rankwise("truncate", tmp_path / "a", "--rank", 2, "--output", tmp_path / "a")
    assert result.exit_code == 2
    assert "not empty" in words(result.stderr)
    assert contents(tmp_path / "a") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"peft_type": "IA3"}, "an adapter of kind IA3"),
        ({"r": 9}, "says rank 9"),
    ],
)
def test_truncate_refuses_by_name(
    change: dict[str, Any], message: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    edited(tmp_path / "a", **change)
    result = rankwise("truncate", tmp_path / "a", "--rank", 2, "--output", tmp_path / "cut")
    assert result.exit_code == 2
    assert message in words(result.stderr)
    assert not (tmp_path / "cut").exists()


# scale-intruders


def scaled(base: Path, source: Path, output: Path, *more: object) -> InterventionRecord:
    arguments = ("scale-intruders", source, "--base", base, "--output", output, *more)
    result = rankwise(*arguments)
    assert result.exit_code == 0, result.stderr
    return read_record(output / "intervention.json", InterventionRecord)


def test_intruders_are_scaled_and_an_audit_finds_them_gone(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    source = plant_intruder(tiny_model_folder, tmp_path / "a")
    record = scaled(tiny_model_folder, source, tmp_path / "without", "--factor", 0)
    assert sum(each.num_intruders or 0 for each in record.layers) == 1
    assert sum(each.num_intruders_left or 0 for each in record.layers) == 0
    left = scaled(tiny_model_folder, source, tmp_path / "with", "--factor", 1)
    assert sum(each.num_intruders_left or 0 for each in left.layers) == 1
    for name, number in (("without", "No intruder dimension"), ("with", "1 intruder dimension in")):
        result = audited(tiny_model_folder, tmp_path / name, tmp_path / f"{name}-out")
        assert result.exit_code == 0, result.stderr
        assert number in words(result.stdout)


def test_a_checkpoint_has_no_adapter_to_scale(tiny_model_folder: Path, tmp_path: Path) -> None:
    result = rankwise(
        *("scale-intruders", tiny_model_folder, "--base", tiny_model_folder),
        *("--factor", 0, "--output", tmp_path / "out"),
    )
    assert result.exit_code == 2
    assert "only an adapter's update can be scaled" in words(result.stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--factor", "nan"), "--factor"),
        (("--factor", "inf"), "--factor inf is not a finite number"),
        (("--factor", 0, "--epsilon", "nan"), "--epsilon"),
        (("--factor", "1e300"), "--factor 1e+300: "),
        (("--factor", "1e308"), "--factor 1e+308: "),
        (("--factor", -1), "--factor"),
        (("--factor", 0, "--epsilon", 2), "--epsilon"),
        (("--factor", 0, "--k", 0), "--k"),
        (("--factor", 0, "--rank", 0), "--rank"),
    ],
)
def test_numbers_that_scale_nothing_are_refused(
    options: tuple[object, ...], message: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    source = plant_intruder(tiny_model_folder, tmp_path / "a")
    result = rankwise(
        *("scale-intruders", source, "--base", tiny_model_folder),
        *(*options, "--output", tmp_path / "out"),
    )
    assert result.exit_code == 2, result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert message in words(result.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        ("audit", "--top-k", "nan"),
        ("audit", "--top-k", 0),
        ("audit", "--null-draws", -1),
        ("audit", "--limit", "inf"),
        ("truncate", "--rank", "nan"),
        ("truncate", "--rank", 0),
    ],
)
def test_options_without_meaning_are_refused(
    verb: str, option: str, value: object, tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    base = (tiny_model_folder,) if verb == "audit" else ()
    arguments = (verb, *base, tmp_path / "a", "--output", tmp_path / "out", option, value)
    result = rankwise(*arguments)
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


@pytest.mark.parametrize("verb", ["truncate", "scale-intruders", "audit"])
def test_what_cannot_be_written_whole_leaves_what_was_there(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    output = tmp_path / "out"
    arguments: dict[str, list[object]] = {
        "truncate": [tmp_path / "a", "--rank", 2],
        "scale-intruders": [tmp_path / "a", "--base", tiny_model_folder, "--factor", 0.5],
        "audit": [tiny_model_folder, tmp_path / "a", *FEW],
    }
    command = (verb, *arguments[verb], "--output", output)
    if verb == "audit":  # which may write where it wrote before
        assert rankwise(*command).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    real = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.name in ("intervention.json", "audit.html"):  # the last one
            raise OSError(28, "No space left on device")
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        result = rankwise(*command)
    assert result.exit_code == 1
    assert f"{output} cannot be written: No space left on device." in words(result.stderr)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert output.exists() == (verb == "audit")
    assert rankwise(*command).exit_code == 0
