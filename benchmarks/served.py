r"""Is what a server answers what was scored, and is a server found that ignores its adapter?

    python -m benchmarks.served [--model smollm2-135m-instruct] [--adapter FOLDER] [--items 8]
                                [--tasks capitals pydoc_topics]

A server of completions on loopback, by transformers and PEFT, is held against the adapter on tasks
of lm-eval that come with rankwise, and on texts that are written (``bundled/extraction``). It
serves an adapter (PEFT's random one with ``--adapter`` left out), and then the base under the
adapter's name: ``items_that_differ`` of the first, ``ignored_adapter_found`` of the second.
``served_seconds`` is the time in which the server answers our requests of the lm-eval tasks,
``lm_eval_seconds`` that of ``lm_eval.simple_evaluate`` with local-completions for the same items of
the same server, and ``lm_eval_differs`` the largest difference between both of a log-likelihood, in
nats. A whole check takes ``check_seconds``. Reaches no network. The last line of
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import lm_eval
import peft
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.devices import device_name
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.models.start import fetch_weights
from rankwise.engine.scoring.served import ServedModel
from rankwise.findings.deployment import LossRule
from rankwise.records.config.own_rows import ClauseConfig
from rankwise.records.config.study import BaseModelConfig
from rankwise.records.deployment import Served
from rankwise.tasks import bundled
from rankwise.tasks.bundled.own_sets import SETS
from rankwise.tasks.evaluation import ScoredModel, responses_of
from rankwise.tasks.update_guard import probes
from rankwise.weights.audit import find_adapter
from rankwise.weights.deployment import Question, check_deployment
from rankwise.weights.session import CONFIDENCE, Samples, ScoreSettings, prepared_tasks, results_by
from tests.support.completions_server import Served as Server
from tests.support.completions_server import serving

OURS = "adapter"


def main() -> None:
    """Serve the adapter, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--tasks", nargs="+", default=["capitals", "pydoc_topics"])
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    folder = fetch_weights(find_base_model(BaseModelConfig(name=asked.model)))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["RANKWISE_CACHE"] = scratch
        base, tuned = (load(folder) for _ in range(2))
        if asked.adapter is None:
            asked.adapter = Path(scratch) / "adapter"
            torch.manual_seed(0)
            settings = peft.LoraConfig(
                task_type="CAUSAL_LM", r=16, lora_alpha=32, init_lora_weights=False
            )
            tuned = peft.get_peft_model(tuned, settings)
            tuned.save_pretrained(asked.adapter)
        else:
            tuned = peft.PeftModel.from_pretrained(tuned, asked.adapter)
        server = Server({"base": base, OURS: tuned.eval()}, load_tokenizer(folder))
        with serving(server):
            print(json.dumps(measured(asked, server, folder)))


def load(folder: Path) -> Any:
    """The base in float32, as transformers has it."""
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


def measured(asked: argparse.Namespace, server: Server, folder: Path) -> dict[str, Any]:
    """What is found of the server with its adapter and without, and both clients' seconds."""
    rows = Path(asked.adapter).parent / "extraction.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in SETS["extraction"]()[: asked.items]))
    own = {"extraction": ClauseConfig.model_validate({"data": rows, "judged_by": "exact"})}
    settings = ScoreSettings(tuple(asked.tasks), limit=asked.items, precision="float32", own=own)
    found = find_adapter(str(folder), asked.adapter, "merged", any_base=True)
    tasks = prepared_tasks(found, settings)
    question = Question(tasks, settings, LossRule(1.0, 0.05, CONFIDENCE))
    form, likelihoods = f"{server.url}#{OURS}", tasks[:-1]

    def checked(answers_with: str) -> tuple[Served, float]:
        server.answers_with = answers_with
        started = time.perf_counter()
        record = check_deployment(found, question, [], servers=[form])
        (judged,) = record.forms
        assert judged.served is not None
        return judged.served, time.perf_counter() - started

    served, seconds = checked(OURS)
    ignoring, _ = checked("base")
    server.answers_with, samples = None, Samples()
    model = ServedModel(form, server.tokenizer)
    model.probe(probes(tasks[0].requests), needs_likelihoods=True)
    started = time.perf_counter()
    results_by(model, [ScoredModel(OURS, OURS)], likelihoods, lambda _: None, samples)
    ours_seconds, started = time.perf_counter() - started, time.perf_counter()
    theirs: Any = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": OURS,
            "base_url": f"{server.url}/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": str(folder),
            "num_concurrent": 8,
        },
        tasks=[task.name for task in likelihoods],
        task_manager=TaskManager(include_path=str(Path(bundled.__file__).parent)),
        samples={task.name: sorted(task.doc_ids) for task in likelihoods},
        bootstrap_iters=0,
    )
    lm_eval_seconds = time.perf_counter() - started
    far = [
        abs(one - float(line["resps"][place][0][0]))
        for task in likelihoods
        if task.loaded.output_type == "multiple_choice"
        for line in theirs["samples"][task.name]
        for place, ((one, _),) in enumerate(responses_of(samples[OURS, task.name])[line["doc_id"]])
    ]
    return {
        "items": sum(task.num_examples for task in served.tasks),
        "items_that_differ": served.items_that_differ,
        "ignored_adapter_found": ignoring.ignores_adapter,
        "adapter_share": round(served.adapter_share or 0.0, 4),
        "adapter_share_ignored": round(ignoring.adapter_share or 0.0, 4),
        "largest_nats": max(task.largest_nats or 0.0 for task in served.tasks),
        "lm_eval_differs": max(far),
        "served_seconds": round(ours_seconds, 2),
        "lm_eval_seconds": round(lm_eval_seconds, 2),
        "check_seconds": round(seconds, 2),
        "model": asked.model,
        "device": device_name(torch.device("cpu")),
    }


if __name__ == "__main__":
    main()
