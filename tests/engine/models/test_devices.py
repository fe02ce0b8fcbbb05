"""Which precision ``auto`` is."""

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
