"""Where and in which precision to compute, how much memory it took, and what to do without any."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import psutil
import torch
from jaxtyping import Shaped
from torch import Tensor

from rankwise.records.config.training import Precision
from rankwise.records.provenance import collect_provenance
from rankwise.records.study import Provenance
from rankwise.tasks.questions import Advance

A = TypeVar("A")

ResolvedPrecision = Literal["float32", "bfloat16"]
MAX_KERNELS = 256
"""Size of oneDNN's kernel cache: about the shapes of one micro-batch, the same in every layer."""

KERNEL_BYTES = 670_000
"""Bytes of one such kernel, measured in torch 2.13 for bfloat16."""

STEP_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens of one forward pass of scoring, by kind of device, unless a study says otherwise. Larger
ones are no faster on a CPU; on a card smaller ones are launches more than products (an estimate).
Where memory has no room for as many, scoring halves them."""

# Parts of messages of torch's CPU allocator, the CUDA runtime, cuBLAS and cuSOLVER.
_OUT_OF_MEMORY = (
    *("defaultcpuallocator", "out of memory", "cublas_status_alloc_failed"),
    # what a full card says when a library makes its handle
    *("cublas_status_not_initialized", "cusolver_status_internal_error"),
)
# Compute capabilities of the cards for data centres, which multiply float64 at half the rate of
# float32: P100, V100, A100, H100, MI300X (gfx942, as PyTorch's build for ROCm calls it) and B200.
# Others, such as 8.6, 8.9, 10.3 and 12.0, have 1/32 or 1/64 of it.
_FAST_FLOAT64 = ((6, 0), (7, 0), (8, 0), (9, 0), (9, 4), (10, 0))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    multiply_exactly(device)
    return device


def multiply_exactly(device: torch.device) -> None:
    """Keep all bits of float32 in products on CUDA, whatever was set before.

    TF32 keeps 10 of 23 bits: too few for singular vectors, or for scores that are to equal those
    of a CPU. Environments switch it on (``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE``), and so do
    libraries. Sums of products in half precision are kept in float32, as a CPU keeps them.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def provenance_on(device: torch.device) -> Provenance:
    """What produces a result on this device, now."""
    return Machine(device).provenance


def float64_device(device: torch.device) -> torch.device:
    """The device, or the CPU where that multiplies float64 faster than the device does."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) in _FAST_FLOAT64:
        return device
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The name of the card or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def free_bytes(device: torch.device) -> int:
    """Memory of the card, or of the machine or container, that nobody holds."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return int(min(psutil.virtual_memory().available, room_in_groups()))


def room_in_groups(
    own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> float:
    """Bytes that Linux's control groups, such as a container's, leave to this process.

    Infinite where none has a limit. A group's file pages that are not in use are free for it.

    Args:
        own: lists this process's groups: one of version 2, or one a kind of version 1.
        mounted: where the groups are files; in a container its own group may be the top there.
    """
    room = math.inf
    lines = own.read_text().splitlines() if own.is_file() else []
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds not in ("", "memory"):
            continue
        version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        names = version_1 if kinds else ("memory.max", "memory.current", "inactive_file")
        top = mounted / kinds
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                stat = (folder / "memory.stat").read_text()
                cached = dict(line.split() for line in stat.splitlines())[names[2]]
                room = min(room, float(limit), float(max(limit - used + int(cached), 0)))
            if folder == top:
                break
    return room


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device.

    From pinned memory a card fetches it when it gets there; from other memory the host would wait
    for all work that the card still has.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Machine(NamedTuple):
    """Where a study is planned to train and score.

    A card whose memory is given need not be here: nothing is asked of it.

    Attributes:
        device: that computes.
        memory_bytes: that each card has, if that is given; None: what is free when it is asked.
        num_cards: like the device, with it; over them the layers of a model can lie.
    """

    device: torch.device
    memory_bytes: int | None = None
    num_cards: int = 1

    @classmethod
    def here(cls, device: torch.device | None = None) -> Machine:
        """The device that computes here; a card comes with all others that this process sees."""
        device = choose_device() if device is None else device
        num_cards = torch.cuda.device_count() if device.type == "cuda" else 1
        return cls(device, num_cards=num_cards)

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is a card that is described and not asked."""
        return self.device.type == "cuda" and self.memory_bytes is not None

    @property
    def name(self) -> str:
        """The name of the card or of the processor; nothing is known of a card elsewhere."""
        return "a CUDA card" if self.is_elsewhere else device_name(self.device)

    def precision(self, wanted: Precision) -> ResolvedPrecision:
        """See ``resolve_precision``; a card that is not asked multiplies bfloat16 natively.

        All have done so since Ampere (2020).
        """
        if self.is_elsewhere and wanted == "auto":
            return "bfloat16"
        return resolve_precision(wanted, self.device)

    @property
    def provenance(self) -> Provenance:
        """What plans for it, now, and how CUDA multiplies, in words."""
        if self.device.type != "cuda" or self.is_elsewhere:
            return collect_provenance(self.name, None)
        matmul = torch.backends.cuda.matmul
        reduced = {
            "bfloat16": matmul.allow_bf16_reduced_precision_reduction,
            "float16": matmul.allow_fp16_reduced_precision_reduction,
        }
        names = [name for name, is_reduced in reduced.items() if is_reduced]
        products = (
            f"float32 {torch.get_float32_matmul_precision()}, "
            f"sums in half precision: {' and '.join(names) or 'none'}"
        )
        return collect_provenance(self.name, products)

    def available_bytes(self) -> int:
        """Memory that a pass may use: what is given, or what is free.

        On a CPU that is the process's present size and all free memory, as estimates include the
        process. On CUDA it is what is free on the card or reserved by PyTorch.
        """
        if self.memory_bytes is not None:
            return self.memory_bytes
        if self.device.type == "cuda":
            return free_bytes(self.device) + torch.cuda.memory_reserved(self.device)
        return free_bytes(self.device) + psutil.Process().memory_info().rss

    @property
    def cards(self) -> tuple[torch.device, ...]:
        """The device and the cards like it."""
        if self.num_cards == 1:
            return (self.device,)
        return tuple(torch.device(self.device.type, number) for number in range(self.num_cards))

    def available_on_each(self) -> int:
        """The least that any of its cards has; see ``available_bytes``."""
        return min(self._replace(device=card).available_bytes() for card in self.cards)


def moved_together(
    arrays: Sequence[Shaped[np.ndarray, "*_"]], device: torch.device
) -> list[Shaped[Tensor, "*_"]]:
    """Arrays on the device; a card gets all of them by one copy.

    Those of larger numbers come first, so that each begins where its numbers can.
    """
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type != "cuda" or not arrays:
        return [tensor.to(device) for tensor in tensors]
    whole = np.concatenate([np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in arrays])
    parts = moved(torch.from_numpy(whole), device).split([tensor.nbytes for tensor in tensors])
    pairs = zip(parts, tensors, strict=True)
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in pairs]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with contextlib.suppress(OSError):
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        # Intel's AVX-512 multiplies as many numbers a cycle in bfloat16 as in float32, and what is
        # around the products costs more; its AMX, and AMD's AVX-512, multiply more
        has_more = "amx_bf16" in cpu or ("avx512_bf16" in cpu and "GenuineIntel" not in cpu)
        return has_more and has_bfloat16_kernels()
    return False


def has_bfloat16_kernels() -> bool:
    """Whether oneDNN multiplies bfloat16 on this CPU, with kernels that it generates.

    Without AVX-512 (or if ``ONEDNN_MAX_CPU_ISA`` or ``ATEN_CPU_CAPABILITY`` hides it) torch uses
    its own loops, which need neither kernels nor a workspace.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def resolve_precision(precision: Precision, device: torch.device) -> ResolvedPrecision:
    """``auto`` is bfloat16 where the device multiplies it faster, else float32."""
    if precision == "auto":
        return "bfloat16" if has_fast_bfloat16(device) else "float32"
    return precision


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device has no memory left.

    torch has an error class for it; its CPU allocator, the CUDA runtime and its libraries raise a
    RuntimeError and say so in its message.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error).casefold() if isinstance(error, RuntimeError) else ""
    return any(words in message for words in _OUT_OF_MEMORY)


