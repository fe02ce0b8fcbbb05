"""Which precision ``auto`` is, and where float64 is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankwise.engine.models import devices


@pytest.mark.parametrize(
    ("flags", "has_kernels", "precision"),
    [
        ("avx2 avx512f avx512_bf16", True, "bfloat16"),
        ("avx2 amx_bf16", True, "bfloat16"),
        ("avx2 avx512f", True, "float32"),  # oneDNN emulates bfloat16 there
        ("avx2 avx512f avx512_bf16", False, "float32"),  # ONEDNN_MAX_CPU_ISA=AVX2
    ],
)
def test_auto_is_bfloat16_where_a_processor_multiplies_it_and_may(
    flags: str, has_kernels: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags : {flags}\n")
    monkeypatch.setattr(devices, "has_bfloat16_kernels", lambda: has_kernels)
    assert devices.resolve_precision("auto", torch.device("cpu")) == precision


@pytest.mark.parametrize(
    ("capability", "where"),
    [
        ((8, 0), "cuda"),  # A100
        ((9, 0), "cuda"),  # H100
        ((10, 0), "cuda"),  # B200
        ((7, 5), "cpu"),
        ((8, 6), "cpu"),
        ((8, 9), "cpu"),
        ((12, 0), "cpu"),
    ],
)
def test_float64_is_for_cards_that_multiply_it_fast(
    capability: tuple[int, int], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert devices.float64_device(torch.device("cuda", 0)).type == where
    assert devices.float64_device(torch.device("cpu")).type == "cpu"
