"""The tables of docs/studies/rl-tool-calls.md: how much rank GRPO needs, on tool calls.

    python -m benchmarks.rl_study collect FOLDER RECORD     from a finished study to a small record
    python -m benchmarks.rl_study tables [RECORD]           the page's tables, from the record

FOLDER also has the runs by which rates were chosen. A record has no texts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.findings.comparison import Compared
from rankwise.findings.model_card import markdown_table
from rankwise.records import quantities
from rankwise.records.folder import StudyFolder
from rankwise.records.grouping import grouped
from rankwise.records.study import Interval, PlannedRun, TaskEvaluation
from rankwise.study.conclusion import conclude

RECORD = Path(__file__).parent / "on_policy_study" / "tool-calls.json"
TASK = "data_tool_calls_texts"
METRICS = ("fields_correct", "all_correct")
LAST = 3
"""Steps at the end of a part of a training, over which rewards are averaged."""


def collected(folder: StudyFolder) -> dict[str, Any]:
    """What the page is made of."""
    outcome = conclude(folder)
    (card,) = outcome.findings.cards
    base = folder.evaluation_file("base", TASK)
    return {
        "candidates": list(_candidates(folder)),
        "base": _scores(folder, base),
        "choice": card.choice,
        "is_settled": card.is_settled,
        "probability": card.probability,
        "options": [_option(row) for row in card.rows],
        "runs": [_run(folder, model.run.planned) for model in outcome.results.runs if model.run],
    }


def _run(folder: StudyFolder, planned: PlannedRun) -> dict[str, Any]:
    lines = _texts(folder, planned.name)
    return {
        "rank": planned.rank,
        "seed": planned.seed,
        "learning_rate": planned.learning_rate,
        "scores": _scores(folder, folder.evaluation_file(planned.name, TASK)),
        "rewards": [line["reward"] for line in lines],
        "entropy_nats": [line["entropy_nats"] for line in lines],
    }


def _candidates(folder: StudyFolder) -> Iterator[dict[str, Any]]:
    """The runs by which rates were chosen, on validation items."""
    for run in folder.readable_runs():
        planned = run.planned
        file = folder.evaluation_file(planned.name, f"{TASK}@validation")
        if planned.is_part and file.exists():
            last = _texts(folder, planned.name)[-LAST:]
            yield {
                "rank": planned.rank,
                "learning_rate": planned.learning_rate,
                "num_steps": planned.num_steps,
                "scores": _scores(folder, file),
                "reward": statistics.fmean(line["reward"] for line in last),
            }


def _scores(folder: StudyFolder, file: Path) -> dict[str, float]:
    found = folder.read(file, TaskEvaluation)
    return {each.metric: each.value for each in found.metrics if each.metric in METRICS}


def _texts(folder: StudyFolder, run: str) -> list[dict[str, Any]]:
    """What each step says of its texts."""
    with folder.metrics_file(run).open(encoding="utf-8") as file:
        return [json.loads(line)["texts"] for line in file]


def bounds(value: Interval | None) -> list[float] | None:
    """A number with its interval, as a record has it."""
    return value and [value.estimate, value.lower, value.upper]


def _option(row: Compared) -> dict[str, Any]:
    return {
        "label": row.label,
        "gain": bounds(row.gain),
        "retention": bounds(row.retention),
        "lead": bounds(row.lead),
        "num_seeds": row.num_seeds,
        "num_parameters": row.num_parameters,
    }


def tables(record: Mapping[str, Any]) -> Iterator[str]:
    """The tables as Markdown: rates, options, rewards."""
    by_rank = grouped((each["rank"], each) for each in record["candidates"])
    order = sorted(by_rank, key=lambda rank: rank or float("inf"))
    rows = [
        (
            _name(rank),
            *(
                f"{each['learning_rate']:.2g}: {100 * each['scores']['fields_correct']:.0f}"
                for each in sorted(by_rank[rank], key=lambda each: each["learning_rate"])
            ),
        )
        for rank in order
    ]
    width = max(map(len, rows))
    padded = [(*row, *[""] * (width - len(row))) for row in rows]
    yield table(("", *["rate: fields"] * (width - 1)), padded)
    yield table(
        ("", "gain", "against the choice", "retention", "trained weights"),
        [
            (
                each["label"],
                interval(each["gain"]),
                interval(each["lead"]),
                interval(each["retention"]),
                quantities.parameters(each["num_parameters"]),
            )
            for each in record["options"]
            if each["num_parameters"]
        ],
    )
    yield table(
        ("", "rate", "seed", "all fields right", "reward, first steps", "reward, last steps"),
        [
            (
                _name(run["rank"]),
                f"{run['learning_rate']:.2g}",
                str(run["seed"]),
                f"{100 * run['scores']['all_correct']:.0f} %",
                f"{statistics.fmean(run['rewards'][:LAST]):.2f}",
                f"{statistics.fmean(run['rewards'][-LAST:]):.2f}",
            )
            for run in record["runs"]
        ],
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    return "\n".join(markdown_table(headings, rows))


def _name(rank: int | None) -> str:
    return "full" if rank is None else f"rank {rank}"


def interval(value: Sequence[float] | None) -> str:
    """Points with bounds; empty without a value."""
    if value is None:
        return ""
    estimate, lower, upper = value
    found = Interval(estimate=estimate, lower=lower, upper=upper)
    return quantities.with_interval(found, "points")


def main() -> None:
    """Collect a record, or print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    collect = verbs.add_parser("collect")
    collect.add_argument("folder", type=Path)
    collect.add_argument("record", type=Path)
    shown = verbs.add_parser("tables")
    shown.add_argument("record", type=Path, nargs="?", default=RECORD)
    options = parser.parse_args()
    if options.verb == "collect":
        record = collected(StudyFolder(options.folder))
        options.record.parent.mkdir(exist_ok=True)
        options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    else:
        print("\n\n".join(tables(json.loads(options.record.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
