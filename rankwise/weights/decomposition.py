"""Thin singular value decompositions, and those of a base kept on disk by the matrix's hash.

On the CPU a base's matrix is decomposed in float32 and corrected. ``torch.linalg.svd`` in float32
mixes neighbouring vectors by its rounding divided by the distance of their values, by 1e-3
for singular values that are 1e-4 of the largest apart. One first-order correction, with products in
float64, removes that. After Ogita and Aishima, "Iterative refinement for singular value
decomposition based on matrix multiplication", J. Comput. Appl. Math. 369 (2020), for the leading
vectors only.

On CUDA ``torch.linalg.svd`` is Jacobi's method, slow above a thousand columns. ``gram_svd`` is made
of products, one symmetric eigenproblem and one QR, all in float64.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from rankwise.engine.models.devices import is_out_of_memory
from rankwise.engine.models.files import opened
from rankwise.errors import ModelError, StorageError
from rankwise.records.files import cache_folder, free_bytes, replacing, writing
from rankwise.weights.spectra import Svd

NUM_REFINED = 768
"""Leading vectors that are corrected: the 500 compared, and half as many behind them."""

# Singular values nearer than this, relative to the largest, are not told apart: first order would
# divide by their distance. Their vectors are corrected within their common subspace only.
_INSEPARABLE = 1e-5
# Values below this share of the largest are float32's rounding.
_SMALLEST = 1e-6
# Rows of the weight that are float64 at once.
_ROWS = 1024
# Values below this share of the largest are taken from a Gram matrix of their own: one of the whole
# matrix is rounded by 1e-16 and more of the largest square, 1e-12 of theirs.
_OWN_GRAM = 1e-2
# Of residuals and of angles, for a decomposition in float64. What is kept of it is float32, whose
# rounding is six times this.
_TOLERANCE = 1e-8


def thin_svd(matrix: Float[Tensor, "rows columns"]) -> Svd:
    """The thin decomposition, on the matrix's device.

    On the CPU it is LAPACK's, in the matrix's dtype. Elsewhere it is ``gram_svd``, in float64;
    where that is not right to 1e-8 (``largest_error``), or the card has no room for it, the CPU
    decomposes the matrix in float64.

    Args:
        matrix: finite; float32 or float64.
    """
    if matrix.device.type == "cpu":
        return Svd(*torch.linalg.svd(matrix, full_matrices=False))
    found = None
    try:
        found = gram_svd(matrix)
    except RuntimeError as error:
        # that it does not converge is a RuntimeError too
        if not (isinstance(error, torch.linalg.LinAlgError) or is_out_of_memory(error)):
            raise
    return _checked(matrix.double(), found)


def _checked(matrix: Float[Tensor, "rows columns"], found: Svd | None) -> Svd:
    """What was found, or the CPU's decomposition where it is not right or nothing was."""
    if found is not None and largest_error(matrix, found) <= _TOLERANCE:  # not so if it is NaN
        return found
    return Svd(*(part.to(matrix.device) for part in thin_svd(matrix.cpu())))


def largest_error(matrix: Float[Tensor, "rows columns"], svd: Svd) -> float:
    """The largest ‖W v - σ u‖ / σ₁, or entry of UᵀU - I or VᵀV - I if that is larger."""
    U, S, Vh = (part.double() for part in svd)
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
    residual = (matrix.double() @ Vh.T - U * S).norm(dim=0).amax()
    angles = [(gram - eye).abs().amax() for gram in (U.T @ U, Vh @ Vh.T)]
    return float(torch.stack([residual / torch.where(S[0] > 0, S[0], 1.0), *angles]).amax())


def gram_svd(matrix: Float[Tensor, "rows columns"]) -> Svd:
    """The thin decomposition in float64, from the eigenvectors of the Gram matrix.

    With WᵀW = V Λ Vᵀ the columns of W V are σ u, and in W V = Q R the diagonal of R is σ, what is
    beside it is rounding, and Q is orthonormal however small σ is. Squares lose half of the digits:
    an eigenvector of a small value holds rounding of the large ones. Q R takes that out, and leaves
    a block of R that is decomposed in the same way for all values below 1 % of the largest.

    Args:
        matrix: finite; neither zeros nor equal values disturb it.
    """
    if matrix.shape[0] < matrix.shape[1]:
        U, S, Vh = gram_svd(matrix.T)
        return Svd(Vh.T, S, U.T)
    matrix = matrix.double()
    right = torch.linalg.eigh(matrix.T @ matrix).eigenvectors.flip(1)  # (columns, columns)
    Q, R = torch.linalg.qr(matrix @ right)
    sign = torch.where(R.diagonal() < 0, -1.0, 1.0)
    left, triangle = Q * sign, sign[:, None] * R  # (rows, columns), (columns, columns)
    values = triangle.diagonal()
    count = int((values / values.amax() > _OWN_GRAM).sum())  # 0 where all are 0
    if 0 < count < len(values):
        inner = gram_svd(triangle[count:, count:])
        left = torch.cat([left[:, :count], left[:, count:] @ inner.U], dim=1)
        right = torch.cat([right[:, :count], right[:, count:] @ inner.Vh.T], dim=1)
        values = torch.cat([values[:count], inner.S])
    order = values.argsort(descending=True)
    return Svd(left[:, order], values[order], right[:, order].T)


