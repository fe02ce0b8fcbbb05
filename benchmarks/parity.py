"""Is our scoring lm-eval's own? The same real items through both, compared item by item.

    python -m benchmarks.parity [--limit 6] [--model NAME_OR_FOLDER] [--tasks-path ../shared/tasks]

The peer is lm-evaluation-harness from end to end: ``simple_evaluate`` with its ``HFLM`` on a model
that transformers loaded, and adapters that ``peft.PeftModel.from_pretrained`` put on it; prompts,
few-shot examples, filters and metrics are its own. Ours is ``load_frozen``, ``load_adapter``,
``prepare_task`` and ``evaluate``, as a study calls them. Both in float32 on the CPU.

Regimes: choices by text and by letter, generations (GSM8K with its two filters), the right option's
likelihood, and texts (one longer than the context), each on the base and with an adapter; all but
texts also few-shot, with the chat template, few-shot in one turn and in many, and cut to a small
context; and every other multiple-choice task of the folder, zero-shot. Compared are every
log-likelihood, greedy flag, generation, filtered answer, per-item metric, aggregate, prompt and
hash, and which option wins by likelihood and by likelihood per character.

Seconds are of answering requests, in one process, on the same items, first ours and then the
peer's: ours in batches of ``MAX_BATCH_TOKENS`` padded tokens (a study's default), the peer in
batches of ``PEER_BATCH_SIZE`` (its ``auto`` tries 64 rows of the full context first, hours on a
CPU). Items are few, so the ratio (the median over regimes) is information, not a claim. The last
line of output is one JSON object; the exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import lm_eval
import peft
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from rankwise import adapters, models
from rankwise.config import BaseModelConfig
from rankwise.evaluation import evaluate
from rankwise.tasks import load_tasks, prepare_task
from rankwise.tasks.resolution import quiet_lm_eval

CPU = torch.device("cpu")
TOLERANCE_NATS = 1e-3
MAX_BATCH_TOKENS, PEER_BATCH_SIZE = 4096, 8
ADAPTER_RANK, ADAPTER_ALPHA, ADAPTER_SEED = 8, 16.0, 0
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
SHARED_TASKS = Path(__file__).resolve().parents[2] / "shared" / "tasks"

TEXTS_PY = """
from datasets import Dataset, DatasetDict

TEXTS = {texts!r}


def load(**_):
    return DatasetDict(test=Dataset.from_list([{{"text": text}} for text in TEXTS]))
"""

# What the shared folder has no task for, over the same data.
TASK_FILES = {
    "parity_likelihood": """
include: {tasks_path}/_cloze.yaml
task: parity_likelihood
dataset_kwargs: {{folder: sciq}}
output_type: loglikelihood
doc_to_choice: null
doc_to_target: "{{{{choices[label]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
""",
    "parity_mutual_info": """
include: {tasks_path}/_cloze.yaml
task: parity_mutual_info
dataset_kwargs: {{folder: arc_easy}}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_bytes, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_mutual_info, aggregation: mean, higher_is_better: true}}
""",
    "parity_gsm8k": """
