"""The site: built from what is committed, no dead link, every public name, and a reader's way through it."""

import functools
import http.server
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import medvlp
import medvlp.show
from medvlp import load_card
from tests.browser.pages import open_html

pytest.importorskip("myst_nb", reason="Sphinx is missing: the extra `site` has it")
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks" / "site"


PLAIN = {"document", "table", "tgroup", "colspec", "thead", "tbody", "row", "entry", "paragraph", "Text"}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; a warning of the build is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(FOLDER / "make_site.py"), str(folder / "site"), "-q", "-W"]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "--keep-going"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    (folder / "built").write_text(f"{seconds:.1f}")
    return folder / "site"


@pytest.fixture
def site_pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that writes the pages that are no files."""
    monkeypatch.syspath_prepend(FOLDER)
    import site_pages

    return site_pages


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the site on loopback, as any static host does."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=site)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Anchors(HTMLParser):
    """What a page points to, and where in it others may point."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = {""}
        self.pictures: list[dict] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.ids.add(given.get("id") or "")
        self.links |= {given[name] for name in ("href", "src") if given.get(name)}
        if tag == "img":
            self.pictures.append(given)


@pytest.fixture(scope="module")
def anchors(site: Path) -> dict[Path, Anchors]:
    pages = [
        path for path in site.rglob("*.html") if "_static" not in path.parts
    ]  # the theme keeps templates there
    return {path.resolve(): Anchors(path.read_text(encoding="utf-8")) for path in pages}


def test_two_cores_build_it_in_under_two_minutes(site):
    assert float((site.parent / "built").read_text()) < 120  # seconds of processor time


def test_no_link_inside_the_site_is_dead(site, anchors):
    dead = []
    for page, found in anchors.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            there = anchors[target].ids if target in anchors else {unquote(parts.fragment)}
            if not target.is_file() or unquote(parts.fragment) not in there:
                dead.append((page.name, link))
    assert len(anchors) > 100 and dead == []


def test_nothing_comes_from_elsewhere(site):
    """Scripts, styles and pictures are the site's own, so that it works without a network."""
    loads = re.compile(r"<(?:script|img|link)\b[^>]*(?:src|href)=\"(?:https?:)?//", re.IGNORECASE)
    assert [path.name for path in site.rglob("*.html") if loads.search(path.read_text("utf-8"))] == []


def test_every_notebook_card_and_page_is_there(site):
    wanted = [*(ROOT / "notebooks").glob("[0-9]*.ipynb"), *(ROOT / "notebooks").glob("*.md")]
    wanted += [*(ROOT / "data_cards").glob("*.md"), *(ROOT / "medvlp/assets").glob("*/README.md")]
    wanted += [path for kind in ("*.ipynb", "*.md") for path in (ROOT / "notebooks/assignments").glob(kind)]
    wanted += [*(ROOT / "notebooks/solutions").glob("*.ipynb")]
    wanted += [ROOT / "README.md", ROOT / "tests/benchmarks/README.md"]
    pages = [site / path.relative_to(ROOT).with_suffix(".html") for path in wanted]
    assert [page for page in pages if not page.is_file()] == []


def test_every_public_name_has_its_page_with_signature_and_example(site, site_pages, anchors):
    listed = (site / "api.html").read_text("utf-8")
    assert {*medvlp.__all__, *medvlp.show.__all__} == {*site_pages.SHORT}
    for name in site_pages.PUBLIC:
        page = (site / "api" / f"{name}.html").resolve()
        assert name in anchors[page].ids, name
        text = page.read_text("utf-8")
        assert "&gt;&gt;&gt; " in text and "sig-paren" in text and "MinLen" not in text, name
        assert f'href="api/{name}.html#{name}"' in listed


def test_types_in_signatures_lead_to_their_pages(site):
    assert 'href="medvlp.Clip.html"' in (site / "api" / "medvlp.ViP.html").read_text("utf-8")


def test_lectures_and_glossary_lead_to_each_other(site, anchors, site_pages):
    lectures = site_pages.lectures(ROOT)
    glossary = anchors[(site / "notebooks/glossary.html").resolve()]
    terms = {name for name in glossary.ids if name.startswith("term-")}
    assert len(terms) >= len(site_pages.terms((ROOT / "notebooks/glossary.md").read_text("utf-8")))
    led = set()
    for lecture in lectures:
        page = anchors[(site / f"{lecture}.html").resolve()]
        led |= {link.split("#")[1] for link in page.links if link.startswith("glossary.html#")}
        assert f"{Path(lecture).name}.html" in glossary.links
    assert led == terms


