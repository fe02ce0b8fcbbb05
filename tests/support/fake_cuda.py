"""CUDA tensors without a card: they have shapes and devices, and no numbers.

PyTorch's fake tensors know the device they would lie on, and an operation on tensors of two
devices fails. ``fake_cuda`` adds what a build of PyTorch without CUDA lacks for them, and notes
where the host would wait for the card.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

import rankwise
from rankwise.engine.models import packed_kernels
from rankwise.engine.scoring.decode import attention as decode_attention

CUDA = torch.device("cuda", 0)
_ROOTS = (str(Path(rankwise.__file__).parent), str(Path(__file__).parents[1]))
# Of c10::impl::device_guard_impl_registry, an array of pointers by type of device.
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
_CPU_PLACE, _CUDA_PLACE = 0, 1
_BYTES = 80 * 10**9
# Operations that start no kernel, beside views.
_LAUNCH_NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_LAUNCH_NOTHING |= {"_unsafe_view", "_local_scalar_dense", "_pin_memory", "device", "detach"}


class HostWaits(TorchDispatchMode):
    """Notes where the host reads a number of the card, or hands it tensors and waits.

    Every number that is read is 1, every truth is True, and one number of each tensor is not zero.

    Attributes:
        reads: how often each place reads: ``file.py:function`` of the innermost of our frames.
        copies: how often each copies to the card from memory that is not pinned.
        kernels: how often each operation that is no view ran on the card. A ``_foreach`` operation
            counts once; it launches one kernel for some hundred pieces of its tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self._pinned = WeakTensorKeyDictionary()

    def forget(self) -> None:
        self.reads.clear()
        self.copies.clear()
        self.kernels.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs, aten = kwargs or {}, torch.ops.aten
        if func.namespace == "aten" and torch.is_inference_mode_enabled():
            with self:  # operations come whole there that elsewhere come in parts
                if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return result
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            self._pinned[pinned] = None
            return pinned
        if func is aten._local_scalar_dense.default:
            self.reads.update([_place()] * args[0].is_cuda)
            is_truth, is_float = args[0].dtype == torch.bool, args[0].is_floating_point()
            return True if is_truth else 1.0 if is_float else 1
        if func is aten.nonzero.default:
            self.reads.update([_place()] * args[0].is_cuda)
            return args[0].new_zeros((1, args[0].ndim), dtype=torch.int64)
        if func is aten._to_copy.default and (device := kwargs.get("device")) is not None:
            is_read = args[0].is_cuda and device.type == "cpu"
            self.reads.update([_place()] * is_read)
            is_blocking = args[0] not in self._pinned or not kwargs.get("non_blocking")
            is_copy = args[0].device.type == "cpu" and device.type == "cuda"
            self.copies.update([_place()] * (is_copy and is_blocking))
        result, name = func(*args, **kwargs), func.overloadpacket.__name__
        if not func.is_view and name not in _LAUNCH_NOTHING:
            tensors = [x for x in tree_leaves((args, result)) if isinstance(x, Tensor)]
            self.kernels.update([name] * any(x.is_cuda for x in tensors))
        return result


