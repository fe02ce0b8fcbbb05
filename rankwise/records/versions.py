"""The versions of libraries that rankwise is tested with: the ranges that pyproject.toml gives."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rankwise.records.provenance import package_version

# What a user may have; the tests' and the pages' tools are ours.
_EXTRAS = ("", "train", "quantization", "torchao", "liger", "ray")


@functools.cache
def tested_versions() -> Mapping[str, SpecifierSet]:
    """Library -> the versions from the oldest to the newest that passed the tests.

    It is read from the installed package, so pyproject.toml is the one table. It is empty where
    rankwise runs from a folder without being installed.
    """
    try:
        lines = metadata.requires("rankwise") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, lines):
        marker, name = requirement.marker, requirement.name
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in _EXTRAS)
        if wanted and name != "rankwise":
            found[name] = requirement.specifier
    return found


def is_tested(name: str) -> bool:
    """Whether the installed version is within the tested ones; so is one that has no range."""
    version, tested = package_version(name), tested_versions().get(name)
    return version is None or tested is None or tested.contains(version, prereleases=True)


def tested_range(name: str) -> str:
    """The tested versions of a library, the oldest first: ``>=5.4,<5.26``; empty if it has none."""
    bounds = map(str, tested_versions().get(name, ()))
    return ",".join(sorted(bounds, key=lambda bound: bound.startswith("<")))


def untested(names: Iterable[str] | None = None) -> str:
    """Which of these libraries, or of all, are of another version, and how to install a tested one.

    It is empty where there is none.
    """
    found = [name for name in names or tested_versions() if not is_tested(name)]
    here = ", ".join(f"{name} {package_version(name)}" for name in found)
    wanted = " ".join(f"'{name}{tested_range(name)}'" for name in found)
    return f"rankwise is not tested with {here}. Install: pip install {wanted}" if found else ""
