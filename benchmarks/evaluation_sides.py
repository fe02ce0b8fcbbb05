"""The two sides of ``benchmarks.evaluation``: each a process that answers what it is asked.

Both answer the same instances of lm-eval, from the text on: ours by ``RequestEncoder`` and
``ResidentScorer``, all models in one call; the peer by lm-eval's ``HFLM``, one model after another,
with the adapter that peft has put on the base. Loading models and adapters is not timed. Questions
and answers are lines of JSON on stdin and stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from lm_eval.models.huggingface import HFLM

from benchmarks.training_peer import ROOT, SCALING, TARGETS, load_model, new_adapter, now
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.devices import device_name
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.models.peft_adapters import save_adapter
from rankwise.engine.models.structure import context_length
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.tasks.questions import Continuation, Prompt
from rankwise.tasks.requests import PreparedTask, RequestEncoder, prepare_task
from rankwise.tasks.resolution import load_tasks, quiet_lm_eval

TASKS_PATH = ROOT.parent / "shared" / "tasks"
WARM_UP_ITEMS = 2
LONGEST = 8192  # tokens of context; every item is shorter


class Workload(NamedTuple):
    """What is asked of a model."""

    task: str
    num_fewshot: int


WORKLOADS = {
    "mmlu_5shot": Workload("local_mmlu", 5),
    "arc_easy_0shot": Workload("local_arc_easy", 0),
    "gsm8k_generation": Workload("local_gsm8k", 0),
}


def prepared(workload: str, tokenizer: Any, max_length: int, items: int) -> PreparedTask:
    """Some items of a workload, as lm-eval builds them."""
    task, num_fewshot = WORKLOADS[workload]
    return prepare_task(
        load_tasks([task], [TASKS_PATH], allow_code=True)[task][0],
        tokenizer,
        max_length=max_length,
        num_fewshot=num_fewshot,
        limit=items,
        chat_template=False,
    )


def max_length_of(model: Any, tokenizer: Any) -> int:
    """Context of the model in tokens."""
    return min(context_length(model.config, tokenizer), LONGEST)


class Ours:
    """All models at once."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self._device = device
        self._model = load_model(options, device, None)
        self._tokenizer = load_tokenizer(Path(options.tokenizer))
        self._max_length = max_length_of(self._model, self._tokenizer)
        self._scorer = ResidentScorer(
            self._model, self._tokenizer, max_batch_tokens=options.max_batch_tokens
        )

    def save_adapters(self, folders: dict[str, str], size: float) -> dict[str, Any]:
        """Write adapters of random factors.

        Args:
            folders: by name, which is an r and the rank.
            size: norm of each update over its weight's.
        """
        for name, folder in folders.items():
            adapter = new_adapter(self._model, int(name[1:]), self._device, torch.float32)
            generator = torch.Generator(self._device).manual_seed(adapter.rank)
            for layer, (lora_A, lora_B) in adapter.factors.items():
                weight: Any = self._model.get_submodule(layer).weight
                lora_B.normal_(generator=generator)
                square = (lora_B.T @ lora_B * (lora_A @ lora_A.T)).sum()
                lora_B.mul_(size * weight.float().norm() / (SCALING * square.sqrt()))
            save_adapter(
                adapter,
                Path(folder),
                alpha=SCALING * adapter.rank,
                use_rslora=False,
                target_modules=TARGETS,
                base_model_name="",
            )
        return {}

    def put_on(self, folders: dict[str, str]) -> dict[str, Any]:
        """Make the adapters known."""
        for name, folder in folders.items():
            self._scorer.put_on(name, AdapterFolder(Path(folder)))
        return {"device": device_name(self._device)}

    def measure(self, workload: str, items: int, names: list[str | None], **_: Any) -> Any:
        """Seconds, and the answers of each model."""
        task = prepared(workload, self._tokenizer, self._max_length, items)
        started = now(self._device)
        encoder = RequestEncoder(self._tokenizer, self._max_length)
        requests = [
            request
            for index, instance in enumerate(task.instances)
            for request in encoder.requests(index, instance, task.name)
        ]
        answers: Any
        if task.loaded.output_type == "generate_until":
            prompts = [Prompt(each.context, each.settings, each.draw) for each in requests]  # pyright: ignore[reportArgumentType]
            found = self._scorer.generate(names, prompts)
            answers = [[answer.text for answer in own] for own in found]
        else:
            pairs = [Continuation(each.context, each.continuation) for each in requests]
            answers = [list(map(list, own)) for own in self._scorer.log_likelihoods(names, pairs)]
        return {"seconds": now(self._device) - started, "answers": answers}

    def score(self, name: str | None, items: list[Any]) -> dict[str, Any]:
        """The log-likelihoods of continuations behind contexts."""
        pairs = [Continuation(tuple(context), tuple(tokens)) for context, tokens in items]
        (found,) = self._scorer.log_likelihoods([name], pairs)
        return {"nats": [each.nats for each in found]}

    def work(self) -> dict[str, Any]:
        """Tokens read and asked for, and the share of decoding places at work."""
        reading, decoding = self._scorer.reading, self._scorer.decoding
        return {
            "tokens_read": reading.tokens_read + decoding.tokens_read,
            "distinct_tokens": reading.distinct_tokens + decoding.distinct_tokens,
            "decode_row_occupancy": decoding.occupancy,
        }


