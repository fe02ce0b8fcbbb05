"""How many weights that were read from files are in memory at once."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from torch import Tensor, nn

from rankwise.engine.models import weights


class Reads:
    """Within the block, watches what ``weights.StoredWeights`` reads.

    Attributes:
        most_bytes: of weights that were in memory at once.
    """

    def __init__(self) -> None:
        self.most_bytes = 0
        self._alive: list[weakref.ref[Any]] = []
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Reads:
        read = weights.parameter_of

        def counted(model: nn.Module, folder: Path, name: str) -> Tensor:
            weight = read(model, folder, name)
            self._alive = [each for each in self._alive if each() is not None]
            self._alive.append(weakref.ref(weight.untyped_storage()))
            held = (each() for each in self._alive)
            self.most_bytes = max(self.most_bytes, sum(x.nbytes() for x in held if x is not None))
            return weight

        self._patch.setattr(weights, "parameter_of", counted)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patch.undo()
