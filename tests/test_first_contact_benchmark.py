"""The benchmark of files of real shapes: each file is judged by its own planted truth."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.first_contact import ROWS, SCORES, File, first_row, outcome, verdict


@pytest.mark.parametrize("file", [*SCORES, *ROWS], ids=lambda file: file.shape)
def test_a_file_of_this_shape_ends_right(file: File) -> None:
    found = outcome(file, verdict if file in SCORES else first_row)
    assert file.is_right(found), found


def test_there_are_25_and_a_wrong_outcome_is_seen() -> None:
    assert len(SCORES) + len(ROWS) == 25
    wrong: list[Any] = [None, ("rank 16",), ("", ""), "an error"]
    for file in (*SCORES, *ROWS):
        assert not any(map(file.is_right, wrong)), file.shape
