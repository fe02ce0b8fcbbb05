"""A bound on what a piece of code may take."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def memory_for(num_bytes: int) -> Generator[None]:
    """Within the block this process gets no more than so many bytes besides what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