class Peer:
    """One model after another, by lm-eval's own back end."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self._device = device
        self._model = load_model(options, device, "sdpa")
        self._tokenizer = load_tokenizer(Path(options.tokenizer))
        self._max_length = max_length_of(self._model, self._tokenizer)
        self._folders: dict[str, str] = {}

    def put_on(self, folders: dict[str, str]) -> dict[str, Any]:
        """Remember where the adapters are."""
        self._folders = dict(folders)
        return {}

    def measure(
        self, workload: str, items: int, names: list[str | None], batch_size: int
    ) -> dict[str, Any]:
        """Seconds, and the answers of each model."""
        task = prepared(workload, self._tokenizer, self._max_length, items)
        seconds, answers = 0.0, []
        for name in names:
            model = self._model
            if name is not None:
                model = peft.PeftModel.from_pretrained(model, self._folders[name])
            peer: Any = HFLM(
                pretrained=model.eval(),
                tokenizer=self._tokenizer,
                batch_size=batch_size,
                max_length=self._max_length,
            )
            asked = getattr(peer, task.instances[0].request_type)
            started = now(self._device)
            answers.append(asked(task.instances, disable_tqdm=True))
            seconds += now(self._device) - started
            if name is not None:
                self._model = model.unload()
            del peer, model
            gc.collect()
        return {"seconds": seconds, "answers": answers}


def serve(options: argparse.Namespace) -> None:
    """Answer questions until there are no more; what libraries print goes to stderr."""
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), quiet_lm_eval(), torch.inference_mode():
        side: Any = (Ours if options.worker == "ours" else Peer)(options, device)
        for line in sys.stdin:
            question = json.loads(line)
            answer = getattr(side, question.pop("do"))(**question)
            print(json.dumps(answer), file=out, flush=True)


class Side:
    """A side's process, seen from outside."""

    def __init__(self, options: argparse.Namespace, side: str, dtype: str) -> None:
        command = [sys.executable, "-m", "benchmarks.evaluation", "--worker", side]
        command += ["--dtype", dtype, "--model", options.model, "--tokenizer", options.tokenizer]
        command += ["--device", options.device, "--max-batch-tokens", str(options.max_batch_tokens)]
        command += ["--random-8b"] * options.random_8b
        self.name = f"{side} {dtype}"
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, do: str, **question: Any) -> dict[str, Any]:
        """The answer to one question; the benchmark ends if the process did."""
        sent, received = self._process.stdin, self._process.stdout
        assert sent is not None
        assert received is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": do, **question}), file=sent, flush=True)
        line = received.readline()
        if not line:
            sys.exit(f"{self.name} ended while it was asked to {do}.")
        return json.loads(line)

    def measure(
        self, workload: str, items: int, names: Sequence[str | None], batch_size: int
    ) -> dict[str, Any]:
        """One measurement, said on stderr."""
        started = time.monotonic()
        found = self.ask(
            "measure", workload=workload, items=items, names=list(names), batch_size=batch_size
        )
        print(
            f"{self.name} {workload}, {items} items, {len(names)} models, batch {batch_size}: "
            f"{found['seconds']:.2f} s ({time.monotonic() - started:.0f} s in all)",
            file=sys.stderr,
            flush=True,
        )
        return found

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
