"""The record of the texts that the base writes itself."""

from __future__ import annotations

from rankwise.records.study import StageRecord


class OwnTexts(StageRecord):
    """``own_texts.json``: samples of the base, by which arms hold on to it.

    ``tokens`` are those of each text, ``texts`` the same to be read by people.
    ``num_overlapping`` were left out, since a scored item is in them.
    """

    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    num_overlapping: int
