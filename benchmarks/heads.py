"""All heads of a model ablated one after another: as fast, and the same effects?

    python -m benchmarks.heads [--items 50] [--peer-items 5] [--peer-heads 27] [--dtype float32]

Items of two tasks of ../shared/tasks, scored by the options' own text: MedMCQA and MathQA, as many
of each. Every head is set to zero before the output projection, one at a time. Ours is
``HeadScorer``; the peer is a plain script on the same model in the same process: a hook, and one
forward pass for each head and item with the item's options as its rows, padded on the right.
Loading and tokenising are not timed, and each side has read a few items before.

Ours does all heads on all items. The peer's cost is the same for every head and grows with the
tokens of an item, so it does a part and its seconds are scaled by heads and by tokens of its
forward passes: ``--peer-heads``, evenly spread over the layers (0: all), on the first
``--peer-items`` of each task (0: all), half of the heads before ours and half after. ``ratio`` is
the peer's seconds over ours. An effect is what an ablation does to log p(right option | options)
of an item, in nats; ``max_abs_effect_difference`` is the largest difference of the two sides'
effects (means over the peer's items), and ``max_abs_item_difference`` that over single items.
``decisions_differing`` counts the peer's items in which another option wins. The last line of
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from benchmarks.evaluation_sides import LONGEST, TASKS_PATH
from benchmarks.training_peer import now
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.devices import DTYPES, STEP_TOKENS, choose_device, device_name
from rankwise.engine.models.loading import load_frozen, load_tokenizer
from rankwise.engine.models.start import fetch_weights
from rankwise.heads.interventions import Head
from rankwise.heads.layouts import HeadLayout
from rankwise.heads.scorer import Ablation, HeadScorer
from rankwise.records.config.study import BaseModelConfig
from rankwise.tasks.questions import Continuation
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import load_tasks

TASKS = ("local_medmcqa_cloze", "local_mathqa")
Scores = list[NDArray[np.float64]]
"""By item: the log-likelihood of each option in nats."""


class Item(NamedTuple):
    """A question: its task, its options as continuations, and which is right."""

    task: str
    options: tuple[Continuation, ...]
    right: int

    @property
    def padded_tokens(self) -> int:
        """Of a forward pass with the options as rows."""
        return len(self.options) * max(len(option.tokens_read) for option in self.options)


def questions(tokenizer: Any, count: int) -> list[Item]:
    """Some items of each task."""
    items: list[Item] = []
    for name in TASKS:
        loaded: Any = load_tasks([name], [TASKS_PATH], allow_code=True)[name][0]
        task = prepare_task(
            loaded,
            tokenizer,
            max_length=LONGEST,
            num_fewshot=0,
            limit=count,
            chat_template=False,
        )
        options: dict[int, list[Continuation]] = {}
        right: dict[int, int] = {}
        for request in task.requests:
            instance = task.instances[request.instance]
            found = Continuation(request.context, request.continuation)
            options.setdefault(instance.doc_id, []).append(found)
            right[instance.doc_id] = int(loaded.task.doc_to_target(instance.doc))
        items += [Item(name, tuple(options[doc]), right[doc]) for doc in options]
    return items


def by_item(items: Sequence[Item], nats: Sequence[float]) -> Scores:
    """Cut a row of log-likelihoods into those of each item."""
    sizes = np.cumsum([len(item.options) for item in items])[:-1]
    return np.split(np.asarray(nats), sizes)


def ours(
    scorer: HeadScorer, items: Sequence[Item], heads: Sequence[Head], device: torch.device
) -> tuple[float, list[Scores]]:
    """Seconds, and scores: first those of the model as it is, then by head."""
    asked = [option for item in items for option in item.options]
    started = now(device)
    found = scorer.log_likelihoods(asked, [Ablation(head) for head in heads])
    seconds = now(device) - started
    return seconds, [by_item(items, [each.nats for each in own]) for own in found]


class Peer:
    """One forward pass per head and item."""

    def __init__(self, model: Any, layouts: Sequence[HeadLayout], pad_id: int) -> None:
        self._model, self._layouts, self._pad_id = model, layouts, pad_id
        self._head: Head | None = None
        for layout in layouts:
            module = model.get_submodule(layout.output)
            module.register_forward_pre_hook(self._hook(layout))

    def _hook(self, layout: HeadLayout) -> Any:
        def silence(_: Any, inputs: tuple[torch.Tensor, ...]) -> Any:
            if self._head is None or self._head.layer != layout.layer:
                return None
            hidden = inputs[0].clone()
            hidden[..., layout.columns(self._head.head).span] = 0
            return (hidden,)

        return silence

    @torch.inference_mode()
    def scores(self, item: Item, head: Head | None) -> NDArray[np.float64]:
        """Log-likelihoods of an item's options."""
        self._head = head
        device = self._model.device
        rows = [option.tokens_read for option in item.options]
        longest = max(map(len, rows))
        padded = [[*row, *[self._pad_id] * (longest - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        logits = self._model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            use_cache=False,
        ).logits
        found: list[float] = []
        for row, option in zip(logits, item.options, strict=True):
            stop = len(option.tokens_read)
            of_option = row[stop - len(option.continuation) : stop].float().log_softmax(-1)
            wanted = torch.tensor(option.continuation, device=device)
            found.append(float(of_option.gather(1, wanted[:, None]).double().sum()))
        self._head = None
        return np.asarray(found)

    def timed(
        self, items: Sequence[Item], heads: Sequence[Head], device: torch.device
    ) -> tuple[float, list[Scores]]:
        """Seconds, and scores by head."""
        started = now(device)
        found = [[self.scores(item, head) for item in items] for head in heads]
        return now(device) - started, found


def preference(items: Sequence[Item], scores: Scores) -> NDArray[np.float64]:
    """Of every item, log p(right option | options)."""
    return np.array(
        [
            own[item.right] - np.logaddexp.reduce(own)
            for item, own in zip(items, scores, strict=True)
        ]
    )


def differences(
    items: Sequence[Item], mine: Sequence[Scores], others: Sequence[Scores]
) -> dict[str, Any]:
    """How far the effects of two sides are apart; each begins with the model as it is."""
    effects = [
        np.stack([preference(items, own) for own in side[1:]]) - preference(items, side[0])
        for side in (mine, others)
    ]
    tasks = np.array([item.task for item in items])
    means = [[effect[:, tasks == task].mean(axis=1) for task in TASKS] for effect in effects]
    winners = [
        [[int(own.argmax()) for own in of_head] for of_head in side] for side in (mine, others)
    ]
    return {
        "max_abs_effect_difference": float(np.abs(np.subtract(*means)).max()),
        "max_abs_item_difference": float(np.abs(np.subtract(*effects)).max()),
        "largest_effect_nats": float(np.abs(means[0]).max()),
        "decisions_differing": int((np.array(winners[0]) != np.array(winners[1])).sum()),
        "decisions_compared": len(winners[0]) * len(items),
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both sides and compare what they found."""
    device = torch.device(options.device)
    folder = fetch_weights(find_base_model(BaseModelConfig(name=options.model)))
    model: Any = load_frozen(folder, options.dtype, device)
    tokenizer = load_tokenizer(folder)
    items = questions(tokenizer, options.items)
    count = options.peer_items or options.items
    chosen = [
        n for task in range(2) for n in range(task * options.items, task * options.items + count)
    ]
    few = [items[n] for n in chosen]
    scorer = HeadScorer(model, max_batch_tokens=options.max_batch_tokens)
    peer = Peer(model, scorer.layouts, tokenizer.pad_token_id)
    heads = scorer.heads
    step = len(heads) / (options.peer_heads or len(heads))
    tried = [int(n * step + step / 2) for n in range(round(len(heads) / step))]
    half = len(tried) // 2
    ours(scorer, items[:2], heads[-2:], device)
    peer.timed(items[:2], heads[:2], device)
    before, first = peer.timed(few, [heads[n] for n in tried[:half]], device)
    seconds, found = ours(scorer, items, heads, device)
    after, second = peer.timed(few, [heads[n] for n in tried[half:]], device)
    intact = [peer.scores(item, None) for item in few]
    scale = sum(item.padded_tokens for item in items) / sum(item.padded_tokens for item in few)
    peer_seconds = (before + after) * scale * len(heads) / len(tried)
    mine = [[found[n][i] for i in chosen] for n in (0, *(n + 1 for n in tried))]
    return {
        "ratio": round(peer_seconds / seconds, 2),
        **differences(few, mine, [intact, *first, *second]),
        "seconds": round(seconds, 1),
        "peer_seconds": round(peer_seconds, 1),
        "peer_seconds_measured": round(before + after, 1),
        "heads": len(heads),
        "items": len(items),
        "peer_items": len(few),
        "peer_heads": len(tried),
        "dtype": options.dtype,
        "device": device_name(device),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers)},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description="All heads ablated, against plain hooks.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name or folder")
    parser.add_argument("--items", type=int, default=50, help="of each task")
    parser.add_argument("--peer-items", type=int, default=5, help="of each task; 0 is all")
    parser.add_argument("--peer-heads", type=int, default=27, help="of all heads; 0 is all")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--max-batch-tokens", type=int, help="ours; 4096, CUDA 32768")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = choose_device().type
    options.max_batch_tokens = options.max_batch_tokens or STEP_TOKENS[options.device]
    if options.items < max(options.peer_items, 1):
        parser.error(f"--peer-items {options.peer_items} of --items {options.items}")
    print(json.dumps(compare(options)))


if __name__ == "__main__":
    main()
