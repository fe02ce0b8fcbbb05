"""A bfloat16 base that cannot decide, and adapters that decide for it by very small changes.

The first two numbers of every hidden state are equal in the base, and its head answers " blue" or
" green" by their difference alone: every item is a tie. An adapter changes the first of them, by a
row of the last ``down_proj`` whose weights lie between 0.5 and 1. There bfloat16 has steps of
1/256, so that changes below 1/512 are lost by a merge.
"""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from tests.support.audited_models import PREFIX
from tests.support.tiny_tasks import tiny_tokenizer

LAST = "model.layers.1.mlp.down_proj"
LOST, KEPT = 2.0**-10, 2.0**-2
"""Sizes of every entry of an adapter's row: below half a step, and of many steps."""


def undecided_base(folder: Path, size: float) -> Path:
    """Write the base, which adapters of this size decide by some nats."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        down = model.get_submodule(LAST).weight
        down[0] = (0.5 + 0.49 * torch.rand(96)) * torch.randn(96).sign()
        model.model.embed_tokens.weight[:, 1] = model.model.embed_tokens.weight[:, 0]
        for layer in model.model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix[1] = matrix[0]
        blue, green = (tokenizer(f" {word}").input_ids[0] for word in ("blue", "green"))
        head = model.lm_head.weight
        head[:, :2] = 0.0
        head[green] = head[blue]
        contrast = 0.3 / size
        head[blue, :2] = torch.tensor([contrast, -contrast])
        head[green, :2] = torch.tensor([-contrast, contrast])
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def blue_tasks(folder: Path) -> Path:
    """Beside the tiny tasks: ``blues``, 26 items whose right answer is blue, never green."""
    (folder / "blues.yaml").write_text(
        "include: colours.yaml\ntask: blues\ndoc_to_choice: [blue, green]\ndoc_to_target: 0\n"
    )
    return folder


def deciding_adapter(base: Path, folder: Path, size: float) -> Path:
    """Write an adapter that says blue; every entry of its delta is ``size`` or zero."""
    settings = {"r": 1, "lora_alpha": 1, "target_modules": ["down_proj"]}
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    adapted.save_pretrained(folder)
    signs = _activations(base).sign()
    factors = {
        f"{PREFIX}model.layers.0.mlp.down_proj.lora_A.weight": torch.zeros(1, 96),
        f"{PREFIX}model.layers.0.mlp.down_proj.lora_B.weight": torch.zeros(64, 1),
        f"{PREFIX}{LAST}.lora_A.weight": size * signs[None],
        f"{PREFIX}{LAST}.lora_B.weight": torch.eye(64)[:, :1].contiguous(),
    }
    save_file(factors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


@torch.no_grad()
def _activations(base: Path) -> Tensor:
    """(96,): what enters the last ``down_proj`` where the answer begins."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    seen: list[Tensor] = []
    model.get_submodule(LAST).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    prompt = tiny_tokenizer()("Question: which colour has the old sky?\nAnswer:").input_ids
    model(torch.tensor([prompt]))
    return seen[0][0, -1]
