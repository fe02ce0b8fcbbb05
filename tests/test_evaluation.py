"""Our scoring against lm-eval's own Hugging Face back end, item by item."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from rankwise import adapters, models
from rankwise.errors import TaskError
from rankwise.evaluation import Known, evaluate, score_requests
from rankwise.store import LOSS_METRIC
from rankwise.tasks import load_tasks, prepare_task

CPU = torch.device("cpu")
MAX_LENGTH = 256


@pytest.fixture
def base(tiny_model_folder: Path) -> Any:
    return models.load_frozen(tiny_model_folder, "float32", CPU)


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return models.load_tokenizer(tiny_model_folder)


def with_random_adapter(base: Any) -> Any:
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted: Any = peft.get_peft_model(base, settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, lora_B in adapters.lora_factors(adapted).values():
            lora_B.copy_(torch.randn(lora_B.shape, generator=generator) * 0.3)
    return adapted.eval()


def reference(model: Any, tokenizer: Any, prepared: Any, max_length: int) -> list[Any]:
    """What lm-eval's HFLM answers to the same instances."""
    from lm_eval.models.huggingface import HFLM

    peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=max_length)
    kind = prepared.instances[0].request_type
    return getattr(peer, kind)(copy.deepcopy(prepared.instances), disable_tqdm=True)


def prepare(tokenizer: Any, folder: Path, name: str, **options: Any) -> Any:
    loaded = load_tasks([name], [folder])[name][0]
    settings: dict[str, Any] = {
        "max_length": MAX_LENGTH,
        "num_fewshot": 0,
        "limit": None,
        "chat_template": False,
    }
    return prepare_task(loaded, tokenizer, **(settings | options))


def score(model: Any, tokenizer: Any, prepared: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {"metric": None, "max_batch_tokens": 512}
    return evaluate(
        model, tokenizer, prepared, model_name="base", fingerprint="f", **(settings | options)
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_fewshot": 2},
        {"chat_template": True},
        {"num_fewshot": 2, "chat_template": True, "fewshot_as_multiturn": True},
        {"num_fewshot": 8, "limit": 6, "max_length": 64},
    ],
    ids=["0-shot", "2-shot", "chat", "chat multi-turn", "truncated"],
)
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("task", ["colours", "small_prose", "sums"])
def test_equals_lm_eval(
    base: Any, tokenizer: Any, tasks_folder: Path, task: str, adapted: bool, options: dict[str, Any]
) -> None:
    if task == "small_prose":
        options = {k: v for k, v in options.items() if k in ("limit", "max_length")}
    max_length = options.get("max_length", MAX_LENGTH)
    prepared = prepare(tokenizer, tasks_folder, task, **options)
    model = with_random_adapter(base) if adapted else base
    ours = [line["resps"] for line in score(model, tokenizer, prepared).samples]
    flat = [response for responses in ours for (response,) in responses]
    theirs = reference(model, tokenizer, prepared, max_length)
    assert len(flat) == len(theirs) > 5
    for mine, peer in zip(flat, theirs, strict=True):
        if task == "sums":
            assert mine == peer
        elif task == "small_prose":
            assert mine == pytest.approx(peer, abs=1e-3)
        else:
            assert mine[0] == pytest.approx(peer[0], abs=1e-3)
            assert mine[1] == peer[1]
    num_truncated = score(model, tokenizer, prepared).record.num_truncated
    is_cut = max_length < MAX_LENGTH and task != "small_prose"  # prose goes on in a new window
    assert num_truncated == (len(prepared.requests) if is_cut else 0)


