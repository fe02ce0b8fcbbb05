"""Decompositions of a base's weight matrices, kept on disk by the hash of the matrix.

They are exact to float32's last digits, little slower than float32's own: ``torch.linalg.svd`` in
float32 mixes neighbouring vectors by its rounding divided by the distance of their values, by 1e-3
for singular values that are 1e-4 of the largest apart. One first-order correction, with products in
float64, removes that. After Ogita and Aishima, "Iterative refinement for singular value
decomposition based on matrix multiplication", J. Comput. Appl. Math. 369 (2020), for the leading
vectors only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from rankwise.engine.models.embedded import cache_folder
from rankwise.engine.models.files import opened
from rankwise.engine.models.weights import weight_matrices
from rankwise.errors import ModelError, StorageError
from rankwise.records.files import replacing, writing
from rankwise.weights.spectra import Svd

# Raised when decompositions of equal matrices come out differently.
_REVISION = 4
# The share of the disk that stays free.
_MIN_FREE_SHARE = 0.1
# Smaller matrices are decomposed in less time than a file is read.
_MIN_SIZE = 128

NUM_REFINED = 768
"""Leading vectors that are corrected: the 500 compared, and half as many behind them."""

# Singular values nearer than this, relative to the largest, are not told apart: first order would
# divide by their distance. Their vectors are corrected within their common subspace only.
_INSEPARABLE = 1e-5
# Values below this share of the largest are float32's rounding.
_SMALLEST = 1e-6
# Rows of the weight that are float64 at once.
_ROWS = 1024


class SpectralCache:
    """Thin singular value decompositions in a folder, shared by ranks, runs and studies.

    What cannot be read, or has another checksum or shape, is computed again. Nothing is kept where
    the disk is nearly full, nor of small matrices.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Keep them in ``folder``; the default is ``svd`` in the user's cache."""
        self.folder = cache_folder() / "svd" if folder is None else folder

    def svd(self, weight: Float[Tensor, "out_features in_features"]) -> Svd:
        """The decomposition of ``refined_svd``, on the weight's device.

        Raises:
            ValueError: the weight holds NaN or infinity.
        """
        if min(weight.shape) < _MIN_SIZE:
            return refined_svd(weight)
        path = self.folder / f"{_digest(weight)}.safetensors"
        svd = _read(path, weight)
        if svd is None:
            svd = refined_svd(weight)
            self._keep(path, svd)
        return svd

    def _keep(self, path: Path, svd: Svd) -> None:
        size = sum(part.nbytes for part in svd)
        with contextlib.suppress(StorageError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self.folder)
            if disk.free - size > _MIN_FREE_SHARE * disk.total:
                tensors = {name: part.contiguous().cpu() for name, part in svd._asdict().items()}
                with replacing(path) as temporary, writing(path):
                    save_file(tensors, temporary, metadata={"crc32": _checksum(path.stem, tensors)})


def decompositions(base: Path, layers: Sequence[str], device: torch.device) -> Callable[[str], Svd]:
    """Decompositions of a base's matrices, by the layer's name, on this device.

    The weights are read when the first one is asked for (``weight_matrices``), and held as long as
    what is returned.

    Args:
        base: folder of a causal language model.
        layers: names of linear layers.
        device: where they are decomposed.
    """
    cache = SpectralCache()

    @functools.cache
    def weights() -> dict[str, Tensor]:
        return weight_matrices(base, layers)

    return lambda name: cache.svd(weights()[name].to(device))


def _digest(weight: Tensor) -> str:
    content = weight.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{_REVISION} {content.dtype} {tuple(content.shape)}".encode())
    digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(weight: str, tensors: Mapping[str, Tensor]) -> str:
    """Of a decomposition's numbers and of the digest of what was decomposed."""
    value = zlib.crc32(weight.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.numpy().data, value)
    return str(value)


