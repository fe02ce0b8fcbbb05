"""What produced a result: versions and devices, the commit, and whether two of them agree."""

from __future__ import annotations

import contextlib
import functools
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata

from rankwise.records.base import Record, VersionedRecord
from rankwise.records.study import Provenance

# The packages that the numbers depend on.
PACKAGES = ("torch", "transformers", "peft", "lm-eval", "datasets", "tokenizers", "safetensors")


@functools.cache
def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def collect_provenance(device: str | None = None, products: str | None = None) -> Provenance:
    """Versions, platform, device in words, commit of the current folder, and the time in UTC.

    ``products`` is as in ``Provenance``.
    """
    versions = {name: package_version(name) for name in PACKAGES}
    commit = None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
        commit = done.stdout.strip() or None if done.returncode == 0 else None
    return Provenance(
        rankwise_version=package_version("rankwise") or "not installed",
        python_version=platform.python_version(),
        platform=platform.platform(),
        package_versions={name: version for name, version in versions.items() if version},
        git_commit=commit,
        device=device,
        products=products,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


Stack = dict[str, str]
"""Package, or "device" -> version or name."""


class AcceptedStack(Record):
    """A stack under which a study goes on that was begun under another."""

    stack: Stack
    before: Stack
    """The stack of the scores that were there."""
    num_items: int
    """Items of the base that were scored again, to see how far they move."""
    largest_shift_nats: float
    """The largest change of a log-likelihood."""
    num_changed: int
    """Items whose best option, or whose text, is another."""
    moved_tasks: tuple[str, ...] = ()
    """Tasks whose score moved by more than twice the standard error of its change."""
    accepted_at: str
    """When: an ISO 8601 date and time with its zone."""

    @property
    def statement(self) -> str:
        """What differs, and by how much the base's scores moved, in words."""
        return f"{differences(self.before, self.stack)}: {self.shift}"

    @property
    def is_other_device(self) -> bool:
        """Whether nothing but the device, or how it multiplies, is another."""
        names = {*self.before, *self.stack} - {"device", "products"}
        return all(self.before.get(name) == self.stack.get(name) for name in names)

    @property
    def shift(self) -> str:
        """How far the base's scores moved, in words."""
        tasks = ", ".join(self.moved_tasks)
        noise = f"the score of {tasks}" if tasks else "no task's score"
        return (
            f"on {self.num_items} items the base's log-likelihoods moved by up to "
            f"{self.largest_shift_nats:.2g} nats, {self.num_changed} answers changed, and "
            f"{noise} moved by more than its noise"
        )


class AcceptedStacks(VersionedRecord, has_texts=False):
    """``stacks.json``: the stacks that were accepted beside the first, in their order."""

    stacks: tuple[AcceptedStack, ...] = ()


def stack_of(provenance: Provenance) -> Stack:
    """What of a provenance changes numbers. How many threads computed is left out."""
    device = (provenance.device or "unknown").rpartition(", ")
    name = device[0] if device[2].endswith("threads") else (provenance.device or "unknown")
    return {
        "rankwise": provenance.rankwise_version,
        **dict(sorted(provenance.package_versions.items())),
        "device": name,
        **({"products": provenance.products} if provenance.products else {}),
    }


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Such as "torch 2.12.0 -> 2.13.0"."""
    return ", ".join(
        f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )
