"""Texts end where lm-eval's own back end ends them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from transformers import AutoTokenizer

from rankwise.engine.scoring.decode.samplers import StopStrings
from rankwise.tasks.questions import Generation
from tests.support.decoded import TEXTS, decoded, model_of, peer_texts, prompts_of


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


class Written:
    """A text that comes token by token."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, StopStrings(tokenizer, stops)

    def until_stopped(self, tokens: Sequence[int]) -> int:
        lengths = range(1, len(tokens) + 1)
        return next((n for n in lengths if self.stops.are_in(tokens[:n])), 0)

    def until_the_peer_stops(self, tokens: Sequence[int], stops: Sequence[str]) -> int:
        criteria = stop_sequences_criteria(self.tokenizer, list(stops), 0, 1)
        lengths = range(1, len(tokens) + 1)
        return next((n for n in lengths if criteria(torch.tensor([tokens[:n]]), None).all()), 0)


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("The answer is 3.\n\nQuestion: what", ["\n\n", "Question:"], "The answer is 3."),
        ("one Ques two Question: three", ["Question:"], "one Ques two "),
        ("abcabd", ["abd", "bc"], "a"),
        ("Answer: blue", ["Answer"], ""),
        ("caf\u00e9 \u2603 end", ["\u2603"], "caf\u00e9 "),
        ("nothing of that kind", ["zz", ""], "nothing of that kind"),
        ("a <|im_end|> b", ["<|im_end|>"], "a "),
        ("a  b   c", ["   "], "a  b"),
    ],
)
def test_stop_strings_end_a_text_where_the_peer_ends_it(
    text: str, stops: list[str], kept: str, tokenizer: Any
) -> None:
    written = Written(tokenizer, stops)
    bytewise = [token for char in text for token in tokenizer(char).input_ids]
    for tokens in (tokenizer(text).input_ids, bytewise):
        stopped = written.until_stopped(tokens)
        real = [stop for stop in stops if stop]
        assert stopped == written.until_the_peer_stops(tokens, real)
        assert written.stops.kept(text) == kept
    assert postprocess_generated_text(text, stops, None) == kept


def test_few_tokens_are_decoded_to_look_for_stops(tokenizer: Any) -> None:
    looked: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def decode(self, tokens: Sequence[int]) -> str:
            looked.append(len(tokens))
            return tokenizer.decode(tokens)

    stops, tokens = StopStrings(Watched(), ["Q:"]), tokenizer("Answer: blue green " * 40).input_ids
    for end in range(1, len(tokens) + 1):
        assert not stops.are_in(tokens[:end])
    assert sum(looked) < len(tokens)


@pytest.mark.parametrize("as_list", [False, True])
def test_end_tokens_and_the_longest_length_end_a_text(as_list: bool, tokenizer: Any) -> None:
    model = model_of("Llama", tokenizer)
    model.generation_config.eos_token_id = None
    [prompt] = prompts_of(tokenizer, TEXTS[:1], 12)
    [[whole]] = decoded(model, tokenizer, [prompt])
    written = model.generate(torch.tensor([prompt.tokens]), max_new_tokens=12, do_sample=False)
    tokens = written[0, len(prompt.tokens) :].tolist()
    assert whole == Generation(tokenizer.decode(tokens, skip_special_tokens=True), False)
    ending = tokens[4]
    model.generation_config.eos_token_id = [399, ending] if as_list else ending
    [[ended]] = decoded(model, tokenizer, [prompt])
    assert ended.is_finished
    assert ended.text == peer_texts(model, tokenizer, TEXTS[:1], 1, max_gen_toks=12)[0]
    assert ended.text == tokenizer.decode(tokens[: tokens.index(ending) + 1])
