"""The paper's claims on all items there are, and whether training on medicine harms mathematics.

    python -m benchmarks.claims_study files FOLDER [TASKS]   the study files; fetches Gemma
    python -m benchmarks.claims_study collect FOLDER         from finished studies to a record
    python -m benchmarks.claims_study tables                 the page's tables, from the record

``medicine`` trains MedMCQA and scores MathQA and the right rationales of GSM8K, as its loss in nats
per token. ``reasoning`` trains kinship and MathQA; ``seeds`` kinship alone, with ten seeds in place
of three; ``strong`` capitals, of which the base knows most. They are of the embedded model;
``gemma-strong`` is ``strong`` on Gemma 3 270M. All score up to 500 items of each task, with margins
of 5 points. TASKS is the folder of the tasks that do not ship; its neighbour ``data`` has GSM8K.
FOLDER has the studies' own folders beside their files, as ``rankwise run FILE --study-dir
FOLDER/NAME`` makes them. The record has no texts of items.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.claims import Claim, paper_claims
from benchmarks.gemma import gemma_folder
from benchmarks.prediction.collected import data_set_of
from benchmarks.prediction.pages import NAMES
from benchmarks.prediction.train import TASKS
from benchmarks.reproduction import DOMAINS, FULL_RATE, KEPT, RATE
from rankwise.errors import RecordError
from rankwise.findings.model_card import markdown_table
from rankwise.findings.options import OptionGains, option_gains
from rankwise.findings.recommendation import recommend
from rankwise.records import quantities
from rankwise.records.base import Record, VersionedRecord
from rankwise.records.files import read_record, write_record
from rankwise.records.folder import StudyFolder
from rankwise.records.study import Interval, Unit
from rankwise.study.reading import read_results

RECORD = Path(__file__).parent / "claims_numbers.json"
RATIONALES = "gsm8k"
MEDICINE, REASONING, SEEDS, STRONG = "medicine", "reasoning", "seeds", "strong"
GEMMA = "gemma-strong"
STUDIES = (MEDICINE, REASONING, SEEDS, STRONG, GEMMA)


class TaskChange(Record):
    """What an option changes on a task; ``metric`` is p_right, the task's own, or the loss.

    Positive is better. The interval is 95 %, over items and seeds, by itself.
    """

    train_task: str
    label: str
    task: str
    metric: str
    unit: Unit
    num_items: int
    base_score: float
    change: Interval


class StudiedClaims(Record):
    """What a study says of the claims, and what each option changes on each task."""

    claims: tuple[Claim, ...]
    changes: tuple[TaskChange, ...]


class ClaimsStudy(VersionedRecord, has_texts=False):
    """``claims_numbers.json``: the finished studies by name."""

    studies: dict[str, StudiedClaims]


def study_files(folder: Path, tasks: Path, gemma: Path) -> dict[str, dict[str, Any]]:
    """Each study's name with its file; ``gemma`` is the folder of the second model."""
    strong = _study(
        tasks,
        name=STRONG,
        train={"task": "capitals", "epochs": 3},  # of 40 rows
        methods={"lora": {"ranks": [8, 64]}, "full": {}},
        evaluation={"retention": ["local_sciq"], "trained_format": False},
    )
    rationales = {"data": str(folder / f"{RATIONALES}.jsonl"), "judged_by": "loss"}
    return {
        MEDICINE: _study(
            tasks,
            name=MEDICINE,
            train={"task": "local_medmcqa_cloze", "max_examples": 480},
            methods={"lora": {"ranks": [8, 64]}, "full": None},
            evaluation={
                "out_of_domain": ["local_mathqa"],
                "retention": ["local_arc_easy", "capitals"],
                "own": {RATIONALES: rationales | {"role": "out_of_domain"}},
            },
        ),
        REASONING: _study(
            tasks,
            name=REASONING,
            train={"task": ["kinship", "local_mathqa"], "max_examples": 160},
            methods={"lora": {"ranks": [32, 64]}, "full": {}},
            evaluation={"retention": ["capitals"], "trained_format": False},
        ),
        SEEDS: _study(
            tasks,
            name=SEEDS,
            train={"task": "kinship", "max_examples": 160},
            methods={"lora": {"ranks": [32, 64]}, "full": {}},
            evaluation={"retention": ["capitals"], "trained_format": False},
            seeds=10,
        ),
        STRONG: strong,
        GEMMA: strong | {"name": GEMMA, "base_model": str(gemma)},
    }


def _study(
    tasks: Path,
    *,
    name: str,
    train: dict[str, Any],
    methods: dict[str, Any],
    evaluation: dict[str, Any],
    seeds: int = 3,
) -> dict[str, Any]:
    rates = {"lora": RATE} if methods["full"] is None else {"lora": RATE, "full": FULL_RATE}
    trained = train["task"] if isinstance(train["task"], list) else [train["task"]]
    scored = [*trained, *evaluation.get("out_of_domain", []), *evaluation["retention"]]
    domains = {task: (DOMAINS | KEPT)[task] for task in scored}
    if "own" in evaluation:
        domains |= {RATIONALES: "mathematics"}
    methods["lora"]["target_modules"] = "attention"
    return {
        "name": name,
        "base_model": "smollm2-135m-instruct",
        "tasks_path": [str(tasks)],
        "train": {
            "epochs": 1,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": rates,
            **train,
        },
        "methods": methods,
        "seeds": list(range(seeds)),
        "evaluation": evaluation | {"limit": 500, "num_train_items": 0, "domains": domains},
        "analysis": {"spectra": False, "heads": False, "gauges": False},
        "recommendation": {"delta_points": 5, "epsilon_points": 5},
    }


