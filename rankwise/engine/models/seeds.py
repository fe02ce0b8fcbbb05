"""Seeds that are named by what they are for, not by the order in which they are drawn."""

from __future__ import annotations

import hashlib


def seed_of(*names: object) -> int:
    """A seed below 2**63 that depends on the ``repr`` of all names, the same in every process."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: fits a signed 64-bit integer
