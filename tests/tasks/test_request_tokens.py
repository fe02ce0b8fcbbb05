"""What models are asked, tokens and settings, against lm-eval's Hugging Face back end."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing

from rankwise.engine.models.loading import load_frozen, load_tokenizer
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import load_tasks, quiet_lm_eval
from tests.support.tiny_tasks import CHAT_TEMPLATE

TASKS = ["local_sciq", "local_mmlu", "local_gsm8k", "small_prose"]
SETTINGS = {
    "0-shot": {},
    "3-shot": {"num_fewshot": 3},
    "chat": {"chat_template": True},
    "chat, 3-shot": {"num_fewshot": 3, "chat_template": True},
    "chat, multi-turn": {"num_fewshot": 3, "chat_template": True, "fewshot_as_multiturn": True},
    "cut": {"num_fewshot": 3, "max_length": 70},
}


class Listening(HFLM):
    """Writes down what its model is asked, and answers nonsense without asking it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(batch_size=1, **settings)
        self.pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self.read: Counter[tuple[int, ...]] = Counter()
        self.continued: Counter[Any] = Counter()

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        self.pairs += [(tuple(context), tuple(scored)) for _, context, scored in requests]
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def _model_call(self, inps: Any, *_: Any, **__: Any) -> Any:
        self.read[tuple(inps[0].tolist())] += 1
        return torch.zeros(*inps.shape, self.vocab_size)

    def _model_generate(self, context: Any, max_length: int, stop: Any, **options: Any) -> Any:
        options.pop("attention_mask")
        if not options["do_sample"]:
            options.pop("temperature", None)  # super() does so
        length = max_length - context.shape[1]
        prompt = tuple(context[0].tolist())
        self.continued[prompt, length, tuple(stop), tuple(sorted(options.items()))] += 1
        return context


@pytest.fixture(scope="module", params=["plain", "bos", "bos in the template"])
def model_folder(request: Any, tiny_model_folder: Path, tmp_path_factory: Any) -> Path:
    """The tiny model, also with a tokenizer that puts a beginning of text before every text."""
    if request.param == "plain":
        return tiny_model_folder
    folder = shutil.copytree(tiny_model_folder, tmp_path_factory.mktemp("bos") / "model")
    tokenizer = load_tokenizer(folder)
    start = "<|endoftext|>"
    tokenizer.bos_token = start
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)]
    )
    if "template" in request.param:
        tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("task", TASKS)
def test_requests_are_lm_evals(
    model_folder: Path, shared_tasks: Path, tasks_folder: Path, task: str, setting: str
) -> None:
    options: dict[str, Any] = dict(SETTINGS[setting])
    if task == "small_prose":
        options = {k: v for k, v in options.items() if k == "max_length"} | {"num_fewshot": 0}
    max_length = options.pop("max_length", 1000)
    if task == "local_gsm8k" and max_length < 1000:
        max_length = 400  # 256 are to be written
    folders = [shared_tasks, tasks_folder]
    peer = listen(model_folder, folders, task, max_length, options)
    tokenizer = load_tokenizer(model_folder)
    loaded = load_tasks([task], folders, allow_code=True)[task][0]
    settings = {"num_fewshot": 0, "chat_template": False} | options
    first = {"limit": 2, "doc_ids": range(2)}  # as lm-eval limits a task
    prepared = prepare_task(loaded, tokenizer, max_length=max_length, **first, **settings)
    requests = prepared.requests
    if prepared.loaded.output_type == "generate_until":
        asked = Counter((r.context, *r.settings) for r in requests)
        assert asked == Counter({(*each, None): n for each, n in peer.continued.items()})
    else:
        assert [r.continuation for r in requests] == [scored for _, scored in peer.pairs]
        for request, (context, _) in zip(requests, peer.pairs, strict=True):
            assert request.context == context[-len(request.context) :]
            assert request.is_truncated == (len(request.context) < len(context))
        assert {r.tokens_read for r in requests} == set(peer.read)
    assert (prepared.num_truncated > 0) == (setting == "cut" and task != "small_prose")
    begin = tokenizer.bos_token_id
    assert all(request.context[:2] != (begin, begin) for request in requests)
    adds_begin = tokenizer.encode("a")[0] == begin
    if adds_begin and setting != "cut":
        assert all(request.context[0] == begin for request in requests)
    assert len(requests) > 1


def listen(
    model_folder: Path, folders: list[Path], task: str, max_length: int, options: dict[str, Any]
) -> Listening:
    """What lm-eval asks when it does the whole task."""
    silence = contextlib.redirect_stderr(io.StringIO())
    with quiet_lm_eval(), silence, mock.patch("lm_eval.evaluator.add_env_info"):
        peer = Listening(
            pretrained=load_frozen(model_folder, "float32", torch.device("cpu")),
            tokenizer=str(model_folder),
            max_length=max_length,
        )
        lm_eval.simple_evaluate(
            model=peer,
            tasks=[task],
            task_manager=TaskManager(include_path=list(folders), include_defaults=False),
            num_fewshot=options.get("num_fewshot", 0),
            apply_chat_template=options.get("chat_template", False),
            fewshot_as_multiturn=options.get("fewshot_as_multiturn", False),
            limit=2,
            bootstrap_iters=0,
        )
    return peer
