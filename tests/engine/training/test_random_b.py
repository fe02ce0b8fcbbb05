"""Adapters of which B is drawn and A begins at zero (``methods.lora.init: B``)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rankwise.engine.training.trainees import AdapterTrainee, StepMetrics, Trainee
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from tests.support.passes import Heard, Setting, config


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def test_b_is_drawn_with_variance_one_over_the_rank(setting: Setting) -> None:
    for rank in (4, 64):
        adapter = setting.trainee(config(), rank=rank, init="B").adapter
        drawn = torch.cat([factors.lora_B.flatten() for factors in adapter.factors.values()])
        assert float(drawn.var()) == pytest.approx(1 / rank, rel=0.1)
        assert float((drawn.abs() > 2 / math.sqrt(rank)).float().mean()) > 0.03  # not uniform
        assert not any(bool(factors.lora_A.any()) for factors in adapter.factors.values())
        assert adapter.is_zero_update


def test_ranks_of_a_seed_start_nested(setting: Setting) -> None:
    low, high = (setting.trainee(config(), rank=rank).adapter for rank in (3, 8))
    for name, factors in low.factors.items():
        assert torch.equal(factors.lora_A, high.factors[name].lora_A[:3])
    low, high = (setting.trainee(config(), rank=rank, init="B").adapter for rank in (3, 8))
    for name, factors in low.factors.items():
        larger = high.factors[name].lora_B[:, :3] * math.sqrt(8 / 3)
        assert torch.allclose(factors.lora_B, larger, rtol=1e-6, atol=0)
    other = setting.trainee(config(), rank=3, init="B", seed=1).adapter
    drawn = [adapter.factors[name].lora_B for adapter in (low, other) for name in low.factors]
    assert len({tuple(matrix.flatten().tolist()) for matrix in drawn}) == len(drawn)


def test_with_a_random_b_the_first_gradient_is_all_a_s(setting: Setting) -> None:
    trainee = setting.trainee(config(warmup_ratio=0.0, epochs=1, weight_decay=0.0), init="B")
    before = {name: factors.lora_B.clone() for name, factors in trainee.adapter.factors.items()}
    untouched = setting.trainee(config(), rank=4)
    seen: list[tuple[float, float]] = []

    class FirstStep(Heard):
        def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
            super().stepped(trainee, metrics)
            assert isinstance(trainee, AdapterTrainee)
            for name, factors in trainee.adapter.factors.items():
                moved = float((factors.lora_B - before[name]).abs().max())
                seen.append((float(factors.lora_A.abs().max()), moved))
            raise KeyboardInterrupt

    first = FirstStep()
    with pytest.raises(KeyboardInterrupt):
        setting.train(trainee, heard=first)
    assert len(seen) == len(before)
    for of_A, of_B in seen:
        assert of_A == pytest.approx(1e-2, rel=1e-3)  # AdamW's first step is the rate
        assert of_B == 0.0
    plain = setting.train(untouched).losses["run-4"]
    assert first.losses["run-4"][0] == pytest.approx(plain[0], rel=1e-6)  # no update at the start


def test_only_b_is_in_the_fingerprints(study_file: Path) -> None:
    def fingerprints(*overrides: str) -> dict[str, str]:
        study = plan_study(load_config(study_file, overrides)).record
        of_runs = {f"{run.method} {run.rank}": run.fingerprint for run in study.runs}
        return {"study": study.fingerprint, **of_runs}

    usual, named = fingerprints(), fingerprints("methods.lora.init=A")
    other = fingerprints("methods.lora.init=B")
    assert usual == named
    same = {name for name, value in other.items() if value == usual[name]}
    assert same == {"full None"}
