"""vLLM behind the interface of scoring: its inputs, and the numbers made of its outputs."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rankwise.engine.scoring.vllm import VllmScorer
from rankwise.errors import ModelError
from rankwise.tasks.questions import Continuation, GenerationSettings, LogLikelihood, Prompt

# log-probability of each token behind the token before it, by model; token 9 is what is best
TABLE = {
    None: {(1, 2): -0.5, (2, 3): -1.0, (3, 4): -2.0},
    "r8": {(1, 2): -0.25, (2, 3): -3.0, (3, 4): -4.0},
}
BEST = -0.75


class FakeVllm(ModuleType):
    """Records its inputs, and answers from the table."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.opened: list[dict[str, Any]] = []
        self.calls: list[tuple[list[Any], list[Any], list[Any]]] = []
        self.SamplingParams = lambda **options: options
        fake = self

        class LLM:
            def __init__(self, **options: Any) -> None:
                fake.opened.append(options)

            def generate(
                self, prompts: Any, sampling_params: Any, lora_request: Any, use_tqdm: bool
            ) -> list[Any]:
                fake.calls.append((prompts, sampling_params, lora_request))
                rows = zip(prompts, sampling_params, lora_request, strict=True)
                return [fake.answer(*row) for row in rows]

        self.LLM = LLM

    @staticmethod
    def answer(prompt: Any, options: Any, request: Any) -> Any:
        tokens, model = prompt["prompt_token_ids"], request and request.name
        if "prompt_logprobs" not in options:
            text = f"{model} continues {tokens}"
            reason = "stop" if len(tokens) < 3 else "length"
            return SimpleNamespace(outputs=[SimpleNamespace(text=text, finish_reason=reason)])
        positions: list[Any] = [None]
        for pair in itertools.pairwise(tokens):
            own = TABLE[model].get(pair, -9.0)
            found = {pair[1]: SimpleNamespace(logprob=own)}
            positions.append(found | ({9: SimpleNamespace(logprob=BEST)} if own < BEST else {}))
        return SimpleNamespace(prompt_logprobs=positions)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    fake = FakeVllm()
    request = ModuleType("vllm.lora.request")
    request.LoRARequest = lambda name, number, path: SimpleNamespace(  # pyright: ignore
        name=name, number=number, path=path
    )
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.lora.request", request)
    return fake


def adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "lora_alpha": 16} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def scorer(vllm: FakeVllm, tmp_path: Path) -> VllmScorer:
    scorer = VllmScorer(tmp_path / "model", tmp_path / "tokenizer", "bfloat16")
    scorer.put_on("r8", adapter(tmp_path / "r8", r=8, rank_pattern={"q_proj": 20}))
    return scorer


ITEMS = [Continuation((1,), (2,)), Continuation((1, 2), (3, 4)), Continuation((1,), (2, 3))]


def test_log_likelihoods_are_sums_over_the_continuation(scorer: VllmScorer, vllm: FakeVllm) -> None:
    read: list[int] = []
    found = scorer.log_likelihoods([None, "r8"], ITEMS, read.append)
    assert found == [
        [LogLikelihood(-0.5, True), LogLikelihood(-3.0, False), LogLikelihood(-1.5, False)],
        [LogLikelihood(-0.25, True), LogLikelihood(-7.0, False), LogLikelihood(-3.25, False)],
    ]
    assert sum(read) == 2 * sum(len(item.tokens_read) for item in ITEMS)
    ((prompts, parameters, requests),) = vllm.calls
    assert [prompt["prompt_token_ids"] for prompt in prompts[:3]] == [
        [1, 2],
        [1, 2, 3, 4],
        [1, 2, 3],
    ]
    assert prompts[3:] == prompts[:3]
    assert [request and request.name for request in requests] == [None] * 3 + ["r8"] * 3
    assert {options["prompt_logprobs"] for options in parameters} == {1}
    assert scorer.log_likelihoods(["r8", None], ITEMS) == found[::-1]
    assert scorer.log_likelihoods(["r8"], []) == [[]]


