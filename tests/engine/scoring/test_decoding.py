"""Continuous batching: the texts of lm-eval's own back end, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.frozen_adapters import FrozenAdapter, FrozenBank
from rankwise.engine.scoring.decode import rows
from rankwise.engine.scoring.decode.attention import attend_decoded
from rankwise.engine.scoring.decode.decoder import Decoder, ScoringWork
from rankwise.engine.scoring.decode.rows import shared_prefixes
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import ModelError
from rankwise.tasks.questions import GenerationSettings, Prompt
from tests.support.decoded import (
    TEXTS,
    decoded,
    model_of,
    peer_texts,
    prompts_of,
    random_adapter,
    texts_of,
)
from tests.support.tiny_models import OWN


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


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
        scorer.put_on(folder.name, AdapterFolder(folder))
    prompts = prompts_of(tokenizer, TEXTS, 16, ["e"], do_sample=False)
    found = scorer.generate([None, *(folder.name for folder in folders)], prompts)
    settings = {"until": ["e"], "max_gen_toks": 16, "do_sample": False}
    for folder, generations in zip((None, *folders), found, strict=True):
        model = base() if folder is None else peft.PeftModel.from_pretrained(base(), folder)
        assert texts_of(generations) == peer_texts(model, tokenizer, TEXTS, 4, **settings)
    assert len({tuple(texts_of(generations)) for generations in found}) == 3


@pytest.mark.parametrize("least_keys", [0, 800, 10**9])
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss"])
def test_shared_prefixes_are_read_once_and_change_no_text(
    family: str, least_keys: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attended to where they lie, copied into the rows' blocks, or some of both."""
    monkeypatch.setitem(rows._LEAST_KEYS, "cpu", least_keys)
    model = model_of(family, tokenizer, max_position_embeddings=512)
    adapters = [None, random_adapter(model, 5, 3, targets=["q_proj", "v_proj"])]
    preamble, middle = "Question: 1 plus 2?\nAnswer: 3\n\n" * 9, "which colour has the sea? " * 5
    texts = [preamble + middle + "a", preamble + middle + "blue", preamble + "def", preamble, "I"]
    prompts = prompts_of(tokenizer, [*texts, texts[1]], 12)
    works: list[ScoringWork] = []
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
    works: list[ScoringWork] = []
    decoded(model, tokenizer, prompts, look=lambda d: works.append(d.work), max_rows=4)
    assert works[0].rows == sum(lengths)
    assert works[0].occupancy == 1.0
    longest = [sum(lengths) / 4, max(lengths)]
    assert works[0].steps < sum(longest)


def test_a_broken_adapter_breaks_no_other_row(tokenizer: Any) -> None:
    model = model_of("Llama", tokenizer)
    good = random_adapter(model, 1, 3)
    layers = {
        name: factors._replace(lora_B=torch.full_like(factors.lora_B, torch.nan))
        for name, factors in random_adapter(model, 2, 4).layers.items()
    }
    broken = FrozenAdapter(layers, is_zero_update=False)
    prompts = prompts_of(tokenizer, TEXTS, 90)
    expected = decoded(model, tokenizer, prompts, [good, None])
    # its blocks are taken over by others
    found = decoded(model, tokenizer, prompts, [broken, good, None], max_rows=4)
    assert found[1:] == expected


def test_progress_is_told_of_every_prompt_and_model(tokenizer: Any) -> None:
    model = model_of("Llama", tokenizer)
    prompts = prompts_of(tokenizer, [*TEXTS, TEXTS[0]], 5)
    told: list[int] = []
    decoder = Decoder(model, tokenizer, FrozenBank(), cache_bytes=1 << 30)
    decoder.generate([None, None], prompts, told.append)
    assert sum(told) == 2 * sum(len(prompt.tokens) + 5 for prompt in prompts)


def test_attention_refuses_what_it_does_not_know() -> None:
    query = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ModelError, match="head_mask"):
        attend_decoded(torch.nn.Identity(), query, query, query, None, head_mask=query)
    with pytest.raises(ModelError, match="no decode_layout"):
        attend_decoded(torch.nn.Identity(), query, query, query, None)


def test_prefixes_are_shared_as_far_as_several_prompts_go() -> None:
    common, more = tuple(range(40)), tuple(range(100, 150))
    prompts = sorted([(*common, 7), common + more + (1,), common + more + (2,), (9, 9), common])
    chains = shared_prefixes(prompts)
    parts = [[prefix.tokens for prefix in chain] for chain in chains]
    expected = {common: 1, (*common, 7): 1, (9, 9): 0}
    for prompt, chain in zip(prompts, parts, strict=True):
        assert len(chain) == expected.get(prompt, 2)
        assert prompt[: sum(map(len, chain))] == tuple(token for part in chain for token in part)
        assert sum(map(len, chain)) < len(prompt)
    assert shared_prefixes([(*common, 1)] * 3)[0][0].tokens == common
