"""Our scoring against lm-eval's own Hugging Face back end, item by item."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.loading import load_frozen, load_tokenizer
from rankwise.errors import DataError, TaskError
from rankwise.records.folder import LOSS_METRIC
from rankwise.tasks.evaluation import Known, ScoredModel, evaluate
from rankwise.tasks.questions import Continuation
from rankwise.tasks.requests import SAMPLING_SEED, prepare_task
from rankwise.tasks.resolution import load_tasks
from tests.support.plain_scorer import PlainScorer
from tests.support.saved_adapters import lora_factors
from tests.support.sentences import Sentences

CPU = torch.device("cpu")
MAX_LENGTH = 256


@pytest.fixture
def base(tiny_model_folder: Path) -> Any:
    return load_frozen(tiny_model_folder, "float32", CPU)


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def with_random_adapter(base: Any) -> Any:
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted: Any = peft.get_peft_model(base, settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, lora_B in lora_factors(adapted).values():
            lora_B.copy_(torch.randn(lora_B.shape, generator=generator) * 0.3)
    return adapted.eval()


def reference(model: Any, tokenizer: Any, prepared: Any, max_length: int) -> list[Any]:
    """What lm-eval's HFLM answers to the same instances."""
    from lm_eval.models.huggingface import HFLM

    peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=max_length)
    kind = prepared.instances[0].request_type
    return getattr(peer, kind)(copy.deepcopy(prepared.instances), disable_tqdm=True)


def prepare(tokenizer: Any, folder: Path, name: str, **options: Any) -> Any:
    loaded = load_tasks([name], [folder], allow_code=True)[name][0]
    settings: dict[str, Any] = {
        "max_length": MAX_LENGTH,
        "num_fewshot": 0,
        "limit": None,
        "chat_template": False,
    }
    return prepare_task(loaded, tokenizer, **(settings | options))


def score(
    model: Any, tokenizer: Any, prepared: Any, metric: str | None = None, known: Known | None = None
) -> Any:
    """The resident model alone."""
    scored = ScoredModel("base", "f", None, known or Known())
    (scoring,) = evaluate(PlainScorer(model, tokenizer), [scored], prepared, metric=metric)
    return scoring


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
    assert num_truncated == (prepared.num_items if is_cut else 0)


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


@pytest.mark.parametrize("task", ["colours", "sums", "small_prose"])
def test_limited_scores_are_lm_eval_s_on_the_same_documents(
    base: Any, tokenizer: Any, tasks_folder: Path, task: str
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    prepared = prepare(tokenizer, tasks_folder, task, limit=5, num_fewshot=2)
    ours = score(base, tokenizer, prepared)
    chosen = sorted(prepared.doc_ids)
    assert chosen != list(range(5))
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=base, tokenizer=tokenizer, batch_size=4, max_length=MAX_LENGTH),
        tasks=[task],
        task_manager=TaskManager(include_path=str(tasks_folder), include_defaults=False),
        num_fewshot=2,
        samples={task: chosen},
        bootstrap_iters=0,
        log_samples=True,
    )
    for metric in ours.record.metrics:
        if metric.metric != LOSS_METRIC:
            peer = theirs["results"][task][f"{metric.metric},{metric.filter}"]
            assert metric.value == pytest.approx(peer, rel=1e-5)
    assert [line["doc_id"] for line in ours.samples] == chosen
    for mine, peer_line in zip(ours.samples, theirs["samples"][task], strict=True):
        for field in ("doc_id", "doc_hash", "prompt_hash", "target_hash"):
            assert mine[field] == peer_line[field], field


def test_log_likelihood_by_hand(base: Any, tokenizer: Any, tasks_folder: Path) -> None:
    prepared = prepare(tokenizer, tasks_folder, "colours", limit=3)
    items = [Continuation(request.context, request.continuation) for request in prepared.requests]
    (results,) = PlainScorer(base, tokenizer).log_likelihoods([None], items)
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
    prepared = with_stops(prepared, (end, tokenizer.eos_token))
    assert score(base, tokenizer, prepared).record.num_unfinished == expected
    assert (0 < expected < 8) is (ends != "nothing")
    choices = prepare(tokenizer, tasks_folder, "colours")
    assert score(base, tokenizer, choices).record.num_unfinished is None


