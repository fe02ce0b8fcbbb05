"""The page of the collection's studies, by the data set that their rows are of.

    python -m benchmarks.prediction.pages OUTPUT [--to docs/studies]

Reads the folders that ``python -m benchmarks.prediction.train OUTPUT`` has finished, and writes
``collection-tables.md``: for each data set the verdict of each study in a line, then its main table
as ``rankwise export --format markdown`` has it. Nothing on that page is written by hand.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.prediction.collected import data_set_of
from benchmarks.prediction.train import CELLS, ROOT, RULE, Cell
from rankwise.errors import RecordError
from rankwise.findings.model_card import markdown_table
from rankwise.findings.options import OptionGains
from rankwise.findings.pairs import run_record
from rankwise.integrations.tables import markdown, paper_tables
from rankwise.records import quantities
from rankwise.records.folder import StudyFolder
from rankwise.report.summaries import OUTCOMES
from rankwise.study.conclusion import StudyOutcome, conclude

NAMES = {
    "arc_easy": "ARC-Easy",
    "kinship": "Kinship",
    "legal": "LegalBench",
    "mathqa": "MathQA",
    "medmcqa": "MedMCQA",
    "mmlu": "MMLU",
    "overruling": "Overruling",
    "sciq": "SciQ",
    "syllogism": "Syllogism",
}


class Done(NamedTuple):
    """A study of the collection that is finished."""

    cell: Cell
    outcome: StudyOutcome


def finished(output: Path) -> dict[str, list[Done]]:
    """Data set -> its finished studies, fewest rows first; data sets as in ``NAMES``."""
    found = defaultdict[str, list[Done]](list)
    for cell in sorted(CELLS, key=lambda cell: cell.rows):
        try:
            outcome = conclude(StudyFolder(output / cell.name))
        except RecordError as error:  # it was not begun, or has no finished run
            print(f"left out: {error}")
            continue
        if outcome.results.left_out:
            print(f"left out: {cell.name} is not finished")
        else:
            found[data_set_of(cell.task)].append(Done(cell, outcome))
    return {name: found[name] for name in NAMES if name in found}


def page(families: Mapping[str, Sequence[Done]]) -> Iterator[str]:
    """The lines of the page."""
    yield "# LoRA rank on each data set"
    yield ""
    yield (
        "SmolLM2-135M-Instruct: the studies of the [collection](collection.md), with every run. "
        "All ranks of a study were trained in one pass, on the same "
        "rows in the same order. Scores are of 60 items of each task, p(right) in points, with "
        "95 % intervals. `python -m benchmarks.prediction.train` trains the studies, and "
        "`python -m benchmarks.prediction.pages` writes this page from them."
    )
    for name, studies in families.items():
        yield from _family(NAMES[name], studies)


def _family(title: str, studies: Sequence[Done]) -> Iterator[str]:
    """The studies of one data set."""
    yield ""
    yield f"## {title}"
    yield ""
    yield from markdown_table(
        ["rows", "epochs", "steps", "tokens", "verdict", "gain by rank", "gain of full"],
        [_row(done) for done in studies],
    )
    for cell, outcome in studies:
        yield ""
        epochs = quantities.counted(cell.epochs, "epoch")
        yield f"### {title}, {cell.rows} rows, {epochs}"
        for shown in paper_tables(outcome):
            yield ""
            yield markdown(shown).rstrip("\n")


def _row(done: Done) -> list[str]:
    (verdict,) = done.outcome.recommendation.by_train_task
    results = done.outcome.results.of(verdict.train_task)
    source, plan = OptionGains(results), run_record(results.runs[0]).planned
    tasks = source.tasks("in_domain", verdict.unit)
    gains = {"LoRA": list[str](), "full": list[str]()}
    for option in source.options:
        rank, rate = option.records[0].planned.rank, option.records[0].planned.learning_rate
        gain = quantities.change(source.change(option.runs, tasks).estimate, verdict.unit)
        if rank is None:
            gains["full"].append(gain)
        elif rate == RULE.rate_of(rank):
            gains["LoRA"].append(f"{rank}: {gain}")
    outcome = OUTCOMES[verdict.outcome]
    return [
        str(done.cell.rows),
        str(done.cell.epochs),
        str(plan.num_steps),
        quantities.count(plan.num_tokens),
        outcome if verdict.rank is None else f"{outcome}: rank {verdict.rank}",
        ", ".join(gains["LoRA"]),
        ", ".join(gains["full"]),
    ]


def main() -> None:
    """Write the page of all families that have a finished study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--to", type=Path, default=ROOT / "docs/studies")
    asked = parser.parse_args()
    file = asked.to / "collection-tables.md"
    file.write_text("\n".join(page(finished(asked.output))) + "\n", encoding="utf-8")
    print(file)


if __name__ == "__main__":
    main()