def write_rationales(file: Path, tasks: Path) -> None:
    """GSM8K's test questions, each with its right rationale as the answer."""
    source = tasks.parent / "data" / "gsm8k" / "test.jsonl"
    with file.open("w", encoding="utf-8") as rows:
        for line in source.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            question, answer = row["question"].strip(), row["rationale"]
            asked = {"prompt": f"Question: {question}\nAnswer:", "completion": f" {answer}"}
            rows.write(json.dumps(asked) + "\n")


def studied(folder: StudyFolder) -> StudiedClaims:
    """Judge a finished study.

    Raises:
        RecordError: the folder holds no study, or nothing is scored in it.
    """
    results = read_results(folder)
    recommendation = recommend(results, folder.read_looks())
    sources = option_gains(results, recommendation)
    return StudiedClaims(
        claims=paper_claims(sources, recommendation),
        changes=tuple(change for source in sources for change in _changes(source)),
    )


def _changes(source: OptionGains) -> Iterator[TaskChange]:
    for option in source.in_study_order(source.options):
        for task in (name for names in source.results.tasks.values() for name in names):
            # p(right) first, and accuracy beside it where there is any
            both = (source, source.by_accuracy)
            for metric, of in {of.results.base.items[task].metric: of for of in both}.items():
                items, found = of.results.base.items[task], of.change(option.runs, (task,))
                yield TaskChange(
                    train_task=source.results.train_task,
                    label=option.label,
                    task=task,
                    metric=metric,
                    unit=items.unit,
                    num_items=len(items.values),
                    base_score=of.base_score((task,)).estimate,
                    change=Interval(estimate=found.estimate, lower=found.lower, upper=found.upper),
                )


def collect(folder: Path) -> ClaimsStudy:
    """Of the studies of the folder that have a finished run; others are named."""
    found: dict[str, StudiedClaims] = {}
    for name in STUDIES:
        try:
            found[name] = studied(StudyFolder(folder / name))
        except RecordError as error:
            print(f"left out: {error}")
    return ClaimsStudy(studies=found)


def _name(task: str) -> str:
    return {RATIONALES: "GSM8K's rationales"}.get(task) or NAMES.get(data_set_of(task), task)


def _changes_table(changes: tuple[TaskChange, ...]) -> Iterator[str]:
    """A task and metric in each row, an option of a trained task in each column."""
    columns = {(change.train_task, change.label): None for change in changes}
    rows: dict[tuple[str, str], dict[tuple[str, str], TaskChange]] = {}
    for change in changes:
        of = rows.setdefault((change.task, change.metric), {})
        of[change.train_task, change.label] = change
    lines: list[list[str]] = []
    for (task, metric), cells in rows.items():
        first = next(iter(cells.values()))
        base = quantities.score(first.base_score, first.unit)
        shown = [
            quantities.with_interval(cell.change, cell.unit) if (cell := cells.get(at)) else ""
            for at in columns
        ]
        lines.append([f"{_name(task)}, {metric}", str(first.num_items), base, *shown])
    trained = len({task for task, _ in columns}) > 1
    heads = [f"{_name(task)}: {label}" if trained else label for task, label in columns]
    yield from markdown_table(["scored", "items", "base", *heads], lines)


def _summary(record: ClaimsStudy) -> Iterator[str]:
    """Each claim with the verdict of every study that can judge it."""
    verdicts: dict[str, dict[str, str]] = {}
    for name, study in record.studies.items():
        for claim in study.claims:
            of = verdicts.setdefault(claim.statement, {})
            of[name] = "" if claim.verdict == "not tested" else claim.judgement
    rows = [[claim, *of.values()] for claim, of in verdicts.items() if any(of.values())]
    yield from markdown_table(["claim", *record.studies], rows)


def tables(record: ClaimsStudy) -> Iterator[str]:
    """The lines of all tables, and of what each claim rests on."""
    yield "## claims"
    yield ""
    yield from _summary(record)
    yield ""
    for name, study in record.studies.items():
        yield f"## {name}"
        yield ""
        yield from _changes_table(study.changes)
        yield ""
        tested = [claim for claim in study.claims if claim.verdict != "not tested"]
        yield from markdown_table(
            ["claim", "verdict", "comparisons"],
            [[claim.statement, claim.judgement, str(len(claim.evidence))] for claim in tested],
        )
        for claim in tested:
            yield ""
            yield from (f"- {sentence}" for sentence in claim.evidence)
        yield ""


def main() -> None:
    """Write the files or the record, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["files", "collect", "tables"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("tasks", type=Path, nargs="?", default=TASKS)
    asked = parser.parse_args()
    if asked.what == "files":
        asked.folder.mkdir(parents=True, exist_ok=True)
        write_rationales(asked.folder / f"{RATIONALES}.jsonl", asked.tasks)
        for name, study in study_files(asked.folder, asked.tasks, gemma_folder()).items():
            file = asked.folder / f"{name}.yaml"
            file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
            print(file)
    elif asked.what == "collect":
        write_record(RECORD, collect(asked.folder))
    else:
        print(*tables(read_record(RECORD, ClaimsStudy)), sep="\n")


if __name__ == "__main__":
    main()
