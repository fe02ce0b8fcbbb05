"""The benchmark of DPO on a tiny model: both sides train, and their losses are compared."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest
import torch

from benchmarks import preference, training_peer
from benchmarks.preference import Measured, compared

RANKS = [2, 4]


def test_losses_move_and_agree(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    monkeypatch.setattr(training_peer, "DATA", Path("nowhere"))  # random tokens
    # at which losses move by more than is rounded
    monkeypatch.setattr(training_peer, "LEARNING_RATE", 1e-2)
    options = argparse.Namespace(
        model=str(tiny_model_folder),
        pairs=20,
        examples=20,
        ranks=RANKS,
        dtype="float32",
        device="cpu",
        attention="sdpa",
        random_8b=False,
    )
    device = torch.device("cpu")
    ours, peer = (
        measure(options, device) for measure in (preference.measure_ours, preference.measure_peer)
    )
    for side in (ours, peer):
        assert side.seconds > 0
        assert side.losses.keys() == {str(rank) for rank in RANKS}
        for losses in side.losses.values():
            assert len(losses) == 3
            # the first step's rate is zero: from the third on the losses say something
            assert losses[:2] == pytest.approx([math.log(2)] * 2, abs=1e-5)
            assert abs(losses[2] - math.log(2)) > 1e-3
    found = compared([(ours, peer)])
    # a log-likelihood of 200 random tokens is 1,000 nats, of which float32 keeps 1e-4
    assert found["max_loss_difference"] < 2e-5 < 1e-3 < found["max_loss_change"]


def test_a_loss_that_is_another_is_seen() -> None:
    still = Measured(3.0, {"2": [0.7, 0.7, 0.7]}, "")
    other = Measured(6.0, {"2": [0.7, 0.7, 0.6]}, "")
    found = compared([(still, other), (still, still)])
    assert (found["ratio"], found["max_loss_difference"]) == (1.5, 0.1)
