"""A real browser without a window, for what only a browser can show."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

_SECONDS = 120


def command(profile: Path, *options: str) -> list[str]:
    """How the browser is called without a window, with a profile of its own."""
    assert CHROMIUM is not None
    own = f"--user-data-dir={profile}"
    return [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", own,
            *options]  # fmt: skip


def dumped(page: Path, width: int = 1280) -> tuple[str, str]:
    """A page after its scripts have run, as HTML, and what its console said.

    Raises:
        subprocess.CalledProcessError: the browser ended with an error.
    """
    done = subprocess.run(
        command(
            page.parent / "profile",
            f"--window-size={width},1000",
            "--virtual-time-budget=5000",
            "--dump-dom",
            page.resolve().as_uri(),
        ),
        check=True,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(said)


def text_of(dom: str, identifier: str) -> str:
    """The text of an element without elements in it."""
    found = re.search(rf'id="{identifier}"[^>]*>(.*?)</', dom, re.DOTALL)
    assert found is not None
    return html.unescape(found[1])
