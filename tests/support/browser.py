"""Debian's Chromium without a window, driven by Playwright, for what only a browser can show."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from playwright.sync_api import Browser, Locator, Page, Request, expect, sync_playwright

WIDE, PHONE = (1280, 1000), (390, 844)

_LONGEST_WAIT = 120_000.0  # milliseconds, on a busy machine

expect.set_options(timeout=_LONGEST_WAIT)


def _found() -> str | None:
    """Not a snap's: it cannot read the temporary files of others."""
    path = shutil.which("chromium")
    return None if path is None or path.startswith("/snap/") else path


CHROMIUM = _found()


class Visit(Protocol):
    """Opens a file in the browser."""

    def __call__(
        self, file: Path, size: tuple[int, int] = WIDE, *, is_dark: bool = False
    ) -> Page: ...


@contextmanager
def running_browser() -> Iterator[Browser]:
    """The browser, until the end of the block; asyncio.run cannot be called in it."""
    assert CHROMIUM is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, file: Path, size: tuple[int, int] = WIDE, *, is_dark: bool = False
) -> Iterator[tuple[Page, list[str]]]:
    """A page and what is amiss with it, which grows: all that it logs, throws or asks for.

    A policy that forbids something says so in the console. Only documents that are files may be
    asked for.
    """
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if is_dark else "light",
        offline=True,
    )
    context.set_default_timeout(_LONGEST_WAIT)
    amiss: list[str] = []

    def asked(request: Request) -> None:
        if not (request.is_navigation_request() and request.url.startswith("file:")):
            amiss.append(f"request: {request.url}")

    context.on("request", asked)
    context.on("console", lambda message: amiss.append(f"{message.type}: {message.text}"))
    context.on("weberror", lambda error: amiss.append(f"error: {error.error}"))
    page = context.new_page()
    page.goto(file.resolve().as_uri())
    yield page, amiss
    page.evaluate("0")  # events before this one have arrived
    context.close()


def drawn(page: Page, figure: str) -> Locator:
    """A chart that the page has drawn in sight; whatever it is folded into is opened."""
    chart = page.locator(f"#figure-{figure} .chart")
    chart.evaluate(
        "(each) => { for (let place = each; place; place = place.parentElement) "
        "if (place.tagName === 'DETAILS') place.open = true; }"
    )
    chart.scroll_into_view_if_needed()
    expect(chart).to_have_attribute("data-drawn", "yes")
    return chart
