"""Verdicts that hold however often growing files are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rankwise.errors import ConfigError
from rankwise.findings.against_base import ModelVerdict
from rankwise.findings.stats.estimates import anytime_interval
from tests.planted.samples import compare_samples, line, planted, scored, write
from tests.support.sentences import Sentences


def compared(
    folder: Path, base: Sequence[int], other: Sequence[int], doc_ids: Sequence[int]
) -> tuple[ModelVerdict, tuple[str, ...]]:
    """The verdict at any time on items that came in this order, and the warnings."""
    files = [
        write(folder / f"{name}.jsonl", [line(i, acc=v) for i, v in zip(doc_ids, of, strict=True)])
        for name, of in (("base", base), ("other", other))
    ]
    verdicts = compare_samples(files[0], [files[1]], anytime=True)
    return verdicts.candidates[0], verdicts.warnings


def test_verdicts_at_any_time(tmp_path: Path, sentence: Sentences) -> None:
    planted(tmp_path, (60, 10, 400, 30), (30, 18, 392, 60))
    files = [tmp_path / name for name in ("base.jsonl", "model0.jsonl", "model1.jsonl")]
    once, ever = (
        compare_samples(files[0], files[1:]),
        compare_samples(files[0], files[1:], anytime=True),
    )
    assert (once.anytime, ever.anytime) == (False, True)
    assert [row.verdict for row in ever.candidates] == ["better", "cannot_tell"]
    for now, always in zip(once.candidates, ever.candidates, strict=True):
        long, short = (each.difference.upper - each.difference.lower for each in (always, now))
        assert long > 1.2 * short
        assert always.p_value is None
    scored(tmp_path / "b.jsonl", [20.0, 3.0], "bleu")
    scored(tmp_path / "c.jsonl", [21.0, 4.0], "bleu")
    with pytest.raises(ConfigError) as caught:
        compare_samples(tmp_path / "b.jsonl", [tmp_path / "c.jsonl"], anytime=True)
    sentence(caught.value)


def sorted_by_subject() -> tuple[np.ndarray, np.ndarray]:
    """(1200,) each: the other gains 30 points on the first half and loses 32 on the second."""
    luck = np.random.default_rng(0).random(1200)
    is_first = np.arange(1200) < 600
    return (~is_first & (luck < 0.32)).astype(int), (is_first & (luck < 0.30)).astype(int)


def test_items_count_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    base, other = sorted_by_subject()
    came = np.random.default_rng(1).permutation(1200)
    verdict, warnings = compared(tmp_path, base[came].tolist(), other[came].tolist(), came.tolist())
    interval = anytime_interval(100.0 * (other - base)[came], 100.0, 0.95)
    assert (verdict.difference.lower, verdict.difference.upper) == pytest.approx(interval)
    assert verdict.difference.lower < verdict.difference.estimate < verdict.difference.upper
    assert warnings == ()


def test_nothing_is_shown_where_the_order_decides(tmp_path: Path, sentence: Sentences) -> None:
    """Early items count more: by the bets alone the other would be better, at -2 points."""
    base, other = sorted_by_subject()
    ids = range(1200)
    verdict, (warning,) = compared(tmp_path, base.tolist(), other.tolist(), ids)
    assert anytime_interval(100.0 * (other - base), 100.0, 0.95)[0] > 0.0
    assert verdict.difference.estimate == pytest.approx(100.0 * float((other - base).mean()))
    assert verdict.difference.estimate < 0.0
    assert (verdict.difference.lower, verdict.verdict) == (
        verdict.difference.estimate,
        "cannot_tell",
    )
    sentence(warning)


def test_clusters_are_refused(tmp_path: Path) -> None:
    files = [scored(tmp_path / f"{name}.jsonl", [1, 0, 1]) for name in "ab"]
    with pytest.raises(ConfigError, match="cannot go with --cluster"):
        compare_samples(files[0], files[1:], cluster="answer", anytime=True)
