"""The pictures of the README: the report of a study, light, dark and on a phone.

python -m docs.screenshots STUDY_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import FloatRect, Page

from tests.support.browser import PHONE, opened, running_browser

_MARGIN = 28


def seen(page: Page, section: str, file: Path, *, is_whole: bool) -> None:
    """Keep a section as it is seen, with all that is above it or alone."""
    box = page.locator(section).bounding_box()
    assert box is not None
    top = 0.0 if is_whole else box["y"] + page.evaluate("scrollY")
    height = box["y"] + page.evaluate("scrollY") + box["height"] + _MARGIN - top
    clip: FloatRect = {"x": 0, "y": top, "width": page.evaluate("innerWidth"), "height": height}
    page.screenshot(path=file, full_page=True, clip=clip)


def main() -> None:
    """Look at the report of a study's folder and keep what is seen."""
    report, pictures = Path(sys.argv[1]) / "report.html", Path(__file__).parent
    with running_browser() as browser:
        for name, is_dark in (("report", False), ("report-dark", True)):
            with opened(browser, report, is_dark=is_dark) as (page, _):
                page.wait_for_selector(".verdict .chart[data-drawn=yes]")
                seen(page, ".verdict", pictures / f"{name}.png", is_whole=True)
        with opened(browser, report, PHONE) as (page, _):
            page.screenshot(path=pictures / "report-phone.png")
        with opened(browser, report) as (page, _):
            page.wait_for_selector("section.items[data-ready]")
            page.locator(".filters").get_by_label("Which").select_option("forgotten by any")
            page.locator(".list .row").first.click()
            seen(page, "section.items", pictures / "report-items.png", is_whole=False)


if __name__ == "__main__":
    main()
