"""Base models and checkpoints that are broken or hostile: a sentence that calls them what they are.

Whatever is wrong is said by the first that meets it: finding the model, its config, or its weights.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.files import check_stored
from rankwise.engine.models.loading import load_frozen, load_model, load_tokenizer
from rankwise.engine.models.packed_attention import check_packable
from rankwise.engine.models.structure import model_skeleton
from rankwise.errors import ModelError
from rankwise.records.config.study import BaseModelConfig
from rankwise.weights.audit import check_weights, find_audited
from tests.support.sentences import Sentences

Damage = Callable[[Path], Any]
CPU, WEIGHTS = torch.device("cpu"), "model.safetensors"
BIAS = "model.layers.0.self_attn.q_proj.bias"
EMBEDDINGS, DOWN = "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"


class Bad(NamedTuple):
    """One way to break a model, and what the error names."""

    name: str
    damage: Damage
    names: tuple[str, ...]


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def scaled(factor: float) -> Damage:
    return tensors(lambda weights: weights.update({n: w * factor for n, w in weights.items()}))


def one_number(name: str, value: float) -> Damage:
    return tensors(lambda weights: weights[name].view(-1)[-1:].fill_(value))


def config(**entries: Any) -> Damage:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def content(name: str, text: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(text)


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-7])


def index(shards: dict[str, str]) -> Damage:
    """The weights in shards that an index names."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-1.safetensors")
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": shards}))

    return change


