"""Kernels that a card would launch, counted without one, and host time for a mask of the tree.

    python -m benchmarks.kernels

Operations on fake CUDA tensors that are no view (``tests.support.fake_cuda``), in a layer of
Llama-3.1-8B's size in bfloat16: a model of three layers less one of two. Five adapters on all
linear layers are trained, 1,600 tokens of each, forward and backward; or continue prompts that
share 200 tokens. The mask is that of a step of 32,768 places in the time of a CPU's core, in which
the flags of blocks are put in order too, what a card does itself. The last line is JSON.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.engine.models import packed_kernels
from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.engine.models.frozen_adapters import FrozenAdapter, carrying
from rankwise.engine.models.packed_attention import packed_attention, packed_states
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.engine.models.structure import adaptable_shapes
from rankwise.engine.models.trained_adapters import Adapter, Piece, adapted
from rankwise.engine.scoring.decode.decoder import Decoder
from rankwise.engine.scoring.tree.layout import TreeLayout
from rankwise.engine.scoring.tree.prefixes import PrefixTree
from rankwise.tasks.questions import GenerationSettings, Prompt
from tests.support.fake_cuda import CUDA, HostWaits, fake_cuda

RANKS = (8, 16, 32, 64, 128)
"""The ranks of the paper's preset."""

SIZES = {"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256}
SHARED_TOKENS, NEW_TOKENS, SEQUENCES, LENGTH = 200, 6, 8, 200
PLACES = 32_768


class Step(NamedTuple):
    """What one step of decoding did: kernels, and copies for which the host waits."""

    kernels: int
    copies: int


@contextlib.contextmanager
def card() -> Generator[HostWaits]:
    """A card with flash attention, whose tensors have no numbers."""
    with mock.patch.object(packed_kernels, "_has_flash", return_value=True), fake_cuda() as waits:
        yield waits


def model_of(num_layers: int) -> Any:
    """A model of so many layers, on the card."""
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "eos_token_id": None}
    config = LlamaConfig(**SIZES, **heads, num_hidden_layers=num_layers)
    with torch.device(CUDA):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def training_kernels(num_layers: int, ranks: Sequence[int]) -> Counter[str]:
    """Of a micro-batch of adapters of these ranks, forward and backward."""
    with card() as waits:
        model = model_of(num_layers)
        settings: dict[str, Any] = {"scaling": 2.0, "dropout": 0.0, "seed": 0, "device": CUDA}
        settings["dtype"] = torch.bfloat16
        shapes = adaptable_shapes(model)
        adapters = [Adapter(shapes, rank=rank, **settings) for rank in ranks]
        tokens = SEQUENCES * LENGTH
        pieces = [Piece(x, n * tokens, (n + 1) * tokens, ()) for n, x in enumerate(adapters)]
        layout = PackedLayout((LENGTH,) * SEQUENCES * len(adapters))
        ids = torch.zeros((1, layout.num_tokens), dtype=torch.int64, device=CUDA)
        with packed_attention(model), adapted(model, list(shapes)) as bank:
            bank.stack(adapters)
            waits.forget()
            with bank.rows_of(pieces):
                packed_states(model.model, ids, layout).sum().backward()
        return Counter(waits.kernels)


def decode_steps(num_layers: int, ranks: Sequence[int]) -> list[Step]:
    """Of the steps in which texts are written under adapters of these ranks."""
    with card() as waits:
        model = model_of(num_layers)

        def drawn(*size: int) -> Tensor:
            return torch.empty(size, dtype=torch.bfloat16, device=CUDA)

        shapes = adaptable_shapes(model).items()
        adapters = [
            FrozenAdapter(
                {n: ScaledFactors(drawn(r, s[0]), drawn(s[1], r), 2.0) for n, s in shapes}, False
            )
            for r in ranks
        ]
        settings = GenerationSettings(NEW_TOKENS, ())
        shared = range(10, 10 + SHARED_TOKENS)
        prompts = [Prompt((*shared, number, 3, 4), settings) for number in range(4)]
        tokenizer = SimpleNamespace(decode=lambda *_, **__: "")
        steps: list[Step] = []
        with carrying(model, adapters) as bank:
            decoder = Decoder(model, tokenizer, bank, cache_bytes=1 << 34, max_read_tokens=1 << 14)
            take: Callable[..., Any] = decoder._step

            def counted(*args: Any) -> Any:
                waits.forget()
                ended = take(*args)
                steps.append(Step(waits.kernels.total(), waits.copies.total()))
                return ended

            with mock.patch.object(decoder, "_step", counted):
                decoder.generate(adapters or [None], prompts)
        return steps


def mask_milliseconds() -> float:
    """The least of five, of places as four answers to questions of 40 tokens behind a preamble."""
    random = np.random.default_rng(0)
    preamble = random.integers(3, 90, 700).tolist()
    texts: list[tuple[int, ...]] = []
    for _ in range(PLACES // 50):
        question = [*preamble, *random.integers(3, 90, 40).tolist()]
        texts += [(*question, *random.integers(3, 90, 5).tolist()) for _ in range(4)]
    tree, seconds = PrefixTree(sorted(texts)), list[float]()
    for _ in range(5):
        layout = TreeLayout(tree, 0, PLACES, torch.device("cpu"))
        began = time.process_time()
        layout.mask(None)
        seconds.append(time.process_time() - began)
    return 1000 * min(seconds)


def main() -> None:
    """Count, measure, and print."""
    trained = {
        ranks: training_kernels(3, ranks).total() - training_kernels(2, ranks).total()
        for ranks in (RANKS, RANKS[:1] * 5)
    }
    steps = [decode_steps(layers, RANKS) for layers in (2, 3)]
    # of the steps that read no prompt
    decoded = steps[1][2].kernels - steps[0][2].kernels
    base = decode_steps(3, ())[2].kernels - decode_steps(2, ())[2].kernels
    found = {
        "decode_kernels_per_layer_5_adapters": decoded,
        "decode_kernels_per_layer_base": base,
        "training_kernels_per_layer_5_adapters": trained[RANKS],
        "training_kernels_per_layer_5_adapters_of_one_rank": trained[RANKS[:1] * 5],
        "blocking_copies_per_decode_step": max(step.copies for step in steps[1]),
        "mask_milliseconds_32k": round(mask_milliseconds(), 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
