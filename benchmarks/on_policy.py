r"""GRPO at three ranks in one pass, or one after another with TRL: is it as fast as it says?

    python -m benchmarks.on_policy [--rows 6] [--ranks 1 8 64] [--length 48] [--prompts tool_calls]
                                   [--repeats 2] [--dtype float32] [--device auto]

The peer is TRL's GRPOTrainer (``pip install trl``) with transformers' own generation, which trains
one adapter after another; ours is ``train_pass`` with all ranks at once. Both take the same prompts
of own rows that come with rankwise in the same order, two rows a step, eight texts to a row; the
same initial weights, rewards (a number made of the text's tokens) and settings (TRL's defaults, no
KL). No text ends before its limit, so both write and read equally many tokens. ``--prompts
capitals`` asks in a sentence, ``tool_calls`` after a list of tools.

Every measurement is a fresh process; ours and the peer alternate. Seconds are those of the steps,
after an untimed step. Each process trains twice: on texts that it samples, which is timed whole
(``ratio``: the peer's time over ours, the median over pairs of neighbouring processes), and on
texts that are there already, the same for both (``training_ratio``). Of these
``max_loss_difference`` is in nats, over all steps and ranks; as a model's first step with a text
has a ratio of 1, a loss says how texts are weighed, and ``max_norm_difference``, the relative one
of the gradients' norms, what the model does. ``writing_ratio`` is that of the time in which the
first one writes. Tokens per second are of texts, prompts not counted. The peer does without
gradient checkpointing, which is its default and slower. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from benchmarks.training import MAX_TOKENS, Observer
from benchmarks.training_peer import (
    ROOT,
    TRAIN,
    Timer,
    adapted_shapes,
    load_model,
    new_adapter,
    now,
    planned,
    trl_arguments,
    with_adapter,
)
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.devices import DTYPES, choose_device, device_name
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.models.start import fetch_weights
from rankwise.engine.models.trained_adapters import adapted
from rankwise.engine.scoring.decode.decoder import WrittenText
from rankwise.engine.training.loop import train_pass
from rankwise.engine.training.trainees import AdapterTrainee, Trainee, effective_batches
from rankwise.engine.writing import Writer
from rankwise.errors import RewardError
from rankwise.records.config.study import BaseModelConfig
from rankwise.records.config.training import ObjectiveConfig
from rankwise.records.study import PlannedRun
from rankwise.tasks.bundled.own_sets import SETS
from rankwise.tasks.rewards import advantages
from rankwise.tasks.training_rows import AskedRow, Example

ROWS, GENERATIONS = 2, 8
CAPITALS = ("France", "Kenya", "Peru", "Japan", "Norway", "Chile", "Egypt", "Nepal")


class Measured(NamedTuple):
    """What one process says of all its adapters' steps.

    Attributes:
        seconds: on texts that it samples.
        writing: seconds of these in which texts are written.
        training: seconds on the fixed texts.
        losses: by rank, of each step with the fixed texts.
        norms: of the gradients, the same way.
        num_tokens: of the texts of one such training of all ranks.
        prompt_tokens: of the rows, on average.
        device: in words.
    """

    seconds: float
    writing: float
    training: float
    losses: dict[str, list[float]]
    norms: dict[str, list[float]]
    num_tokens: int
    prompt_tokens: float
    device: str


def settings(options: argparse.Namespace) -> Any:
    """How both sides train."""
    objective = {"rewards": "json", "max_completion_length": options.length}
    update = {
        "batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "objective": ObjectiveConfig.model_validate({"grpo": objective}),
    }
    return TRAIN.model_copy(update=update)


def load_rows(options: argparse.Namespace) -> list[Example]:
    """What is asked; the prompts as the chat template writes them."""
    tokenizer = load_tokenizer(Path(options.model))
    if options.prompts == "capitals":
        names = (CAPITALS[place % len(CAPITALS)] for place in range(options.rows))
        asked = [[{"role": "user", "content": f"What is the capital of {x}?"}] for x in names]
    else:
        rows = SETS["tool_calls"]()[: options.rows]
        asked = [row["messages"][:-1] for row in rows]
    found: list[Example] = []
    for messages in asked:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        asks = AskedRow("{}", "", GENERATIONS, options.length)
        found.append(Example(tuple(tokenizer.encode(text)), 0, is_truncated=False, asks=asks))
    return found


def fixed(prompt: Sequence[int], draw: int, length: int) -> tuple[int, ...]:
    """A text that stands for one that was sampled: tokens of the prompt, from some place on.

    Each is a token shorter than the one before it: else losses would be 0 at every step.
    """
    start = (7 * draw) % len(prompt)
    again = [*prompt[start:], *prompt] * (1 + length // len(prompt))
    return tuple(again[: length - draw])


def worth(tokens: Sequence[int]) -> float:
    """A reward that every text has, and hardly two the same."""
    return sum(tokens) % 101 / 101


def judge(
    _: Sequence[AskedRow], __: Sequence[str], tokens: Sequence[Sequence[int]]
) -> tuple[list[float], Mapping[str, Any]]:
    """Advantages by ``worth``, as the writer asks for them."""
    _, values = advantages([[worth(each) for each in tokens]], (1.0,), GENERATIONS, "group")
    return values, {}


class TimedWriter:
    """A ``TextWriter`` that says how long it took; with a length, it gives the fixed texts."""

    def __init__(self, writer: Writer, device: torch.device, length: int | None) -> None:
        self._writer, self._device, self._length = writer, device, length
        self.settings, self.other, self.is_reverse = writer.settings, None, False
        self.seconds = 0.0

    def write(self, trainees: Sequence[Trainee]) -> Mapping[Trainee, RewardError]:
        started = now(self._device)
        if self._length is None:
            failed = self._writer.write(trainees)
        else:
            failed = {}
            for trainee in trainees:
                texts = [
                    WrittenText(fixed(row.tokens, draw, self._length), "", is_finished=False)
                    for row in trainee.batch
                    for draw in range(GENERATIONS)
                ]
                trainee.written = self._writer.learned(trainee.batch, texts)
        self.seconds += now(self._device) - started
        return failed


def measure_ours(options: argparse.Namespace, device: torch.device) -> Measured:
    """All ranks in one pass."""
    rows, model = load_rows(options), load_model(options, device, None)
    model.generation_config.min_new_tokens = options.length
    tokenizer, train = load_tokenizer(Path(options.model)), settings(options)
    max_tokens = MAX_TOKENS[device.type]

    def trained(
        asked: Sequence[Example], length: int | None
    ) -> tuple[float, float, list[AdapterTrainee]]:
        trainees = [
            AdapterTrainee(
                _planned(rank, len(asked)),
                asked,
                train,
                new_adapter(model, rank, device, DTYPES[options.dtype]),
            )
            for rank in options.ranks
        ]
        with adapted(model, list(adapted_shapes(model))) as bank:
            writer = Writer(model, tokenizer, train, judge, max_tokens=max_tokens)
            timed = TimedWriter(writer, device, length)
            started = now(device)
            train_pass(
                model,
                trainees,
                bank=bank,
                max_tokens=max_tokens,
                precision=options.dtype,
                gradient_checkpointing=False,
                observer=Observer(max_tokens),
                writer=timed,
            )
        return now(device) - started, timed.seconds, trainees

    trained(rows[:ROWS], None)
    gc.collect()
    seconds, writing, _ = trained(rows, None)
    training, _, trainees = trained(rows, options.length)
    losses = {str(t.run.rank): [line.loss_nats for line in t.metrics] for t in trainees}
    norms = {str(t.run.rank): [line.grad_norm for line in t.metrics] for t in trainees}
    return Measured(
        seconds, writing, training, losses, norms, *_sizes(options, rows), device_name(device)
    )


def _planned(rank: int, num_rows: int) -> PlannedRun:
    return planned(rank, num_rows).model_copy(update={"num_steps": num_rows // ROWS})


def _sizes(options: argparse.Namespace, rows: Sequence[Example]) -> tuple[int, float]:
    number = len(rows) * GENERATIONS * options.length * len(options.ranks)
    return number, statistics.fmean(len(row.tokens) for row in rows)


def measure_peer(options: argparse.Namespace, device: torch.device) -> Measured:
    """One rank after another, in our order of the rows."""
    rows, base = load_rows(options), load_model(options, device, options.attention)
    run, train = _planned(1, len(rows)), settings(options)
    in_order = [row for batch in effective_batches(rows, run, train) for row in batch]
    train_peer(options, base, options.ranks[0], in_order[:ROWS], is_fixed=False)
    seconds = writing = training = 0.0
    losses, norms = dict[str, list[float]](), dict[str, list[float]]()
    for rank in options.ranks:
        taken, of_writing, _ = train_peer(options, base, rank, in_order, is_fixed=False)
        seconds, writing = seconds + taken, writing + of_writing
        taken, _, lines = train_peer(options, base, rank, in_order, is_fixed=True)
        training += taken
        losses[str(rank)] = [line["loss"] for line in lines]
        norms[str(rank)] = [line["grad_norm"] for line in lines]
    return Measured(
        seconds, writing, training, losses, norms, *_sizes(options, rows), device_name(device)
    )


def train_peer(
    options: argparse.Namespace, base: Any, rank: int, rows: Sequence[Example], *, is_fixed: bool
) -> tuple[float, float, list[dict[str, float]]]:
    """Seconds of the steps of one adapter, those in which it writes, and what is logged of each."""
    import trl
    from datasets import Dataset

    tokenizer = load_tokenizer(Path(options.model))
    prompts = [tokenizer.decode(row.tokens) for row in rows]
    if [tuple(tokenizer(prompt)["input_ids"]) for prompt in prompts] != [x.tokens for x in rows]:
        sys.exit("the peer would read other tokens")
    device: torch.device = next(base.parameters()).device
    writing = 0.0

    class Trainer(trl.GRPOTrainer):
        """Says how long it writes, and takes steps in the order of the rows."""

        def _generate(self, prompts: list[Any]) -> Any:
            nonlocal writing
            started = now(device)
            found = super()._generate(prompts)
            writing += now(device) - started
            return found

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [worth(each) for each in completion_ids]

    def given(asked: list[str], _: Any) -> dict[str, Any]:
        ids = [tokenizer(prompt)["input_ids"] for prompt in asked]
        texts = [
            list(fixed(prompt, place % GENERATIONS, options.length))
            for place, prompt in enumerate(ids)
        ]
        return {"prompt_ids": ids, "completion_ids": texts, "logprobs": None}

    train, timer = settings(options), Timer(device)
    model, num_steps = with_adapter(base, rank), len(rows) // ROWS
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            reward_funcs=[reward],
            args=trl.GRPOConfig(
                folder,
                per_device_train_batch_size=ROWS * GENERATIONS,
                num_generations=GENERATIONS,
                max_completion_length=options.length,
                generation_kwargs={"min_new_tokens": options.length},
                shuffle_dataset=False,
                **trl_arguments(options, train, num_steps),
            ),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
            callbacks=[timer],
            rollout_func=given if is_fixed else None,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    trainer.model.unload()
    del trainer, model
    gc.collect()
    return timer.ended - timer.started, writing, lines


def ask(options: argparse.Namespace, side: str) -> Measured:
    """One measurement in a process of its own; said on stderr."""
    command = [sys.executable, "-m", "benchmarks.on_policy", f"--worker={side}"]
    for name in ("model", "rows", "length", "prompts", "dtype", "device", "attention"):
        command.append(f"--{name}={getattr(options, name)}")
    command += ["--ranks", *map(str, options.ranks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[1:])} failed:\n{done.stderr[-4000:]}")
    found = Measured(**json.loads(done.stdout.splitlines()[-1]))
    said = f"{found.seconds:.2f} s, {found.writing:.2f} of these to write, {found.training:.2f} s"
    print(f"{side}: {said} on fixed texts", file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both sides, one line for each process to stderr, and the summary to stdout."""
    parser = argparse.ArgumentParser(description="GRPO at three ranks, against TRL.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name or folder")
    parser.add_argument("--rows", type=int, default=3 * ROWS)
    parser.add_argument("--length", type=int, default=48, help="tokens of a text")
    parser.add_argument("--prompts", choices=("tool_calls", "capitals"), default="tool_calls")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--attention", default="sdpa", help="of the peer")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = choose_device().type
    options.random_8b = False
    if options.worker:
        measure = measure_ours if options.worker == "ours" else measure_peer
        print(json.dumps(measure(options, torch.device(options.device))._asdict()))
        return
    base = find_base_model(BaseModelConfig(name=options.model))
    options.model = str(fetch_weights(base).resolve())
    found = [(ask(options, "ours"), ask(options, "peer")) for _ in range(options.repeats)]
    names = ("dtype", "prompts", "rows", "length", "ranks")
    print(json.dumps(compared(found) | {name: getattr(options, name) for name in names}))


