"""How many bytes of weights that were read from files are in memory at once."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

import pytest
from accelerate.utils import OffloadedWeightsLoader
from torch import Tensor


class Reads:
    """Within the block, watches what is read of models of ``weights.load_in_files``.

    Attributes:
        most_bytes: of weights that were in memory at once.
        all_bytes: of all that were read.
    """

    def __init__(self) -> None:
        self.most_bytes = self.all_bytes = 0
        self._alive: list[weakref.ref[Any]] = []
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Reads:
        read = OffloadedWeightsLoader.__getitem__

        def watched(loader: OffloadedWeightsLoader, name: str) -> Tensor:
            weight: Tensor = read(loader, name)
            self.all_bytes += weight.nbytes
            self._alive.append(weakref.ref(weight.untyped_storage()))
            held = [storage for each in self._alive if (storage := each()) is not None]
            self.most_bytes = max(self.most_bytes, sum(each.nbytes() for each in held))
            return weight

        self._patch.setattr(OffloadedWeightsLoader, "__getitem__", watched)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patch.undo()