def test_no_solution_of_an_assignment_is_on_the_site(site):
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".ipynb", ".txt", ".js")]
    secret = [path for path in files if "BEGIN SOLUTION" in path.read_text(encoding="utf-8")]
    assert [path.name for path in secret if path.parent.name == "assignments" and path.stem != "README"] == []
    loss = (site / "notebooks/assignments/A1.html").read_text("utf-8")
    assert "NotImplementedError" in loss


def test_figures_say_what_they_show(anchors):
    for page, found in anchors.items():
        for picture in found.pictures:
            assert picture.get("alt", "").strip() and "_images" not in picture["alt"], (page.name, picture)


def test_phrases_of_a_card_show_letter_by_letter(site_pages):
    from myst_parser.mdit_to_docutils.base import make_document
    from myst_parser.parsers.docutils_ import Parser

    hostile = [
        "<script>alert(1)</script>",
        "[press](javascript:alert(1))",
        "![](https://example.org/x.png)",
        "{raw}`html <b>x</b>` | `<i>` & $x^2$ \\(y\\)",
        "```{raw} html",
        "https://example.org",
    ]
    card = load_card("phantom-derm")
    phrases = {name: [f"{text} {name[:2]}" for text in hostile] for name in card.classnames}
    page = site_pages.card(card.with_knowledge("hostile", phrases))
    document = make_document(parser_cls=Parser)
    document.settings.myst_enable_extensions = {"dollarmath"}
    Parser().parse(page.split("### Knowledge: hostile")[1], document)
    shown = document.astext()
    assert [text for text in hostile if text not in shown] == []
    assert {type(node).__name__ for node in document.findall()} <= PLAIN


def complaints(said: list[str], address: str) -> list[str]:
    """What the console called an error or a warning, and what was asked of other machines."""
    return [text for text in said if not text.startswith(("log:", "info:", f"request: {address}/"))]


def test_a_reader_finds_a_word_opens_a_figure_and_needs_no_mouse(chromium, address):
    tab, said = open_html(chromium, f"{address}/notebooks/03_train_vip.html", pictures=f"{address}/_")
    reached = []
    for _ in range(12):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel"))
    assert "Skip to main content" in reached[0] and any("Teaching" in text for text in reached if text)
    figure = tab.locator("button.open-figure:has(img[alt*='loss'])").first
    figure.focus()
    tab.keyboard.press("Enter")
    large = tab.locator("dialog.figure[open] img")
    large.evaluate("image => image.decode()")
    assert large.evaluate("image => image.naturalWidth") > 1200  # 150 dots an inch
    assert large.bounding_box()["width"] > figure.bounding_box()["width"]
    assert large.get_attribute("alt") == figure.locator("img").get_attribute("alt")
    tab.keyboard.press("Escape")
    assert tab.locator("dialog.figure[open]").count() == 0
    assert tab.evaluate("document.activeElement.className") == "open-figure"

    tab.keyboard.press("Control+k")
    tab.keyboard.type("trustworthiness")
    tab.keyboard.press("Enter")
    hits = tab.locator("#search-results li a")
    hits.first.wait_for()
    assert any("glossary" in hit.get_attribute("href") for hit in hits.all())
    assert complaints(said, address) == []
    tab.context.close()


def test_it_is_light_or_dark_as_the_system_or_the_reader_says(chromium, address):
    tab, said = open_html(chromium, f"{address}/index.html", pictures=f"{address}/_", color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = tab.evaluate(background)
    tab.locator("button.theme-switch-button").first.click()
    tab.locator("button.theme-change-button[data-mode=light]").first.click()
    light = tab.evaluate(background)
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (dark, light)]
    assert brightness[0] < 200 < 600 < brightness[1]
    assert complaints(said, address) == []
    tab.context.close()


def test_a_page_fits_a_narrow_screen(chromium, address):
    narrow = chromium.new_context(viewport={"width": 390, "height": 800})
    for name in ("index", "notebooks/03_train_vip", "api/medvlp.ViP", "data_cards/wbcatt", "README"):
        tab = narrow.new_page()
        tab.goto(f"{address}/{name}.html", wait_until="networkidle")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, name
    tab.goto(f"{address}/api.html", wait_until="networkidle")
    cells = tab.locator("table.autosummary td").evaluate_all(
        "all => all.map(x => x.getBoundingClientRect().right)"
    )
    assert len(cells) > 100 and max(cells) <= 390, "signatures and what they do, without scrolling aside"
    narrow.close()
