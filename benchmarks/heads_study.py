"""Which heads carry what was learned, and which what was forgotten: every head, on 400 items.

    python -m benchmarks.heads_study files FOLDER     the study file, and the task of 400 items
    python -m benchmarks.heads_study collect FOLDER   from the finished study to a record
    python -m benchmarks.heads_study tables           the page's tables, from the record

One adapter of rank 64 is trained on 160 rows of kinship. ``rankwise heads`` then sets each of the
model's heads to zero, one at a time, and each head of the base as a control, on 400 unseen items of
kinship and on all of capitals. Effects are changes of the right answer's log-probability among the
options, in nats. FOLDER has the study's own folder, ``heads``. The record has no texts of items.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from benchmarks.prediction.table import signed
from benchmarks.reproduction import RATE
from rankwise.findings.model_card import markdown_table
from rankwise.findings.stats.correlation import rank_correlation
from rankwise.records import quantities
from rankwise.records.base import Record, VersionedRecord
from rankwise.records.files import read_record, write_record
from rankwise.records.folder import StudyFolder
from rankwise.records.heads import HeadEffect, HeadEstimate, TaskHeadEffects
from rankwise.study.reading import read_results
from rankwise.tasks import bundled

RECORD = Path(__file__).parent / "heads_numbers.json"
NAME, TASK, RANK, ITEMS = "heads", "kinship_400", 64, 400
SHOWN = 8
"""Heads of each task in the page's table."""
NATS = 1.0
"""The half width that every interval is to have."""
LEVEL = 0.05


class TaskHeads(Record):
    """All heads on one task; ``heads`` layer by layer, in nats of the right answer."""

    task: str
    num_items: int
    base_nats: float
    adapted_nats: float
    heads: tuple[HeadEffect, ...]

    @property
    def widest(self) -> float:
        """Half of the widest interval beyond the base's effect."""
        return max((of.upper - of.lower) / 2.0 for of in map(_beyond, self.heads))

    def beyond(self, sign: int) -> tuple[HeadEffect, ...]:
        """The heads that are shown to have more of an effect than in the base, of one sign."""
        shown = [head for head in self.heads if _beyond(head).p_value < LEVEL]
        return tuple(head for head in shown if sign * _beyond(head).estimate > 0.0)


class HeadsStudy(VersionedRecord, has_texts=False):
    """``heads_numbers.json``: the tasks in the order of the study."""

    tasks: tuple[TaskHeads, ...]


