"""How large a report is, how long it takes to write, and when a browser first paints it.

    python -m benchmarks.report [--items 20000] [--many-runs 200] [--tasks 300]

Three planted studies: 12 runs on ``--items`` items with prompts of the length of GSM8K's,
``--many-runs`` runs on 200 items, and 12 runs on ``--tasks`` retention tasks of 100 items. Writing
is timed from findings and parsed items to the files, in seconds of a core. The paint is Chromium's
first contentful one, from a local file, the median of three; without Chromium it is null. The last
line is one JSON object. Bars: 15 MB, 15 s, 2 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.findings.item_table import item_table
from rankwise.findings.recommendation import recommend
from rankwise.findings.study import study_findings
from rankwise.records.p_right import Line
from rankwise.records.results import StudyResults
from rankwise.report.page import ITEMS_FILE, write_report
from tests.planted.results import planted_study
from tests.support.browser import CHROMIUM, opened, running_browser

_PAINTS = 3
_PAINTED = "performance.getEntriesByName('first-contentful-paint')"

# A question of GSM8K has about 45 words. Words of a text fall off as Zipf says, so that it
# compresses as a text does: to about 40 %.
_NUM_WORDS, _VOCABULARY = 45, 20_000


def planted(num_runs: int, num_in_domain: int, num_retention: int, num_tasks: int) -> StudyResults:
    """So many ranks and full fine-tuning; items of each task."""
    ranks = [2 + number for number in range(num_runs - 1)]
    gains = {rank: 0.6 + 0.2 * rank / (rank + 16) for rank in ranks}
    kept = {rank: 0.9 - 0.1 * rank / (rank + 64) for rank in ranks}
    return planted_study(
        {**gains, "full": 0.8},
        {**kept, "full": 0.78},
        num_in_domain=num_in_domain,
        num_retention=num_retention,
        retention_tasks=[f"retained_{number}" for number in range(num_tasks)],
        out_of_domain_tasks=(),
    )


@cache
def vocabulary() -> list[str]:
    """Words of 3 to 7 letters."""
    letters = np.random.default_rng(0).integers(97, 123, (_VOCABULARY, 7), dtype=np.uint8)
    return [bytes(row[: 3 + place % 5]).decode() for place, row in enumerate(letters)]


def samples(results: StudyResults, model: str, task: str) -> Sequence[Line]:
    """As lm-eval logs them, of two options."""
    scored = next(each for each in (results.base, *results.runs) if each.name == model)
    items = scored.items[task]
    rng, words = np.random.default_rng(zlib.crc32(task.encode())), vocabulary()
    drawn = rng.zipf(1.2, (len(items.doc_ids), _NUM_WORDS)) % _VOCABULARY
    lines: list[dict[str, Any]] = []
    for doc_id, value, places in zip(items.doc_ids, items.values, drawn, strict=True):
        nats = [-2.0 + (value == 0.0), -2.0 + (value == 1.0) + 0.001 * (doc_id % 997)]
        prompt = f"Question: {' '.join(words[place] for place in places)}?\nAnswer:"
        lines.append(
            {
                "doc_id": doc_id,
                "target": 1,
                "arguments": [[prompt, f" {doc_id}"], [prompt, f" {doc_id + 1}"]],
                "resps": [[[each, False]] for each in nats],
                "filter": "none",
                "acc": float(nats[1] > nats[0]),
            }
        )
    return lines


def first_paint_seconds(page: Path) -> float | None:
    """Chromium's, from a local file."""
    if CHROMIUM is None:
        return None
    seconds: list[float] = []
    with running_browser() as browser:
        for _ in range(_PAINTS):
            with opened(browser, page) as (shown, _amiss):
                shown.wait_for_function(f"{_PAINTED}.length > 0")
                seconds.append(shown.evaluate(f"{_PAINTED}[0].startTime") / 1000)
    return statistics.median(seconds)


def measured(folder: Path, results: StudyResults) -> dict[str, Any]:
    """Of one study."""
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    logged = {
        (model.name, task): samples(results, model.name, task)
        for model in (results.base, *results.runs)
        for task in model.items
    }
    started = time.process_time()
    table = item_table(results, lambda model, task: logged[model, task])
    page = write_report(folder, results, recommendation, findings, table)
    seconds = time.process_time() - started
    beside = folder / ITEMS_FILE
    return {
        "runs": len(results.runs),
        "items": 0 if table is None else len(table.items),
        "page_megabytes": round(page.stat().st_size / 1e6, 2),
        "items_page_megabytes": round(beside.stat().st_size / 1e6, 2) if beside.exists() else None,
        "write_seconds": round(seconds, 1),
        "first_paint_seconds": first_paint_seconds(page),
    }


def main() -> None:
    """Measure all studies."""
    parser = argparse.ArgumentParser(description="Size and speed of a report.")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--many-runs", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=300)
    options = parser.parse_args()
    studies = {
        "many_items": planted(12, options.items // 2, options.items // 4, 2),
        "many_runs": planted(options.many_runs, 100, 50, 2),
        "many_tasks": planted(12, 100, 100, options.tasks),
    }
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        for name, results in studies.items():
            folder = Path(root) / name
            folder.mkdir()
            found[name] = measured(folder, results)
            print(name, found[name], file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
