"""``benchmarks.own_rows``: three real data sets as people have them are recognised."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.own_rows import DATA, written
from rankwise.study.trial import recognised


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize(
    ("name", "kind", "convention", "judged_by"),
    [
        ("medmcqa", "JSON Lines", "instruction and output", "choice"),
        ("gsm8k", "JSON", "conversations", "loss"),
        ("overruling", "CSV", "question and answer", "choice"),
    ],
)
def test_real_rows_are_recognised(
    tmp_path: Path, tiny_model_folder: Path, name: str, kind: str, convention: str, judged_by: str
) -> None:
    path = written(name, tmp_path, 200)
    trial = recognised(path, str(tiny_model_folder), None, lambda _: None)
    (columns,) = trial.own.columns
    assert (trial.own.raw.format, columns.convention) == (kind, convention)
    assert columns.num_rows == 200
    assert trial.judged_by == judged_by
