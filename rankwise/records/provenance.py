"""What produced a result: versions, platform, and the commit if there is one."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata

from rankwise.records.study import Provenance

# The packages that the numbers depend on.
PACKAGES = ("torch", "transformers", "peft", "lm-eval", "datasets", "tokenizers", "safetensors")


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
    return Provenance(
        rankwise_version=package_version("rankwise") or "not installed",
        python_version=platform.python_version(),
        platform=platform.platform(),
        package_versions={name: version for name, version in versions.items() if version},
        git_commit=_git_commit(),
        device=device,
        products=products,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
