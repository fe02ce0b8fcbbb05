"""The first ten minutes with one's own file: do files of real shapes end in a right verdict?

    python -m benchmarks.first_contact [--install]

25 files as exports, hubs and sheets have them, each with a planted truth: 15 with scores of items,
for ``rankwise verdict``, and 10 with rows to train on, for ``rankwise try``. A file is right where
the verdict names the planted rank, or the rows are read as they were meant; or, where nothing can
be read from it, where one sentence says so with a command or a remedy, and no traceback. Rows are
read as ``try`` reads them, up to what it would train on; nothing is trained.

The last line of output is one JSON object: ``right_of_25``; ``cpu_seconds_to_verdict``, the median
of five calls of the command on a table of 900 scores in a process of its own; with ``--install``
the seconds and MB of an installation without the extra ``train``, from a wheel made of this tree.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rankwise.errors import RankwiseError
from rankwise.findings.recommendation import recommend
from rankwise.scores.asked import Asked
from rankwise.scores.reading import read_scores
from rankwise.scores.study import scored_study

ROOT = Path(__file__).resolve().parents[1]

NUM_ITEMS = 300
MODELS = ("base", "r4", "r16")
"""Rank 4 gains much over the base, and rank 16 as much as rank 4 but for two items."""

KINDS = ("billing", "bug", "how to", "refund")


class File(NamedTuple):
    """A file of some shape, and what is to come of it.

    Attributes:
        shape: in words.
        make: writes it into a folder, and returns what is given to the command.
        is_right: whether the outcome is right: the label that is recommended or bet on, or the
            first row's prompt and completion; or the text of an error.
    """

    shape: str
    make: Callable[[Path], Sequence[Path]]
    is_right: Callable[[Any], bool]


def _right() -> dict[str, list[int]]:
    ease = np.random.default_rng(7).normal(size=NUM_ITEMS)
    base, tuned = (ease > 0.6).astype(int), (ease > -0.4).astype(int)
    larger = tuned.copy()
    larger[:2] = 1 - larger[:2]
    return {m: each.tolist() for m, each in zip(MODELS, (base, tuned, larger), strict=True)}


RIGHT = _right()


def sheet(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]], mark: str = ",") -> Path:
    """Write a CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        written = csv.writer(file, delimiter=mark)
        written.writerow(head)
        written.writerows(rows)
    return path


def wide(head: Sequence[str], cell: Callable[[int], Any] = int, mark: str = ",") -> Any:
    """An item a row, and a column for each model."""

    def make(folder: Path) -> Sequence[Path]:
        rows = [[f"q{i}", *(cell(RIGHT[model][i]) for model in MODELS)] for i in range(NUM_ITEMS)]
        return [sheet(folder / "scores.csv", head, rows, mark)]

    return make


def long(head: Sequence[str], name: Callable[[str], str] = str, total: bool = False) -> Any:
    """An item and a model a row."""

    def make(folder: Path) -> Sequence[Path]:
        rows = [
            [f"q{i}", name(model), RIGHT[model][i]] for model in MODELS for i in range(NUM_ITEMS)
        ]
        if total:
            rows += [["Mean", name(model), float(np.mean(RIGHT[model]))] for model in MODELS]
        return [sheet(folder / "scores.csv", head, rows)]

    return make


def seeds(folder: Path) -> Sequence[Path]:
    """Several settings in each name, and other numbers of seeds."""
    names = {"base": "base", "r4": "r4-lr2e-4-s0", "r16": "r16-lr1e-4-s0"}
    rows = [[i, names[model], RIGHT[model][i]] for model in MODELS for i in range(NUM_ITEMS)]
    rows += [[i, "r4-lr2e-4-s1", RIGHT["r4"][i]] for i in range(NUM_ITEMS)]
    return [sheet(folder / "scores.csv", ("id", "run", "acc"), rows)]