include: {tasks_path}/local_gsm8k.yaml
task: parity_gsm8k
num_fewshot: 4
generation_kwargs:
  until: ["Question:", "</s>", "<|im_end|>"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: {max_new_tokens}
""",
    "parity_texts": """
task: parity_texts
custom_dataset: !function parity_texts.load
dataset_path: ""
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
metadata: {{version: 1.0}}
""",
}


class Scale(NamedTuple):
    """How much is scored.

    Attributes:
        limit: items of each regime; of a generation half as many.
        num_fewshot: examples of the few-shot regimes.
        max_length: context of the regimes that cut nothing.
        cut_length: context of the regimes that do; a generation gets its new tokens on top.
        max_new_tokens: of a generation.
        adapter_size: norm of the adapter's update of each matrix, over that of the matrix.
    """

    limit: int
    num_fewshot: int = 3
    max_length: int = 4096
    cut_length: int = 96
    max_new_tokens: int = 64
    adapter_size: float = 0.1


class Regime(NamedTuple):
    """One way to score one task."""

    task: str
    is_adapted: bool
    limit: int
    max_length: int
    num_fewshot: int = 0
    chat_template: bool = False
    fewshot_as_multiturn: bool = False
    is_cut: bool = False

    @property
    def name(self) -> str:
        words = ["adapter" if self.is_adapted else "base", f"{self.num_fewshot}-shot"]
        words += ["chat"] if self.chat_template else []
        words += ["multi-turn"] if self.fewshot_as_multiturn else []
        words += [f"cut to {self.max_length}"] if self.is_cut else []
        return f"{self.task}: {', '.join(words)}"


class Scores(NamedTuple):
    """What one side says.

    Attributes:
        samples: one line per item and filter, in lm-eval's fields.
        aggregates: by "metric,filter".
        seconds: spent on answering requests.
        output_type: of the task.
        num_cut: requests that lost context, or windows that a text took beyond its first.
    """

    samples: list[dict[str, Any]]
    aggregates: dict[str, float]
    seconds: float
    output_type: str = ""
    num_cut: int = 0


class Tally(NamedTuple):
    """What differs between two sides; a request is an option, a text, or a prompt to continue."""

    num_requests: int = 0
    max_abs_log_likelihood_difference: float = 0.0
    num_greedy_mismatches: int = 0
    num_decision_mismatches: int = 0
    num_generation_mismatches: int = 0
    num_extraction_mismatches: int = 0
    num_metric_mismatches: int = 0
    num_hash_mismatches: int = 0

    @property
    def is_equal(self) -> bool:
        return self.max_abs_log_likelihood_difference <= TOLERANCE_NATS and not any(self[2:])

    def plus(self, other: Tally) -> Tally:
        largest = max(self[1], other[1])
        sums = Tally(*(a + b for a, b in zip(self, other, strict=True)))
        return sums._replace(max_abs_log_likelihood_difference=largest)


class Outcome(NamedTuple):
    """A regime, both sides, and what differs."""

    regime: Regime
    tally: Tally
    ours: Scores
    theirs: Scores


def all_regimes(tasks: Sequence[str], scale: Scale) -> list[Regime]:
    """The table: every kind of task in every setting; the other tasks zero-shot.

    Args:
        tasks: multiple-choice tasks of the shared folder.
        scale: how much is scored.
    """
    whole = {"limit": scale.limit, "max_length": scale.max_length}
    shots = {**whole, "num_fewshot": scale.num_fewshot}
    settings: list[dict[str, Any]] = [
        whole,
        shots,
        {**whole, "chat_template": True},
        {**shots, "chat_template": True},
        {**shots, "chat_template": True, "fewshot_as_multiturn": True},
        {**shots, "max_length": scale.cut_length, "is_cut": True},
    ]
    regimes: list[Regime] = []
    for is_adapted in (False, True):
        for task, setting in itertools.product(
            ("local_arc_easy", "local_mmlu", "parity_likelihood", "parity_gsm8k"), settings
        ):
            regime = Regime(task, is_adapted, **setting)
            if task == "parity_gsm8k":
                room = scale.max_new_tokens if regime.is_cut else 0
                regime = regime._replace(
                    limit=(scale.limit + 1) // 2, max_length=regime.max_length + room
                )
            regimes.append(regime)
        cut = {**whole, "max_length": scale.cut_length, "is_cut": True}
        regimes += [Regime("parity_texts", is_adapted, **setting) for setting in (whole, cut)]
        regimes.append(Regime("parity_mutual_info", is_adapted, **whole))
    regimes += [
        Regime(task, is_adapted=False, **whole)
        for task in tasks
        if task not in ("local_arc_easy", "local_mmlu")
    ]
    return regimes


def write_task_files(tasks_path: Path, folder: Path, max_new_tokens: int) -> None:
    """The tasks that the shared folder lacks, as lm-eval YAML files."""
    questions = load_tasks(["local_gsm8k"], [tasks_path])["local_gsm8k"][0].task.dataset["test"]
    texts = list(questions["question"])[:100]
    folder.mkdir(parents=True, exist_ok=True)
    code = TEXTS_PY.format(texts=["\n".join(texts[:8]), *texts])
    (folder / "parity_texts.py").write_text(code, encoding="utf-8")
    for name, text in TASK_FILES.items():
        text = text.format(tasks_path=tasks_path.resolve(), max_new_tokens=max_new_tokens)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def multiple_choice_tasks(tasks_path: Path) -> list[str]:
    """The shared tasks that ask for one of several options."""
    return sorted(
        path.stem
        for path in tasks_path.glob("local_*.yaml")
        if any(kind in path.read_text() for kind in ("_cloze.yaml", "_letters.yaml"))
    )


def save_random_adapter(model_folder: Path, folder: Path, size: float) -> None:
    """A LoRA adapter whose every update has ``size`` times its weight's norm."""
    settings = peft.LoraConfig(
        r=ADAPTER_RANK,
        lora_alpha=ADAPTER_ALPHA,
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(ADAPTER_SEED)
    base: Any = models.load_frozen(model_folder, "float32", CPU)
    adapted: Any = peft.get_peft_model(base, settings)
    generator = torch.Generator().manual_seed(ADAPTER_SEED)
    with torch.no_grad():
        for name, (lora_A, lora_B) in adapters.lora_factors(adapted).items():
            weight: Any = adapted.get_submodule(name).base_layer.weight
            direction = torch.randn(lora_B.shape, generator=generator)
            update = ADAPTER_ALPHA / ADAPTER_RANK * direction @ lora_A
            lora_B.copy_(direction * (size * weight.norm() / update.norm()))
    adapted.save_pretrained(str(folder))


def load_ours(model_folder: Path, adapter: Path | None) -> tuple[Any, Any]:
    """Model and tokenizer as a study loads them."""
    model = models.load_frozen(model_folder, "float32", CPU)
    if adapter is not None:
        model = adapters.load_adapter(model, adapter)
    return model.eval(), models.load_tokenizer(model_folder)


def load_theirs(model_folder: Path, adapter: Path | None) -> Any:
    """The model as a user of transformers and peft loads it."""
    model = AutoModelForCausalLM.from_pretrained(str(model_folder), dtype=torch.float32)
    return model if adapter is None else peft.PeftModel.from_pretrained(model, str(adapter))


class TimedPeer(HFLM):
    """lm-eval's own back end, which also says how long its answers took."""

    seconds = 0.0

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def loglikelihood(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed():
            return super().loglikelihood(*args, **kwargs)

    def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed():
            return super().loglikelihood_rolling(*args, **kwargs)

    def generate_until(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed():
            return super().generate_until(*args, **kwargs)


def score_ours(
    model: Any, tokenizer: Any, regime: Regime, folders: Sequence[Path], **changes: Any
) -> Scores:
    """Score by our code; ``changes`` are to the task's preparation, for planting mistakes."""
    settings: dict[str, Any] = {
        "max_length": regime.max_length,
        "num_fewshot": regime.num_fewshot,
        "limit": regime.limit,
        "chat_template": regime.chat_template,
        "fewshot_as_multiturn": regime.fewshot_as_multiturn,
    }
    loaded = load_tasks([regime.task], folders)[regime.task][0]
    prepared = prepare_task(loaded, tokenizer, **(settings | changes))
    record, samples = evaluate(
        model,
        tokenizer,
        prepared,
        model_name="parity",
        fingerprint="parity",
        metric=None,
        max_batch_tokens=MAX_BATCH_TOKENS,
    )
    num_windows = len(prepared.requests) - len(prepared.instances)
    return Scores(
        samples,
        {f"{score.metric},{score.filter}": score.value for score in record.metrics},
        record.score_seconds,
        record.output_type,
        num_windows + record.num_truncated,
    )


def score_theirs(
    model: Any, tokenizer_folder: Path, regime: Regime, folders: Sequence[Path]
) -> Scores:
    """Score by ``lm_eval.simple_evaluate``."""
    # what it says about machine and progress is not wanted, and takes longer than a tiny model
    silence = contextlib.redirect_stderr(io.StringIO())
    with quiet_lm_eval(), silence, mock.patch("lm_eval.evaluator.add_env_info"):
        peer = TimedPeer(
            pretrained=model,
            tokenizer=str(tokenizer_folder),
            batch_size=PEER_BATCH_SIZE,
            max_length=regime.max_length,
        )
        result = lm_eval.simple_evaluate(
            model=peer,
            tasks=[regime.task],
            task_manager=TaskManager(include_path=list(folders), include_defaults=False),
            num_fewshot=regime.num_fewshot,
            apply_chat_template=regime.chat_template,
            fewshot_as_multiturn=regime.fewshot_as_multiturn,
            limit=regime.limit,
            log_samples=True,
            bootstrap_iters=0,
        )
    aggregates = {
        name: value
        for name, value in result["results"][regime.task].items()
        if "," in name and isinstance(value, int | float)
    }
    return Scores(result["samples"][regime.task], aggregates, peer.seconds)


def compare(ours: Scores, theirs: Scores) -> Tally:
    """Count what differs.

    Raises:
        ValueError: the two did not score the same items.
    """
    mine = {(line["doc_id"], line["filter"]): line for line in ours.samples}
    peer = {(line["doc_id"], line["filter"]): line for line in theirs.samples}
    if mine.keys() != peer.keys() or not mine:
        raise ValueError(f"ours scored {sorted(mine)}, the peer {sorted(peer)}.")
    first_filter = ours.samples[0]["filter"]
    total = Tally()
    for key, line in mine.items():
        if key[1] == first_filter:
            total = total.plus(_compare_responses(line, peer[key]))
        total = total.plus(_compare_judgements(line, peer[key]))
    aggregates = sum(
        name not in ours.aggregates or not _same(ours.aggregates[name], value)
        for name, value in theirs.aggregates.items()
    )
    return total.plus(Tally(num_metric_mismatches=aggregates + (not theirs.aggregates)))


def _compare_responses(mine: dict[str, Any], peer: dict[str, Any]) -> Tally:
    """One item's raw answers and its prompts."""
    differences, greedy, generations = [0.0], 0, 0
    for (answer,), (expected,) in zip(mine["resps"], peer["resps"], strict=True):
        if isinstance(expected, str):
            generations += answer != expected
            continue
        if isinstance(expected, tuple):
            greedy += bool(answer[1]) != bool(expected[1])
            answer, expected = answer[0], expected[0]
        difference = abs(answer - expected)
        differences.append(difference if math.isfinite(difference) else math.inf)
    hashes = ("doc_hash", "prompt_hash", "target_hash")
    prompts = [[tuple(args) for args in line["arguments"]] for line in (mine, peer)]
    return Tally(
        num_requests=len(peer["resps"]),
        max_abs_log_likelihood_difference=max(differences),
        num_greedy_mismatches=greedy,
        num_decision_mismatches=sum(a != b for a, b in zip(_wins(mine), _wins(peer), strict=True)),
        num_generation_mismatches=generations,
        num_hash_mismatches=sum(mine[h] != peer[h] for h in hashes) + (prompts[0] != prompts[1]),
    )


def _compare_judgements(mine: dict[str, Any], peer: dict[str, Any]) -> Tally:
    """One item's answers through one filter, and its metrics."""
    pairs = zip(mine["filtered_resps"], peer["filtered_resps"], strict=True)
    extracted = sum(a != b for a, b in pairs if isinstance(b, str))
    metrics = sum(not _same(mine.get(name), peer[name]) for name in peer["metrics"])
    return Tally(num_extraction_mismatches=extracted, num_metric_mismatches=metrics)


def _wins(line: dict[str, Any]) -> tuple[int, ...]:
    """Of a choice, which option has the most nats, and the most per character; else nothing."""
    num_options = len(line["doc"].get("choices", ()))
    if not num_options or len(line["resps"]) < num_options:
        return ()
    nats = [answer[0] for (answer,) in line["resps"][:num_options]]
    lengths = [len(text.removeprefix(" ")) for _, text in line["arguments"][:num_options]]
    per_character = [nat / length for nat, length in zip(nats, lengths, strict=True)]
    return nats.index(max(nats)), per_character.index(max(per_character))


def _same(mine: Any, peer: Any) -> bool:
    """Equal; sums and means of log-likelihoods within the tolerance (0 and 1 never are)."""
    if isinstance(peer, tuple | list):
        return len(mine) == len(peer) and all(map(_same, mine, peer))
    if isinstance(peer, str) or mine is None:
        return mine == peer
    return math.isclose(mine, peer, rel_tol=TOLERANCE_NATS, abs_tol=TOLERANCE_NATS)


def check(
    model_folder: Path,
    tasks_path: Path,
    work: Path,
    scale: Scale,
    report: Callable[[Outcome], None] = lambda _: None,
    chosen: Callable[[Regime], bool] = lambda _: True,
) -> list[Outcome]:
    """Score every regime on both sides.

    Args:
        model_folder: a transformers folder.
        tasks_path: the shared tasks.
        work: an empty folder for the adapter and for task files.
        scale: how much is scored.
        report: is told of each regime when it is done.
        chosen: which regimes of the table.

    Raises:
        ValueError: the adapter changes nothing in some regime, so that it would prove nothing.
    """
    adapter, folders = work / "adapter", [tasks_path, work / "tasks"]
    write_task_files(tasks_path, folders[1], scale.max_new_tokens)
    save_random_adapter(model_folder, adapter, scale.adapter_size)
    regimes = filter(chosen, all_regimes(multiple_choice_tasks(tasks_path), scale))
    outcomes: list[Outcome] = []
    for is_adapted, group in itertools.groupby(
        sorted(regimes, key=lambda regime: regime.is_adapted), lambda regime: regime.is_adapted
    ):
        model, tokenizer = load_ours(model_folder, adapter if is_adapted else None)
        theirs = load_theirs(model_folder, adapter if is_adapted else None)
        for regime in group:
            mine = score_ours(model, tokenizer, regime, folders)
            peer = score_theirs(theirs, model_folder, regime, folders)
            outcomes.append(Outcome(regime, compare(mine, peer), mine, peer))
            report(outcomes[-1])
    _require_an_effect(outcomes)
    return outcomes


def _require_an_effect(outcomes: Sequence[Outcome]) -> None:
    """With and without the adapter, the peer's own answers must differ in every regime."""
    base = {o.regime: o for o in outcomes if not o.regime.is_adapted}
    for outcome in outcomes:
        twin = base.get(outcome.regime._replace(is_adapted=False))
        if outcome.regime.is_adapted and twin is not None:
            change = compare(outcome.theirs, twin.theirs)
            nats, texts = change.max_abs_log_likelihood_difference, change.num_generation_mismatches
            if nats < 100 * TOLERANCE_NATS and not texts:
                raise ValueError(f"{outcome.regime.name}: the adapter changes nothing ({nats}).")


def total(outcomes: Sequence[Outcome]) -> Tally:
    """Everything that differs."""
    tally = Tally()
    for outcome in outcomes:
        tally = tally.plus(outcome.tally)
    return tally


def line(outcome: Outcome) -> str:
    """What is printed of a regime."""
    tally = outcome.tally
    counts = " ".join(
        f"{name} {count}" for name, count in zip(tally._fields[2:], tally[2:], strict=True)
    )
    return (
        f"{outcome.regime.name:62} {tally.num_requests:4} requests, "
        f"{tally.max_abs_log_likelihood_difference:.1e} nats, "
        f"{'equal' if tally.is_equal else counts}; cut {outcome.ours.num_cut}; "
        f"{outcome.ours.seconds:.1f} s, peer {outcome.theirs.seconds:.1f} s"
    )


def seconds_ratios(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Our seconds over the peer's, by output type: the median over regimes, for stalls."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        ratios[outcome.ours.output_type].append(outcome.ours.seconds / outcome.theirs.seconds)
    return {kind: round(statistics.median(values), 3) for kind, values in ratios.items()}


def num_greedy(outcomes: Sequence[Outcome]) -> int:
    """Requests that the peer says greedy decoding would give: not every flag may be false."""
    return sum(
        isinstance(answer, tuple) and answer[1]
        for outcome in outcomes
        for sample in outcome.theirs.samples
        for (answer,) in sample["resps"]
    )


def num_extracted(outcomes: Sequence[Outcome]) -> int:
    """Answers that a filter did find in a generation: those are what a mismatch could be in."""
    return sum(
        sample["filtered_resps"] != ["[invalid]"]
        for outcome in outcomes
        if outcome.ours.output_type == "generate_until"
        for sample in outcome.ours.samples
    )


def text_loss_nats(outcomes: Sequence[Outcome], *, is_adapted: bool) -> float:
    """Of the texts, per token: whether the adapter leaves a sane model."""
    samples = [
        sample
        for outcome in outcomes
        if outcome.regime.task == "parity_texts" and outcome.regime.is_adapted == is_adapted
        for sample in outcome.ours.samples
    ]
    num_tokens = sum(sample["num_loss_tokens"] for sample in samples)
    return -sum(sample["resps"][0][0] for sample in samples) / num_tokens


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare every regime, print one line for each to stderr, and the summary to stdout."""
    parser = argparse.ArgumentParser(description="Our scores against lm-eval's own.")
    parser.add_argument(
        "--limit", type=int, default=6, help="items of each regime (generations: half)"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name or folder")
    parser.add_argument("--tasks-path", type=Path, default=SHARED_TASKS)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    base = models.find_base_model(BaseModelConfig(name=options.model))
    with tempfile.TemporaryDirectory() as work:
        outcomes = check(
            models.fetch_weights(base),
            options.tasks_path,
            Path(work),
            Scale(options.limit),
            report=lambda outcome: print(line(outcome), file=sys.stderr, flush=True),
        )
    tally = total(outcomes)
    summary = {
        **tally._asdict(),
        "regimes": len(outcomes),
        "num_greedy": num_greedy(outcomes),
        "num_extracted_answers": num_extracted(outcomes),
        "seconds_ratio_ours_to_peer": seconds_ratios(outcomes),
        "text_loss_nats_base": round(text_loss_nats(outcomes, is_adapted=False), 3),
        "text_loss_nats_adapter": round(text_loss_nats(outcomes, is_adapted=True), 3),
        "model": options.model,
        "limit": options.limit,
        "num_threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(summary))
    sys.exit(0 if tally.is_equal else 1)


if __name__ == "__main__":
    main()
