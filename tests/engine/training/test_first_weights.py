"""What adapters begin at."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.passes import Setting, config


def test_ranks_of_a_seed_start_nested(tiny_model_folder: Path) -> None:
    setting = Setting(tiny_model_folder)
    low, high = (setting.trainee(config(), rank=rank).adapter for rank in (3, 8))
    for name, factors in low.factors.items():
        assert torch.equal(factors.lora_A, high.factors[name].lora_A[:3])
    assert low.is_zero_update
