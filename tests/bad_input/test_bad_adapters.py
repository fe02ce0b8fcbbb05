"""Adapters that are broken or hostile: a study and an audit refuse them with the same sentence."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rankwise.engine.models.adapter_config import CONFIG_FILE, layer_settings
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.engine.models.peft_adapters import load_adapter
from rankwise.errors import ModelError
from rankwise.records.config.methods import ImportedConfig
from rankwise.records.study_file import load_config
from rankwise.study.planning.imports import imported_run
from rankwise.study.planning.model import study_model
from rankwise.study.planning.runs import Trainable
from rankwise.weights.audit import find_audited
from tests.support.audited_models import PREFIX, Q, adapter, rewritten

Damage = Callable[[Path], Any]

A, B = f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_B.weight"


class Bad(NamedTuple):
    """One way to break an adapter, what is said of it, and what is said to do about it."""

    name: str
    damage: Damage
    sentence: str
    remedy: str = "Save the adapter again."


def config(**entries: Any) -> Damage:
    """Change entries of the config."""

    def change(folder: Path) -> None:
        path = folder / CONFIG_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def config_text(text: str) -> Damage:
    return lambda folder: (folder / CONFIG_FILE).write_text(text)


def weights_bytes(content: bytes) -> Damage:
    return lambda folder: (folder / WEIGHTS_FILE).write_bytes(content)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    return lambda folder: rewritten(folder, change)


def header(entries: dict[str, Any], body: bytes = b"") -> Damage:
    """A safetensors file with a header of our own."""
    text = json.dumps(entries).encode()
    return weights_bytes(struct.pack("<Q", len(text)) + text + body)


def entry(shape: list[int], size: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    """Put something else where a file of the adapter was."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def looped(path: Path) -> None:
    path.symlink_to(path.name)


def cut(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-7])


def other_names(old: str, new: str) -> Damage:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[name.replace(old, new)] = weights.pop(name)

    return tensors(change)


RANK, ALPHA, UNUSABLE = "r: ", "lora_alpha: ", "adapter_config.json cannot be used: "
UNREADABLE, PATH = "is not a PEFT adapter: adapter_config.json cannot be read", "Check the path."
WEIGHTS, AGAIN = "adapter_model.safetensors cannot be read", "Save it again."
CHOOSE = "Choose the base that it was trained from."

