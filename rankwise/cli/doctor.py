"""What this installation can do: versions, devices, precisions, optional parts."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Iterator

import torch

from rankwise.engine.models.devices import choose_device, device_name, has_fast_bfloat16
from rankwise.engine.models.embedded import EMBEDDED_MODELS, cache_folder
from rankwise.records.provenance import PACKAGES, package_version

# distribution -> what is missing without it
OPTIONAL_PARTS = {"pip": "fetching the embedded model"}


def examine() -> list[tuple[str, str]]:
    """Findings as (what, finding), in the order to show them."""
    return list(_findings())


def _findings() -> Iterator[tuple[str, str]]:
    yield "rankwise", package_version("rankwise") or "not installed (running from a folder)"
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in PACKAGES:
        yield name, package_version(name) or "missing"
    device = choose_device()
    yield "device", f"{device.type}: {device_name(device)}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        yield "device memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    fast = has_fast_bfloat16(device)
    yield "precision auto", "bfloat16" if fast else "float32 (no fast bfloat16 here)"
    cache = cache_folder()
    for name, model in EMBEDDED_MODELS.items():
        there = (cache / f"{name}-{model.sha256[:8]}").is_dir()
        yield f"embedded {name}", f"{'in' if there else 'not yet in'} {cache}"
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    yield "cache, free disk", f"{shutil.disk_usage(existing).free / 2**30:.1f} GiB"
    for name, purpose in OPTIONAL_PARTS.items():
        there = importlib.util.find_spec(name) is not None
        yield f"optional {name}", "there" if there else f"missing: {purpose}"
