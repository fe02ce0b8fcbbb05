"""Texts of tiny random models: as the decoder writes them, and as lm-eval's own back end does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.engine.models.frozen_adapters import FrozenAdapter, carrying
from rankwise.engine.models.structure import adaptable_shapes
from rankwise.engine.scoring.decode.decoder import Decoder
from rankwise.tasks.questions import Generation, GenerationSettings, Prompt
from tests.support.tiny_models import tiny

TEXTS = (
    "Question: which colour has the sky?\nAnswer:",
    "Question: which colour",
    "grass",
    "Question: which colour has the old milk?\nAnswer: white\n\nQuestion: which colour has the",
    "def load(**_):\n    return DatasetDict(",
    "a",
)


def model_of(family: str, tokenizer: Any, **changes: Any) -> Any:
    model = tiny(
        family, **{"vocab_size": len(tokenizer), "max_position_embeddings": 256, **changes}
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def peer_texts(
    model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int, **settings: Any
) -> list[str]:
    """The texts of lm-eval's Hugging Face back end."""
    peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=256)
    requests = [
        Instance("generate_until", {}, (text, dict(settings)), index)
        for index, text in enumerate(texts)
    ]
    return peer.generate_until(requests, disable_tqdm=True)


def prompts_of(
    tokenizer: Any,
    texts: Sequence[str],
    max_new_tokens: int,
    stops: Sequence[str] = (),
    **options: Any,
) -> list[Prompt]:
    settings = GenerationSettings(
        max_new_tokens, (*stops, tokenizer.eos_token), tuple(sorted(options.items()))
    )
    return [Prompt(tuple(tokenizer(text).input_ids), settings) for text in texts]


def random_adapter(model: Any, seed: int, rank: int, targets: Sequence[str] = ()) -> FrozenAdapter:
    """On every linear layer, with an update that changes what is written."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator) / size[1] ** 0.5

    shapes = adaptable_shapes(model)
    layers = {
        name: ScaledFactors(drawn(rank, shape.in_features), drawn(shape.out_features, rank), 0.7)
        for name, shape in shapes.items()
        if not targets or name.endswith(tuple(targets))
    }
    return FrozenAdapter(layers, is_zero_update=False)


def decoded(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    adapters: Sequence[FrozenAdapter | None] = (None,),
    look: Callable[[Decoder], None] = lambda _: None,
    **limits: Any,
) -> list[list[Generation]]:
    with carrying(model, [adapter for adapter in adapters if adapter is not None]) as bank:
        decoder = Decoder(model, tokenizer, bank, **{"cache_bytes": 1 << 30, **limits})
        found = decoder.generate(adapters, prompts)
        look(decoder)
    return found


def texts_of(generations: Sequence[Generation]) -> list[str]:
    return [generation.text for generation in generations]
