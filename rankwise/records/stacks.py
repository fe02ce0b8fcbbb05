"""Versions and devices that numbers depend on, and whether two of them agree."""

from __future__ import annotations

from collections.abc import Mapping

from rankwise.records.base import Record, VersionedRecord
from rankwise.records.study import Provenance

Stack = dict[str, str]
"""Package, or "device" -> version or name."""


class AcceptedStack(Record):
    """A stack under which a study goes on that was begun under another."""

    stack: Stack
    before: Stack
    """That of the scores which were there."""
    num_items: int
    """Items of the base that were scored again, to see how far they move."""
    largest_shift_nats: float
    """The largest change of a log-likelihood."""
    num_changed: int
    """Items whose best option, or whose text, is another."""
    accepted_at: str
    """When: an ISO 8601 date and time with its zone."""

    @property
    def statement(self) -> str:
        """What differs, and by how much the base's scores moved, in words."""
        return f"{differences(self.before, self.stack)}: {self.shift}"

    @property
    def shift(self) -> str:
        """By how much the base's scores moved, in words."""
        return (
            f"on {self.num_items} items the base's log-likelihoods moved by up to "
            f"{self.largest_shift_nats:.2g} nats, and {self.num_changed} answers changed"
        )


class AcceptedStacks(VersionedRecord):
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
