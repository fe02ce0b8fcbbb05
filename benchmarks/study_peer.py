"""The other side of ``benchmarks.study``: a script of peft, transformers, lm-eval and torch.

One model after another, as the documentation of each shows it. Training: ``get_peft_model`` and
``Trainer`` with ``DataCollatorForSeq2Seq``, fused AdamW, ``bf16=True`` where the study is in
bfloat16. Scoring: ``simple_evaluate`` with ``HFLM(pretrained=..., peft=...)``, the base loaded once
for each model. Rows at once, attention and batch sizes are the fastest of a short trial before.

Rows, their order, the first weights and the scored items are ours, so that both do the same.
Weights that are scored and analysed are ours too: so answers can be compared.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import lm_eval
import peft
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from benchmarks.study_peer_spectra import analyse
from benchmarks.study_setting import (
    FLOAT32,
    GRID,
    Stopwatch,
    keep_json,
    read_json,
    read_setting,
)
from rankwise.engine.models.devices import DTYPES, choose_device
from rankwise.engine.models.structure import adaptable_shapes, target_shapes
from rankwise.engine.models.trained_adapters import Adapter
from rankwise.engine.training.trainees import effective_batches
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.study import PlannedRun
from rankwise.tasks.resolution import quiet_lm_eval
from rankwise.tasks.training_rows import Example

IGNORED = -100
TRIAL_STEPS, TRIAL_ITEMS = 1, 8
BATCH_SIZES = (2, 8, 32)


class Peer:
    """Does parts, and keeps seconds and answers in the folder of a repeat.

    Args:
        folder: of the repeat; its study has the runs, and the weights that are scored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._setting = read_setting(folder.parent)
        self._device = choose_device()
        self._manager = TaskManager(
            include_path=list(self._setting.tasks_paths), include_defaults=False
        )
        self._tokenizer: Any = AutoTokenizer.from_pretrained(self._setting.model)
        self._tuned: dict[str, Any] = read_json(folder.parent / "peer-tuned.json", {})

    def do(self, part: str) -> None:
        """Do a part of the measured study, and keep its seconds, model by model.

        Args:
            part: one of ``PARTS``.
        """
        verb, _, of = part.partition(" ")
        study = StudyFolder(self._folder / GRID)
        runs = [r for r in study.read_study().runs if r.method == ("full", "lora")[of != "full"]]
        done = self._done_of(runs, verb)
        precision = self._setting.precision
        works: dict[str, Callable[[], list[float]]]
        if part == "spectra":
            works = {part: lambda: self._analyse(study)}
        elif of == "base":
            works = {BASE: lambda: self._score(study, None, precision)}
        elif verb == "train":
            works = {run.name: functools.partial(self._train, study, run) for run in done}
        else:
            works = {
                run.name: functools.partial(self._score, study, run, precision) for run in done
            }
        kept, path = self._folder / "peer-pieces.json", self._folder / "peer-seconds.json"
        pieces: dict[str, list[float]] = read_json(kept, {}).get(part, {})
        for name, work in works.items():
            if name not in pieces:
                pieces[name] = work()
                keep_json(kept, read_json(kept, {}) | {part: pieces})
        if part != "spectra" and of != "base":
            mean = [sum(column) / len(pieces) for column in zip(*pieces.values(), strict=True)]
            pieces |= {run.name: mean for run in runs if run.name not in pieces}
        keep_json(path, read_json(path, {}) | {part: pieces})
        keep_json(kept, {})  # a part that is taken out of the seconds is done again

    def _done_of(self, runs: Sequence[PlannedRun], verb: str) -> list[PlannedRun]:
        """The runs that are done, and do not only count like the others."""
        seeds, ranks = self._setting.peer_seeds, self._setting.peer_ranks
        return [
            run
            for run in runs
            if (seeds is None or (run.seed or 0) < seeds)
            and (verb != "score" or ranks is None or run.rank in (None, *ranks))
        ]

    def decide(self) -> None:
        """Score all models of the study in float32, of which no time is kept."""
        study = StudyFolder(self._folder / FLOAT32)
        for run in (None, *study.read_study().runs):
            self._score(study, run, "float32")

    def tune(self) -> None:
        """Choose what is fastest, once for all repeats: rows at once, attention, batch sizes."""
        if self._tuned:
            return
        setting = self._setting
        best = functools.partial(fastest, times=setting.trials)
        size = best(
            {
                n: functools.partial(self._trial_training, "sdpa", n)
                for n in _divisors(setting.step_size)
            }
        )
        attention = best(
            {a: functools.partial(self._trial_training, a, size) for a in ("sdpa", "eager")}
        )
        model = self._load_scored(None, setting.precision)
        study = StudyFolder(self._folder / GRID)
        sizes: dict[str, int] = {}
        for task in setting.tasks:
            ask = functools.partial(self._ask, model, task, _items(study, task)[:TRIAL_ITEMS])
            sizes[task] = best({n: lambda n=n, ask=ask: ask(n)[0] for n in BATCH_SIZES})
        self._tuned = {"rows_at_once": size, "attention": attention, "batch_sizes": sizes}
        keep_json(self._folder.parent / "peer-tuned.json", self._tuned)

    # training

    def _rows(self, study: StudyFolder, run: PlannedRun) -> list[dict[str, list[int]]]:
        """All epochs one after the other, in our order."""
        examples = list(self._examples())
        batches = effective_batches(examples, run, study.read_study().config.train)
        return [_features(example) for batch in batches for example in batch]

    def _examples(self) -> Iterator[Example]:
        """The training rows: prompt and right option as lm-eval writes them, and the end token."""
        with quiet_lm_eval():
            task: Any = self._manager.load([self._setting.train_task])["tasks"][
                self._setting.train_task
            ]
        docs, end = task.training_docs(), self._tokenizer.eos_token_id
        for index in range(self._setting.rows):
            doc = docs[index]
            prompt = self._tokenizer.encode(task.doc_to_text(doc))
            right = task.doc_to_choice(doc)[task.doc_to_target(doc)]
            answer = self._tokenizer.encode(f" {right}", add_special_tokens=False)
            yield Example((*prompt, *answer, end), len(answer) + 1, is_truncated=False)

    def _train(self, study: StudyFolder, run: PlannedRun) -> list[float]:
        """Train one run and save it; what that took, from loading the base to the saved weights."""
        tuned, out = self._tuned, self._folder / "peer" / "weights"
        rows = self._rows(study, run)
        watch = Stopwatch()
        losses = self._fit(run, rows, tuned["attention"], tuned["rows_at_once"], out)
        seconds = watch.read()
        shutil.rmtree(out)
        keep_json(self._folder / "peer" / "losses" / f"{run.name}.json", losses)
        return seconds

    def _trial_training(self, attention: str, size: int) -> float:
        """Seconds of a step of the middle rank."""
        study = StudyFolder(self._folder / GRID)
        runs = [run for run in study.read_study().runs if run.method == "lora"]
        run = runs[len(runs) // 2]
        rows = self._rows(study, run)[: TRIAL_STEPS * self._setting.step_size]
        watch = Stopwatch()
        self._fit(run, rows, attention, size, self._folder / "peer" / "trial")
        return watch.read()[0]

    def _fit(
        self,
        run: PlannedRun,
        rows: Sequence[Mapping[str, list[int]]],
        attention: str,
        size: int,
        out: Path,
    ) -> list[float]:
        """Train on rows, each once, and save; the loss of every step in nats."""
        setting, is_half = self._setting, self._setting.precision == "bfloat16"
        steps = math.ceil(len(rows) / setting.step_size)
        arguments = TrainingArguments(
            str(out),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=setting.step_size // size,
            num_train_epochs=1,
            train_sampling_strategy=setting.peer_sampling,
            optim="adamw_torch_fused",
            learning_rate=run.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=math.ceil(0.1 * steps),
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=is_half,
            use_cpu=self._device.type == "cpu",
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = _LossKeeper(
            self._load_trained(run, attention),
            args=arguments,
            train_dataset=list(rows),  # pyright: ignore[reportArgumentType]
            data_collator=DataCollatorForSeq2Seq(self._tokenizer, label_pad_token_id=IGNORED),
        )
        trainer.parts = {}
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.model.save_pretrained(str(out))  # pyright: ignore[reportOptionalMemberAccess]
        losses = [float(sum(parts)) for _, parts in sorted(trainer.parts.items())]
        del trainer
        gc.collect()
        return losses

    def _load_trained(self, run: PlannedRun, attention: str) -> Any:
        """The base to be trained whole, or with a new adapter on it."""
        # full fine-tuning trains float32 weights; a frozen base may be in half precision
        precision = "float32" if run.method == "full" else self._setting.precision
        model: Any = AutoModelForCausalLM.from_pretrained(
            self._setting.model, dtype=DTYPES[precision], attn_implementation=attention
        )
        model.to(self._device)
        if run.method == "full":
            return model
        assert run.rank is not None
        assert run.alpha is not None
        settings = peft.LoraConfig(
            r=run.rank,
            lora_alpha=int(run.alpha),
            target_modules=list(run.target_modules),
            task_type="CAUSAL_LM",
        )
        first = self._first_weights(model, run)
        adapted: Any = peft.get_peft_model(model, settings)
        with torch.no_grad():
            for name, (lora_A, lora_B) in first.items():
                layer = adapted.get_submodule(f"base_model.model.{name}")
                layer.lora_A["default"].weight.copy_(lora_A)
                layer.lora_B["default"].weight.copy_(lora_B)
        return adapted

    @staticmethod
    def _first_weights(model: Any, run: PlannedRun) -> Mapping[str, Sequence[Tensor]]:
        """The adapter's weights before training, as our side draws them."""
        assert run.rank is not None
        assert run.scaling is not None
        assert run.seed is not None
        shapes = target_shapes(adaptable_shapes(model), run.target_modules)
        return Adapter(
            shapes,
            rank=run.rank,
            scaling=run.scaling,
            dropout=0.0,
            seed=run.seed,
            device=torch.device("cpu"),
            dtype=torch.float32,
        ).factors

    # scoring

    def _load_scored(self, weights: tuple[str, Path] | None, precision: str) -> Any:
        """The base, the base with an adapter, or a checkpoint, in lm-eval's own back end."""
        method, folder = weights or (None, None)
        return HFLM(
            pretrained=str(folder) if method == "full" else self._setting.model,
            peft=str(folder) if method == "lora" else None,
            dtype=precision,
            device=self._device.type,
        )

    def _ask(self, model: Any, task: str, items: Sequence[int], size: int) -> tuple[float, Any]:
        """Seconds and results of some items of a task."""
        model.batch_size_per_gpu = size
        silence = contextlib.redirect_stderr(io.StringIO())
        watch = Stopwatch()
        with quiet_lm_eval(), silence, mock.patch("lm_eval.evaluator.add_env_info"):
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=[task],
                task_manager=self._manager,
                samples={task: items},
                log_samples=True,
                bootstrap_iters=0,
            )
        return watch.read()[0], found

    def _score(self, study: StudyFolder, run: PlannedRun | None, precision: str) -> list[float]:
        """Score a model of ours on the study's items; what that took, from loading it."""
        items = {task: _items(study, task) for task in self._setting.tasks}
        weights = None if run is None else (run.method, study.weights(run))
        watch = Stopwatch()
        model = self._load_scored(weights, precision)
        found = {
            task: self._ask(model, task, items[task], self._tuned["batch_sizes"][task])[1]
            for task in self._setting.tasks
        }
        del model
        gc.collect()
        seconds = watch.read()
        name = BASE if run is None else run.name
        keep_json(
            self._folder / "peer" / study.root.name / f"{name}.json",
            {task: _answers(result, task) for task, result in found.items()},
        )
        return seconds

    # weights

    def _analyse(self, study: StudyFolder) -> list[float]:
        planned = study.read_study().runs
        runs = {run: study.weights(run) for run in self._done_of(planned, "analyse")}
        watch = Stopwatch()
        found = analyse(Path(self._setting.model), runs, self._setting.top_k, self._device)
        seconds = watch.read()
        keep_json(self._folder / "peer" / "spectra.json", found)
        # a decomposition of the base, and for each run one of the sum and one of the update
        share = (1 + 2 * len(planned)) / (1 + 2 * len(runs))
        return [share * each for each in seconds]


class _LossKeeper(Trainer):
    """Keeps the losses where they are, instead of fetching each one to log it."""

    parts: dict[int, list[Tensor]]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.parts.setdefault(self.state.global_step, []).append(loss)
        return loss


def fastest(trials: Mapping[Any, Callable[[], float]], times: int) -> Any:
    """Which of some trials takes the least time, each at its best of several times, in turn."""
    seconds = [(trials[name](), name) for _ in range(times) for name in trials]
    return min(seconds, key=lambda pair: pair[0])[1]


def _items(study: StudyFolder, task: str) -> list[int]:
    """Numbers of the documents that our side has scored."""
    return sorted({line["doc_id"] for line in study.read_samples(BASE, task)})


def _divisors(size: int) -> list[int]:
    return [count for count in range(1, size + 1) if size % count == 0]


def _features(example: Example) -> dict[str, list[int]]:
    tokens, learned = list(example.tokens), example.num_loss_tokens
    labels = [IGNORED] * (len(tokens) - learned) + tokens[-learned:]
    return {"input_ids": tokens, "labels": labels, "attention_mask": [1] * len(tokens)}


def _answers(found: Any, task: str) -> dict[str, Any]:
    """What is compared of lm-eval's results."""
    scores = {
        name: value
        for name, value in found["results"][task].items()
        if "," in name and "stderr" not in name and isinstance(value, int | float)
    }
    return {"scores": scores, "samples": found["samples"][task]}


def serve(folder: Path, answers: TextIO, orders: TextIO) -> None:
    """Do what lines on ``orders`` ask for: ``tune``, ``decide``, or a part.

    Args:
        folder: of the repeat.
        answers: gets a line of JSON when something is done.
        orders: one word or part on each line.
    """
    peer = Peer(folder)
    for line in orders:
        order = line.strip()
        action = {"tune": peer.tune, "decide": peer.decide}.get(order)
        peer.do(order) if action is None else action()
        print(json.dumps({"done": order}), file=answers, flush=True)
