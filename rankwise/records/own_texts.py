"""The record of the texts that the base writes itself."""

from __future__ import annotations

from rankwise.records.study import StageRecord


class OwnTexts(StageRecord, has_texts=True):
    """``own_texts.json``: samples of the base, by which arms hold on to it.

    ``tokens`` are those of each text, ``texts`` the same to be read by people.
    """

    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
