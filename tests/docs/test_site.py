"""The site builds without a warning, and everything on it leads somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.documented import ROOT

pytest.importorskip("sphinx", reason="the site needs Sphinx; `pip install rankwise[docs]`")

_LINKS = {"a": "href", "img": "src", "link": "href", "script": "src"}


class Page(HTMLParser):
    """The places that a page has, and those that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names.add(given.get("id", ""))
        if tag in _LINKS and _LINKS[tag] in given:
            self.links.append((tag, given[_LINKS[tag]]))


class Site(NamedTuple):
    root: Path
    pages: dict[str, Page]

    def broken(self) -> Iterator[str]:
        """Links to files and places of this site that do not exist."""
        for name, page in self.pages.items():
            for _, link in page.links:
                parts = urlsplit(link)
                if parts.scheme or parts.netloc:
                    continue
                target = (self.root / name).parent / unquote(parts.path) if parts.path else None
                file = (self.root / name) if target is None else target.resolve()
                if not file.exists():
                    yield f"{name}: {link}"
                elif parts.fragment and file.suffix == ".html":
                    its = self.pages[file.relative_to(self.root).as_posix()]
                    if unquote(parts.fragment) not in its.names:
                        yield f"{name}: {link}"


def built(source: Path, to: Path) -> subprocess.CompletedProcess[str]:
    options = ["-b", "html", "-W", "-q", "-d", str(to / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(to / "site")]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def read(root: Path) -> Site:
    pages = {
        path.relative_to(root).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in root.rglob("*.html")
    }
    return Site(root.resolve(), pages)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("docs")
    done = built(ROOT / "docs", folder)
    assert (done.returncode, done.stderr) == (0, "")
    return read(folder / "site")


def test_every_page_is_on_the_site_and_can_be_reached(site: Site) -> None:
    written = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    expected = {path.with_suffix(".html").as_posix() for path in written}
    assert expected <= site.pages.keys()
    named = {urlsplit(link).path for _, link in site.pages["index.html"].links}
    assert expected - named - {"index.html"} == set()


def test_no_link_of_the_site_is_broken(site: Site) -> None:
    assert list(site.broken()) == []
    assert sum(len(page.links) for page in site.pages.values()) > 1000


def test_the_site_needs_no_other_server(site: Site) -> None:
    asked = [
        (name, tag, link)
        for name, page in site.pages.items()
        for tag, link in page.links
        if tag != "a" and urlsplit(link).netloc
    ]
    assert asked == []


def test_the_site_can_be_searched(site: Site) -> None:
    index = (site.root / "searchindex.js").read_text(encoding="utf-8")
    assert "Why did my fine-tune get worse?" in index
    assert re.search(r'[{,]"?quantis\w*"?:', index)
    assert (site.root / "search.html").exists()


def test_formulas_are_drawn_without_a_script(site: Site) -> None:
    pages = sorted((site.root / "methods").glob("*.html"))
    methods = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert methods.count("<math") > 200
    assert "$$" not in methods


def test_the_python_page_has_what_the_package_exports(site: Site) -> None:
    names = site.pages["api.html"].names
    assert {"rankwise.api.new", "rankwise.api.Study.run", "rankwise.errors.PlanError"} <= names


def test_the_build_refuses_what_leads_nowhere(tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", source)
    shutil.copytree(ROOT / "docs" / "_static", source / "_static")
    (source / "index.md").write_text("# A\n\n[b](nowhere.md) and [c](#no-such-place)\n")
    (source / "orphan.md").write_text("# B\n")
    done = built(source, tmp_path)
    assert done.returncode != 0
    for what in ("nowhere.md", "no-such-place", "orphan.md"):
        assert what in done.stderr


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#here"></a><a href="c.html"></a><p id="x">')
    (tmp_path / "b.html").write_text('<a href="a.html#x"></a><a href="#y"></a><p id="there">')
    assert sorted(read(tmp_path).broken()) == [
        "a.html: b.html#here",
        "a.html: c.html",
        "b.html: #y",
    ]


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "SKILL.md", "llms.txt"]
)
def test_links_between_pages_in_the_repository_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    missing = [
        link
        for link in links
        if not urlsplit(link).netloc and not (ROOT / urlsplit(link).path).exists()
    ]
    assert missing == []