def _read(path: Path, weight: Tensor) -> Svd | None:
    """The kept decomposition; None where there is none, or not every byte is as it was written."""
    try:
        with opened(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            kept = (file.metadata() or {}).get("crc32")
    except ModelError:  # not there, or damaged: it can be computed again
        return None
    (rows, columns), values = weight.shape, min(weight.shape)
    shapes = {"U": (rows, values), "S": (values,), "Vh": (values, columns)}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        return None
    if kept != _checksum(path.stem, tensors):
        return None
    return Svd(**{name: tensor.to(weight.device) for name, tensor in tensors.items()})


def refined_svd(
    weight: Float[Tensor, "out_features in_features"], num_refined: int = NUM_REFINED
) -> Svd:
    """The thin decomposition in float32, its leading vectors and values corrected in float64.

    Leading vectors are corrected against each other only. What float32 has mixed of one of them
    and one behind them stays; the further from the last of them, the less this is.

    Args:
        weight: finite.
        num_refined: number of leading vectors.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight holds NaN or infinite values.")
    U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
    leading = int((S[:num_refined] > _SMALLEST * S[0]).sum())
    if leading == 0:
        return Svd(U, S, Vh)
    V = Vh.T
    left, right = U[:, :leading].double(), V[:, :leading].double()
    # the product in float64, without a whole float64 copy of the weight
    M = left.T @ torch.cat([rows.double() @ right for rows in weight.split(_ROWS)])
    F, G, values = _rotation(S[:leading].double(), M, left.T @ left, right.T @ right)
    return Svd(
        _rotated(U, left, F),
        torch.cat([values.float(), S[leading:]]),
        _rotated(V, right, G).T.contiguous(),
    )


def _rotation(
    S: Float[Tensor, " leading"],
    M: Float[Tensor, "leading leading"],
    left_gram: Float[Tensor, "leading leading"],
    right_gram: Float[Tensor, "leading leading"],
) -> tuple[Tensor, Tensor, Tensor]:
    """The first-order correction F, G and S from M = UᵀW V and the vectors' Gram matrices.

    U(I + F) and V(I + G) are to be orthonormal and to make W diagonal. With R = I - UᵀU and
    T = I - VᵀV, to first order, F + Fᵀ = R, G + Gᵀ = T, and M_ij + σ_j F_ji + σ_i G_ij = 0. Without
    F_ji and G_ji these are two equations for F_ij and G_ij:

        σ_j F_ij - σ_i G_ij = M_ij + σ_j R_ij =: a
        σ_j G_ij - σ_i F_ij = M_ji + σ_j T_ij =: b
    """
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
    R, T = eye - left_gram, eye - right_gram
    column, row = S, S[:, None]  # σ_j and σ_i
    a, b = M + R * column, M.T + T * column
    apart = column.square() - row.square()
    together = (column - row).abs() <= _INSEPARABLE * S[0]
    apart = apart.masked_fill(together, 1.0)  # not used there, but it must not divide by zero
    F = torch.where(together, R / 2, (a * column + b * row) / apart)
    G = torch.where(together, T / 2, (b * column + a * row) / apart)
    F.diagonal().copy_(R.diagonal() / 2)
    G.diagonal().copy_(T.diagonal() / 2)
    values = M.diagonal() * (1 + (R.diagonal() + T.diagonal()) / 2)
    return F, G, values


def _rotated(
    vectors: Float[Tensor, "features values"],
    leading: Float[Tensor, "features leading"],
    turn: Float[Tensor, "leading leading"],
) -> Float[Tensor, "features values"]:
    """Correct the leading vectors, in float64, and make the others orthogonal to them again.

    Corrections are small, so multiplying them in float32 is enough.
    """
    count = leading.shape[1]
    moved = leading + (vectors[:, :count] @ turn.float()).double()
    # Among close values turns are no longer small: their second order disturbs lengths and angles.
    # One Newton-Schulz step, X (3I - XᵀX) / 2, makes the vectors orthonormal again.
    gram = moved.T @ moved
    eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
    head = (moved + moved @ ((eye - gram) / 2)).float()
    others = vectors[:, count:]
    return torch.cat([head, others - head @ (head.T @ others)], dim=1)