def compared(found: Sequence[tuple[Measured, Measured]]) -> dict[str, Any]:
    """Of ours and the peer's, neighbours together: ratios, speeds, and how far losses are apart."""

    def pairs(name: str) -> list[tuple[float, float]]:
        """Ours and the peer's number, of every rank and step."""
        return [
            both
            for ours, peer in found
            for rank, theirs in getattr(peer, name).items()
            for both in zip(getattr(ours, name)[rank], theirs, strict=True)
        ]

    def ratio(name: str) -> float:
        of_pairs = (getattr(peer, name) / getattr(ours, name) for ours, peer in found)
        return round(statistics.median(of_pairs), 3)

    def speed(name: str) -> list[float]:
        """Texts' tokens in a second, ours and the peer's."""
        sides = zip(*found, strict=True)
        return [
            round(statistics.median(each.num_tokens / getattr(each, name) for each in side), 1)
            for side in sides
        ]

    return {
        "ratio": ratio("seconds"),
        "max_loss_difference": float(f"{max(abs(a - b) for a, b in pairs('losses')):.3g}"),
        "max_loss": float(f"{max(abs(loss) for _, loss in pairs('losses')):.3g}"),
        "max_norm_difference": float(f"{max(abs(a / b - 1) for a, b in pairs('norms')):.3g}"),
        "training_ratio": ratio("training"),
        "writing_ratio": ratio("writing"),
        "writing_tokens_per_second": speed("writing"),
        "training_tokens_per_second": speed("training"),
        "ours_seconds": [round(ours.seconds, 2) for ours, _ in found],
        "peer_seconds": [round(peer.seconds, 2) for _, peer in found],
        "prompt_tokens": round(found[0][0].prompt_tokens, 1),
        "device": found[0][0].device,
    }


if __name__ == "__main__":
    main()