def nested(folder: Path) -> Sequence[Path]:
    """JSON Lines with scores within an object."""
    path = folder / "scores.jsonl"
    lines = [
        {"meta": {"id": i}, "model": model, "result": {"correct": bool(RIGHT[model][i])}}
        for model in MODELS
        for i in range(NUM_ITEMS)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return [path]


def by_file(folder: Path) -> Sequence[Path]:
    """A file a model."""
    return [
        sheet(folder / f"{model}.csv", ("id", "exact_match"), list(enumerate(RIGHT[model])))
        for model in MODELS
    ]


def strangers(folder: Path) -> Sequence[Path]:
    """Files that share no item."""
    return [
        sheet(
            folder / f"{model}.csv",
            ("id", "acc"),
            [(f"{model}-{i}", score) for i, score in enumerate(RIGHT[model])],
        )
        for model in MODELS
    ]


def lm_eval(folder: Path) -> Sequence[Path]:
    """Output folders of lm-eval."""
    for model, scores in RIGHT.items():
        place = folder / "out" / model / "Org__model"
        place.mkdir(parents=True)
        lines = [
            {"doc_id": i, "doc": {"q": i}, "target": "a", "arguments": {}, "resps": [["a"]],
             "filtered_resps": ["a"], "filter": "none", "metrics": ["acc"], "acc": float(score)}
            for i, score in enumerate(scores)
        ]  # fmt: skip
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (place / "samples_arc_2026-11-01.jsonl").write_text(text)
    return [folder / "out"]


def results_file(folder: Path) -> Sequence[Path]:
    """Means of lm-eval."""
    path = folder / "results_2026-11-01.json"
    path.write_text(json.dumps({"results": {"arc": {"acc,none": 0.5}}, "configs": {}}))
    return [path]


def says(*parts: str) -> Callable[[Any], bool]:
    """Whether an error has all these parts."""
    return lambda found: isinstance(found, str) and all(part in found for part in parts)


def is_rank_4(found: Any) -> bool:
    """Whether rank 4 is recommended, or the best bet."""
    return found == ("rank 4",)


def comma(score: int) -> str:
    """A share as it is written where commas begin decimals."""
    return f"{score * 0.9 + 0.05:.2f}".replace(".", ",")


SCORES = [
    File("wide, base and ranks", wide(("id", "base", "r4", "r16")), is_rank_4),
    File("wide, capitals and spaces", wide(("Item ID", "Base", "Rank 4", "Rank 16")), is_rank_4),
    File("wide, metric in the names", wide(("id", "acc_base", "acc_r4", "acc_r16")), is_rank_4),
    File("wide, yes and no", wide(("id", *MODELS), ("no", "yes").__getitem__), is_rank_4),
    File("wide, decimal commas", wide(("Frage", "base", "r4", "r16"), comma, ";"), is_rank_4),
    File("wide, other names", wide(("id", "mine", "tuned", "big")), says("--score mine,tuned,big")),
    File("long", long(("id", "model", "acc")), is_rank_4),
    File("long, questions for items", long(("Question", "Adapter", "Correct")), is_rank_4),
    File("long, a row of totals", long(("item", "model", "score"), total=True), is_rank_4),
    File("long, several settings and unequal seeds", seeds, lambda found: "rank 4" in str(found)),
    File("nested JSON", nested, is_rank_4),
    File("a file for each model", by_file, is_rank_4),
    File("files that share no item", strangers, says("share no item", "base-0", "r4-0")),
    File("output folders of lm-eval", lm_eval, is_rank_4),
    File("a results file of lm-eval", results_file, says("--log_samples")),
]  # fmt: skip


def text(i: int) -> str:
    """A text of a dozen words."""
    rng = np.random.default_rng(i)
    words = ("please", "help", "my", "invoice", "app", "is", "wrong", "again", "since", "monday")
    return " ".join(rng.choice(words, 12))


def rows_of(head: Sequence[str], cells: Callable[[int], Sequence[Any]], **how: Any) -> Any:
    """A CSV with rows to train on."""

    def make(folder: Path) -> Sequence[Path]:
        path = sheet(folder / "rows.csv", head, [cells(i) for i in range(60)], how.get("mark", ","))
        if "encoding" in how:
            path.write_bytes(path.read_text(encoding="utf-8").encode(how["encoding"]))
        return [path]

    return make


def reads(*expected: str) -> Callable[[Any], bool]:
    """Whether the first row is learned as prompt and completion."""
    return lambda found: isinstance(found, tuple) and tuple(found) == expected


def kind(i: int) -> str:
    """A class."""
    return KINDS[i % len(KINDS)]


def data_object(folder: Path) -> Sequence[Path]:
    """A list of rows in an object."""
    path = folder / "rows.json"
    rows = [{"question": text(i), "answer": [kind(i)]} for i in range(60)]
    path.write_text(json.dumps({"version": "1.0", "data": rows}))
    return [path]


def nested_rows(folder: Path) -> Sequence[Path]:
    """Questions and answers within objects."""
    path = folder / "rows.jsonl"
    rows = [{"id": i, "input": {"text": text(i)}, "output": {"answer": kind(i)}} for i in range(60)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return [path]


def plain(i: int) -> Sequence[Any]:
    """A text and its class."""
    return text(i), kind(i)


def with_sign(sign: str) -> Callable[[int], Sequence[Any]]:
    """The same with a letter that is not ASCII."""
    return lambda i: (f"{text(i)} {sign}", kind(i))


def ticket(i: int) -> Sequence[Any]:
    """A row of an export."""
    return f"T-{i}", f"2026-01-{i % 28 + 1:02d}T10:00", text(i), kind(i)


def is_first_kind(found: Any) -> bool:
    """Whether the first class is learned, with the space that its convention puts before it."""
    return isinstance(found, tuple) and len(found) == 2 and found[1].strip() == kind(0)


FIRST = reads(text(0), kind(0))
LABELLED = reads(f"{text(0)}\nLabel:", f" {kind(0)}")
TICKET = ("ticket_id", "created_at", "subject_and_body", "category")
ASKED = ("prompt", "completion")
ROWS = [
    File("text and label", rows_of(("text", "label"), plain), LABELLED),
    File("capitals", rows_of(("Review", "Sentiment"), plain), LABELLED),
    File("an export of tickets", rows_of(TICKET, ticket), FIRST),
    File(
        "split columns",
        rows_of(
            ("title", "body", "priority", "team"),
            lambda i: (text(i)[:20], text(i), KINDS[i % 2], kind(i)),
        ),
        says("--column prompt=", "--column completion=team"),
    ),
    File(
        "Frage;Antwort with a mark",
        rows_of(("Frage", "Antwort"), plain, mark=";", encoding="utf-8-sig"),
        FIRST,
    ),
    File(
        "UTF-16", rows_of(ASKED, with_sign("é"), encoding="utf-16"), reads(f"{text(0)} é", kind(0))
    ),
    File(
        "cp1252", rows_of(ASKED, with_sign("€"), encoding="cp1252"), reads(f"{text(0)} €", kind(0))
    ),
    File(
        "empty answers",
        rows_of(ASKED, lambda i: (text(i), kind(i) if i % 7 else "")),
        reads(text(1), kind(1)),
    ),
    File("a list of rows in an object", data_object, is_first_kind),
    File("nested questions and answers", nested_rows, is_first_kind),
]


def verdict(paths: Sequence[Path]) -> Any:
    """The option that a verdict names: recommended, or the best bet."""
    asked = Asked()
    results = scored_study(read_scores(paths, asked), asked, "scores").results()
    (found,) = recommend(results).by_train_task
    named = found.chosen.label if found.chosen else found.best_bet and found.best_bet.choice
    return (named,)


def first_row(paths: Sequence[Path]) -> Any:
    """What of the first row is prompt and completion, without a chat template."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from rankwise.tasks.own_rows import read_own_rows

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<e>")
    own = read_own_rows(paths[0], tokenizer, chat_template=False)
    return own.rows[0].prompt, own.rows[0].completion


def outcome(file: File, read: Callable[[Sequence[Path]], Any]) -> Any:
    """What comes of a file; the text of an error that is ours; None of any other."""
    with tempfile.TemporaryDirectory() as place:
        try:
            return read(file.make(Path(place)))
        except RankwiseError as error:
            return str(error)
        except Exception:  # noqa: BLE001 (what is counted)
            traceback.print_exc()
            return None


def cpu_seconds(number: int = 5) -> float:
    """Of the command on a table of 900 scores, the median of some calls."""
    with tempfile.TemporaryDirectory() as place:
        (path,) = long(("id", "model", "acc"))(Path(place))
        command = [sys.executable, "-m", "rankwise", "verdict", str(path)]
        taken: list[float] = []
        for _ in range(number):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return statistics.median(taken)


def installed() -> dict[str, float]:
    """Seconds and MB of an installation without the extra ``train``."""
    with tempfile.TemporaryDirectory() as place:
        dist, venv = Path(place) / "dist", Path(place) / "venv"
        pip = [sys.executable, "-m", "pip"]
        wheel = [*pip, "wheel", "-q", "--no-deps", "-w", str(dist), str(ROOT)]
        subprocess.run(wheel, check=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        started = time.perf_counter()
        (made,) = dist.glob("*.whl")
        own = [
            str(venv / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "-q",
            "--no-cache-dir",
            str(made),
        ]
        subprocess.run(own, check=True)
        seconds = time.perf_counter() - started
        size = sum(p.stat().st_size for p in venv.rglob("*") if p.is_file() and not p.is_symlink())
        return {"install_seconds": round(seconds, 1), "install_mb": round(size / 1e6)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each file, and the figures; returns 1 where fewer than 24 are right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", action="store_true", help="measure an installation too")
    given = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    right = 0
    for files, read in ((SCORES, verdict), (ROWS, first_row)):
        for file in files:
            found = outcome(file, read)
            is_right = file.is_right(found)
            right += is_right
            print(f"{'right' if is_right else 'WRONG'}  {file.shape}: {str(found)[:160]}")
    result: dict[str, Any] = {
        f"right_of_{len(SCORES) + len(ROWS)}": right,
        "cpu_seconds_to_verdict": round(cpu_seconds(), 2),
        **(installed() if given.install else {}),
    }
    print(json.dumps(result))
    return int(right < len(SCORES) + len(ROWS) - 1)


if __name__ == "__main__":
    sys.exit(main())
