"""Markdown for model hubs: texts made safe, and the card of a repaired adapter."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence

from rankwise.records import quantities
from rankwise.records.repairs import AdapterRepair


def markdown_text(text: str) -> str:
    """A text as Markdown shows it; code between backticks stays code."""
    return re.sub(r"([\\\[\]|])", r"\\\1", html.escape(text, quote=False))


def markdown_code(name: str) -> str:
    """A name as code."""
    return f"`{name.replace('`', chr(39))}`"


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [[markdown_text(cell) for cell in row] for row in (heading, *rows)]
    return [f"| {' | '.join(row)} |" for row in (lines[0], ["---"] * len(heading), *lines[1:])]


def model_card(record: AdapterRepair) -> str:
    """What the adapter is, and what it scored.

    Raises:
        ValueError: the record says that no repair does.
    """
    choice, chosen = record.choice, record.choice.chosen
    if chosen is None:
        raise ValueError(f"{record.model} has no repair to describe.")
    unit, points = choice.unit, (choice.as_it_is, chosen)
    rows = [
        (
            task.task,
            task.relation.replace("_", "-"),
            f"{task.metric}, {task.unit}",
            quantities.count(task.num_items),
            quantities.score(task.base_score, task.unit),
            quantities.score(task.adapted_score, task.unit),
            quantities.score(task.repaired_score, task.unit),
        )
        for task in choice.tasks
    ]
    lines = [
        "---",
        f"base_model: {json.dumps(record.base_model)}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags: [lora, rankwise]",
        "---",
        "",
        f"# A LoRA adapter, {markdown_text(chosen.repair.label)}",
        "",
        markdown_text(choice.statement),
        "",
        f"Made from the adapter {markdown_code(record.model)} without training, by rankwise "
        f"{record.provenance.rankwise_version}. {quantities.count(len(choice.curve))} candidates "
        f"were compared on {quantities.counted(choice.num_items, 'item')}, with intervals of "
        f"{choice.together}. All are against the base.",
        "",
        *markdown_table(
            ("", "as it is", "repaired"),
            (
                (
                    f"gain in-domain, {unit}",
                    *(quantities.with_interval(point.gain, unit) for point in points),
                ),
                (
                    "change of retention, points",
                    *(quantities.with_interval(point.retention, "points") for point in points),
                ),
            ),
        ),
        "",
        *markdown_table(
            ("task", "relation", "metric", "items", "base", "as it is", "repaired"), rows
        ),
    ]
    if record.averaged_with:
        names = ", ".join(map(markdown_code, record.averaged_with))
        lines += ["", f"Averages were tried with {names}."]
    return "\n".join(lines) + "\n"