def _place() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_ROOTS) and name != __file__:
            return f"{Path(name).name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class _Generator(torch.Generator):
    """The CPU's, whichever device is asked for: nothing is drawn."""

    asked: Any

    def __new__(cls, device: Any = None) -> _Generator:
        made = super().__new__(cls)
        made.asked = device
        return made

    @property
    def device(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.device(self.asked or "cpu")


@contextlib.contextmanager
def fake_cuda() -> Generator[HostWaits]:
    """Tensors made inside have no numbers, and can be made on ``CUDA``, of which all is free."""
    with without_a_card(), FakeTensorMode(), HostWaits() as waits:
        yield waits


@contextlib.contextmanager
def without_a_card() -> Generator[None]:
    """Within the block, a build of PyTorch without CUDA has what tensors that say so ask for."""
    with _empty_caches(), _device_guard(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (_BYTES, _BYTES))
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        patch.setattr(torch.cuda, "get_device_name", lambda *_: "no card")
        for name in ("reset_peak_memory_stats", "empty_cache"):
            patch.setattr(torch.cuda, name, lambda *_: None)
        for name in ("max_memory_allocated", "max_memory_reserved", "memory_reserved"):
            patch.setattr(torch.cuda, name, lambda *_: 0)
        # autocast asks whether there is a card
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(Tensor, "backward", lambda x, gradient=None: walk_backward(x, gradient))
        yield


@contextlib.contextmanager
def _empty_caches() -> Generator[None]:
    """A kept mask without numbers must not meet real tensors, nor the reverse."""
    kept: list[Any] = [packed_kernels._kept_unseen, packed_kernels._bounds]
    kept += [packed_kernels._block_mask, decode_attention._later]
    clear = [function.cache_clear for function in kept]
    clear += [packed_kernels._tiles_left.clear, packed_kernels._said.clear]
    for each in clear:
        each()
    try:
        yield
    finally:
        for each in clear:
            each()


@contextlib.contextmanager
def _device_guard() -> Generator[None]:
    """Indexing and autograd ask for the device guard of a tensor's device, which makes it current.

    A build without CUDA has none, and these end in an error. That of the CPU does nothing.
    """
    if torch.version.cuda is not None or torch.version.hip is not None:
        yield  # FakeTensorMode puts one there if there is no card
        return
    guards = _guards()
    guards[_CUDA_PLACE] = guards[_CPU_PLACE]
    try:
        yield
    finally:
        guards[_CUDA_PLACE] = None


def _guards() -> Any:
    for path in (Path(torch.__file__).parent / "lib").glob("*c10.*"):
        with contextlib.suppress(OSError, ValueError):
            return (ctypes.c_void_p * 2).in_dll(ctypes.CDLL(str(path)), _GUARDS)
    pytest.skip("this build of PyTorch hides its device guards")


@torch.no_grad()
def walk_backward(output: Tensor, gradient: Tensor | None) -> None:
    """As autograd's engine, which needs the streams of a card, without hooks of tensors.

    A node of the graph is called once all gradients of its outputs are there. Leaves add theirs up.
    """
    waiting: Counter[Any] = Counter()  # by node: edges whose gradient is still to come
    nodes: list[Any] = [output.grad_fn]
    for node in nodes:  # it grows
        for after, _ in node.next_functions:
            if after is not None:
                nodes += [] if after in waiting else [after]
                waiting[after] += 1
    found = {node: [None] * len(node._input_metadata) for node in nodes}
    found[output.grad_fn][output.output_nr] = _fitting(
        torch.ones_like(output) if gradient is None else gradient, output
    )
    ready = nodes[:1]
    while ready:
        node = ready.pop()
        edges = zip(node.next_functions, _called(node, found.pop(node)), strict=False)
        for (after, place), new in edges:
            if after is None:
                continue
            if new is not None:
                new, before = _fitting(new, after._input_metadata[place]), found[after][place]
                found[after][place] = new if before is None else before + new
            waiting[after] -= 1
            ready += [] if waiting[after] else [after]


def _fitting(gradient: Tensor, wanted: Any) -> Tensor:
    """Formulas leave it to the engine to undo broadcasting and casts."""
    assert gradient.device == wanted.device
    return gradient.sum_to_size(wanted.shape).to(wanted.dtype)


def _called(node: Any, gradients: list[Tensor | None]) -> Sequence[Tensor | None]:
    if all(gradient is None for gradient in gradients):
        return [None] * len(node.next_functions)
    if hasattr(node, "variable"):  # a leaf
        leaf, (gradient,) = node.variable, gradients
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return []
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        gradients = [
            torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device) if x is None else x
            for x, meta in zip(gradients, node._input_metadata, strict=True)
        ]
        called: Any = node.apply(*gradients)
    else:
        called = node(*gradients)
    return called if isinstance(called, tuple) else (called,)
