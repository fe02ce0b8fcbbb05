"""The command line, called in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from rankwise.cli.main import app


def rankwise(*arguments: object, typed: str | None = None) -> Any:
    """Call the command in this process; asserts that nothing but an exit was raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def words(text: str) -> str:
    """Without the line breaks of a narrow terminal."""
    return " ".join(text.split())


FEW = ("--top-k", 20, "--null-draws", 1)


def audited(base: Path, target: Path, output: Path, *more: object) -> Any:
    return rankwise("audit", base, target, "--output", output, *FEW, *more)
