"""Tokens that straddle prompt and answer: scored as lm-eval does, and trained as scored."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from benchmarks.parity_regimes import JOINS
from rankwise.errors import DataError, PlanError
from rankwise.records.config.training import TrainConfig
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.tasks.requests import PreparedTask, RequestEncoder, prepare_task
from rankwise.tasks.resolution import LoadedTask
from rankwise.tasks.training_rows import TextEncoder, TrainingRow, tokenise_rows
from rankwise.tasks.user_data import load_user_data
from tests.support.sentences import Sentences
from tests.support.tiny_models import tiny

START, END = "<|im_start|>", "<|im_end|>"
PAIRS = [
    *((prompt, text) for rows in JOINS.values() for prompt in rows for text in rows[prompt]),
    ("x = [", "]"),
    ("cafe", "\u0301 noir"),
    ("\U0001f3f3\ufe0f", "\u200d\U0001f308 flag"),
    ("Answer:\n", "Yes"),
    ("Answer: ", "Yes"),
    ("Answer:", " Yes"),
    ("Answer:", "\n\nYes"),
    ("", "Yes"),
    ("", f"{START}Yes"),
    ("\n", "Yes"),
    (f"{START}user", "s ask"),
]
LINES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen cut texts: line breaks stay with the punctuation before them."""


@pytest.fixture(scope="module", params=["bytes", "lines", "composed", "pieces"])
def tokenizer(request: Any) -> Any:
    return learnt(request.param)


def learnt(kind: str) -> Any:
    """A tokenizer of the kind of GPT-2's, Llama 3's, Qwen's or Llama 2's, learnt from the pairs."""
    of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bytes")
    made = Tokenizer(BPE())
    made.pre_tokenizer, made.decoder = of_bytes, decoders.ByteLevel()
    if kind in ("lines", "composed"):
        lines = pre_tokenizers.Split(Regex(LINES), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([lines, of_bytes])
    if kind == "composed":
        made.normalizer = normalizers.NFC()
    if kind == "pieces":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Metaspace()
    letters = sorted({*string.printable, *"".join(map("".join, PAIRS))})
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", START, END],
        initial_alphabet=letters if kind == "pieces" else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    ends = (f"{prompt[-4:]}{text[:2]}" for prompt, text in PAIRS[:-3])
    made.train_from_iterator(ends, trainer)
    if kind in ("lines", "pieces"):  # of the latter's kind, GLM's begins with two tokens
        begin = [START] if kind == "lines" else ["<|endoftext|>", START]
        made.post_processor = TemplateProcessing(
            single=f"{' '.join(begin)} $A",
            special_tokens=[(token, made.token_to_id(token)) for token in begin],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=START, eos_token=END, pad_token=END
    )


class Listening(HFLM):
    """Hands back the tokens that it would score."""

    def _loglikelihood_tokens(self, requests: Any, *_: Any, **__: Any) -> Any:
        return [(context, scored) for _, context, scored in requests]


def test_what_is_scored_and_trained_is_what_lm_eval_scores(
    tokenizer: Any, sentence: Sentences
) -> None:
    peer = Listening(pretrained=tiny("Llama"), tokenizer=tokenizer, max_length=64)
    encoder, merged, num_scored = RequestEncoder(tokenizer, 64), [], 0
    for pair in PAIRS:
        instance = Instance("loglikelihood", {}, pair, 0, ("joins", 3, 1))
        ((context, scored),) = peer.loglikelihood([instance], disable_tqdm=True)
        if not scored:
            with pytest.raises(DataError) as caught:
                encoder.requests(0, instance, "joins")
            sentence(caught.value, str(pair), names=("joins",))
            continue
        (request,) = encoder.requests(0, instance, "joins")
        # lm-eval stops at a prompt of nothing but spaces where no beginning of text is added
        assert request.context == tuple(context or [tokenizer.bos_token_id])
        assert request.continuation == tuple(scored)
        row = TrainingRow(pair[0], f"{pair[1]}{END}", END, is_written=False)
        (example,) = tokenise_rows([row], tokenizer, TrainConfig(task="x"), 64)
        assert example.tokens == (*request.context, *scored, tokenizer.eos_token_id)
        assert example.num_loss_tokens == len(scored) + 1
        merged.append(tuple(tokenizer.encode("".join(pair))) != request.context + tuple(scored))
        num_scored += 1
    assert num_scored > len(PAIRS) * 0.8
    assert sum(merged) > 15


def rows_file(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    path = folder / "rows.jsonl"
    lines = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in pairs]
    path.write_text("\n".join(lines))
    return path


def user_data(path: Path, tokenizer: Any) -> Any:
    return load_user_data(
        TrainConfig(data=path, held_out_fraction=0.1), tokenizer, chat_template=False
    )


def prepared(task: LoadedTask, tokenizer: Any) -> PreparedTask:
    settings: dict[str, Any] = {"num_fewshot": 0, "limit": None, "chat_template": False}
    return prepare_task(task, tokenizer, max_length=64, **settings)


def test_own_rows_are_trained_as_they_are_scored(tokenizer: Any, tmp_path: Path) -> None:
    encoder = TextEncoder(tokenizer)
    pairs = [pair for pair in PAIRS if not encoder.as_written(*pair).is_swallowed]
    data = user_data(rows_file(tmp_path, pairs), tokenizer)
    examples = tokenise_rows(data.training, tokenizer, TrainConfig(data=Path("x")), 64)
    scored = prepared(data.trained_items, tokenizer).requests
    for example, request in zip(examples, scored, strict=True):
        assert example.tokens == request.context + request.continuation
        assert example.num_loss_tokens == len(request.continuation)
        assert example.tokens[-1] == tokenizer.eos_token_id


def test_a_line_break_of_the_prompt_is_not_lost_in_training() -> None:
    tokenizer = learnt("lines")
    for prompt, answer in (("Answer:\n", "Yes"), ("def f():\n    ", "return 1")):
        text = prompt + answer
        row = TrainingRow(prompt, text.removeprefix(prompt) + END)
        (example,) = tokenise_rows([row], tokenizer, TrainConfig(task="x"), 64)
        assert tokenizer.decode(example.tokens) == f"{START}{text}{END}"
        read = example.tokens[: -example.num_loss_tokens]
        assert tokenizer.decode(read) == f"{START}{prompt.rstrip()}\n"  # lm-eval's ends before it
        (scored,) = tokenise_rows(
            [row._replace(is_written=False)], tokenizer, TrainConfig(task="x"), 64
        )
        assert scored.tokens != example.tokens


def test_an_answer_of_which_only_its_end_is_left_is_refused(
    tokenizer: Any, tmp_path: Path, sentence: Sentences
) -> None:
    row, config = TrainingRow("x = [", f"]{END}", END), TrainConfig(task="x")
    with pytest.raises(DataError) as caught:
        tokenise_rows([row], tokenizer, config, 64)
    sentence(caught.value, "first")
    for place in range(3):  # one of three is held out
        pairs = [("x = [", "1, 2]"), ("y = [", "3]")]
        pairs.insert(place, ("x = [", "]"))
        data = user_data(rows_file(tmp_path, pairs), tokenizer)
        refused: list[str] = []
        for task in (*data.tasks, data.trained_items):
            try:
                prepared(task, tokenizer)
            except DataError as error:
                refused.append(str(error))
        assert len(refused) == 1
        sentence(refused[0], str(place), names=("]<|im_end|>",))


def problems_of(study_file: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, [*overrides]))
    return caught.value.problems


