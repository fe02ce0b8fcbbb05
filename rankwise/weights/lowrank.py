"""A low-rank update in its factors: singular values, norms and ranks without building the product.

Updates are read from PEFT's folder and written to it.

Everything is computed in float64, whatever the factors' dtype: they are small, and small singular
values would be lost in their rounding otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.engine.models.adapter_folder import AdapterFolder, write_factors
from rankwise.errors import ModelError
from rankwise.records.patterns import rank_entries
from rankwise.weights.spectra import Svd


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """delta = scaling * lora_B @ lora_A, never multiplied out.

    Attributes:
        lora_A: as PEFT keeps it.
        lora_B: as PEFT keeps it.
        scaling: alpha / rank, or alpha / sqrt(rank) under rsLoRA.

    Raises:
        ValueError: the factors do not fit each other, or hold NaN or infinity.
    """

    lora_A: Float[Tensor, "rank in_features"]
    lora_B: Float[Tensor, "out_features rank"]
    scaling: float = 1.0

    def __post_init__(self) -> None:
        if self.lora_B.shape[1] != self.lora_A.shape[0]:
            raise ValueError(
                f"lora_A {tuple(self.lora_A.shape)} and lora_B {tuple(self.lora_B.shape)} have no "
                "rank in common."
            )
        finite = bool(torch.isfinite(self.lora_A).all() and torch.isfinite(self.lora_B).all())
        if not (finite and math.isfinite(self.scaling)):
            raise ValueError("the update holds NaN or infinite weights.")

    @classmethod
    def of(cls, svd: Svd, rank: int) -> LowRankUpdate:
        """The leading singular directions; each factor has half of the update's size."""
        root = svd.S[:rank].sqrt()
        return cls(root[:, None] * svd.Vh[:rank], svd.U[:, :rank] * root)

    @property
    def rank(self) -> int:
        """The rank of the factors; the update's own rank may be lower."""
        return self.lora_A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features) of delta."""
        return self.lora_B.shape[0], self.lora_A.shape[1]

    @cached_property
    def factorization(self) -> Svd:
        """The singular value decomposition, exact up to rounding, of min(rank, *shape) values.

        QR of lora_B and of lora_A transposed, and the SVD of the product of the two triangular
        factors: O((out + in) r²).
        """
        left, R_left = torch.linalg.qr(self.lora_B.double())  # (out_features, r), (r, r)
        right, R_right = torch.linalg.qr(self.lora_A.double().T)  # (in_features, r), (r, r)
        U, S, Vh = torch.linalg.svd(self.scaling * R_left @ R_right.T, full_matrices=False)
        return Svd(left @ U, S, Vh @ right.T)

    @property
    def singular_values(self) -> Float[Tensor, " rank"]:
        """The singular values in float64, descending, including those of rounding size."""
        return self.factorization.S

    @property
    def frobenius_norm(self) -> float:
        """sqrt(Σ σ²)."""
        return float(self.singular_values.norm())

    def truncated(self, rank: int) -> LowRankUpdate:
        """The closest update of this rank in Frobenius and spectral norm (Eckart and Young, 1936).

        Its scaling is 1; both factors carry the square root of the singular values.

        Args:
            rank: at least 1; one above the factors' own changes nothing but the factors.

        Raises:
            ValueError: the rank is below 1.
        """
        if rank < 1:
            raise ValueError(f"{rank} is not a rank; use a whole number of at least 1.")
        return LowRankUpdate.of(self.factorization, rank)

    @property
    def as_written(self) -> LowRankUpdate:
        """The update with float32 factors and a scaling of 1, as ``save_updates`` writes it."""
        scaled = self.scaling * self.lora_B.double()
        return LowRankUpdate(self.lora_A.float(), scaled.float())

    def times(self, factor: float) -> LowRankUpdate:
        """The same factors, the scaling multiplied; 0 is no update, 1 the update itself."""
        return LowRankUpdate(self.lora_A, self.lora_B, factor * self.scaling)

    def plus(self, other: LowRankUpdate) -> LowRankUpdate:
        """The exact sum: its rank is that of both together, its scaling 1.

        Raises:
            ValueError: the updates are of different shapes.
        """
        if self.shape != other.shape:
            raise ValueError(f"updates of shape {self.shape} and {other.shape} have no sum.")
        A = torch.cat([self.lora_A.double(), other.lora_A.double()])
        B = [self.scaling * self.lora_B.double(), other.scaling * other.lora_B.double()]
        return LowRankUpdate(A, torch.cat(B, dim=1))


def read_updates(adapter: AdapterFolder) -> dict[str, LowRankUpdate]:
    """The update of every adapted layer.

    Raises:
        ModelError: as ``AdapterFolder.factors``; a weight is NaN or infinite, or the update
            overflows.
    """
    updates: dict[str, LowRankUpdate] = {}
    for name, (A, B, scaling) in adapter.factors.items():
        try:
            updates[name] = LowRankUpdate(A, B, scaling)
            # factors whose product may not fit into float32
            norms = (float(factor.double().norm()) for factor in (A, B))
            if math.prod((abs(scaling), *norms)) > torch.finfo(torch.float32).max:
                raise ValueError("the update overflows float32: its training has diverged.")
        except ValueError as error:
            raise ModelError(
                f"the adapter in {adapter.path}: {name}: {error} Train it again."
            ) from error
    return updates


def save_updates(
    updates: Mapping[str, LowRankUpdate], folder: Path, *, source: AdapterFolder
) -> None:
    """Write other updates of the layers that an adapter adapts; its config is kept otherwise.

    Ranks may differ from layer to layer: PEFT finds them by patterns that name whole layers.
    Scalings become 1, factors float32.

    Args:
        updates: by layer, all of the adapter's.
        folder: is created; not that of the adapter.
        source: the adapter that was changed.

    Raises:
        ModelError: the adapter cannot be read.
        StorageError: the folder cannot be written.
        ValueError: a number overflows float32.
    """
    ranks = {name: update.rank for name, update in updates.items()}
    config = {
        **source.config,
        **rank_entries(ranks, 1.0),
        "use_rslora": False,
        "init_lora_weights": True,
        "eva_config": None,
        "inference_mode": True,
    }
    written = {name: update.as_written for name, update in updates.items()}
    factors = {name: (update.lora_A, update.lora_B) for name, update in written.items()}
    write_factors(folder, factors, json.dumps(config, indent=2, sort_keys=True) + "\n")
