"""The page of the RL study says what its record says."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.rl_study import RECORD, tables
from rankwise.records.grouping import grouped

PAGE = Path(__file__).parents[1] / "docs" / "studies" / "rl-tool-calls.md"


def test_the_page_has_the_tables_of_the_record() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    made = [*tables(record)]
    assert len(made) == 3
    for table in made:
        assert table in page


def test_the_sentences_of_the_page_are_true_of_the_record() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    best: dict[int | None, tuple[float, float]] = {}
    for each in record["candidates"]:
        found = each["scores"]["fields_correct"], each["learning_rate"]
        best[each["rank"]] = max(best.get(each["rank"], (0.0, 0.0)), found)
    # each rank goes on at its best rate, and the best rate falls with rank
    assert {run["rank"]: run["learning_rate"] for run in record["runs"]} == {
        rank: rate for rank, (_, rate) in best.items()
    }
    assert best[1][1] > best[8][1] > best[64][1] > best[None][1]
    gains = [option["gain"][0] for option in record["options"] if option["num_parameters"]]
    assert max(gains) - min(gains) < 0.7
    assert min(gains) > 50
    by_seed = grouped((run["seed"], run["scores"]["fields_correct"]) for run in record["runs"])
    assert all(max(scores) - min(scores) < 0.0171 for scores in by_seed.values())
    assert [*by_seed] == [0, 1]