def test_a_swallowed_answer_is_refused_when_a_study_is_planned(
    study_file: Path, tasks_folder: Path, sentence: Sentences
) -> None:
    yaml = tasks_folder / "colours.yaml"
    text = yaml.read_text().replace("\\nAnswer:", "\\nThe colou")
    text = text.replace("doc_to_choice: choices", "doc_to_choice: \"{{['r', 'red']}}\"")
    yaml.write_text(text.replace("doc_to_target: label", "doc_to_target: 0\ntarget_delimiter: ''"))
    scored, seen, trained = problems_of(study_file)
    sentence(
        scored,
        "evaluation.in_domain",
        names=(
            "evaluation.in_domain",
            "colours",
            "r",
            "Question: which colour has the small blood?\\nThe colou",
        ),
    )
    sentence(seen, "second", names=("evaluation.in_domain", "colours@train"))
    sentence(trained, "train", names=("train", "r"))


def test_merged_rows_are_counted_when_a_study_is_planned(
    study_file: Path, tmp_path: Path, sentence: Sentences
) -> None:
    pairs = [("The colou", f"r is {n} times") for n in range(8)]
    pairs += [("The colour", f" is {n} times") for n in range(8)]
    path = rows_file(tmp_path, pairs)
    overrides = [f"train.data={path}", "train.task=null", "evaluation.out_of_domain=[]"]
    plan = plan_study(load_config(study_file, overrides))
    (said,) = [text for text in plan.record.warnings if "merges" in text]
    (examples,) = plan.examples.values()
    number = sum(example.is_merged for example in examples)
    assert 0 < number < len(examples)
    sentence(said, names=("train", number, len(examples), "The colou"))


@pytest.mark.parametrize("prompt", [f"{START}assistant\n", "Answer: ", "Answer:", ""])
def test_a_prompt_that_a_model_answers_itself_is_read_whole_by_model_and_teacher(
    tokenizer: Any, prompt: str
) -> None:
    config = TrainConfig.model_validate({"data": "rows.jsonl", "objective": {"sdft": {}}})
    (example,) = tokenise_rows(
        [TrainingRow(prompt, "Yes", taught=f"Yes. {prompt}")], tokenizer, config, 2048
    )
    read = TextEncoder(tokenizer).encode
    assert list(example.tokens) == (read(prompt) or [TextEncoder(tokenizer).prefix_id])
    assert example.asks is not None
    assert list(example.asks.teacher) == read(f"Yes. {prompt}")