def test_what_is_known_of_earlier_generations_counts(
    base: Any, tokenizer: Any, tasks_folder: Path
) -> None:
    prepared = prepare(tokenizer, tasks_folder, "sums")
    whole = score(base, tokenizer, prepared)
    lines = [whole.samples[index] for index in (5, 0, 6)]
    texts = {line["doc_id"]: (tuple(line["resps"][0]),) for line in lines}
    more = score(base, tokenizer, prepared, known=Known(responses=texts, num_unfinished=2))
    assert [line["resps"] for line in more.samples] == [line["resps"] for line in whole.samples]
    assert (whole.record.num_unfinished, more.record.num_unfinished) == (8, 7)


def with_stops(prepared: Any, stops: tuple[str, ...]) -> Any:
    """The same prompts, ended by other strings."""
    return prepared._replace(
        requests=[r._replace(settings=r.settings._replace(stops=stops)) for r in prepared.requests]
    )


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
    loaded = load_tasks(["local_gsm8k"], [shared_tasks], allow_code=True)["local_gsm8k"][0]
    loaded.task.set_config(key="generation_kwargs", value={"max_gen_toks": 4}, update=True)
    prepared = prepare_task(
        loaded, tokenizer, max_length=MAX_LENGTH, num_fewshot=0, limit=2, chat_template=False
    )
    record = score(base, tokenizer, prepared).record
    filters = {(m.metric, m.filter) for m in record.metrics}
    assert filters == {("exact_match", "strict-match"), ("exact_match", "flexible-extract")}


def put_on_two(base: Any, tokenizer: Any, folder: Path) -> PlainScorer:
    """A scorer with the adapters one and two, whose updates differ."""
    scorer = PlainScorer(base, tokenizer)
    for name, size in (("one", 0.3), ("two", 0.6)):
        adapted = with_random_adapter(base)
        for _, lora_B in lora_factors(adapted).values():
            lora_B.data.mul_(size)
        adapted.save_pretrained(str(folder / name))
        adapted.unload()
        scorer.put_on(name, AdapterFolder(folder / name))
    return scorer


@pytest.mark.parametrize("task", ["colours", "small_prose", "sums"])
def test_models_are_asked_together_and_judged_apart(
    base: Any, tokenizer: Any, tasks_folder: Path, tmp_path: Path, task: str
) -> None:
    prepared = prepare(tokenizer, tasks_folder, task)
    scorer = put_on_two(base, tokenizer, tmp_path)
    names = [None, "one", "two"]
    told: list[int] = []
    models = [ScoredModel(name or "base", f"f{name}", name) for name in names]
    together = evaluate(scorer, models, prepared, metric=None, advance=told.append)
    assert scorer.calls == [((None, "one", "two"), len(prepared.requests))]
    assert sum(told) == 3 * prepared.num_tokens
    assert [scoring.record.model for scoring in together] == ["base", "one", "two"]
    assert [scoring.record.fingerprint for scoring in together] == ["fNone", "fone", "ftwo"]
    assert len({json.dumps(scoring.samples, default=str) for scoring in together}) == 3
    for model, scoring in zip(models, together, strict=True):
        (alone,) = evaluate(scorer, [model], prepared, metric=None)
        assert alone.samples == scoring.samples
        same = {"score_seconds": 0.0}
        assert alone.record.model_copy(update=same) == scoring.record.model_copy(update=same)


def test_only_what_is_new_is_asked_of_each_model(
    base: Any, tokenizer: Any, tasks_folder: Path, tmp_path: Path
) -> None:
    prepared = prepare(tokenizer, tasks_folder, "colours")
    scorer = put_on_two(base, tokenizer, tmp_path)
    whole = evaluate(
        scorer, [ScoredModel(n, "f", n) for n in ("one", "two")], prepared, metric=None
    )
    earlier = [line for line in whole[0].samples if line["doc_id"] % 5 != 2]
    known = Known({line["doc_id"]: tuple((each,) for (each,) in line["resps"]) for line in earlier})
    num_known = sum(len(line["resps"]) for line in earlier)
    assert 0 < len(earlier) < len(whole[0].samples)
    scorer.calls.clear()
    told: list[int] = []
    again = evaluate(
        scorer,
        [ScoredModel("one", "f", "one", known), ScoredModel("two", "f", "two")],
        prepared,
        metric=None,
        advance=told.append,
    )
    assert sorted(scorer.calls) == sorted(
        [(("one",), len(prepared.requests) - num_known), (("two",), len(prepared.requests))]
    )
    assert sum(told) == 2 * prepared.num_tokens
    assert [each.samples for each in again] == [each.samples for each in whole]


# sampled answers


SAMPLED = """
include: sums.yaml
task: sampled
repeats: 3
generation_kwargs: {until: ["\\n"], do_sample: true, temperature: 1.5, max_gen_toks: 6}
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - {name: all, filter: [{function: take_first_k, k: 3}]}
"""