def test_it_is_opened_once_with_room_for_the_adapters(
    scorer: VllmScorer, vllm: FakeVllm, tmp_path: Path
) -> None:
    scorer.put_on("other", adapter(tmp_path / "other", r=4))
    assert vllm.opened == []
    for _ in range(2):
        scorer.generate([None], [Prompt((1,), GenerationSettings(3))])
    (options,) = vllm.opened
    assert options["model"] == str(tmp_path / "model")
    assert options["tokenizer"] == str(tmp_path / "tokenizer")
    assert options["dtype"] == "bfloat16"
    assert (options["enable_lora"], options["max_lora_rank"], options["max_loras"]) == (True, 32, 2)
    with pytest.raises(ModelError, match="opened for ranks to 32, this one is 64"):
        scorer.put_on("late", adapter(tmp_path / "late", r=64))
    with pytest.raises(ModelError, match="ranks to 512"):
        scorer.put_on("huge", adapter(tmp_path / "huge", r=1024))
    with pytest.raises(ModelError, match="nothing is not a PEFT adapter"):
        scorer.put_on("none", tmp_path / "nothing")


def test_without_adapters_there_is_no_room_for_any(vllm: FakeVllm, tmp_path: Path) -> None:
    VllmScorer(tmp_path, tmp_path, "float32").log_likelihoods([None], ITEMS)
    assert "enable_lora" not in vllm.opened[0]
    later = VllmScorer(tmp_path, tmp_path, "float32", max_rank=100)
    later.log_likelihoods([None], ITEMS)
    assert vllm.opened[1]["max_lora_rank"] == 128


def test_an_adapter_put_on_again_is_another_one(
    scorer: VllmScorer, vllm: FakeVllm, tmp_path: Path
) -> None:
    scorer.log_likelihoods(["r8"], ITEMS[:1])
    scorer.take_off("r8")
    with pytest.raises(KeyError):
        scorer.log_likelihoods(["r8"], ITEMS[:1])
    scorer.put_on("r8", adapter(tmp_path / "again", r=8))
    scorer.log_likelihoods(["r8"], ITEMS[:1])
    first, second = (requests[0] for _, _, requests in vllm.calls)
    assert first.number != second.number  # vLLM keeps weights by number
    assert second.path == str(tmp_path / "again")


def test_generations_greedy_and_sampled(scorer: VllmScorer, vllm: FakeVllm) -> None:
    greedy = GenerationSettings(7, ("\n", "Q:"), (("do_sample", False), ("top_p", 0.5)))
    sampled = GenerationSettings(
        5, (), (("do_sample", True), ("min_new_tokens", 2), ("temperature", 0.8))
    )
    prompts = [Prompt((1, 2), greedy), Prompt((1, 2, 3), sampled, 4), Prompt((1, 2), sampled, 5)]
    found = scorer.generate([None, "r8"], prompts)
    assert [each.text for each in found[1]] == [
        f"r8 continues {list(prompt.tokens)}" for prompt in prompts
    ]
    assert [each.is_finished for each in found[0]] == [True, False, True]
    ((_, parameters, _),) = vllm.calls
    assert parameters[0] == {"max_tokens": 7, "stop": ["\n", "Q:"], "temperature": 0}
    seeds = [options.get("seed") for options in parameters]
    assert seeds[0] is None
    assert seeds[1] != seeds[2]
    assert seeds[3:] == seeds[:3]  # a draw decides a text, whoever writes it
    assert parameters[1] == {
        "max_tokens": 5, "stop": [], "min_tokens": 2, "temperature": 0.8, "top_k": 50,
        "seed": seeds[1],
    }  # fmt: skip
    odd = GenerationSettings(5, (), (("num_beams", 3),))
    with pytest.raises(ModelError, match="num_beams=3"):
        scorer.generate([None], [Prompt((1,), odd)])


def test_it_is_refused_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match=r"pip install rankwise\[vllm\]"):
        VllmScorer(tmp_path, tmp_path, "bfloat16")
