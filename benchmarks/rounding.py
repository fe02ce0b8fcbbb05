"""How far number formats move a base's log-probabilities: float16, bfloat16, and FP8 weights.

    python -m benchmarks.rounding [MODEL ...]

MODEL is a hub name, a folder, or ``gemma`` (``benchmarks.gemma``); without one, the embedded model
and Gemma. A line of JSON for each: the mean of the absolute differences from float32 over the
tokens of three short texts, in nats, null where a log-probability is not finite; and the largest
output of any module in bfloat16, beside which float16 ends at 65,504. FP8 rounds the weights of all
linear layers below the head to float8_e4m3fn, with a scale for each row, and computes in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gemma import gemma_folder
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.start import fetch_weights
from rankwise.records.config.study import BaseModelConfig

TEXTS = (
    "Mary is Paul's mother. Paul is Jane's brother. Who is Mary to Jane?\nAnswer: mother",
    "The capital of France is Paris, and it has been so for centuries.",
    "Question: Which gas do plants take up?\nAnswer: carbon dioxide",
)


def log_probabilities(model: Any, tokenizer: Any) -> Tensor:
    """Of every token of the texts but the first ones."""
    found: list[Tensor] = []
    with torch.inference_mode():
        for text in TEXTS:
            tokens = tokenizer(text, return_tensors="pt").input_ids
            shares = model(tokens).logits[0, :-1].float().log_softmax(-1)  # (places, vocabulary)
            found.append(shares.gather(-1, tokens[0, 1:, None])[:, 0])
    return torch.cat(found)


@torch.no_grad()
def round_to_fp8(model: nn.Module) -> None:
    """The weights of linear layers, but for the head's."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            scale = module.weight.abs().amax(dim=1, keepdim=True) / largest
            module.weight.copy_((module.weight / scale).to(torch.float8_e4m3fn).float() * scale)


def measured(folder: Path) -> dict[str, float | None]:
    """The distances of one model."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def loaded(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    whole = loaded(torch.float32)
    exact = log_probabilities(whole, tokenizer)
    outputs: list[float] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            outputs.append(float(first.abs().max()))

    models = {"float16": loaded(torch.float16), "bfloat16": loaded(torch.bfloat16)}
    for module in models["bfloat16"].modules():
        module.register_forward_hook(keep)
    round_to_fp8(whole)
    found: dict[str, float | None] = {}
    for name, model in (models | {"fp8": whole}).items():
        apart = float((log_probabilities(model, tokenizer) - exact).abs().mean())
        found[name] = apart if apart == apart else None
    return found | {"largest_output": max(outputs)}


def main() -> None:
    """See the module."""
    for name in sys.argv[1:] or ["smollm2-135m-instruct", "gemma"]:
        base = str(gemma_folder()) if name == "gemma" else name
        folder = fetch_weights(find_base_model(BaseModelConfig(name=base)))
        print(json.dumps({"model": name, **measured(folder)}), flush=True)


if __name__ == "__main__":
    main()