BAD = [
    Bad("rank 0", config(r=0), f"{UNUSABLE}{RANK}0"),
    Bad("rank negative", config(r=-8), f"{UNUSABLE}{RANK}-8"),
    Bad("rank true", config(r=True), f"{UNUSABLE}{RANK}True"),
    Bad("rank in words", config(r="8"), f"{UNUSABLE}{RANK}'8'"),
    Bad("rank null", config(r=None), f"{UNUSABLE}{RANK}None"),
    Bad("rank of half", config(r=4.5), f"{UNUSABLE}{RANK}4.5"),
    Bad("rank of a billion", config(r=10**9), f"{UNUSABLE}{RANK}1000000000"),
    Bad("rank of 30 digits", config(r=10**29), f"{UNUSABLE}{RANK}1000"),
    Bad("rank of another adapter", config(r=3), "says rank 3 for", "belong to different adapters."),
    Bad("alpha 0", config(lora_alpha=0), f"{UNUSABLE}{ALPHA}0"),
    Bad("alpha negative", config(lora_alpha=-8), f"{UNUSABLE}{ALPHA}-8"),
    Bad("alpha NaN", config(lora_alpha=math.nan), f"{UNUSABLE}{ALPHA}nan"),
    Bad("alpha infinite", config(lora_alpha=math.inf), f"{UNUSABLE}{ALPHA}inf"),
    Bad("alpha true", config(lora_alpha=True), f"{UNUSABLE}{ALPHA}True"),
    Bad("alpha in words", config(lora_alpha="16"), f"{UNUSABLE}{ALPHA}'16'"),
    Bad("alpha of 400 digits", config(lora_alpha=10**400), f"{UNUSABLE}{ALPHA}1000"),
    Bad("alpha null", config(lora_alpha=None), f"{UNUSABLE}{ALPHA}None"),
    Bad("rank pattern a list", config(rank_pattern=[]), f"{UNUSABLE}rank_pattern: []"),
    Bad("rank pattern of 0", config(rank_pattern={"q_proj": 0}), f"{UNUSABLE}rank_pattern.q_proj:"),
    Bad("rank pattern no pattern", config(rank_pattern={"(": 4}), "is not a regular expression"),
    Bad(
        "a long pattern",
        config(alpha_pattern={"(q|k)" * 201: 4}),
        "has more than 1000 characters",
    ),
    Bad(
        "a pattern of a million letters",
        config(rank_pattern={"(?:(?:q{100}){100}){100}": 4}),
        "with its repeats written out",
    ),
    Bad(
        "a large alpha",
        config(lora_alpha=1e38),
        f"{UNUSABLE}{ALPHA}1e+38 (Input should be less than or equal to 1000000)",
    ),
    Bad(
        "many patterns",
        config(rank_pattern={f"(q|{number})": 4 for number in range(101)}),
        "has more than 100 patterns that are no names",
    ),
    Bad(
        "rank pattern of others", config(rank_pattern={"q_proj": 2}), "says rank 2 for", "adapters"
    ),
    Bad(
        "alpha pattern in words",
        config(alpha_pattern={"x": "y"}),
        f"{UNUSABLE}alpha_pattern.x: 'y'",
    ),
    Bad(
        "alpha pattern NaN",
        config(alpha_pattern={"q_proj": math.nan}),
        f"{UNUSABLE}alpha_pattern.q_proj: nan",
    ),
    Bad("alpha pattern 7", config(alpha_pattern=7), f"{UNUSABLE}alpha_pattern: 7"),
    Bad("targets a number", config(target_modules=5), f"{UNUSABLE}target_modules"),
    Bad("targets of numbers", config(target_modules=[1, 2]), f"{UNUSABLE}target_modules"),
    Bad("targets an object", config(target_modules={"q": 1}), f"{UNUSABLE}target_modules"),
    Bad("targets with a bell", config(target_modules=["q\x07"]), "cannot be printed"),
    Bad("saved modules a number", config(modules_to_save=3), f"{UNUSABLE}modules_to_save: 3"),
    Bad("layers of words", config(layers_to_transform=["x"]), f"{UNUSABLE}layers_to_transform"),
    Bad("layers of halves", config(layers_to_transform=[0.5]), f"{UNUSABLE}layers_to_transform"),
    Bad("layers pattern a number", config(layers_pattern=5), f"{UNUSABLE}layers_pattern"),
    Bad("excluded a number", config(exclude_modules=1), f"{UNUSABLE}exclude_modules"),
    Bad("rslora in words", config(use_rslora="yes"), f"{UNUSABLE}use_rslora: 'yes'"),
    Bad("bias a number", config(bias=1), f"{UNUSABLE}bias: 1"),
    Bad("initialisation a list", config(init_lora_weights=[1]), f"{UNUSABLE}init_lora_weights"),
    Bad(
        "base a number", config(base_model_name_or_path=4), f"{UNUSABLE}base_model_name_or_path: 4"
    ),
    Bad("base with escapes", config(base_model_name_or_path="a\x1b[2Jb"), "cannot be printed"),
    Bad(
        "another base",
        config(base_model_name_or_path="meta-llama/Llama-3-8B"),
        "records meta-llama/Llama-3-8B as its base, not",
        "Name that one, or",
    ),
    Bad("IA3", config(peft_type="IA3"), "holds an adapter of kind IA3", "Leave it out."),
    Bad("no kind", config(peft_type=None), "holds an adapter of kind None", "Leave it out."),
    Bad("kind a list", config(peft_type=["LORA"]), "holds an adapter of kind [", "Leave it out."),
    Bad("kind with escapes", config(peft_type="\x1b[31m"), "of kind \\x1b[31m", "Leave it out."),
    Bad("config empty", config_text(""), UNREADABLE, PATH),
    Bad("config a list", config_text("[]"), "holds no JSON object", PATH),
    Bad("config a word", config_text('"LORA"'), "holds no JSON object", PATH),
    Bad("config cut", config_text('{"peft_type": "LO'), UNREADABLE, PATH),
    Bad("config nested", config_text('{"a":' * 9999 + "1" + "}" * 9999), UNREADABLE, PATH),
    Bad("config of digits", config_text('{"r": ' + "9" * 5000 + "}"), UNREADABLE, PATH),
    Bad(
        "config no UTF-8", instead(CONFIG_FILE, lambda p: p.write_bytes(b"\xff{}")), "decode", PATH
    ),
    Bad("config huge", config_text(" " * (17 << 20)), "has more than 16 MiB", PATH),
    Bad("config a folder", instead(CONFIG_FILE, Path.mkdir), "is not a file", PATH),
    Bad("config a loop", instead(CONFIG_FILE, looped), "is not a file", PATH),
    Bad("config a pipe", instead(CONFIG_FILE, os.mkfifo), "is not a file", PATH),
    Bad(
        "weights missing",
        instead(WEIGHTS_FILE, lambda _: None),
        "has no adapter_model.safetensors",
        "Save the adapter again with safetensors.",
    ),
    Bad(
        "weights a folder", instead(WEIGHTS_FILE, Path.mkdir), "has no adapter_model", "safetensors"
    ),
    Bad("weights a loop", instead(WEIGHTS_FILE, looped), "has no adapter_model", "safetensors"),
    Bad("weights a pipe", instead(WEIGHTS_FILE, os.mkfifo), "has no adapter_model", "safetensors"),
    Bad("weights empty", weights_bytes(b""), WEIGHTS, AGAIN),
    Bad("weights no header", weights_bytes(b"no tensors"), WEIGHTS, AGAIN),
    Bad("weights cut", cut, WEIGHTS, AGAIN),
    Bad("header of 2^63 bytes", weights_bytes(b"\xff" * 7 + b"\x7f" + b"{}"), WEIGHTS, AGAIN),
    Bad("header no JSON", weights_bytes(struct.pack("<Q", 4) + b"{]}x"), WEIGHTS, AGAIN),
    Bad("header lies", header({A: entry([4, 48], 8)}, bytes(8)), WEIGHTS, AGAIN),
    Bad("header claims a terabyte", header({A: entry([2**18, 2**20], 2**40)}), WEIGHTS, AGAIN),
    Bad("header overflows", header({A: entry([2**40, 2**40], 8)}, bytes(8)), WEIGHTS, AGAIN),
    Bad("header negative", header({A: entry([-4, 2], 8)}, bytes(8)), WEIGHTS, AGAIN),
    Bad("header unknown dtype", header({A: entry([2], 8, "F99")}, bytes(8)), WEIGHTS, AGAIN),
    Bad(
        "header of overlaps", header({A: entry([2], 8), B: entry([2], 8)}, bytes(8)), WEIGHTS, AGAIN
    ),
    Bad(
        "float8",
        tensors(lambda w: w.update({A: w[A].to(torch.float8_e4m3fn)})),
        "in F8_E4M3, and only weights in F64, F32, BF16, F16 can be used",
        "Save it again in one of these.",
    ),
    Bad(
        "whole numbers", tensors(lambda w: w.update({A: w[A].int()})), "in I32, and only", "Save it"
    ),
    Bad("no layer of the base", other_names("q_proj", "w_proj"), "w_proj, which the base", CHOOSE),
    Bad("a deeper base", other_names("layers.1", "layers.7"), "layers.7", CHOOSE),
    Bad(
        "a name of dots", other_names("q_proj", ".."), "which the base model does not have", CHOOSE
    ),
    Bad(
        "a wider base",
        tensors(lambda w: w.update({A: torch.zeros(4, 99)})),
        "its factors are (4, 99) and",
        CHOOSE,
    ),
    Bad(
        "a taller base",
        tensors(lambda w: w.update({B: torch.zeros(99, 4)})),
        "and (99, 4), and the layer",
        CHOOSE,
    ),
    Bad(
        "turned factors", tensors(lambda w: w.update({A: w[A].T.contiguous()})), "no rank in common"
    ),
    Bad(
        "no rank in common",
        tensors(lambda w: w.update({A: torch.zeros(5, 48)})),
        "no rank in common",
    ),
    Bad(
        "empty factors",
        tensors(lambda w: w.update({A: torch.zeros(0, 48), B: torch.zeros(48, 0)})),
        "no rank in common",
    ),
    Bad(
        "one factor missing",
        tensors(lambda w: w.pop(A)),
        "has a factor without its partner",
        "again",
    ),
    Bad(
        "two factors of one layer",
        tensors(
            lambda w: w.update({f"{Q}.lora_A.weight": w[A] + 0, f"{Q}.lora_B.weight": w[B] + 0})
        ),
        "has two pairs of factors",
        AGAIN,
    ),
]


