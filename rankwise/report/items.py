"""The items of a study as the page's script reads them: small, and text whatever is in them."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any, NamedTuple

from rankwise.findings.item_table import ItemTable
from rankwise.report.summaries import RELATION_NAMES

MOST_BYTES = 8 * 1024**2
"""Larger items are a page of their own, so that the report still opens at once."""

_LEVEL = 6  # of gzip: 9 takes three times as long for 2 % less
_HUNDREDTHS = 100


class EncodedItems(NamedTuple):
    """Items as base64 of gzipped JSON, which holds no character that means anything in HTML."""

    data: str
    num_items: int
    num_models: int

    @property
    def is_large(self) -> bool:
        """Whether they are a page of their own."""
        return len(self.data) > MOST_BYTES


def encoded_items(table: ItemTable) -> EncodedItems:
    """What ``templates/report.js`` unpacks; texts that are the same are there once."""
    texts: dict[str, int] = {}

    def number_of(text: str) -> int:
        return texts.setdefault(text, len(texts))

    content: dict[str, Any] = {
        "models": [
            {
                "label": model.label,
                "rank": model.kind if isinstance(model.kind, int) else None,
                "kind": model.kind if isinstance(model.kind, str) else "rank",
            }
            for model in table.models
        ],
        "tasks": [
            {"name": task.name, "relation": RELATION_NAMES[task.relation]} for task in table.tasks
        ],
        "task": [item.task for item in table.items],
        "doc": [item.doc_id for item in table.items],
        "prompt": [number_of(item.prompt) for item in table.items],
        "right": [number_of(item.right) for item in table.items],
        "options": [[number_of(option) for option in item.options] for item in table.items],
        "answers": [
            {
                # a letter for each item
                "outcome": "".join(
                    "." if right is None else "1" if right else "c" if back else "0"
                    for right, back in zip(answers.is_right, answers.comes_back, strict=True)
                ),
                # in hundredths of a nat: JSON has no infinity, and no margin of a real model is as
                # large as 10,000 nats
                "margin": [
                    None if margin is None else round(_HUNDREDTHS * max(-1e4, min(1e4, margin)))
                    for margin in answers.margins
                ],
                # an option by its place, a text by its number
                "option": [each if isinstance(each, int) else None for each in answers.answers],
                "text": [
                    number_of(each) if isinstance(each, str) else None for each in answers.answers
                ],
            }
            for answers in table.answers
        ],
    }
    content["texts"] = list(texts)
    packed = gzip.compress(json.dumps(content, separators=(",", ":")).encode(), _LEVEL, mtime=0)
    return EncodedItems(base64.b64encode(packed).decode(), len(table.items), len(table.models))
