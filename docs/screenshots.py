"""The pictures of the README: the report of a study, light, dark and on a phone.

python -m docs.screenshots STUDY_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.browser import PHONE, opened, running_browser

_WIDE = (1280, 1250)
_ITEMS = "section.items[data-ready]"


def main() -> None:
    """Look at the report of a study's folder and keep what is seen."""
    report, pictures = Path(sys.argv[1]) / "report.html", Path(__file__).parent
    with running_browser() as browser:
        for name, size, is_dark in (
            ("report.png", _WIDE, False),
            ("report-dark.png", _WIDE, True),
            ("report-phone.png", PHONE, False),
        ):
            with opened(browser, report, size, is_dark=is_dark) as (page, _):
                page.screenshot(path=pictures / name)
        with opened(browser, report, _WIDE) as (page, _):
            page.wait_for_selector(_ITEMS)
            page.locator(".filters").get_by_label("Which").select_option("forgotten by any")
            page.locator(".list").press("Enter")
            page.locator(_ITEMS).screenshot(path=pictures / "report-items.png")


if __name__ == "__main__":
    main()
