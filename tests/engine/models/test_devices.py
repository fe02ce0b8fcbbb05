"""Which precision ``auto`` is, how products are made on CUDA, and where float64 is computed."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankwise.engine.models import devices
from rankwise.engine.models.attention import scores_of
from rankwise.records.provenance import collect_provenance, stack_of
from rankwise.records.study import Provenance
from tests.support.fake_cuda import CUDA, fake_cuda


@pytest.mark.parametrize(
    ("vendor", "flags", "has_kernels", "precision"),
    [
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", True, "bfloat16"),
        ("GenuineIntel", "avx2 avx512f avx512_bf16 amx_bf16", True, "bfloat16"),
        ("GenuineIntel", "avx2 avx512f avx512_bf16", True, "float32"),  # AMX hidden: slower there
        ("AuthenticAMD", "avx2 avx512f", True, "float32"),  # oneDNN emulates bfloat16 there
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", False, "float32"),  # ONEDNN_MAX_CPU_ISA=AVX2
    ],
)
def test_auto_is_bfloat16_where_a_processor_multiplies_it_faster_and_may(
    vendor: str, flags: str, has_kernels: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = f"vendor_id : {vendor}\nflags : {flags}\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpu)
    monkeypatch.setattr(devices, "has_bfloat16_kernels", lambda: has_kernels)
    assert devices.resolve_precision("auto", torch.device("cpu")) == precision


@pytest.mark.parametrize(
    ("capability", "where"),
    [
        ((8, 0), "cuda"),  # A100
        ((9, 0), "cuda"),  # H100
        ((9, 4), "cuda"),  # MI300X
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


@pytest.fixture
def inexact() -> Generator[None]:
    """What images and libraries switch on."""
    matmul: Any = torch.backends.cuda.matmul
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )

    def put(precision: str, tf32: bool, bf16: bool, fp16: bool) -> None:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        matmul.allow_bf16_reduced_precision_reduction = bf16
        matmul.allow_fp16_reduced_precision_reduction = fp16

    put("medium", True, True, True)
    yield
    put(*before)


@pytest.mark.usefixtures("inexact")
def test_products_on_cuda_are_exact_whatever_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "device_name", lambda _: "a card")
    devices.multiply_exactly(torch.device("cpu"))
    loose = devices.provenance_on(CUDA)
    assert loose.products == "float32 medium, sums in half precision: bfloat16 and float16"
    devices.multiply_exactly(CUDA)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    exact = devices.provenance_on(CUDA)
    assert exact.products == "float32 highest, sums in half precision: none"
    assert stack_of(exact) != stack_of(loose)


def test_the_first_device_that_is_chosen_multiplies_exactly(
    inexact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.choose_device() == CUDA
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_cpu_says_nothing_of_it_and_an_old_record_is_the_same_stack() -> None:
    now = devices.provenance_on(torch.device("cpu"))
    assert now.products is None
    old = Provenance.model_validate(now.model_dump(exclude={"products"}))
    assert stack_of(old) == stack_of(now) == stack_of(collect_provenance(now.device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scores_are_float32_on_cuda_and_as_the_queries_on_a_cpu(dtype: torch.dtype) -> None:
    query, key = torch.ones(2, 3, 4, dtype=dtype), torch.ones(2, 4, 5, dtype=dtype)
    assert scores_of(query, key).dtype == dtype
    with fake_cuda():
        query, key = (torch.ones(x.shape, dtype=dtype, device=CUDA) for x in (query, key))
        found = scores_of(query, key)
        assert (found.dtype, found.shape, found.device) == (torch.float32, (2, 3, 5), CUDA)


def test_arrays_that_go_to_a_card_together_are_themselves_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrays = [np.arange(6).reshape(2, 3), np.zeros((0, 4), dtype=np.int64)]
    arrays += [np.arange(12)[::3], np.array([], dtype=np.int64)]
    arrays += [np.array([[True, False, True]]), np.array([False])]
    copies: list[torch.Tensor] = []
    monkeypatch.setattr(devices, "moved", lambda tensor, _: (copies.append(tensor), tensor)[1])
    for device, num_copies in ((torch.device("cpu"), 0), (CUDA, 1)):
        found = devices.moved_together(arrays, device)
        assert len(copies) == num_copies
        for tensor, array in zip(found, arrays, strict=True):
            assert torch.equal(tensor, torch.from_numpy(array))
        assert devices.moved_together([], device) == []


GROUPS = {
    "2": ("0::/pod/own\n", "", "memory.max", "memory.current", "inactive_file"),
    "1": (
        "5:cpu:/x\n3:memory:/pod/own\n0::/x\n",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


@pytest.mark.parametrize("version", GROUPS)
@pytest.mark.parametrize(
    ("limits", "room"),
    [
        ({"pod/own": "4000"}, 1500.0),  # 3000 are used, of which 500 are pages of files
        ({"pod/own": "max", "pod": "3600"}, 1100.0),  # a group above it counts too
        ({".": "3200"}, 700.0),  # what a container sees of its own group
        ({"pod/own": "2000"}, 0.0),
        ({"pod/own": "max"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_a_container_s_limit_of_memory_is_what_is_free(
    version: str, limits: dict[str, str], room: float, tmp_path: Path
) -> None:
    listed, kind, limit, used, cached = GROUPS[version]
    own = tmp_path / "cgroup"
    own.write_text(listed)
    for name, value in limits.items():
        group = tmp_path / "mounted" / kind / name
        group.mkdir(parents=True, exist_ok=True)
        (group / limit).write_text(f"{value}\n")
        (group / used).write_text("3000\n")
        (group / "memory.stat").write_text(f"cache 9\n{cached} 500\n")
    assert devices.room_in_groups(own, tmp_path / "mounted") == room


def test_without_control_groups_the_machine_s_memory_is_what_is_free(tmp_path: Path) -> None:
    assert devices.room_in_groups(tmp_path / "none", tmp_path) == float("inf")
    assert 0 < devices.free_bytes(torch.device("cpu")) < 2**60
