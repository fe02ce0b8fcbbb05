"""Hostile input of every kind: a few seconds of what `make fuzz` does for an hour."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from rankwise.errors import ConfigError
from tests.fuzz.parsers import PARSERS, Parser, check


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_returns_or_raises_our_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parser = PARSERS[name]

    @settings(
        max_examples=parser.num_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(parser.inputs)
    def holds(content: Any) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            check(parser, Path(folder), content)

    holds()


def test_the_check_lets_other_errors_through(tmp_path: Path) -> None:
    def refuse(_: Path, error: Exception) -> None:
        raise error

    parser = Parser(refuse, PARSERS["rows"].inputs, 1)
    check(parser, tmp_path, ConfigError("x", ["y"]))
    with pytest.raises(ZeroDivisionError):
        check(parser, tmp_path, ZeroDivisionError())