def sized(name: str, mebibytes: int) -> Damage:
    """A file that is as long as that, and takes no room on the disk."""

    def change(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.truncate(mebibytes << 20)

    return change


LIBRARY = (
    r"(?:(?<=be read: )|(?<=config: )|(?<=model: ))"
    r"(?!/|config.json|\w+ is ).*?(?=\. (?:Save|Check))"
)
"""What Python, safetensors and transformers say, in words of their version."""

BAD = [
    Bad("NaN", one_number(DOWN, torch.nan), (DOWN,)),
    Bad("infinity", one_number(DOWN, torch.inf), (DOWN,)),
    Bad("NaN in a norm", one_number("model.norm.weight", torch.nan), ("model.norm.weight",)),
    Bad("all zero", scaled(0.0), (EMBEDDINGS,)),
    Bad("too large", tensors(lambda w: w["model.norm.weight"].fill_(3e38)), ()),
    Bad(
        "float8",
        tensors(lambda w: w.update({DOWN: w[DOWN].to(torch.float8_e4m3fn)})),
        (DOWN, "F8_E4M3", "F64", "F32", "BF16", "F16"),
    ),
    Bad(
        "whole numbers",
        tensors(lambda w: w.update({DOWN: w[DOWN].to(torch.int8)})),
        (DOWN, "I8", "F64", "F32", "BF16", "F16"),
    ),
    Bad("a matrix missing", tensors(lambda w: w.pop(DOWN)), (DOWN,)),
    Bad(
        "a matrix of another shape", tensors(lambda w: w.update({DOWN: w[DOWN][:9]})), ("48", "96")
    ),
    Bad("a head of 1e9", config(head_dim=10**9), ("head_dim", "1000000000", "config.json")),
    Bad("wide", config(intermediate_size=10**12), ("intermediate_size", "10000", "config.json")),
    Bad("heads", config(num_key_value_heads=10**9), ("num_key_value_heads", "config.json")),
    Bad(
        "rotated by 1e9",
        config(rope_parameters={"partial_rotary_factor": 1e9}),
        ("partial_rotary_factor", "1000000000.0", "config.json"),
    ),
    Bad("a large template", sized("chat_template.jinja", 5), ("config.json",)),
    Bad("a large tokenizer", sized("tokenizer.json", 3000), ("128", "config.json")),
    Bad("weights cut", cut, (WEIGHTS,)),
    Bad("weights empty", content(WEIGHTS, b""), (WEIGHTS,)),
    Bad("weights no header", content(WEIGHTS, b"x" * 99), (WEIGHTS,)),
    Bad("a header of 2^63", content(WEIGHTS, struct.pack("<Q", 2**63 - 1)), (WEIGHTS,)),
    Bad("weights missing", instead(WEIGHTS, lambda _: None), ("config.json",)),
    Bad("weights a folder", instead(WEIGHTS, Path.mkdir), ("config.json",)),
    Bad("weights a pipe", instead(WEIGHTS, os.mkfifo), ("config.json",)),
    Bad("a shard missing", index({DOWN: "model-2.safetensors"}), ("model-2.safetensors",)),
    Bad("a shard elsewhere", index({DOWN: "../other.safetensors"}), ("../other.safetensors",)),
    Bad("an index of no shards", index({}), ()),
    Bad(
        "an adapter beside",
        content("adapter_config.json", b'{"base_model_name_or_path": "mine"}'),
        ("adapter_config.json",),
    ),
    Bad(
        "fewer layers than the file",
        config(num_hidden_layers=1),
        ("model.layers.1.input_layernorm.weight", "config.json"),
    ),
    Bad(
        "of another kind",  # as Qwen2's read by a config of Llama
        tensors(lambda w: w.update({BIAS: torch.zeros(48)})),
        (BIAS, "config.json"),
    ),
    Bad("config missing", instead("config.json", lambda _: None), ("config.json",)),
    Bad("config a folder", instead("config.json", Path.mkdir), ("config.json",)),
    Bad("config a pipe", instead("config.json", os.mkfifo), ("config.json",)),
    Bad("config empty", content("config.json", b""), ("config.json",)),
    Bad("config a list", content("config.json", b"[1]"), ("config.json", "JSON")),
    Bad("config cut", content("config.json", b'{"model_type": "lla'), ("config.json",)),
    Bad("config nested", content("config.json", b"[" * 10**5), ("config.json",)),
    Bad(
        "config of digits", content("config.json", b'{"a": ' + b"9" * 5000 + b"}"), ("config.json",)
    ),
    Bad("config no UTF-8", content("config.json", b'{"a": "\xff"}'), ("config.json",)),
    Bad("config huge", content("config.json", b" " * (17 << 20)), ("16", "config.json")),
    Bad("unknown kind", config(model_type="nothing"), ("config.json",)),
    Bad("kind a number", config(model_type=3), ("config.json",)),
    Bad("kind a list", config(model_type=[]), ("config.json",)),
    Bad("no text model", config(model_type="vit"), ()),
    Bad("layers -1", config(num_hidden_layers=-1), ("num_hidden_layers", "-1", "config.json")),
    Bad(
        "layers 10^9",
        config(num_hidden_layers=10**9),
        ("num_hidden_layers", "1000000000", "config.json"),
    ),
    Bad("layers in words", config(num_hidden_layers="two"), ("config.json",)),
    Bad("width 0", config(hidden_size=0), ("hidden_size", "config.json")),
    Bad("width 10^12", config(hidden_size=10**12), ("hidden_size", "1000000000000", "config.json")),
    Bad(
        "vocabulary 10^12",
        config(vocab_size=10**12),
        ("vocab_size", "1000000000000", "config.json"),
    ),
    Bad("heads 0", config(num_attention_heads=0), ()),
    Bad("heads a list", config(num_attention_heads=[1]), ()),
    Bad("activation unknown", config(hidden_act="none"), ()),
    Bad("dtype unknown", config(dtype="float7"), ()),
    Bad("its own code", config(auto_map={"AutoConfig": "x.Y"}, model_type="mine"), ()),
]


def use(folder: Path) -> None:
    """What a study does with its base, in that order."""
    find_base_model(BaseModelConfig(name=str(folder)))
    model_skeleton(folder)
    check_packable(load_frozen(folder, "float32", CPU))


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_base_of_no_use_is_refused(
    bad: Bad, tiny_model_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(tiny_model_folder, folder)
    bad.damage(folder)
    with pytest.raises(ModelError) as caught:
        use(folder)
    sentence(caught.value, names=bad.names, LIBRARY=LIBRARY)


HEADERS = (
    "NaN in a norm", "float8", "whole numbers", "a matrix missing", "a matrix of another shape",
    "weights cut", "weights empty", "weights no header", "a header of 2^63", "a shard missing",
    "a shard elsewhere", "fewer layers than the file", "of another kind",
)  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_most_is_said_when_a_study_is_planned(
    name: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """By the headers, before any weights are loaded."""
    folder = tmp_path / "bad"
    shutil.copytree(tiny_model_folder, folder)
    (bad,) = (bad for bad in BAD if bad.name == name)
    bad.damage(folder)
    with pytest.raises(ModelError) as caught:
        check_stored(folder, model_skeleton(folder))
    assert all(name in str(caught.value) for name in bad.names)


TOKENIZERS: dict[str, tuple[str, Any]] = {
    "no vocabulary": ("tokenizer.json", None),
    **{
        f"a length of {given!r}": ("tokenizer_config.json", {"model_max_length": given})
        for given in ("big", 0, -1, [1])
    },
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_of_no_use_is_refused(
    tiny_model_folder: Path, tmp_path: Path, kind: str, sentence: Sentences
) -> None:
    name, entries = TOKENIZERS[kind]
    folder = tmp_path / "bad"
    shutil.copytree(tiny_model_folder, folder)
    content = json.loads((folder / name).read_text())
    content |= entries or {"model": content["model"] | {"vocab": {}, "merges": []}}
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder)
    named = [f"{key} is {value!r}" for key, value in (entries or {}).items()]
    sentence(caught.value, names=(folder, *named))


@pytest.mark.parametrize(
    ("quantised", "library"),
    [
        ({"quant_method": "gptq", "bits": 4}, "optimum"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_a_library_that_is_missing_is_named(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    quantised: dict[str, Any], library: str, sentence: Sentences
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, library, None)
    folder = tmp_path / "quantised"
    shutil.copytree(tiny_model_folder, folder)
    config(quantization_config=quantised)(folder)
    with pytest.raises(ModelError) as caught:
        load_model(folder, torch.float32)
    assert library in str(caught.value)
    sentence(caught.value)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_checkpoint_of_no_use_is_refused(
    bad: Bad, tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(tiny_model_folder, folder)
    bad.damage(folder)
    if bad.name in ("all zero", "too large"):
        pytest.skip("its weights can be audited")
    with pytest.raises(ModelError, match=f"^{folder}.*[.]$"):
        check_weights(find_audited(str(tiny_model_folder), folder))
