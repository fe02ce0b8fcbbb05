"""The script that draws charts: made once, kept in the cache, made again where that is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.report import rendering
from rankwise.report.rendering import chart_runtime


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; what is bundled tells how often it was."""
    made = iter(range(10))
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rendering, "_bundled", lambda made_by: f"{made_by} {next(made)}")
    return tmp_path / "cache"


def test_it_is_made_once(cache: Path) -> None:
    assert chart_runtime() == chart_runtime()
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"no gzip", None])
def test_what_is_damaged_is_made_again(cache: Path, damage: bytes | None) -> None:
    first = chart_runtime()
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-4] if damage is None else damage)
    again = chart_runtime()
    assert again != first
    assert chart_runtime() == again


def test_another_version_is_another_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = chart_runtime()
    monkeypatch.setattr(rendering, "version", lambda _: "99")
    assert chart_runtime() != first


def test_without_a_cache_it_is_made_each_time(cache: Path) -> None:
    cache.write_text("a file")
    assert chart_runtime() != chart_runtime()
    assert cache.read_text() == "a file"


def test_it_says_whose_it_is_and_can_stand_in_a_page() -> None:
    script = chart_runtime()
    assert script.startswith("/* Vega 6")
    assert "BSD-3-Clause" in script
    assert "window.vegaEmbed" in script
    assert "</script" not in script
    assert "<!--" not in script
