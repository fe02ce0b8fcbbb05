"""Our scoring against lm-eval's own whole path, on real benchmark items."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import parity, parity_sides
from benchmarks.parity_regimes import JOINS, Regime, Scale
from benchmarks.parity_tally import TOLERANCE_NATS, Tally, compare
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.models.start import fetch_weights
from rankwise.records.config.study import BaseModelConfig
from rankwise.tasks.training_rows import TextEncoder
from tests.support.tiny_models import tiny
from tests.support.tiny_tasks import tiny_tokenizer

# an update three times as large as its weights: a random model then says something else each time
MEASURES = {"num_fewshot": 5, "max_new_tokens": 20, "adapter_size": 3.0}
GREEDY = "num_greedy_mismatches"
DECISION = "num_decision_mismatches"
METRIC = "num_metric_mismatches"
GENERATION = "num_generation_mismatches"
EXTRACTION = "num_extraction_mismatches"
HASH = "num_hash_mismatches"

GREEDY_YAML = """
include: {tasks_path}/_cloze.yaml
task: own_words
custom_dataset: !function own_words.load
doc_to_text: question
target_delimiter: ""
"""

GREEDY_PY = """
from datasets import Dataset, DatasetDict

ROWS = {rows!r}


def load(**_):
    return DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def outcomes(work: Path, tiny_model_folder: Path, shared_tasks: Path) -> Any:
    return parity.check(tiny_model_folder, shared_tasks, work, Scale(3, **MEASURES))


def of(outcomes: Any, task: str, **settings: Any) -> Any:
    """The outcome of one regime."""
    (found,) = [
        outcome
        for outcome in outcomes
        if outcome.regime.task == task
        and all(getattr(outcome.regime, name) == value for name, value in settings.items())
    ]
    return found


def test_every_regime_equals_lm_eval(outcomes: Any) -> None:
    for outcome in outcomes:
        assert outcome.tally.is_equal, parity.line(outcome)
    assert parity.total(outcomes).num_requests > 500


def test_every_output_type_meets_every_setting(outcomes: Any) -> None:
    settings = {
        (o.ours.output_type, r.is_adapted, r.num_fewshot, r.chat_template, r.fewshot_as_multiturn)
        for o in outcomes
        for r in [o.regime]
    }
    for kind in ("multiple_choice", "loglikelihood", "generate_until"):
        for is_adapted in (False, True):
            for setting in [
                (0, False, False),
                (5, False, False),
                (0, True, False),
                (5, True, False),
                (5, True, True),
            ]:
                assert (kind, is_adapted, *setting) in settings
    assert {is_adapted for kind, is_adapted, *_ in settings if "rolling" in kind} == {False, True}
    assert len({o.regime.task for o in outcomes}) == 19


def test_only_the_small_contexts_cut(outcomes: Any) -> None:
    for outcome in outcomes:
        assert (outcome.ours.num_cut > 0) == outcome.regime.is_cut, outcome.regime.name


def test_the_answers_are_not_all_alike(outcomes: Any) -> None:
    assert parity.num_extracted(outcomes) > 4
    for kind in ("multiple_choice", "generate_until"):
        samples = [s for o in outcomes if o.ours.output_type == kind for s in o.theirs.samples]
        answers = {str(sample["resps"]) for sample in samples}
        assert len(answers) > len(samples) / 4


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("local_arc_easy", [DECISION]),
        ("parity_likelihood", []),
        ("parity_texts", []),
        ("parity_gsm8k", [GENERATION, EXTRACTION]),
    ],
)
def test_the_base_scored_for_the_adapter_is_found(
    outcomes: Any, task: str, fields: list[str]
) -> None:
    settings = {"num_fewshot": 0, "chat_template": False, "is_cut": False}
    base = of(outcomes, task, is_adapted=False, **settings)
    adapted = of(outcomes, task, is_adapted=True, **settings)
    tally = compare(base.ours, adapted.theirs)
    assert not tally.is_equal
    assert tally.num_hash_mismatches == 0
    if task != "parity_gsm8k":
        assert tally.max_abs_log_likelihood_difference > 100 * TOLERANCE_NATS
    for field in fields:
        assert getattr(tally, field) > 0, field


def test_a_context_cut_one_token_short_is_found(
    outcomes: Any, work: Path, tiny_model_folder: Path, shared_tasks: Path
) -> None:
    scorer, tokenizer = parity_sides.load_ours(tiny_model_folder, work / "adapter")
    for task in ("local_arc_easy", "local_mmlu", "parity_likelihood", "parity_texts"):
        outcome = of(outcomes, task, is_adapted=False, is_cut=True)
        short, _ = parity_sides.score_ours(
            scorer,
            tokenizer,
            outcome.regime,
            [shared_tasks, work / "tasks"],
            max_length=outcome.regime.max_length - 1,
        )
        tally = compare(short, outcome.theirs)
        assert tally.max_abs_log_likelihood_difference > 10 * TOLERANCE_NATS, task


