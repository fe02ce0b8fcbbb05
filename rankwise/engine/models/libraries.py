"""What is set of libraries before they are imported: what they may say, threads, memory."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import sys
import warnings

from rankwise.records.versions import untested

_log = logging.getLogger(__name__)


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars and remarks, for this process.

    Best before they are imported; of those that are, the bars are turned off all the same. What
    they may not do, be of a version that was not tested, is said once.
    """
    _tell_of_untested_versions()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|peft|datasets)"
    )
    # of tqdm in a notebook without widgets, which our progress does not need
    warnings.filterwarnings("ignore", message="IProgress not found")
    # of bitsandbytes, which peft imports, about kernels that nothing here calls
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for name in ("transformers.utils.logging", "datasets.utils"):
        if name in sys.modules:  # it asked for the variables when it was imported
            sys.modules[name].disable_progress_bar()


@functools.cache
def _tell_of_untested_versions() -> None:
    """In one line on stderr, the first time."""
    if problem := untested():
        _log.warning("warning: %s", problem)


def before_torch() -> None:
    """Let threads that wait for others sleep, and PyTorch extend its pieces of a card's memory.

    Nor are layers of models that other libraries load swapped for ones from the hub.

    It is to be called before torch is imported. What is set already stays.

    By default threads of GNU OpenMP, which torch brings on Linux, spin for milliseconds at the end
    of every parallel part. Beside another busy process they so keep the core that the thread they
    wait for could run on (docs/PERFORMANCE.md has the figures). And every micro-batch has another
    shape: pieces of fixed size leave gaps between them.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("USE_HUB_KERNELS", "0")
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the second from torch 2.9 on
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # reports need no torch
        if any(name in os.environ for name in names):
            return
        major, minor = importlib.metadata.version("torch").split(".")[:2]
        name = names[(int(major), int(minor)) >= (2, 9)]
        os.environ[name] = "expandable_segments:True"
