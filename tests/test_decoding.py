"""Continuous batching: the texts that lm-eval's own back end writes, whoever is decoded beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from test_packed_attention import OWN, tiny
from transformers import AutoTokenizer

from rankwise.decoding import Decoder, DecodeWork
from rankwise.frozen_adapters import FrozenAdapter, ScaledFactors, carrying
from rankwise.models import adaptable_shapes
from rankwise.resident_scorer import ResidentScorer
from rankwise.scoring import Generation, GenerationSettings, Prompt

TEXTS = (
    "Question: which colour has the sky?\nAnswer:",
    "Question: which colour",
    "grass",
    "Question: which colour has the old milk?\nAnswer: white\n\nQuestion: which colour has the",
    "def load(**_):\n    return DatasetDict(",
    "a",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


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
    """Of lm-eval's Hugging Face back end."""
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


# the peer's padding changes what GptOss writes
BATCHES = [(family, size) for family in OWN for size in (1, 4) if (family, size) != ("GptOss", 4)]


@pytest.mark.parametrize(("family", "batch_size"), BATCHES)
def test_every_family_writes_what_the_peer_writes(
    family: str, batch_size: int, tokenizer: Any
) -> None:
    model = model_of(family, tokenizer)
    settings = {"until": ["e", "\n"], "max_gen_toks": 24, "do_sample": False}
    expected = peer_texts(model, tokenizer, TEXTS, batch_size, **settings)
    prompts = prompts_of(tokenizer, TEXTS, 24, ["e", "\n"], do_sample=False)
    [found] = decoded(model, tokenizer, prompts, max_rows=3)
    assert texts_of(found) == expected
    assert len(set(expected)) > 3


def test_adapters_are_decoded_together_as_each_alone(tokenizer: Any) -> None:
    model = model_of("Llama", tokenizer)
    adapters = [None, *(random_adapter(model, seed, rank) for seed, rank in ((1, 2), (2, 5)))]
    adapters.append(random_adapter(model, 3, 4, targets=["v_proj", "down_proj"]))
    prompts = prompts_of(tokenizer, TEXTS, 20)
    together = decoded(model, tokenizer, prompts, adapters)
    assert together == [decoded(model, tokenizer, prompts, [each])[0] for each in adapters]
    assert len({tuple(texts_of(found)) for found in together}) == len(adapters)
    assert decoded(model, tokenizer, prompts[::-1], adapters[:2])[1] == together[1][::-1]


def test_an_adapter_writes_what_the_peer_writes_with_it(
    tokenizer: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_model_folder)

    folders: list[Path] = []
    for rank in (2, 7):
        config = peft.LoraConfig(r=rank, lora_alpha=11, target_modules="all-linear")
        with torch.random.fork_rng():
            torch.manual_seed(rank)
            adapted = peft.get_peft_model(base(), config)
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        folders.append(tmp_path / str(rank))
        adapted.save_pretrained(folders[-1])
    scorer = ResidentScorer(base().eval(), tokenizer, max_batch_tokens=64)
    for folder in folders:
        scorer.put_on(folder.name, folder)
    prompts = prompts_of(tokenizer, TEXTS, 16, ["e"], do_sample=False)
    found = scorer.generate([None, *(folder.name for folder in folders)], prompts)
    settings = {"until": ["e"], "max_gen_toks": 16, "do_sample": False}
    for folder, generations in zip((None, *folders), found, strict=True):
        model = base() if folder is None else peft.PeftModel.from_pretrained(base(), folder)
        assert texts_of(generations) == peer_texts(model, tokenizer, TEXTS, 4, **settings)
    assert len({tuple(texts_of(generations)) for generations in found}) == 3


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss"])
def test_shared_prefixes_are_read_once_and_change_no_text(family: str, tokenizer: Any) -> None:
    model = model_of(family, tokenizer, max_position_embeddings=512)
    adapters = [None, random_adapter(model, 5, 3, targets=["q_proj", "v_proj"])]
    preamble, middle = "Question: 1 plus 2?\nAnswer: 3\n\n" * 9, "which colour has the sea? " * 5
    texts = [preamble + middle + "a", preamble + middle + "blue", preamble + "def", preamble, "I"]
    prompts = prompts_of(tokenizer, [*texts, texts[1]], 12)
    works: list[DecodeWork] = []
    found = decoded(model, tokenizer, prompts, adapters, lambda d: works.append(d.work))
    for generations, adapter in zip(found, adapters, strict=True):
        for prompt, generation in zip(prompts, generations, strict=True):
            assert decoded(model, tokenizer, [prompt], [adapter]) == [[generation]]
    assert works[0].tokens_read <= 1.1 * works[0].distinct_tokens
    assert works[0].distinct_tokens < 0.6 * 2 * sum(len(prompt.tokens) for prompt in prompts)


def test_rows_cross_blocks_and_take_each_others_place(tokenizer: Any) -> None:
    model = model_of("Qwen3", tokenizer)
    long = prompts_of(tokenizer, [TEXTS[0] * 3, TEXTS[2]], 150)
    short = [p._replace(settings=GenerationSettings(n)) for n, p in enumerate(long * 4, start=1)]
    prompts = [*short, *long]
    alone = [decoded(model, tokenizer, [prompt])[0][0] for prompt in prompts]
    limits = [{"max_rows": 3}, {"cache_bytes": 1}, {"max_read_tokens": 7}, {"cache_bytes": 1 << 20}]
    for limit in limits:
        assert decoded(model, tokenizer, prompts, **limit) == [alone]


def test_a_place_is_taken_in_the_next_step(tokenizer: Any) -> None:
    model = model_of("Llama", tokenizer)
    model.generation_config.eos_token_id = None
    lengths = [3, 9, 4, 30, 2, 11, 5, 8, 17, 6]
    prompts = [Prompt((5 + n, 7, 9), GenerationSettings(n)) for n in lengths]
    works: list[DecodeWork] = []
    decoded(model, tokenizer, prompts, look=lambda d: works.append(d.work), max_rows=4)
    assert works[0].rows == sum(lengths)
    assert works[0].occupancy == 1.0
    longest = [sum(lengths) / 4, max(lengths)]
    assert works[0].steps < sum(longest)