@pytest.fixture(scope="module")
def good(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "adapter"
    adapter(tiny_model_folder, folder)
    return folder


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainable:
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(f"base_model: {tiny_model_folder}\ntrain: {{task: colours}}\n")
    model = study_model(load_config(path, []), lambda _: None)
    return Trainable(model, {}, memory=None)  # pyright: ignore[reportArgumentType] (not asked)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_an_adapter_of_no_use_is_refused_at_planning_and_by_an_audit(
    bad: Bad, good: Path, base: Trainable, tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    bad.damage(folder)
    with pytest.raises(ModelError) as planned:
        imported_run(ImportedConfig(adapter=folder), base, "colours")
    with pytest.raises(ModelError) as audited:
        find_audited(str(tiny_model_folder), folder)
    for caught in (planned, audited):
        assert bad.sentence in str(caught.value)
        assert bad.remedy in str(caught.value)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("entry", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_take_long(
    good: Path, base: Trainable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:  # fmt: skip
    """Python's own ``re`` would take years."""
    monkeypatch.setattr("rankwise.engine.models.adapter_config._MOST_SECONDS", 0.01)
    folder = tmp_path / "slow"
    shutil.copytree(good, folder)
    config(**{entry: {"(?:.|.)*(?!.|$)": 4}})(folder)
    with pytest.raises(ModelError, match=r"slow: adapter_config\.json .* more than 0\.01 seconds"):
        imported_run(ImportedConfig(adapter=folder), base, "colours")


def test_patterns_are_read_as_peft_reads_them() -> None:
    from peft.utils.other import get_pattern_key

    patterns = {
        **{"k_proj": 2, "0.q_proj": 3, ".*1.q_proj": 4, "q_proj": 5, "2.q_proj": 6, "o_": 7},
        **{r"layers\.[3-5]\.(o|v)_proj": 8, r"(?:layers\.\d{2}\.)o_proj": 9, "v_proj|^lm": 10},
        **{
            r"up_(?!x)proj": 11,
            r"^model\.layers\.(1|2)\.down_proj": 12,
            "x{i}": 13,
            ".*down.*": 14,
        },
        **{"[[:alpha:]]gate": 15},
    }
    named = {"r": 1, "lora_alpha": 16, "rank_pattern": patterns}
    names = ("q", "k", "v", "o", "up", "down")
    layers = [f"model.layers.{n}.{name}_proj" for n in range(12) for name in names]
    layers += ["q_proj", "xq_proj", "lm", "lm.down_proj", "zx", "x{i}", "agate", ":]gate", "]gate"]
    for layer, setting in layer_settings(named, layers, Path()).items():
        assert setting.rank == patterns.get(get_pattern_key(list(patterns), layer), 1)
        assert setting.scaling == 16 / setting.rank


def test_peft_is_given_no_pattern(good: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    """It would match it without a limit."""
    folder = tmp_path / "bad"
    for entry, value in {
        "rank_pattern": {"(a|a)*b": 4},
        "target_modules": "(a|a)*b",
        "exclude_modules": ["(a|a)*b"],
    }.items():
        shutil.copytree(good, folder, dirs_exist_ok=True)
        config(**{entry: value})(folder)
        with pytest.raises(ModelError, match=rf"{entry} has '\(a\|a\)\*b', which is no name"):
            load_adapter(torch.nn.Linear(1, 1), folder)


def test_a_folder_without_an_adapter(
    base: Trainable, tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"adapter_config.json is not there.* Check the path\."):
        imported_run(ImportedConfig(adapter=tmp_path), base, "colours")
    with pytest.raises(ModelError, match=r"holds neither adapter_config.json .* Check the path\."):
        find_audited(str(tiny_model_folder), tmp_path)


def test_the_adapter_that_is_broken_here_is_good(
    good: Path, base: Trainable, tiny_model_folder: Path
) -> None:
    run, warnings = imported_run(ImportedConfig(adapter=good), base, "colours")
    assert (run.rank, run.alpha, warnings) == (4, 8, ())
    assert find_audited(str(tiny_model_folder), good).warnings == ()