def shift(line: dict[str, Any]) -> None:
    line["resps"][0] = [(line["resps"][0][0][0] - 0.002, line["resps"][0][0][1])]


def lose_a_number(line: dict[str, Any]) -> None:
    line["resps"][2] = [(float("nan"), line["resps"][2][0][1])]


def flip_greedy(line: dict[str, Any]) -> None:
    line["resps"][0] = [(line["resps"][0][0][0], not line["resps"][0][0][1])]


def prefer_another_option(line: dict[str, Any]) -> None:
    nats = [answer[0] for (answer,) in line["resps"]]
    line["resps"][nats.index(min(nats))] = [(max(nats) + 1.0, False)]


def misjudge(line: dict[str, Any]) -> None:
    line["acc_norm"] = 1.0 - line["acc_norm"]


def change_prompt(line: dict[str, Any]) -> None:
    line["prompt_hash"] = "0" * 64


def change_another_prompt(line: dict[str, Any]) -> None:
    context, continuation = line["arguments"][-1]
    line["arguments"][-1] = (context, continuation + " ")


@pytest.mark.parametrize(
    ("plant", "fields"),
    [
        (shift, []),
        (lose_a_number, []),
        (flip_greedy, [GREEDY]),
        (prefer_another_option, [DECISION]),
        (misjudge, [METRIC]),
        (change_prompt, [HASH]),
        (change_another_prompt, [HASH]),
    ],
)
def test_one_wrong_choice_is_found(
    outcomes: Any, plant: Callable[[dict[str, Any]], None], fields: list[str]
) -> None:
    outcome = of(outcomes, "local_arc_easy", is_adapted=True, num_fewshot=0, chat_template=False)
    wrong = copy.deepcopy(outcome.ours)
    plant(wrong.samples[1])
    tally = compare(wrong, outcome.theirs)
    assert not tally.is_equal
    for field in fields:
        assert getattr(tally, field) >= 1
    moved = tally.max_abs_log_likelihood_difference > TOLERANCE_NATS
    assert moved == (plant in (shift, lose_a_number, prefer_another_option))


@pytest.mark.parametrize(
    ("field", "count"), [("resps", GENERATION), ("filtered_resps", EXTRACTION)]
)
def test_one_wrong_generation_is_found(outcomes: Any, field: str, count: str) -> None:
    outcome = of(outcomes, "parity_gsm8k", is_adapted=True, num_fewshot=0, chat_template=False)
    wrong = copy.deepcopy(outcome.ours)
    wrong.samples[0][field] = [["42"]] if field == "resps" else ["42"]
    tally = compare(wrong, outcome.theirs)
    assert tally == Tally(num_requests=outcome.tally.num_requests, **{count: 1})


def test_a_wrong_aggregate_and_missing_items_are_found(outcomes: Any) -> None:
    outcome = of(outcomes, "local_sciq")
    wrong = outcome.ours._replace(aggregates=outcome.ours.aggregates | {"acc,none": 0.123})
    assert compare(wrong, outcome.theirs).num_metric_mismatches == 1
    absent = outcome.ours._replace(aggregates={})
    assert compare(absent, outcome.theirs).num_metric_mismatches == 2
    with pytest.raises(ValueError, match="ours scored"):
        compare(outcome.ours._replace(samples=outcome.ours.samples[:2]), outcome.theirs)


def test_an_adapter_without_effect_is_refused(
    tmp_path: Path, tiny_model_folder: Path, shared_tasks: Path
) -> None:
    with pytest.raises(ValueError, match="the adapter changes nothing"):
        parity.check(
            tiny_model_folder,
            shared_tasks,
            tmp_path,
            Scale(1, adapter_size=0.0),
            chosen=lambda regime: regime.task == "local_mmlu" and regime.num_fewshot == 0,
        )


def greedy_rows(model: Any, tokenizer: Any, questions: list[str]) -> list[dict[str, Any]]:
    """Questions with what the model itself would say next, and with one letter more."""
    rows: list[dict[str, Any]] = []
    for question in questions:
        prompt = tokenizer.encode(question)
        tokens = model.generate(
            input_ids=torch.tensor([prompt]),
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )[0].tolist()
        words = tokenizer.decode(tokens[len(prompt) :])
        if tokenizer.encode(question + words) == tokens:
            rows.append({"question": question, "choices": [words, words + "q"], "label": 0})
    return rows


