"""The benchmark of GRPO on a tiny model: both sides train, and what they learn is compared."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks import on_policy


def test_both_sides_take_the_same_steps(tiny_model_folder: Path) -> None:
    pytest.importorskip("trl")
    options = argparse.Namespace(
        model=str(tiny_model_folder),
        rows=4,
        length=10,
        prompts="capitals",
        ranks=[2, 4],
        dtype="float32",
        device="cpu",
        attention="sdpa",
        random_8b=False,
    )
    device = torch.device("cpu")
    ours, peer = (
        measure(options, device) for measure in (on_policy.measure_ours, on_policy.measure_peer)
    )
    found = on_policy.compared([(ours, peer)])
    assert found["max_loss"] > 1e-3
    assert found["max_loss_difference"] < 1e-5
    assert found["max_norm_difference"] < 1e-3
    assert found["ratio"] > 0
    assert min(ours.writing, peer.writing) > 0
