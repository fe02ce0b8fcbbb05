"""Decompositions of a base's weight matrices, kept on disk by the hash of the matrix."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankwise.engine.models.embedded import cache_folder
from rankwise.errors import StorageError
from rankwise.records.folder import replacing, writing
from rankwise.weights.refined_svd import refined_svd
from rankwise.weights.spectra import Svd

# Raised when decompositions of equal matrices come out differently.
_REVISION = 4
# The share of the disk that stays free.
_MIN_FREE_SHARE = 0.1
# Smaller matrices are decomposed in less time than a file is read.
_MIN_SIZE = 128


class SpectralCache:
    """Thin singular value decompositions in a folder, shared by ranks, runs and studies.

    A file that cannot be read is computed again. Nothing is kept where the disk is nearly full, nor
    of small matrices.
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
        svd = _read(path, weight.device)
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
                    save_file(tensors, temporary)


def _digest(weight: Tensor) -> str:
    content = weight.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{_REVISION} {content.dtype} {tuple(content.shape)}".encode())
    digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, device: torch.device) -> Svd | None:
    if not path.is_file():
        return None
    try:
        return Svd(**load_file(path, device=str(device)))
    except (OSError, SafetensorError, TypeError):  # damaged: it can be computed again
        return None
