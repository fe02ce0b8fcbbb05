"""Decompositions of a base's weight matrices, kept on disk by the hash of the matrix."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from rankwise.engine.models.devices import float64_device
from rankwise.engine.models.files import opened
from rankwise.engine.models.weights import weight_matrices
from rankwise.errors import ModelError, StorageError
from rankwise.records.files import cache_folder, free_bytes, replacing, writing
from rankwise.weights.decomposition import refined_svd
from rankwise.weights.spectra import Svd

# Raised when decompositions of equal matrices come out differently.
_REVISION = 4
# Bytes of the disk that stay free for what cannot be made again. Not a share of the disk: of a
# cluster's file system a tenth is terabytes, and one that is 95 % full would keep nothing.
_MIN_FREE_BYTES = 10 * 10**9
# Smaller matrices are decomposed in less time than a file is read.
_MIN_SIZE = 128


class SpectralCache:
    """Thin singular value decompositions in a folder, shared by ranks, runs and studies.

    What cannot be read, or has another checksum or shape, is computed again. Nothing is kept where
    it would leave less than 10 GB of the disk free, nor of small matrices.
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
        content = weight.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{_REVISION} {content.dtype} {tuple(content.shape)}".encode())
        digest.update(content.view(torch.uint8).numpy().data)
        path = self.folder / f"{digest.hexdigest()}.safetensors"
        if (svd := _read(path, weight)) is not None:
            return svd
        svd = refined_svd(weight)
        size = sum(part.nbytes for part in svd)
        with contextlib.suppress(StorageError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if free_bytes(self.folder) - size > _MIN_FREE_BYTES:
                tensors = {name: part.contiguous().cpu() for name, part in svd._asdict().items()}
                with replacing(path) as temporary, writing(path):
                    save_file(tensors, temporary, metadata={"crc32": _checksum(path.stem, tensors)})
        return svd


def decompositions(base: Path, layers: Sequence[str], device: torch.device) -> Callable[[str], Svd]:
    """Decompositions of a base's matrices, by the layer's name.

    Each weight is read from its file when it is asked for (``weight_matrices``).

    Args:
        base: folder of a causal language model.
        layers: names of linear layers.
        device: of the model; they are on its ``float64_device``.
    """
    cache, device = SpectralCache(), float64_device(device)

    @functools.cache
    def weights() -> Mapping[str, Tensor]:
        return weight_matrices(base, layers)

    return lambda name: cache.svd(weights()[name].to(device))


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
