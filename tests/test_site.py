"""The site under docs/, built and looked at: warnings, names, links, and in a browser.

`tox run -e docs`, or `pytest --site tests/test_site.py` where the extra `docs` is installed.
"""

import contextlib
import functools
import http.server
import shutil
import subprocess
import sys
import threading
import zlib
from html.parser import HTMLParser
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

import pytest
from test_guides import DOCS, listed

pytestmark = pytest.mark.site

NEEDED = (
    "sphinx", "pydata_sphinx_theme", "myst_nb", "sphinx_gallery", "sphinx_copybutton", "sphinx_design",
    "sphinx-mathjax-offline", "torch",
)  # fmt: skip
API = "api/generated/genesis.optim.AdamW.html"
LONG = "api/generated/genesis.optim.lr_scheduler.CosineAnnealingWarmRestarts.html"
GALLERY = "auto_gallery/plot_schedules.html"


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Sphinx's process, which has built the site as if nothing had been built before, and the folder."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install -e '.[test,docs]'")
    for made in (DOCS / "auto_gallery", DOCS / "api" / "generated"):
        shutil.rmtree(made, ignore_errors=True)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    return done, folder / "html"


@pytest.fixture(scope="module")
def site(build):
    """The folder of the site. With warnings, which are a test of their own, it is complete, too."""
    _, folder = build
    assert (folder / "objects.inv").is_file(), "the site could not be built"
    return folder


def test_it_is_built_without_a_warning(build):
    done, _ = build
    assert done.returncode == 0, done.stdout + done.stderr


# ---- as files ----


class _Page(HTMLParser):
    """What a page refers to, what loads with it, and the places in it."""

    def __init__(self, file):
        super().__init__()
        self.links, self.loaded, self.places = set(), set(), set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.places.update(given[name] for name in ("id", "name") if given.get(name))
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if tag in ("img", "script", "source", "iframe") and given.get("src"):
            self.loaded.add(given["src"])
        if tag == "link" and given.get("href") and given.get("rel") != "canonical":
            self.loaded.add(given["href"])


@pytest.fixture(scope="module")
def pages(site):
    files = [file for file in site.rglob("*.html") if site / "_static" not in file.parents]
    return {file: _Page(file) for file in files}


def test_every_public_name_has_its_page_in_the_site(site):
    inventory = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(inventory.split(b"zlib.\n", 1)[1]).decode().splitlines()
    entries = [line.split(" ", 4) for line in lines]
    where = {name: uri.partition("#")[0] for name, role, _, uri, _ in entries if role[:3] == "py:"}
    names, modules = listed()
    for name in names | modules:
        assert name in where, f"{name} is nowhere in the site"
        assert (site / where[name]).is_file()
    assert where["genesis.optim.AdamW"] == API


def test_links_within_the_site_lead_somewhere(site, pages):
    wrong = set()
    for file, page in pages.items():
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.is_file():
                wrong.add((file.name, link))
                continue
            places = pages[target].places if target.suffix == ".html" else set()
            if (
                parts.fragment
                and target.suffix == ".html"
                and unquote(parts.fragment) not in places
            ):
                wrong.add((file.name, link))
    assert not wrong


def test_pages_load_nothing_from_elsewhere(pages):
    for file, page in pages.items():
        others = [source for source in page.loaded if urlsplit(source).netloc]
        assert not others, file.name


# ---- in a browser ----


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A browser that leaves a page closes its connections."""


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(_Quiet, directory=str(site))
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: the extra docs")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@contextlib.contextmanager
def _opened(browser, address, path, **settings):
    """A page of the site; at the end, that it loaded nothing from elsewhere, and all without errors."""
    context = browser.new_context(**settings)
    page = context.new_page()
    page.set_default_timeout(60_000)
    others, errors = [], []
    page.on("request", lambda r: r.url.startswith((address, "data:")) or others.append(r.url))
    page.on("response", lambda r: r.status < 400 or errors.append(f"{r.status} {r.url}"))
    page.on("requestfailed", lambda r: errors.append(f"failed: {r.url}"))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: m.type != "error" or errors.append(m.text))
    page.goto(f"{address}/{path}", wait_until="load")
    yield page
    context.close()
    assert others == []
    assert errors == []


def _contrast(page, selector):
    """How an element's colour stands out from the background behind it, as WCAG has it: 1 to 21."""
    return page.evaluate(
        """selector => {
            const parse = text => text.match(/[\\d.]+/g).map(Number);
            const part = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
            const element = document.querySelector(selector);
            let behind = element, ground = [0, 0, 0, 0];
            while (behind && (ground[3] ?? 1) === 0) {
                ground = parse(getComputedStyle(behind).backgroundColor);
                behind = behind.parentElement;
            }
            const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground)];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }""",
        selector,
    )


def _too_wide(page):
    """What sticks out of the screen but tables, code and formulas, which are scrolled by themselves."""
    return page.evaluate(
        """() => [...document.querySelectorAll('article *')]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .filter(e => !e.closest('table, pre, mjx-container, div.math'))
            .map(e => e.outerHTML.slice(0, 200))"""
    )


SIZES = {"desk": (1280, 900), "phone": (360, 740)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("path", ["index.html", "coming_from.html", API, LONG, GALLERY])
def test_a_page_is_readable(browser, address, path, size, scheme):
    width, height = SIZES[size]
    viewport = {"width": width, "height": height}
    with _opened(browser, address, path, viewport=viewport, color_scheme=scheme) as page:
        assert page.locator("html").get_attribute("data-theme") == scheme
        for selector in ("article p", "article h1"):
            assert _contrast(page, selector) >= 4.5
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert _too_wide(page) == []
        assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 14
        if path == API:
            page.wait_for_selector("mjx-container svg")


def test_formulas_are_drawn(browser, address):
    with _opened(browser, address, API) as page:
        page.wait_for_selector("mjx-container svg")
        page.wait_for_function("document.querySelectorAll('.math').length > 0")
        page.wait_for_function(
            "[...document.querySelectorAll('.math')].every(m => m.querySelector('mjx-container svg'))"
        )
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
        assert page.locator("mjx-container[display=true]").first.bounding_box()["width"] > 100


def test_the_search_finds(browser, address):
    with _opened(browser, address, "search.html?q=AdamW") as page:
        page.wait_for_selector("#search-results li a")
        found = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)")
        assert any(API in link for link in found)


def test_pictures_are_loaded(browser, address, site):
    scripts = sorted((DOCS / "gallery").glob("plot_*.py"))
    assert len(scripts) >= 5
    for script in scripts:
        with _opened(browser, address, f"auto_gallery/{script.stem}.html") as page:
            widths = page.locator("article img").evaluate_all(
                "async all => Promise.all(all.map(async i => { i.loading = 'eager';"
                " await i.decode(); return i.naturalWidth; }))"
            )
            assert widths, script.name
            assert all(width >= 300 for width in widths), script.name


def test_dark_mode_is_chosen_by_a_click(browser, address):
    with _opened(browser, address, "index.html", color_scheme="light") as page:
        assert page.locator("html").get_attribute("data-theme") == "light"
        page.locator("button.theme-switch-button:visible").first.click()
        page.locator("button.theme-change-button[data-mode=dark]:visible").first.click()
        assert page.locator("html").get_attribute("data-theme") == "dark"