def test_scores_are_lm_evals_own_aggregates(
    base: Any, tokenizer: Any, tasks_folder: Path, tiny_model_folder: Path
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks_folder), include_defaults=False)
    peer = HFLM(pretrained=base, tokenizer=tokenizer, batch_size=4)
    theirs = lm_eval.simple_evaluate(
        model=peer, tasks=["colours"], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    ours = score(base, tokenizer, prepare(tokenizer, tasks_folder, "colours"))
    for metric in ("acc", "acc_norm"):
        mine = next(m for m in ours.record.metrics if m.metric == metric)
        assert mine.value == theirs["results"]["colours"][f"{metric},none"]
        assert mine.num_examples == theirs["n-samples"]["colours"]["effective"]
    for mine, peer_line in zip(ours.samples, theirs["samples"]["colours"], strict=True):
        for field in ("doc_id", "doc_hash", "prompt_hash", "target_hash", "acc", "acc_norm"):
            assert mine[field] == peer_line[field], field


def test_batching_changes_no_number(base: Any, tokenizer: Any, tasks_folder: Path) -> None:
    prepared = prepare(tokenizer, tasks_folder, "colours")
    one_by_one = score_requests(base, prepared.requests, tokenizer.pad_token_id, 1)
    together = score_requests(base, prepared.requests, tokenizer.pad_token_id, 100_000)
    for alone, batched in zip(one_by_one, together, strict=True):
        assert alone[0] == pytest.approx(batched[0], abs=1e-4)
        assert alone[1] == batched[1]


def test_log_likelihood_by_hand(base: Any, tokenizer: Any, tasks_folder: Path) -> None:
    prepared = prepare(tokenizer, tasks_folder, "colours", limit=3)
    results = score_requests(base, prepared.requests, tokenizer.pad_token_id, 512)
    for request, (log_likelihood, is_greedy) in zip(prepared.requests, results, strict=True):
        tokens = torch.tensor([request.context + request.continuation])
        with torch.no_grad():
            steps = base(tokens).logits[0].log_softmax(-1)
        start = len(request.context)
        by_hand = sum(
            float(steps[start + i - 1, token]) for i, token in enumerate(request.continuation)
        )
        greedy = [int(steps[start + i - 1].argmax()) for i in range(len(request.continuation))]
        assert log_likelihood == pytest.approx(by_hand, abs=1e-4)
        assert is_greedy == (greedy == list(request.continuation))


def test_loss_of_prose_is_nats_per_token(base: Any, tokenizer: Any, tasks_folder: Path) -> None:
    prepared = prepare(tokenizer, tasks_folder, "small_prose")
    scored = score(base, tokenizer, prepared)
    total_nats = -sum(line["resps"][0][0] for line in scored.samples)
    total_tokens = sum(line["num_loss_tokens"] for line in scored.samples)
    assert scored.record.decision_metric == LOSS_METRIC
    assert scored.record.decision.value == pytest.approx(total_nats / total_tokens)
    assert not scored.record.decision.higher_is_better


def test_predicted_shares_and_chance(base: Any, tokenizer: Any, tasks_folder: Path) -> None:
    scored = score(base, tokenizer, prepare(tokenizer, tasks_folder, "colours"))
    counts = [0] * 3
    options = [len(line["resps"]) for line in scored.samples]
    for line in scored.samples:
        likelihoods = [response[0][0] for response in line["resps"]]
        counts[likelihoods.index(max(likelihoods))] += 1
    assert scored.record.predicted_shares == tuple(c / len(scored.samples) for c in counts)
    assert scored.record.chance == pytest.approx(sum(1 / n for n in options) / len(options))


@pytest.mark.parametrize("ends", ["nothing", "a stop string", "the end of turn"])
def test_generations_without_an_end_are_counted(
    base: Any, tokenizer: Any, tasks_folder: Path, ends: str
) -> None:
    """Against a greedy loop by hand, for a stop string or an end token that is said sometimes."""
    prepared = prepare(tokenizer, tasks_folder, "sums")
    said: list[list[int]] = []
    for request in prepared.requests:
        tokens = torch.tensor([request.context])
        for _ in range(6):
            logits = base(tokens).logits[0, -1]
            tokens = torch.cat([tokens, logits.argmax().reshape(1, 1)], dim=1)
        said.append(tokens[0, len(request.context) :].tolist())
    texts = [tokenizer.decode(tokens) for tokens in said]
    end, expected = "no such text", len(said)
    if ends == "a stop string":
        end = next(text[1:4] for text in texts if sum(text[1:4] in other for other in texts) < 8)
        expected = sum(end not in text for text in texts)
    if ends == "the end of turn":
        token = next(t for own in said for t in own if sum(t in other for other in said) < 8)
        base.generation_config.eos_token_id = [token, tokenizer.eos_token_id]
        expected = sum(token not in own for own in said)
    for instance in prepared.instances:
        instance.args[1]["until"] = [end]
    assert score(base, tokenizer, prepared).record.num_unfinished == expected
    assert (0 < expected < 8) is (ends != "nothing")
    choices = prepare(tokenizer, tasks_folder, "colours")
    assert score(base, tokenizer, choices).record.num_unfinished is None


def test_what_is_known_of_earlier_generations_counts(
    base: Any, tokenizer: Any, tasks_folder: Path
) -> None:
    prepared = prepare(tokenizer, tasks_folder, "sums")
    whole = score(base, tokenizer, prepared)
    texts = tuple(line["resps"][0][0] for line in whole.samples[:3])
    more = score(base, tokenizer, prepared, known=Known(responses=texts, num_unfinished=2))
    assert [line["resps"] for line in more.samples] == [line["resps"] for line in whole.samples]
    assert (whole.record.num_unfinished, more.record.num_unfinished) == (8, 7)


def test_the_named_metric_decides(base: Any, tokenizer: Any, tasks_folder: Path) -> None:
    prepared = prepare(tokenizer, tasks_folder, "colours")
    assert score(base, tokenizer, prepared).record.decision_metric == "acc"
    chosen = score(base, tokenizer, prepared, metric="acc_norm").record
    assert chosen.decision_metric == "acc_norm"
    with pytest.raises(TaskError, match=r"no metric 'f1'.*acc,none, acc_norm,none"):
        score(base, tokenizer, prepared, metric="f1")


def test_gsm8k_is_scored_strictly_and_flexibly(
    base: Any, tokenizer: Any, shared_tasks: Path
) -> None:
    loaded = load_tasks(["local_gsm8k"], [shared_tasks])["local_gsm8k"][0]
    loaded.task.set_config(key="generation_kwargs", value={"max_gen_toks": 4}, update=True)
    prepared = prepare_task(
        loaded, tokenizer, max_length=MAX_LENGTH, num_fewshot=0, limit=2, chat_template=False
    )
    record = score(base, tokenizer, prepared).record
    filters = {(m.metric, m.filter) for m in record.metrics}
    assert filters == {("exact_match", "strict-match"), ("exact_match", "flexible-extract")}