def test_each_repeat_is_a_draw_of_its_own_and_the_same_again(
    base: Any, tokenizer: Any, tasks_folder: Path
) -> None:
    (tasks_folder / "sampled.yaml").write_text(SAMPLED)
    prepared = prepare(tokenizer, tasks_folder, "sampled")
    assert len(prepared.requests) == 3 * prepared.num_items
    assert len({request.draw for request in prepared.requests}) == len(prepared.requests)
    first, again = (score(base, tokenizer, prepared) for _ in range(2))
    assert first.samples == again.samples
    lines = [line for line in first.samples if line["filter"] == "all"]
    drawn = [line["resps"][0] for line in lines]
    assert all(len(texts) == 3 for texts in drawn)
    assert sum(len(set(texts)) > 1 for texts in drawn) > 5
    assert [line["filtered_resps"] for line in lines] == [[texts] for texts in drawn]
    heads = [line["filtered_resps"] for line in first.samples if line["filter"] == "first"]
    assert heads == [[texts[0]] for texts in drawn]
    assert (first.record.num_draws, first.record.sampling_seed) == (3, SAMPLING_SEED)
    fewer = prepare(tokenizer, tasks_folder, "sampled", limit=3)
    draws = {(request.context, request.draw) for request in prepared.requests}
    assert {
        (r.context, r.draw) for r in fewer.requests
    } < draws  # more items leave them as they are
    known = Known({line["doc_id"]: (tuple(line["resps"][0]),) for line in lines[2:5]})
    assert score(base, tokenizer, prepared, known=known).samples == first.samples


def test_a_greedy_answer_is_written_once_and_repeated(
    base: Any, tokenizer: Any, tasks_folder: Path
) -> None:
    greedy = SAMPLED.replace("do_sample: true, temperature: 1.5", "do_sample: false")
    (tasks_folder / "sampled.yaml").write_text(greedy)
    prepared = prepare(tokenizer, tasks_folder, "sampled")
    assert len(prepared.requests) == prepared.num_items
    scored = score(base, tokenizer, prepared)
    assert all(len(line["resps"][0]) == 3 for line in scored.samples)
    assert all(len(set(line["resps"][0])) == 1 for line in scored.samples)
    assert (scored.record.num_draws, scored.record.sampling_seed) == (0, None)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("{}", (256, ("\n\n", "<|im_end|>"), {"do_sample": False})),
        (
            "{until: 'x', max_new_tokens: 5, temperature: 0.0, repetition_penalty: 1.2}",
            (5, ("x", "<|im_end|>"), {"do_sample": False, "repetition_penalty": 1.2}),
        ),
        (
            "{until: ['<|im_end|>'], temperature: 0.7, top_p: 0.9, max_tokens: 5}",
            (5, ("<|im_end|>",), {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        ),
    ],
)
def test_generation_settings_are_resolved_as_lm_eval_resolves_them(
    tokenizer: Any, tasks_folder: Path, options: str, settings: Any
) -> None:
    text = f"include: sums.yaml\ntask: settings\ngeneration_kwargs: {options}\n"
    (tasks_folder / "settings.yaml").write_text(text)
    prepared = prepare(tokenizer, tasks_folder, "settings", limit=1)
    found = prepared.requests[0].settings
    assert (found.max_new_tokens, found.stops, dict(found.options)) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{do_sample: true}", "asks for sampling but sets no temperature"),
        ("{max_length: 5}", r"sets generation_kwargs\.max_length to 5"),
        ("{bad_words_ids: [[1]]}", r"generation_kwargs\.bad_words_ids"),
    ],
)
def test_generation_settings_that_cannot_be_honoured(
    tokenizer: Any, tasks_folder: Path, options: str, message: str
) -> None:
    text = f"include: sums.yaml\ntask: settings\ngeneration_kwargs: {options}\n"
    (tasks_folder / "settings.yaml").write_text(text)
    with pytest.raises(TaskError, match=message):
        prepare(tokenizer, tasks_folder, "settings")


def test_an_empty_text_is_refused(tokenizer: Any, tasks_folder: Path, sentence: Sentences) -> None:
    path = tasks_folder / "small_prose.yaml"
    path.write_text(path.read_text().replace("{{text}}", "{{text if 'sky' in text}}"))
    with pytest.raises(DataError) as caught:
        prepare(tokenizer, tasks_folder, "small_prose")
    sentence(caught.value, names=("small_prose",))
