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

from rankwise.engine.models.adapter_config import (
    CONFIG_FILE,
    layer_settings,
    read_adapter_config,
    refuse_patterns,
)
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.engine.models.peft_adapters import load_adapter
from rankwise.errors import ModelError
from rankwise.records.config.methods import ImportedConfig
from rankwise.records.patterns import rank_entries
from rankwise.records.study_file import load_config
from rankwise.study.planning.imports import imported_run
from rankwise.study.planning.model import study_model
from rankwise.study.planning.runs import Trainable
from rankwise.weights.audit import find_audited
from tests.support.audited_models import PREFIX, Q, adapter, rewritten
from tests.support.sentences import Sentences

Damage = Callable[[Path], Any]

A, B = f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_B.weight"


class Bad(NamedTuple):
    """One way to break an adapter, and what the error names."""

    name: str
    damage: Damage
    names: tuple[str, ...] = ()


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


LIBRARY = r"(?<=cannot be read: )(?!/|adapter_config).*(?=\. )"
"""What Python and safetensors say, in words of their version."""

BAD = [
    Bad("rank 0", config(r=0), (CONFIG_FILE, "r: 0")),
    Bad("rank negative", config(r=-8), (CONFIG_FILE, "r: -8")),
    Bad("rank true", config(r=True), (CONFIG_FILE, "r: True")),
    Bad("rank in words", config(r="8"), (CONFIG_FILE, "r: '8'")),
    Bad("rank null", config(r=None), (CONFIG_FILE, "r: None")),
    Bad("rank of half", config(r=4.5), (CONFIG_FILE, "r: 4.5")),
    Bad("rank of a billion", config(r=10**9), (CONFIG_FILE, "r: 1000000000")),
    Bad("rank of 30 digits", config(r=10**29), (CONFIG_FILE, "r: 1000")),
    Bad("rank of another adapter", config(r=3), ("rank 3",)),
    Bad("alpha 0", config(lora_alpha=0), (CONFIG_FILE, "lora_alpha: 0")),
    Bad("alpha negative", config(lora_alpha=-8), (CONFIG_FILE, "lora_alpha: -8")),
    Bad("alpha NaN", config(lora_alpha=math.nan), (CONFIG_FILE, "lora_alpha: nan")),
    Bad("alpha infinite", config(lora_alpha=math.inf), (CONFIG_FILE, "lora_alpha: inf")),
    Bad("alpha true", config(lora_alpha=True), (CONFIG_FILE, "lora_alpha: True")),
    Bad("alpha in words", config(lora_alpha="16"), (CONFIG_FILE, "lora_alpha: '16'")),
    Bad("alpha of 400 digits", config(lora_alpha=10**400), (CONFIG_FILE, "lora_alpha: 1000")),
    Bad("alpha null", config(lora_alpha=None), (CONFIG_FILE, "lora_alpha: None")),
    Bad("rank pattern a list", config(rank_pattern=[]), (CONFIG_FILE, "rank_pattern: []")),
    Bad(
        "rank pattern of 0",
        config(rank_pattern={"q_proj": 0}),
        (CONFIG_FILE, "rank_pattern.q_proj:"),
    ),
    Bad(
        "rank pattern no pattern", config(rank_pattern={"(": 4}), (CONFIG_FILE, "rank_pattern", "(")
    ),
    Bad(
        "a long pattern",
        config(alpha_pattern={"(q|k)" * 201: 4}),
        (CONFIG_FILE, "alpha_pattern", "1000"),
    ),
    Bad(
        "a pattern of a million letters",
        config(rank_pattern={"(?:(?:q{100}){100}){100}": 4}),
        (CONFIG_FILE, "rank_pattern", "(?:(?:q{100}){100}){100}"),
    ),
    Bad("a large alpha", config(lora_alpha=1e38), (CONFIG_FILE, "lora_alpha: 1e+38", "1000000")),
    Bad(
        "many patterns",
        config(rank_pattern={f"(q|{number})": 4 for number in range(101)}),
        (CONFIG_FILE, "rank_pattern", "100"),
    ),
    Bad("rank pattern of others", config(rank_pattern={"q_proj": 2}), ("rank 2",)),
    Bad(
        "alpha pattern in words",
        config(alpha_pattern={"x": "y"}),
        (CONFIG_FILE, "alpha_pattern.x: 'y'"),
    ),
    Bad(
        "alpha pattern NaN",
        config(alpha_pattern={"q_proj": math.nan}),
        (CONFIG_FILE, "alpha_pattern.q_proj: nan"),
    ),
    Bad("alpha pattern 7", config(alpha_pattern=7), (CONFIG_FILE, "alpha_pattern: 7")),
    Bad("targets a number", config(target_modules=5), (CONFIG_FILE, "target_modules")),
    Bad("targets of numbers", config(target_modules=[1, 2]), (CONFIG_FILE, "target_modules")),
    Bad("targets an object", config(target_modules={"q": 1}), (CONFIG_FILE, "target_modules")),
    Bad(
        "targets with a bell",
        config(target_modules=["q\x07"]),
        (CONFIG_FILE, "target_modules", r"q\x07"),
    ),
    Bad("saved modules a number", config(modules_to_save=3), (CONFIG_FILE, "modules_to_save: 3")),
    Bad("layers of words", config(layers_to_transform=["x"]), (CONFIG_FILE, "layers_to_transform")),
    Bad(
        "layers of halves", config(layers_to_transform=[0.5]), (CONFIG_FILE, "layers_to_transform")
    ),
    Bad("layers pattern a number", config(layers_pattern=5), (CONFIG_FILE, "layers_pattern")),
    Bad("excluded a number", config(exclude_modules=1), (CONFIG_FILE, "exclude_modules")),
    Bad("rslora in words", config(use_rslora="yes"), (CONFIG_FILE, "use_rslora: 'yes'")),
    Bad("bias a number", config(bias=1), (CONFIG_FILE, "bias: 1")),
    Bad("initialisation a list", config(init_lora_weights=[1]), (CONFIG_FILE, "init_lora_weights")),
    Bad(
        "base a number",
        config(base_model_name_or_path=4),
        (CONFIG_FILE, "base_model_name_or_path: 4"),
    ),
    Bad(
        "base with escapes",
        config(base_model_name_or_path="a\x1b[2Jb"),
        (CONFIG_FILE, "base_model_name_or_path", r"a\x1b[2Jb"),
    ),
    Bad(
        "another base",
        config(base_model_name_or_path="meta-llama/Llama-3-8B"),
        ("meta-llama/Llama-3-8B",),
    ),
    Bad("IA3", config(peft_type="IA3"), ("IA3",)),
    Bad("no kind", config(peft_type=None), ("None",)),
    Bad("kind a list", config(peft_type=["LORA"]), ("LORA",)),
    Bad("kind with escapes", config(peft_type="\x1b[31m"), (r"\x1b[31m",)),
    Bad("config empty", config_text(""), (CONFIG_FILE,)),
    Bad("config a list", config_text("[]"), (CONFIG_FILE,)),
    Bad("config a word", config_text('"LORA"'), (CONFIG_FILE,)),
    Bad("config cut", config_text('{"peft_type": "LO'), (CONFIG_FILE,)),
    Bad("config nested", config_text('{"a":' * 9999 + "1" + "}" * 9999), (CONFIG_FILE,)),
    Bad("config of digits", config_text('{"r": ' + "9" * 5000 + "}"), (CONFIG_FILE,)),
    Bad(
        "config no UTF-8", instead(CONFIG_FILE, lambda p: p.write_bytes(b"\xff{}")), (CONFIG_FILE,)
    ),
    Bad("config huge", config_text(" " * (17 << 20)), (CONFIG_FILE, "16 MiB")),
    Bad("config a folder", instead(CONFIG_FILE, Path.mkdir), (CONFIG_FILE,)),
    Bad("config a loop", instead(CONFIG_FILE, looped), (CONFIG_FILE,)),
    Bad("config a pipe", instead(CONFIG_FILE, os.mkfifo), (CONFIG_FILE,)),
    Bad("weights missing", instead(WEIGHTS_FILE, lambda _: None), (WEIGHTS_FILE,)),
    Bad("weights a folder", instead(WEIGHTS_FILE, Path.mkdir), (WEIGHTS_FILE,)),
    Bad("weights a loop", instead(WEIGHTS_FILE, looped), (WEIGHTS_FILE,)),
    Bad("weights a pipe", instead(WEIGHTS_FILE, os.mkfifo), (WEIGHTS_FILE,)),
    Bad("weights empty", weights_bytes(b""), (WEIGHTS_FILE,)),
    Bad("weights no header", weights_bytes(b"no tensors"), (WEIGHTS_FILE,)),
    Bad("weights cut", cut, (WEIGHTS_FILE,)),
    Bad("header of 2^63 bytes", weights_bytes(b"\xff" * 7 + b"\x7f" + b"{}"), (WEIGHTS_FILE,)),
    Bad("header no JSON", weights_bytes(struct.pack("<Q", 4) + b"{]}x"), (WEIGHTS_FILE,)),
    Bad("header lies", header({A: entry([4, 48], 8)}, bytes(8)), (WEIGHTS_FILE,)),
    Bad("header claims a terabyte", header({A: entry([2**18, 2**20], 2**40)}), (WEIGHTS_FILE,)),
    Bad("header overflows", header({A: entry([2**40, 2**40], 8)}, bytes(8)), (WEIGHTS_FILE,)),
    Bad("header negative", header({A: entry([-4, 2], 8)}, bytes(8)), (WEIGHTS_FILE,)),
    Bad("header unknown dtype", header({A: entry([2], 8, "F99")}, bytes(8)), (WEIGHTS_FILE,)),
    Bad(
        "header of overlaps",
        header({A: entry([2], 8), B: entry([2], 8)}, bytes(8)),
        (WEIGHTS_FILE,),
    ),
    Bad(
        "float8",
        tensors(lambda w: w.update({A: w[A].to(torch.float8_e4m3fn)})),
        (WEIGHTS_FILE, "F8_E4M3"),
    ),
    Bad("whole numbers", tensors(lambda w: w.update({A: w[A].int()})), (WEIGHTS_FILE, "I32")),
    Bad("no layer of the base", other_names("q_proj", "w_proj"), ("w_proj",)),
    Bad("a deeper base", other_names("layers.1", "layers.7"), ("layers.7",)),
    Bad("a name of dots", other_names("q_proj", ".."), ("..",)),
    Bad("a wider base", tensors(lambda w: w.update({A: torch.zeros(4, 99)})), ("(4, 99)",)),
    Bad("a taller base", tensors(lambda w: w.update({B: torch.zeros(99, 4)})), ("(99, 4)",)),
    Bad("turned factors", tensors(lambda w: w.update({A: w[A].T.contiguous()})), (Q,)),
    Bad("no rank in common", tensors(lambda w: w.update({A: torch.zeros(5, 48)})), (Q,)),
    Bad(
        "empty factors",
        tensors(lambda w: w.update({A: torch.zeros(0, 48), B: torch.zeros(48, 0)})),
        (Q,),
    ),
    Bad("one factor missing", tensors(lambda w: w.pop(A)), (Q,)),
    Bad(
        "two factors of one layer",
        tensors(
            lambda w: w.update({f"{Q}.lora_A.weight": w[A] + 0, f"{Q}.lora_B.weight": w[B] + 0})
        ),
        (Q,),
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
    bad: Bad,
    good: Path,
    base: Trainable,
    tiny_model_folder: Path,
    tmp_path: Path,
    sentence: Sentences,
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    bad.damage(folder)
    with pytest.raises(ModelError) as planned:
        imported_run(ImportedConfig(adapter=folder), base, "colours")
    with pytest.raises(ModelError) as audited:
        find_audited(str(tiny_model_folder), folder)
    for verb, caught in (("run", planned), ("audit", audited)):
        own = verb if bad.name == "another base" else ""  # which each names in its own way
        sentence(caught.value, own, names=bad.names, LIBRARY=LIBRARY)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("entry", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_take_long(
    good: Path,
    base: Trainable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    entry: str,
    sentence: Sentences,
) -> None:
    """Python's own ``re`` would take years."""
    monkeypatch.setattr("rankwise.engine.models.adapter_config.MOST_SECONDS", 0.01)
    folder = tmp_path / "slow"
    shutil.copytree(good, folder)
    config(**{entry: {"(?:.|.)*(?!.|$)": 4}})(folder)
    with pytest.raises(ModelError) as caught:
        imported_run(ImportedConfig(adapter=folder), base, "colours")
    sentence(caught.value, names=(folder, CONFIG_FILE, entry, "0.01"))


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


def test_ranks_of_hundreds_of_layers_are_named_and_match_no_other_layer(tmp_path: Path) -> None:
    from peft.utils.other import get_pattern_key

    layers = [f"model.layers.{n}.{name}_proj" for n in range(80) for name in "qkvo"]
    ranks = {name: 1 + place % 3 for place, name in enumerate(layers)}
    entries = rank_entries(ranks, 2.0)
    assert len(entries["rank_pattern"]) > 200
    content = {"peft_type": "LORA", "target_modules": layers, **entries}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(content))
    refuse_patterns(tmp_path)
    beside = [f"tower.{layers[1]}", layers[1].replace(".", "x", 1)]
    read = read_adapter_config(tmp_path)
    settings = layer_settings(read, [*layers, *beside], tmp_path)
    assert {name: settings[name].rank for name in layers} == ranks
    assert {each.scaling for each in settings.values()} == {2.0}
    assert [settings[name].rank for name in beside] == [entries["r"]] * 2
    keys = [*entries["rank_pattern"]]
    for layer, setting in settings.items():
        key = get_pattern_key(keys, layer)
        assert entries["rank_pattern"].get(key, entries["r"]) == setting.rank


def test_peft_is_given_no_pattern(good: Path, tmp_path: Path, sentence: Sentences) -> None:
    """It would match it without a limit."""
    folder = tmp_path / "bad"
    for entry, value in {
        "rank_pattern": {"(a|a)*b": 4},
        "target_modules": "(a|a)*b",
        "exclude_modules": ["(a|a)*b"],
    }.items():
        shutil.copytree(good, folder, dirs_exist_ok=True)
        config(**{entry: value})(folder)
        with pytest.raises(ModelError) as caught:
            load_adapter(torch.nn.Linear(1, 1), folder)
        sentence(caught.value, entry, names=(entry, "(a|a)*b"))


def test_a_folder_without_an_adapter(
    base: Trainable, tiny_model_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    with pytest.raises(ModelError) as planned:
        imported_run(ImportedConfig(adapter=tmp_path), base, "colours")
    with pytest.raises(ModelError) as audited:
        find_audited(str(tiny_model_folder), tmp_path)
    sentence(planned.value, "run", names=(tmp_path, CONFIG_FILE))
    sentence(audited.value, "audit", names=(tmp_path, CONFIG_FILE))


def test_the_adapter_that_is_broken_here_is_good(
    good: Path, base: Trainable, tiny_model_folder: Path
) -> None:
    run, warnings = imported_run(ImportedConfig(adapter=good), base, "colours")
    assert (run.rank, run.alpha, warnings) == (4, 8, ())
    assert find_audited(str(tiny_model_folder), good).warnings == ()
