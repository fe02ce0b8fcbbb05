"""The study of all heads: its files, what is counted, and the page that is made of its record."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.heads_study import ITEMS, RECORD, TASK, HeadsStudy, TaskHeads, tables, write_files
from rankwise.records.config.study import StudyConfig
from rankwise.records.files import read_record
from rankwise.records.heads import HeadEffect, HeadEstimate
from rankwise.tasks.resolution import load_tasks

PAGE = Path(__file__).parents[1] / "docs" / "studies" / "heads.md"


def test_the_page_has_every_line_of_the_record() -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    lines = list(tables(read_record(RECORD, HeadsStudy)))
    assert len(lines) > 10
    assert [line for line in lines if line not in page] == []


def test_the_study_is_of_items_that_nobody_trains_on(tmp_path: Path) -> None:
    config = StudyConfig.model_validate(yaml.safe_load(write_files(tmp_path).read_text()))
    assert (config.evaluation.limit, len(config.seeds)) == (ITEMS, 1)
    loaded = load_tasks([TASK], list(map(Path, config.tasks_path)), allow_code=True)[TASK][0]
    assert not isinstance(loaded, str)
    sets = loaded.task.dataset
    asked = {split: set(sets[split]["question"]) for split in ("train", "test")}
    assert len(asked["test"]) == ITEMS
    assert not asked["train"] & asked["test"]


def of(value: float, half: float, p_value: float) -> HeadEstimate:
    return HeadEstimate(
        estimate=value, lower=value - half, upper=value + half, stderr=half / 4.0, p_value=p_value
    )


def task(name: str, *heads: tuple[float, float, float]) -> TaskHeads:
    """Each head: the difference from the base, half of its interval, its p-value."""
    return TaskHeads(
        task=name,
        num_items=400,
        base_nats=-2.0,
        adapted_nats=-1.0,
        heads=tuple(
            HeadEffect(
                layer=0,
                head=place,
                effect=of(2.0 * found[0], *found[1:]),
                control=of(found[0], *found[1:]),
                beyond_control=of(*found),
            )
            for place, found in enumerate(heads)
        ),
    )


def test_heads_are_counted_and_items_follow_from_the_widest_interval() -> None:
    own = task("own", (-1.0, 0.5, 0.01), (-0.4, 1.5, 0.4), (0.8, 0.3, 0.03), (0.1, 0.1, 1.0))
    kept = task("kept", (-0.2, 0.4, 0.9), (0.3, 0.5, 0.01), (0.9, 0.5, 0.01), (0.0, 0.1, 1.0))
    assert [head.head for head in own.beyond(-1)] == [0]
    assert [head.head for head in own.beyond(1)] == [2]
    assert own.widest == pytest.approx(1.5)
    lines = list(tables(HeadsStudy(tasks=(own, kept))))
    # 400 items give 1.5 nats to each side, so 1 nat takes 400 * 1.5^2
    assert "| own | 400 | −2.00, −1.00 | 2 of 4 | 1 | 1 | 1.50 | 900 |" in lines
    assert "| kept | 400 | −2.00, −1.00 | 2 of 4 | 0 | 2 | 0.50 | 100 |" in lines
    assert any(line.startswith("| layer 0, head 0 | −2.00 (−2.50 to −1.50) |") for line in lines)