@contextlib.contextmanager
def quick_collections() -> Generator[None]:
    """Within the block, garbage collections leave out whatever was alive before it.

    With torch, transformers and lm-eval loaded there are a million such objects, which stay
    anyway: a collection takes a second with them and milliseconds without. Where objects are
    frozen already (:func:`gc.freeze`), nothing is changed.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_back_memory(device: torch.device) -> None:
    """Collect garbage, and return free memory to the system.

    On Linux the GNU C library keeps freed memory that lies between blocks in use, so it is trimmed;
    other C libraries are left alone. On CUDA PyTorch's allocator keeps it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def in_smaller_steps(
    answer: Callable[[Advance], A],
    shrink: Callable[[], bool],
    advance: Advance,
    device: torch.device,
) -> A:
    """Compute something, in smaller and smaller steps while memory runs out.

    Args:
        answer: computes everything; tells of what it has finished.
        shrink: makes the steps smaller; False where they cannot be.
        advance: hears of everything once.
        device: that computes.
    """
    done = told = 0

    def tell(count: int) -> None:
        nonlocal done, told
        done += count
        if done > told:
            advance(done - told)
            told = done

    while True:
        done = 0
        try:
            return answer(tell)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not shrink():
                raise
        # outside of the handler: inside, the error's frames would keep the step's tensors alive
        give_back_memory(device)


def limit_kernel_cache() -> None:
    """Limit how many generated kernels oneDNN, which multiplies bfloat16 on CPUs, keeps.

    It generates one of 0.7 MB for every shape, and ragged texts bring new shapes in every batch:
    its default limit of 1,024 kernels took 0.6 GB. It reads the limit at the process's first
    product. A limit that is already set stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(MAX_KERNELS))


class PeakMemory:
    """The peak of the memory in use, in bytes: of the process on a CPU, of tensors on CUDA.

    Of several cards it is that of the fullest.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._cards = [device for device in devices if device.type == "cuda"]
        self.bytes = 0

    @contextlib.contextmanager
    def measured(self) -> Generator[None]:
        """Measure the block; on Linux the kernel's high-water mark is reset at its start."""
        for card in self._cards:
            torch.cuda.reset_peak_memory_stats(card)
        if not self._cards:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
        yield
        self.bytes = self.so_far()

    def so_far(self) -> int:
        """The peak since the block began, or of the whole process where it cannot be reset."""
        if self._cards:
            return max(map(torch.cuda.max_memory_allocated, self._cards))
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        if sys.platform == "win32":
            return psutil.Process().memory_info().peak_wset
        import resource  # of POSIX

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere

    def reserved_so_far(self) -> int | None:
        """The most that PyTorch's allocator held of the card, with pieces between tensors.

        None on a CPU.
        """
        return max(map(torch.cuda.max_memory_reserved, self._cards), default=None)