def test_what_the_model_itself_would_say_is_greedy(
    outcomes: Any,
    work: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    shared_tasks: Path,
) -> None:
    adapter, folders = work / "adapter", [shared_tasks, tmp_path]
    peer = parity_sides.load_theirs(tiny_model_folder, adapter)
    scorer, tokenizer = parity_sides.load_ours(tiny_model_folder, adapter)
    docs = [sample["doc"] for sample in of(outcomes, "local_sciq").ours.samples]
    docs += [sample["doc"] for sample in of(outcomes, "local_mathqa").ours.samples]
    questions = [doc["question"] + extra for doc in docs for extra in (" The", " Answer:", " 1")]
    rows = greedy_rows(peer, tokenizer, questions)
    (tmp_path / "own_words.py").write_text(GREEDY_PY.format(rows=rows))
    (tmp_path / "own_words.yaml").write_text(GREEDY_YAML.format(tasks_path=shared_tasks))
    regime = Regime("own_words", is_adapted=True, limit=99, max_length=4096)
    _, ours = parity_sides.score_ours(scorer, tokenizer, regime, folders)
    theirs = parity_sides.score_theirs(
        peer, tiny_model_folder, regime, folders, range(len(ours.samples))
    )
    assert compare(ours, theirs).is_equal
    flags = [[answer[1] for (answer,) in sample["resps"]] for sample in ours.samples]
    assert len(flags) > 3
    assert flags == [[True, False]] * len(rows)


def test_a_tokenizer_that_adds_its_beginning_of_text(
    tmp_path: Path, tiny_model_folder: Path, shared_tasks: Path
) -> None:
    from tokenizers.processors import TemplateProcessing

    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    start = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    again = load_tokenizer(folder)
    assert again.encode("a") == [tokenizer.bos_token_id, *tokenizer.encode("a")[-1:]]
    outcomes = parity.check(
        folder,
        shared_tasks,
        tmp_path / "work",
        Scale(2, **MEASURES),
        chosen=lambda regime: not regime.is_adapted and not regime.task.startswith("local_m"),
    )
    assert parity.total(outcomes).num_requests > 80
    for outcome in outcomes:
        assert outcome.tally.is_equal, parity.line(outcome)


def learnt_from_joins() -> Any:
    rows = [row for rows in JOINS.values() for row in rows.items()]
    return tiny_tokenizer(
        "\n".join(prompt[-3:] + text[:3] for prompt, texts in rows for text in texts)
    )


def of_the_embedded_model() -> Any:
    base = find_base_model(BaseModelConfig(name="smollm2-135m-instruct"))
    return load_tokenizer(fetch_weights(base))


@pytest.mark.parametrize(
    "tokenizer_of",
    [learnt_from_joins, pytest.param(of_the_embedded_model, marks=pytest.mark.slow)],
)
def test_tokens_that_straddle_prompt_and_answer(
    tmp_path: Path, shared_tasks: Path, tokenizer_of: Callable[[], Any]
) -> None:
    tokenizer = tokenizer_of()
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    model = tiny("Llama", vocab_size=len(tokenizer), max_position_embeddings=4096, **ends)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    outcomes = parity.check(
        tmp_path / "model",
        shared_tasks,
        tmp_path / "work",
        Scale(99, **MEASURES),
        chosen=lambda regime: regime.task.startswith("parity_joins"),
    )
    assert parity.total(outcomes).num_requests == 14 * 18
    for outcome in outcomes:
        assert outcome.tally.is_equal, parity.line(outcome)
    encoder = TextEncoder(load_tokenizer(tmp_path / "model"))
    for kind, rows in JOINS.items():
        pairs = [(prompt, option) for prompt, options in rows.items() for option in options]
        assert sum(encoder.split(*pair).is_merged for pair in pairs) > 2, kind


@pytest.mark.slow
def test_the_embedded_model_equals_lm_eval(tmp_path: Path, shared_tasks: Path) -> None:
    base = find_base_model(BaseModelConfig(name="smollm2-135m-instruct"))
    outcomes = parity.check(
        fetch_weights(base), shared_tasks, tmp_path, Scale(3, max_new_tokens=96)
    )
    for outcome in outcomes:
        assert outcome.tally.is_equal, parity.line(outcome)
    assert parity.num_extracted(outcomes) > 10
    assert parity.num_greedy(outcomes) > 5
    before, after = (parity.text_loss_nats(outcomes, is_adapted=a) for a in (False, True))
    assert 0.01 < after - before < 1.0
