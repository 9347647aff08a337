"""The documentation as a site: it builds without a warning, and a browser shows it well."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from test_pasting import copied

for _extension in (
    *("sphinx", "numpydoc", "myst_parser", "pydata_sphinx_theme"),
    *("sphinx_copybutton", "sphinx_design", "sphinx_gallery"),
):
    pytest.importorskip(_extension)

pytestmark = pytest.mark.exhaustive
ROOT = Path(__file__).parents[1]
PHONE, LAPTOP = (390, 844), (1280, 800)
# Not written by us: lists of names, and the search.
MADE = {"genindex.html", "py-modindex.html", "search.html"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages, from nothing: Sphinx also writes beside its sources."""
    copy = tmp_path_factory.mktemp("site")
    built = shutil.ignore_patterns("_build", "generated", "__pycache__")
    shutil.copytree(ROOT / "docs", copy / "docs", ignore=built)
    shutil.rmtree(copy / "docs" / "examples", ignore_errors=True)
    shutil.copytree(ROOT / "examples", copy / "examples", ignore=built)
    shutil.copy(ROOT / "CHANGELOG.md", copy)
    options = ("--nitpicky", "--fail-on-warning", "--keep-going", "--quiet")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, copy / "docs", copy / "html"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return copy / "html"


class Page(HTMLParser):
    """The anchors, the addresses and the title of a page, and what its menus call others."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.title = ""
        self.menus: list[tuple[str, str]] = []
        self._texts: dict[str, list[str]] = {}
        self._link: str | None = None
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self.anchors |= {named[name] for name in ("id", "name") if name in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
            if "nav-link" in named.get("class", "") or "reference internal" in named.get(
                "class", ""
            ):
                self._link, self._texts["a"] = named["href"], []
        elif "src" in named:
            self.loaded.append(named["src"])
        elif tag == "link" and named.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(named["href"])
        elif tag == "h1":
            self._texts["h1"] = []

    def handle_data(self, data: str) -> None:
        for texts in self._texts.values():
            texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        text = "".join(self._texts.pop(tag, [])).replace("#", "").strip()
        if tag == "h1":
            self.title = self.title or text
        elif tag == "a" and self._link is not None:
            self.menus.append((self._link, text))
            self._link = None


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    paths = (p for p in site.rglob("*.html") if p.relative_to(site).parts[0][0] != "_")
    return {str(path.relative_to(site).as_posix()): Page(path) for path in sorted(paths)}


def target(page: str, link: str) -> tuple[str, str]:
    """The page that a link leads to, seen from the root, and the anchor there."""
    parts = urlsplit(urljoin(page, link))
    return unquote(parts.path) or page, unquote(parts.fragment)


def is_external(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for name, page in pages.items():
        for link in (*page.links, *page.loaded):
            if is_external(link):
                continue
            path, anchor = target(name, link)
            known = pages[path].anchors if path in pages else {""}
            if not (site / path).is_file() or (anchor and anchor not in known):
                broken.append(f"{name}: {link}")
    assert not broken
    assert len(pages) > 30


def test_nothing_is_loaded_from_elsewhere(pages: dict[str, Page]) -> None:
    loaded = [(name, link) for name, page in pages.items() for link in page.loaded]
    assert loaded
    assert not [where for where in loaded if is_external(where[1]) and "data:" not in where[1]]


def test_menus_call_pages_by_their_titles(pages: dict[str, Page]) -> None:
    header = [(link, text) for link, text in pages["start.html"].menus if "#" not in link][:6]
    assert len(header) == 6
    for link, text in header:
        assert text == pages[target("start.html", link)[0]].title


def test_columns_have_names(site: Path, pages: dict[str, Page]) -> None:
    nameless = re.compile(r"<th\b[^>]*>\s*(?:<p>\s*</p>)?\s*</th>")
    assert not [name for name in pages if nameless.search((site / name).read_text("utf-8"))]


def test_formulas_need_no_script(pages: dict[str, Page], site: Path) -> None:
    name = "generated/logitloss.weighted_cross_entropy_with_logits.html"
    assert "<math" in (site / name).read_text("utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "google-chrome", "chromium-browser")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=program, args=["--no-sandbox"])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def visit(browser: Any, address: str, names: list[str], size: tuple[int, int]) -> Iterator[Any]:
    """Each page in turn. No page may ask another machine for anything, or have an error."""
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    faults: list[str] = []
    view = context.new_page()
    view.on("pageerror", lambda error: faults.append(str(error)))
    view.on("response", lambda answer: answer.status < 400 or faults.append(answer.url))
    view.on(
        "request",
        lambda request: request.url.startswith((address, "data:")) or faults.append(request.url),
    )
    for name in names:
        view.goto(f"{address}/{name}")
        yield name, view
        assert not faults, name
    context.close()


# What sticks out of the text to the right, unless it is in something that scrolls by itself. The
# text as a whole must not scroll.
STICKING_OUT = """() => {
  const text = document.querySelector(".bd-article-container");
  const scrolls = element => {
    for (let at = element.parentElement; at !== text; at = at.parentElement)
      if (getComputedStyle(at).overflowX !== "visible") return true;
    return false;
  };
  const found = [...text.querySelectorAll("*")].filter(element =>
    element.checkVisibility({visibilityProperty: true}) &&
    element.getBoundingClientRect().right > document.documentElement.clientWidth + 1 &&
    !scrolls(element));
  return found.map(element => element.outerHTML.slice(0, 200));
}"""


def test_no_page_scrolls_sideways_on_a_phone(
    browser: Any, address: str, pages: dict[str, Page]
) -> None:
    names = [name for name in pages if name not in MADE]
    wide = {}
    for name, view in visit(browser, address, names, PHONE):
        if view.evaluate("document.documentElement.scrollWidth") > PHONE[0]:
            wide[name] = ["scrolls"]
        if found := view.evaluate(STICKING_OUT):
            wide.setdefault(name, []).extend(found[:3])
    assert not wide


# Menus and the links to the next page, whose text is cut off.
CUT_OFF = """() => [...document.querySelectorAll(
    ".navbar-header-items a, .bd-toc-nav a, .bd-links a, .prev-next-area a, .prev-next-area p"
  )].filter(element => element.checkVisibility() && element.clientWidth &&
    (element.scrollWidth > element.clientWidth + 1 ||
     element.getBoundingClientRect().right > document.documentElement.clientWidth)
  ).map(element => element.textContent.trim())"""


# By how much the table of capabilities is wider than its place.
CAPABILITIES_OVERFLOW = """() => {
  const table = document.querySelector(".bd-article table");
  return table.scrollWidth - table.parentElement.clientWidth;
}"""


@pytest.mark.parametrize("size", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_no_label_is_cut_off(
    browser: Any, address: str, pages: dict[str, Page], size: tuple[int, int]
) -> None:
    names = [name for name in pages if name not in MADE]
    cut = {}
    for name, view in visit(browser, address, names, size):
        if found := view.evaluate(CUT_OFF):
            cut[name] = found
        if size == LAPTOP:
            if name == "backends.html":
                assert view.evaluate(CAPABILITIES_OVERFLOW) <= 0
            header = view.locator(".navbar-header-items .navbar-nav .nav-internal")
            assert [link.is_visible() for link in header.all()] == [True] * 6
    assert not cut


def test_buttons_copy_what_can_be_pasted(
    browser: Any, address: str, pages: dict[str, Page]
) -> None:
    names = [name for name in pages if name not in MADE]
    count = 0
    for name, view in visit(browser, address, names, LAPTOP):
        for button in view.locator("button.copybtn").all():
            block = view.locator(button.get_attribute("data-clipboard-target"))
            button.dispatch_event("click")
            text = view.evaluate("navigator.clipboard.readText()")
            assert text == copied(block.inner_text()), name
            count += 1
    assert count > 80