def write_files(folder: Path) -> Path:
    """The task with more test items than ship, and the study file."""
    tasks = folder / "heads_tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    (tasks / f"{TASK}.py").write_text("from rankwise.tasks.bundled.kinship import load\n")
    task = Path(bundled.__file__).parent / "kinship.yaml"
    text = task.read_text(encoding="utf-8")
    for old, new in (
        ("include: _choices.yaml", f"include: {task.parent / '_choices.yaml'}"),
        ("task: kinship", f"task: {TASK}"),
        ("kinship.load", f"{TASK}.load"),
        ("test: 300", f"test: {ITEMS}"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (tasks / f"{TASK}.yaml").write_text(text, encoding="utf-8")
    study = {
        "name": NAME,
        "base_model": "smollm2-135m-instruct",
        "tasks_path": [str(tasks)],
        "train": {
            "task": TASK,
            "max_examples": 160,
            "epochs": 1,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": {"lora": RATE},
        },
        "methods": {"lora": {"ranks": [RANK], "target_modules": "attention"}, "full": None},
        "seeds": [0],
        "evaluation": {
            "retention": ["capitals"],
            "trained_format": False,
            "limit": ITEMS,
            "num_train_items": 0,
        },
        "analysis": {"spectra": False, "heads": False, "gauges": False},
    }
    file = folder / f"{NAME}.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return file


def collected(effects: Sequence[TaskHeadEffects]) -> HeadsStudy:
    """Of the records of one run's heads."""
    return HeadsStudy(
        tasks=tuple(
            TaskHeads(
                task=of.task,
                num_items=of.num_items,
                base_nats=round(of.base_answer_nats, 4),
                adapted_nats=round(of.adapted_answer_nats, 4),
                heads=tuple(map(_rounded, of.answers)),
            )
            for of in effects
        )
    )


def _beyond(head: HeadEffect) -> HeadEstimate:
    return head.beyond_control


def _rounded(head: HeadEffect) -> HeadEffect:
    """To ten thousandths of a nat; p-values to three digits."""

    def short(of: HeadEstimate) -> HeadEstimate:
        values = {name: round(value, 4) for name, value in of.model_dump().items()}
        return HeadEstimate.model_validate(values | {"p_value": float(f"{of.p_value:.3g}")})

    parts = (head.effect, head.control, head.beyond_control)
    effect, control, beyond = map(short, parts)
    return head.model_copy(update={"effect": effect, "control": control, "beyond_control": beyond})


def _nats(of: HeadEstimate) -> str:
    bounds = f"{signed(of.lower, 2)} to {signed(of.upper, 2)}"
    return f"{signed(of.estimate, 2)} ({bounds})"


def tables(record: HeadsStudy) -> Iterator[str]:
    """What is shown of each task, its heads that differ most from the base, and what they share."""
    rows = [
        [
            of.task,
            str(of.num_items),
            f"{signed(of.base_nats, 2)}, {signed(of.adapted_nats, 2)}",
            f"{sum(head.effect.p_value < LEVEL for head in of.heads)} of {len(of.heads)}",
            str(len(of.beyond(-1))),
            str(len(of.beyond(1))),
            f"{of.widest:.2f}",
            str(math.ceil(of.num_items * (of.widest / NATS) ** 2)),
        ]
        for of in record.tasks
    ]
    heads = ["task", "items", "right answer: base, adapted, nats", "heads with an effect"]
    heads += ["worse than in the base", "better than in the base"]
    heads += ["widest interval, ± nats", f"items for ± {NATS:g} nat"]
    yield from markdown_table(heads, rows)
    for of in record.tasks:
        yield ""
        largest = sorted(of.heads, key=lambda head: -abs(_beyond(head).estimate))[:SHOWN]
        yield from markdown_table(
            [of.task, "set to zero", "the same in the base", "the difference"],
            [
                [
                    f"layer {head.layer}, head {head.head}",
                    *map(_nats, (head.effect, head.control, head.beyond_control)),
                ]
                for head in largest
            ],
        )
    yield ""
    for of in record.tasks:
        of_run = [head.effect.estimate for head in of.heads]
        of_base = [head.control.estimate for head in of.heads]
        yield f"- {of.task}: {_alike(of_run, of_base)} of the effects with and without the adapter."
    for own, kept in itertools.combinations(record.tasks, 2):
        both = ([_beyond(head).estimate for head in of.heads] for of in (own, kept))
        yield f"- {own.task} and {kept.task}: {_alike(*both)} of the differences from the base."


def _alike(one: Sequence[float], other: Sequence[float]) -> str:
    found = rank_correlation(one, other)
    assert found is not None
    bounds = f"{signed(found.lower, 2)} to {signed(found.upper, 2)}"
    heads = quantities.counted(len(one), "head")
    return f"a rank correlation over {heads} of {signed(found.estimate, 2)} ({bounds})"


def main() -> None:
    """Write the files or the record, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["files", "collect", "tables"])
    parser.add_argument("folder", type=Path, nargs="?")
    asked = parser.parse_args()
    if asked.what == "files":
        print(write_files(asked.folder))
    elif asked.what == "collect":
        (run,) = read_results(StudyFolder(asked.folder / NAME)).runs
        write_record(RECORD, collected(run.head_effects))
    else:
        print(*tables(read_record(RECORD, HeadsStudy)), sep="\n")


if __name__ == "__main__":
    main()
