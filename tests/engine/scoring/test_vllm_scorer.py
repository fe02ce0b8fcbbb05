"""vLLM behind the interface of scoring: its inputs, and the numbers made of its outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.scoring import vllm as vllm_scorer
from rankwise.engine.scoring.vllm import VllmScorer
from rankwise.errors import ModelError
from rankwise.tasks.questions import Continuation, GenerationSettings, LogLikelihood, Prompt
from tests.support.fake_vllm import FakeVllm


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
    assert "gpu_memory_utilization" not in options  # no card is here
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


def test_few_adapters_have_slots_on_the_card_and_all_have_memory(
    vllm: FakeVllm, tmp_path: Path
) -> None:
    """At rank 512 a slot takes 2.7 GB of an 8B model's card."""
    scorer = VllmScorer(tmp_path, tmp_path, "bfloat16", max_rank=512)
    for number in range(25):
        scorer.put_on(f"a{number}", adapter(tmp_path / f"a{number}", r=512))
    scorer.generate([None], [Prompt((1,), GenerationSettings(3))])
    (options,) = vllm.opened
    assert (options["max_lora_rank"], options["max_loras"], options["max_cpu_loras"]) == (
        512,
        4,
        25,
    )


def test_it_has_room_for_the_longest_sequence(vllm: FakeVllm, tmp_path: Path) -> None:
    scorer = VllmScorer(tmp_path, tmp_path, "float32", max_length=12)
    for length, number in ((5, 7), (3, 2)):
        scorer.generate([None], [Prompt((1,) * length, GenerationSettings(number))])
    scorer.log_likelihoods([None], ITEMS)
    assert [options["max_model_len"] for options in vllm.opened] == [12]
    first = vllm.processes[0]
    scorer.generate([None], [Prompt((1,) * 6, GenerationSettings(7))])
    assert [options["max_model_len"] for options in vllm.opened] == [12, 13]
    assert first.poll() is not None
    by_itself = VllmScorer(tmp_path, tmp_path, "float32")
    by_itself.log_likelihoods([None], ITEMS)  # four tokens, and vLLM writes one more
    assert vllm.opened[-1]["max_model_len"] == 5


@pytest.mark.parametrize(
    ("free", "share"),
    [(40, 0.475), (80, 0.9)],  # 95 % of the free half; vLLM's own default
)
def test_it_takes_of_the_card_what_is_free(
    vllm: FakeVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, share: float
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80))
    VllmScorer(tmp_path, tmp_path, "float32").log_likelihoods([None], ITEMS)
    assert vllm.opened[0]["gpu_memory_utilization"] == pytest.approx(share)


@pytest.mark.parametrize("ends_when_told", [True, False])
def test_its_process_is_gone_when_it_is_closed(
    scorer: VllmScorer, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch, ends_when_told: bool
) -> None:
    monkeypatch.setattr(vllm_scorer, "_PATIENCE_SECONDS", 0.2)
    vllm.ends_when_told = ends_when_told
    scorer.close()  # nothing is open
    scorer.log_likelihoods([None], ITEMS)
    assert vllm.is_running
    scorer.close()
    assert not vllm.is_running
    scorer.log_likelihoods(["r8"], ITEMS)  # adapters stay on
    assert len(vllm.opened) == 2
