"""The package's modules, read and parsed once for all tests that walk over them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

import rankwise

ROOT = Path(rankwise.__file__).parent


class Source(NamedTuple):
    """A module: its text, its tree, and all nodes of the tree."""

    text: str
    tree: ast.Module
    nodes: tuple[ast.AST, ...]


@cache
def package_sources() -> dict[Path, Source]:
    """All modules of the package, by path, in alphabetical order."""
    sources: dict[Path, Source] = {}
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        sources[path] = Source(text, tree, tuple(ast.walk(tree)))
    return sources
