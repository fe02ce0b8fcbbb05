"""A study whose base lies on two cards: the items and weights of one on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rankwise.engine.models import packed_kernels
from rankwise.engine.models.devices import Machine
from rankwise.engine.models.loading import load_frozen
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from tests.support.observers import Silent
from tests.support.studies import run
from tests.support.two_cards import FIRST, SECOND, laid_over, two_cards

# spectra read the weights' files, and no model on cards
SETTINGS = (
    "methods.full=null",
    "train.epochs=1",
    "analysis={heads: false, spectra: false}",
)


def test_a_study_on_two_cards(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = run(study_file, tmp_path / "whole", *SETTINGS)
    loaded = list[Sequence[torch.device]]()

    def load(folder: Path, precision: Any, cards: Sequence[torch.device]) -> Any:
        loaded.append(cards)
        return laid_over(load_frozen(folder, precision, torch.device("cpu")))

    monkeypatch.setattr("rankwise.study.context.load_over_cards", load)
    monkeypatch.setattr(packed_kernels, "_has_flash", lambda _: False)
    monkeypatch.setattr(packed_kernels, "flex_tiles", lambda _: None)
    plan = plan_study(load_config(study_file, SETTINGS), machine=Machine(FIRST, 10**10))
    folder = StudyFolder(tmp_path / "laid")
    with two_cards():
        outcome = run_study(replace(plan, cards=(FIRST, SECOND)), folder, Silent())
    assert outcome.failures == ()
    assert loaded
    assert set(loaded) == {(FIRST, SECOND)}
    runs = zip(outcome.results.runs, expected.results.runs, strict=True)
    for mine, theirs in runs:
        assert mine.items.keys() == theirs.items.keys()
        for task, items in theirs.items.items():
            assert mine.items[task].doc_ids == items.doc_ids
            assert mine.items[task].values == pytest.approx(items.values, rel=1e-4, abs=1e-6)
        assert mine.run is not None
        planned = mine.run.planned
        ours, others = (
            load_file(next(root.weights_folder(planned).glob("*.safetensors")))
            for root in (folder, StudyFolder(tmp_path / "whole"))
        )
        torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-5)
