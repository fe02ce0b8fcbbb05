"""A browser for the tests of pages, and pages in it that do nothing they should not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import CHROMIUM, WIDE, Visit, opened, running_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for each file of tests: while it runs, no other test could call asyncio.run."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine; `apt-get install chromium` brings it")
    with running_browser() as running:
        yield running


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens pages; the test fails where one logs or throws anything or asks for anything."""
    found: list[list[str]] = []
    with ExitStack() as stack:

        def visit_one(file: Path, size: tuple[int, int] = WIDE, *, is_dark: bool = False) -> Page:
            page, amiss = stack.enter_context(opened(browser, file, size, is_dark=is_dark))
            found.append(amiss)
            return page

        yield visit_one
    assert not any(found), found