def refined_svd(
    weight: Float[Tensor, "out_features in_features"], num_refined: int = NUM_REFINED
) -> Svd:
    """The thin decomposition as float32, its leading vectors and values exact to the last digits.

    On the CPU they are corrected, against each other only. What float32 has mixed of one of them
    and one behind them stays; the further from the last of them, the less this is. Elsewhere all
    vectors are found in float64.

    Args:
        weight: finite.
        num_refined: number of leading vectors that are corrected.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight holds NaN or infinite values.")
    if weight.device.type != "cpu":
        return Svd(*(part.float().contiguous() for part in thin_svd(weight)))
    U, S, Vh = thin_svd(weight.float())
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


# Raised when decompositions of equal matrices come out differently.
_REVISION = 4
# Bytes of the disk that stay free for what cannot be made again. Not a share of the disk: of a
# cluster's file system a tenth is terabytes, and one that is 95 % full would keep nothing.
_MIN_FREE_BYTES = 10 * 10**9
# Smaller matrices are decomposed in less time than a file is read.
_MIN_SIZE = 128

MOST_BYTES = 40 * 10**9
"""Bytes that are kept at most, about those of a base of 8 billion weights."""


def kept_bytes(rows: int, columns: int) -> int:
    """The bytes of the file of a matrix's decomposition, float32, without its header."""
    values = min(rows, columns)
    return 4 * values * (rows + columns + 1) if values >= _MIN_SIZE else 0


class SpectralCache:
    """Thin singular value decompositions in a folder, shared by ranks, runs and studies.

    What cannot be read, or has another checksum or shape, is computed again. Nothing is kept where
    it would leave less than 10 GB of the disk free, nor of small matrices. Where the folder would
    hold more than ``MOST_BYTES``, what was not used for the longest time goes first; never what was
    used since this object was made.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Keep them in ``folder``; the default is ``svd`` in the user's cache."""
        self.folder = cache_folder() / "svd" if folder is None else folder
        self._since_ns = time.time_ns()

    def svd(self, weight: Float[Tensor, "out_features in_features"]) -> Svd:
        """The decomposition of ``refined_svd``, on the weight's device.

        Raises:
            ValueError: the weight holds NaN or infinity.
        """
        if min(weight.shape) < _MIN_SIZE:
            return refined_svd(weight)
        content = weight.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{_REVISION} {content.dtype} {tuple(content.shape)}".encode())
        digest.update(content.view(torch.uint8).numpy().data)
        path = self.folder / f"{digest.hexdigest()}.safetensors"
        if (svd := _read(path, weight)) is not None:
            with contextlib.suppress(OSError):
                os.utime(path)  # it was used now
            return svd
        svd = refined_svd(weight)
        size = sum(part.nbytes for part in svd)
        with contextlib.suppress(StorageError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._has_room(size) and free_bytes(self.folder) - size > _MIN_FREE_BYTES:
                tensors = {name: part.contiguous().cpu() for name, part in svd._asdict().items()}
                with replacing(path) as temporary, writing(path):
                    save_file(tensors, temporary, metadata={"crc32": _checksum(path.stem, tensors)})
        return svd

    def _has_room(self, size: int) -> bool:
        """Remove files that are over the limit with a new one; whether they are enough."""
        files = [(path.stat(), path) for path in self.folder.glob("*.safetensors")]
        over = sum(stat.st_size for stat, _ in files) + size - MOST_BYTES
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if over <= 0 or stat.st_mtime_ns >= self._since_ns:
                break
            path.unlink(missing_ok=True)
            over -= stat.st_size
        return over <= 0


def _checksum(weight: str, tensors: Mapping[str, Tensor]) -> str:
    """The checksum of a decomposition's numbers and of the digest of what was decomposed."""
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
