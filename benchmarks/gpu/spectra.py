"""Decompositions on the card: against what was planted, against the CPU, and their seconds."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.setting import CPU, Found, Setup, finite, largest, median_seconds, now
from rankwise.engine.models.devices import float64_device
from rankwise.weights.adapted_svd import in_base_basis, leading_svd
from rankwise.weights.decomposition import gram_svd, largest_error, refined_svd
from rankwise.weights.lowrank import LowRankUpdate
from rankwise.weights.matrix import NullDraws, matrix_spectrum
from rankwise.weights.spectra import Svd, cosines

TOP_K = 500


def shapes_of(setup: Setup) -> tuple[tuple[int, int], ...]:
    """Those of an 8B model's layers on a card; the last but one is timed."""
    if setup.is_tiny:
        return (96, 96), (64, 128)
    if float64_device(setup.device) == CPU:  # for which they take minutes
        return (1024, 1024), (512, 1024)
    return (2048, 2048), (4096, 4096), (1024, 4096)


def planted(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Svd]:
    """A float64 matrix whose singular values fall as i^-0.5, and its decomposition."""
    generator, values = torch.Generator().manual_seed(0), min(shape)

    def orthonormal(rows: int) -> Tensor:
        gaussian = torch.randn(rows, values, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(gaussian.to(device)).Q

    U, V = (orthonormal(rows) for rows in shape)
    S = torch.arange(1, values + 1, dtype=torch.float64, device=device) ** -0.5
    return U * S @ V.T, Svd(U, S, V.T)


def decompositions(setup: Setup, found: Found) -> None:
    """Planted values and vectors, in float64, and in float32 as they are kept."""
    device = float64_device(setup.device)
    found.timings["float64_device"] = device.type
    for shape in shapes_of(setup):
        name = f"spectra.{shape[0]}x{shape[1]}"
        matrix, wanted = planted(shape, device)
        ours, k = gram_svd(matrix), min(TOP_K, *shape)
        off = float((ours.S - wanted.S).abs().max())
        found.check(f"{name}.values", off, 1e-11, "float64 rounds sums of thousands by 1e-13")
        eye = torch.eye(k, dtype=torch.float64, device=device)
        sides = (cosines(wanted.U[:, :k], ours.U[:, :k]), cosines(wanted.Vh[:k].T, ours.Vh[:k].T))
        found.check(
            f"{name}.vectors", largest([float((side - eye).abs().max()) for side in sides]), 1e-6,
            "rounding over the distance of squares of the 500th values, 1e-12 over 4e-6",
        )  # fmt: skip
        found.check(
            f"{name}.kept", largest_error(matrix.float(), refined_svd(matrix.float())), 1e-5,
            "of float32 vectors: what a study tolerates (adapted_svd.TOLERANCE)",
        )  # fmt: skip


def update(shape: tuple[int, int], rank: int) -> LowRankUpdate:
    """A random one, with about 5 % of a base's norm."""
    generator = torch.Generator().manual_seed(rank)
    A = torch.randn(rank, shape[1], generator=generator)
    return LowRankUpdate(A, torch.randn(shape[0], rank, generator=generator), 0.05 / shape[0])


def records(setup: Setup, found: Found) -> None:
    """What a study writes of a matrix, from the device and from the CPU."""
    shape = (96, 64) if setup.is_tiny else (1024, 768)
    matrix = planted(shape, CPU)[0].float()
    sides = [
        matrix_spectrum(
            "layers.0.q_proj", refined_svd(matrix.to(device)), update(shape, 8).factorization,
            rank=8, top_k=60, nulls=NullDraws(0, 0),
        ).change
        for device in (float64_device(setup.device), CPU)
    ]  # fmt: skip
    pairs = [
        (a, b)
        for mine, theirs in ((sides[0].left, sides[1].left), (sides[0].right, sides[1].right))
        for field in ("index_matched", "best_matched", "overlap")
        for a, b in zip(getattr(mine, field), getattr(theirs, field), strict=True)
    ]
    found.check(
        "spectra.record", largest([abs(a - b) for a, b in pairs]), 1e-4,
        "means of cosines from residuals of 1e-5 each",
    )  # fmt: skip


def seconds(setup: Setup, found: Found) -> None:
    """One matrix of the shape of q and o of 8B; the peers are torch's own."""
    shape = shapes_of(setup)[-2]
    device = float64_device(setup.device)
    matrix = planted(shape, device)[0].float()
    timings = {
        "svd_base": median_seconds(device, lambda: refined_svd(matrix), 1),
        "svd_delta": median_seconds(device, lambda: gram_svd(matrix), 1),
    }
    started = now(device)
    torch.linalg.svd(matrix, full_matrices=False)
    timings["svd_torch_device"] = now(device) - started
    started = now(CPU)
    torch.linalg.svd(matrix.cpu(), full_matrices=False)
    timings["svd_torch_cpu"] = now(CPU) - started
    base = refined_svd(matrix)
    for rank in (2, 8) if setup.is_tiny else (8, 128, 512):
        factors = Svd(*(part.to(device) for part in update(shape, rank).factorization))
        timings[f"svd_adapted_rank{rank}"] = median_seconds(
            device, lambda f=factors: leading_svd(in_base_basis(base, f), min(TOP_K, *shape)), 1
        )
    found.timings |= {f"{name}_s": finite(value) for name, value in timings.items()}
