"""The decomposition of a base's weight matrix: once per matrix, kept on disk by its content."""

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
_MIN_FREE_SHARE = 0.1
# Smaller ones are decomposed in less time than a file is found.
_MIN_SIZE = 128


class SpectralCache:
    """Thin singular value decompositions in a folder, shared by ranks, runs and studies.

    A file that cannot be read is computed again; where the disk is nearly full nothing is kept, nor
    are small matrices.
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
        found = _read(path, weight.device)
        if found is None:
            found = refined_svd(weight)
            self._keep(path, found)
        return found

    def _keep(self, path: Path, found: Svd) -> None:
        size = sum(4 * part.numel() for part in found)
        with contextlib.suppress(StorageError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self.folder)
            if disk.free - size > _MIN_FREE_SHARE * disk.total:
                tensors = {name: part.contiguous().cpu() for name, part in found._asdict().items()}
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
