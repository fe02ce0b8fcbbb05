"""Cards without cards: tensors with numbers, which say that they lie on one.

Their numbers are in the CPU's memory. As on real cards, an operation on tensors of two devices
fails, but for copies, single numbers of the CPU, and indices of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from rankwise.engine.models.placed import over_cards
from tests.support.fake_cuda import without_a_card

FIRST, SECOND = (torch.device("cuda", number) for number in range(2))
_ATEN = torch.ops.aten
_COPIES = {_ATEN._to_copy.default, _ATEN.copy_.default}
_INDEXED = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default}


class CardTensor(Tensor):
    """A tensor on a card; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> CardTensor:
        made: Any = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    def __init__(self, held: Tensor, device: torch.device) -> None: ...

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _done(func, args, kwargs or {})


class _Cards(TorchDispatchMode):
    """Makes tensors on cards where a device is named."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "aten" and torch.is_inference_mode_enabled():
            with self:  # operations come whole there that elsewhere come in parts
                if (result := func.decompose(*args, **(kwargs or {}))) is not NotImplemented:
                    return result
        return _done(func, args, kwargs or {})


def _done(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if func is _ATEN._pin_memory.default:
        return args[0].clone()
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    devices = {each.device for each in tensors if isinstance(each, CardTensor)}
    if func not in _COPIES:
        others = {each.device for each in tensors if each.dim() and func not in _INDEXED}
        if len(devices | others) > 1:
            raise RuntimeError(f"{func} of tensors on {sorted(map(str, devices | others))}")
    wanted = kwargs.get("device")
    cpu: dict[str, Any] = {} if wanted is None else {"device": torch.device("cpu")}
    plain_args, plain = tree_map_only(CardTensor, lambda x: x.held, (tuple(args), kwargs))
    found = func(*plain_args, **(plain | cpu))
    if func._schema.is_mutable:
        return found if found is None else kwargs.get("out", args[0])
    device = wanted if wanted is not None else next(iter(devices), None)
    if device is None or device.type != "cuda":
        return found
    device = torch.device("cuda", device.index or 0)
    return tree_map_only(Tensor, lambda x: CardTensor(x, device), found)


@contextlib.contextmanager
def two_cards() -> Generator[None]:
    """Within the block, tensors can be put on ``FIRST`` and ``SECOND``."""
    with without_a_card(), pytest.MonkeyPatch.context() as patch, _Cards():
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        # modules that are moved get new parameters: a plain one cannot hold what is on a card
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes them and moves them then
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


def laid_over(model: nn.Module) -> nn.Module:
    """A model on both cards, as ``load_over_cards`` lays it; inside of ``two_cards``."""
    where = {name: f"cuda:{card}" for name, card in over_cards(model, 2).items()}
    assert len(set(where.values())) == 2
    return dispatch_model(model, where, main_device="cuda:0")


def numbers(tensor: Any) -> Tensor:
    """Of a tensor, on the CPU."""
    return tensor.detach().to("cpu")
