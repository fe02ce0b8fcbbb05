"""``rankwise try`` on 200 rows of three data sets, each in an empty folder, as people have them.

    python -m benchmarks.own_rows [--rows 200] [--only medmcqa gsm8k overruling] [--budget 10m]

MedMCQA is written as Alpaca's columns in JSON Lines, GSM8K as ShareGPT's conversations in one JSON
list, Overruling as CSV. The rows are those of ../shared/data, of which nothing is kept. Each run
is a process of its own. The last line of the output is JSON: for each data set the seconds of the
clock, the exit code and the verdict.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"

Row = dict[str, Any]


def write_medmcqa(rows: Sequence[Row], folder: Path) -> Path:
    """JSON Lines of instruction, input and output: the letter of the right option."""
    path = folder / "medmcqa.jsonl"
    lines = [
        {
            "instruction": "Answer the question with the letter of the right option.",
            "input": "\n".join([row["question"], *_lettered(row["choices"])]),
            "output": row["answer"],
        }
        for row in rows
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def write_gsm8k(rows: Sequence[Row], folder: Path) -> Path:
    """One JSON list of conversations; answers end in #### and the number."""
    path = folder / "gsm8k.json"
    conversations = [
        {
            "conversations": [
                {"from": "human", "value": row["question"]},
                {"from": "gpt", "value": row["rationale"]},
            ]
        }
        for row in rows
    ]
    path.write_text(json.dumps(conversations, indent=1), encoding="utf-8")
    return path


def write_overruling(rows: Sequence[Row], folder: Path) -> Path:
    """CSV of question and answer: Yes or No."""
    path = folder / "overruling.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "answer"])
        for row in rows:
            right = row["choices"][ascii_uppercase.index(row["answer"])]
            table.writerow([row["question"], right])
    return path


SETS: dict[str, tuple[str, Callable[[Sequence[Row], Path], Path]]] = {
    "medmcqa": ("medmcqa", write_medmcqa),
    "gsm8k": ("gsm8k", write_gsm8k),
    "overruling": ("legal_overruling", write_overruling),
}
"""Name -> the folder of ../shared/data, and what writes its rows."""


def written(name: str, folder: Path, num_rows: int) -> Path:
    """The first training rows of a data set as a file in a folder."""
    source, write = SETS[name]
    with (DATA / source / "train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(num_rows), strict=False)]
    return write(rows, folder)


def _lettered(choices: Sequence[str]) -> list[str]:
    return [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]


def tried(name: str, num_rows: int, options: Sequence[str]) -> dict[str, Any]:
    """One data set, from a file to a verdict; what the command says goes to stderr."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = written(name, folder, num_rows)
        command = [sys.executable, "-m", "rankwise", "try", path.name, *options]
        started = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        seconds = time.perf_counter() - started
        print(done.stdout, file=sys.stderr)
        recommendation = folder / "studies" / name / "recommendation.json"
        statement = None
        if recommendation.exists():
            (part,) = json.loads(recommendation.read_text(encoding="utf-8"))["by_train_task"]
            statement = part["statement"]
        return {"seconds": round(seconds, 1), "exit_code": done.returncode, "statement": statement}


def main(arguments: Sequence[str] | None = None) -> None:
    """Try each data set, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    chosen = parser.parse_args(arguments)
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is not there; the rows are read from it")
    options = ["--budget", chosen.budget, "--model", chosen.model]
    print(json.dumps({name: tried(name, chosen.rows, options) for name in chosen.only}))


if __name__ == "__main__":
    main()
