"""Is our scoring lm-eval's own? The same real items through both, compared item by item.

    python -m benchmarks.parity [--limit 6] [--precision float32] [--model NAME_OR_FOLDER]

The peer is lm-evaluation-harness from end to end: ``simple_evaluate`` with its ``HFLM`` on a model
that transformers loaded, and adapters that ``peft.PeftModel.from_pretrained`` put on it; prompts,
few-shot examples, filters and metrics are its own. Ours is ``load_frozen``, ``ResidentScorer`` with
base and adapter in one call, ``prepare_task`` and ``evaluate``, as a study calls them. Both on the
CPU, in float32, or in bfloat16 by ``--precision``: then differences are reported, not judged.

Regimes: choices by text and by letter, generations (GSM8K with its two filters), the right option's
likelihood, and texts (one longer than the context), each on the base and with an adapter; all but
texts also few-shot, with the chat template, few-shot in one turn and in many, and cut to a small
context; options joined to their prompts without a delimiter, where the tokenizer merges both; and
every other multiple-choice task of the folder, zero-shot. Compared are every log-likelihood, greedy
flag, generation, filtered answer, per-item metric, aggregate, prompt and hash, and which option
wins by likelihood and by likelihood per character.

Seconds are of answering requests, in one process, on the same items, first ours and then the
peer's, in batches of ``PEER_BATCH_SIZE``. Items are few, so the ratio (the median over regimes) is
information, not a claim: ``benchmarks.evaluation`` measures speed. The last line of output is one
JSON object; the exit code is 1 if anything differs in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.parity_regimes import (
    Regime,
    Scale,
    all_regimes,
    multiple_choice_tasks,
    write_task_files,
)
from benchmarks.parity_sides import (
    load_ours,
    load_theirs,
    save_random_adapter,
    score_ours,
    score_theirs,
)
from benchmarks.parity_tally import TOLERANCE_NATS, Scores, Tally, compare
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.devices import ResolvedPrecision
from rankwise.engine.models.start import fetch_weights
from rankwise.records.config.study import BaseModelConfig

SHARED_TASKS = Path(__file__).resolve().parents[2] / "shared" / "tasks"


class Outcome(NamedTuple):
    """A regime, both sides, and what differs."""

    regime: Regime
    tally: Tally
    ours: Scores
    theirs: Scores


def check(
    model_folder: Path,
    tasks_path: Path,
    work: Path,
    scale: Scale,
    report: Callable[[Outcome], None] = lambda _: None,
    chosen: Callable[[Regime], bool] = lambda _: True,
    precision: ResolvedPrecision = "float32",
) -> list[Outcome]:
    """Score every regime on both sides, ours of base and adapter in one call.

    Args:
        model_folder: a transformers folder.
        tasks_path: the shared tasks.
        work: an empty folder for the adapter and for task files.
        scale: how much is scored.
        report: is told of each regime when it is done.
        chosen: which regimes of the table.
        precision: of both sides.

    Raises:
        ValueError: the adapter changes nothing in some regime, so that it would prove nothing.
    """
    adapter, folders = work / "adapter", [tasks_path, work / "tasks"]
    write_task_files(tasks_path, folders[1], scale.max_new_tokens)
    save_random_adapter(model_folder, adapter, scale.adapter_size)
    regimes = filter(chosen, all_regimes(multiple_choice_tasks(tasks_path), scale))
    scorer, tokenizer = load_ours(model_folder, adapter, precision)
    theirs = [load_theirs(model_folder, each, precision) for each in (None, adapter)]
    mine: dict[Regime, tuple[Scores, Scores]] = {}
    outcomes: list[Outcome] = []
    for regime in regimes:
        twin = regime._replace(is_adapted=False)
        if twin not in mine:
            mine[twin] = score_ours(scorer, tokenizer, regime, folders)
        ours = mine[twin][regime.is_adapted]
        scored = {line["doc_id"] for line in ours.samples}
        peer = score_theirs(theirs[regime.is_adapted], model_folder, regime, folders, scored)
        outcomes.append(Outcome(regime, compare(ours, peer), ours, peer))
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
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tasks-path", type=Path, default=SHARED_TASKS)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    base = find_base_model(BaseModelConfig(name=options.model))
    with tempfile.TemporaryDirectory() as work:
        outcomes = check(
            fetch_weights(base),
            options.tasks_path,
            Path(work),
            Scale(options.limit),
            report=lambda outcome: print(line(outcome), file=sys.stderr, flush=True),
            precision=options.precision,
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
        "precision": options.precision,
        "limit": options.limit,
        "num_threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(summary))
    sys.exit(0 if tally.is_equal or options.precision == "bfloat16" else 1)


if __name__ == "__main__":
    main()
