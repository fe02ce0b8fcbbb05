"""Tokens are chosen as transformers chooses them, each row by itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from rankwise.engine.scoring.decode.samplers import first_largest
from rankwise.errors import ModelError
from tests.support.decoded import (
    TEXTS,
    decoded,
    model_of,
    peer_texts,
    prompts_of,
    random_adapter,
    texts_of,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


PROCESSORS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.7},
    "ngrams": {"no_repeat_ngram_size": 2},
    "least": {"min_new_tokens": 9, "eos_token_id": list(range(100, 250))},
    "several": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 5},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_models_own_generation_config_is_honoured(name: str, tokenizer: Any) -> None:
    model = model_of("Llama", tokenizer, initializer_range=0.05)
    prompts = prompts_of(tokenizer, TEXTS, 16, do_sample=False)
    plain = texts_of(decoded(model, tokenizer, prompts)[0])
    model.generation_config.update(**PROCESSORS[name])
    found = texts_of(decoded(model, tokenizer, prompts, max_rows=4)[0])
    assert found == peer_texts(model, tokenizer, TEXTS, 1, max_gen_toks=16, do_sample=False)
    assert found != plain


def test_sampling_among_one_is_greedy(tokenizer: Any) -> None:
    model = model_of("Llama", tokenizer)
    greedy = decoded(model, tokenizer, prompts_of(tokenizer, TEXTS, 16, do_sample=False))
    options = {"do_sample": True, "temperature": 1.3, "top_k": 1}
    assert decoded(model, tokenizer, prompts_of(tokenizer, TEXTS, 16, **options)) == greedy


def test_a_sampled_text_depends_on_its_draw_and_on_nobody_else(tokenizer: Any) -> None:
    model = model_of("Llama", tokenizer, initializer_range=0.1)
    adapter = random_adapter(model, 1, 3)
    options = {"do_sample": True, "temperature": 0.9, "top_p": 0.9}
    single = prompts_of(tokenizer, TEXTS, 12, **options)
    drawn = [prompt._replace(draw=draw) for prompt in single for draw in range(3)]
    [base, adapted] = decoded(model, tokenizer, drawn, [None, adapter], max_rows=5)
    assert base[4:5] == decoded(model, tokenizer, drawn[4:5])[0]
    assert adapted[7:9] == decoded(model, tokenizer, drawn[7:9][::-1], [adapter])[0][::-1]
    assert len(set(texts_of(base))) > 12


@pytest.mark.parametrize(
    "options", [{"temperature": 0.7, "top_k": 8}, {"top_p": 0.6}, {"min_p": 0.08, "top_k": 0}]
)
def test_sampling_draws_from_the_distribution_of_transformers(
    options: dict[str, Any], tokenizer: Any
) -> None:
    model = model_of("Llama", tokenizer, initializer_range=0.1)
    [prompt] = prompts_of(tokenizer, TEXTS[:1], 1, do_sample=True, **options)
    found = decoded(
        model, tokenizer, [prompt._replace(draw=draw) for draw in range(1500)], max_rows=500
    )
    written = Counter(texts_of(found[0]))
    peer = model.generate(
        torch.tensor([prompt.tokens]),
        do_sample=True,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    shares = Counter[str]()
    for token, share in enumerate(peer.scores[0][0].softmax(-1).tolist()):
        shares[tokenizer.decode([token], skip_special_tokens=True)] += share
    possible = {text for text, share in shares.items() if share > 0}
    assert set(written) <= possible
    assert len(possible) < len(tokenizer)
    distance = sum(abs(written[text] / 1500 - shares[text]) for text in possible) / 2
    assert distance < 0.5 * (len(possible) / 1500) ** 0.5 + 0.02


@torch.no_grad()
def test_later_tokens_are_drawn_behind_the_drawn_ones(tokenizer: Any) -> None:
    model = model_of("Llama", tokenizer, initializer_range=0.1)
    [prompt] = prompts_of(tokenizer, TEXTS[:1], 3, do_sample=True, top_k=3)
    found = decoded(
        model, tokenizer, [prompt._replace(draw=draw) for draw in range(1500)], max_rows=500
    )
    written = Counter(texts_of(found[0]))
    shares = {(): 1.0}  # of the tokens of a text: all three that are likeliest behind each
    for _ in range(3):
        longer: dict[tuple[int, ...], float] = {}
        for tokens, share in shares.items():
            top = model(torch.tensor([[*prompt.tokens, *tokens]])).logits[0, -1].topk(3)
            for token, behind in zip(top.indices.tolist(), top.values.softmax(-1), strict=True):
                longer[*tokens, token] = share * float(behind)
        shares = longer
    texts: dict[str, float] = {}
    for tokens, share in shares.items():
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        texts[text] = texts.get(text, 0.0) + share
    assert written.keys() <= texts.keys()
    distance = sum(abs(written[text] / 1500 - share) for text, share in texts.items()) / 2
    assert distance < 0.5 * (len(texts) / 1500) ** 0.5 + 0.02


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 3}, "beam"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
    ],
)
def test_what_is_no_plain_decoding_is_refused_by_name(
    options: dict[str, Any], named: str, tokenizer: Any
) -> None:
    model = model_of("Llama", tokenizer)
    with pytest.raises(ModelError, match=named):
        decoded(model, tokenizer, prompts_of(tokenizer, TEXTS, 4, **options))


@pytest.mark.parametrize("columns", [5, 128, 300, 1024])
def test_the_first_largest_is_what_argmax_finds(columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 40, (64, columns), generator=generator).bfloat16()
    assert torch.equal(first_largest(logits), logits.float().argmax(-1))
