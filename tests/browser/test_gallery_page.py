"""The gallery's page in a browser: class names and symptoms made of HTML and script are only text there."""

import pytest

from medvlp import load_clip
from medvlp.data.errors import visible
from tests.backbone.small_clips import open_clip_kind
from tests.browser.pages import open_html
from tests.show.gallery.test_page import HOSTILE, hostile_card, page_of

OWN = {  # the elements that the page itself is made of
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "article"),
    *("h1", "h2", "h3", "h4", "p", "div", "span", "bdi", "a", "ul", "li", "img", "figure", "figcaption"),
    *("table", "tbody", "tr", "th", "td"),
}
ELEMENTS = """() => [...document.querySelectorAll("*")].map(one =>
  [one.localName, one.getAttributeNames(), one.getAttribute("src"), one.getAttribute("href")])"""


@pytest.mark.parametrize("bypass_csp", [False, True], ids=["as it is", "without its policy"])
def test_hostile_names_and_symptoms_show_as_text_and_do_nothing(chromium, tmp_path, bypass_csp):
    """Escaping alone must do, so the second page has no policy that would stop a script."""
    clip, path = load_clip(open_clip_kind(tmp_path / "clip")), tmp_path / "page.html"
    found, *_ = page_of(clip, hostile_card(), path)
    tab, said = open_html(chromium, path.as_uri(), "data:image/jpeg;", bypass_csp=bypass_csp)
    shown = tab.locator("body").inner_text()
    for text in [*HOSTILE, "<b>title</b>", "<i>own</i>", "<u>note</u>"]:
        assert text in shown
    argued = found.symptoms[found.symptoms["argued"] > 0].groupby(["image", "classname"]).head(1)
    assert argued["symptom"].str.contains("<").any()
    for symptom in argued["symptom"]:
        assert visible(symptom) in shown
    elements = tab.evaluate(ELEMENTS)
    assert {name for name, *_ in elements} <= OWN
    assert not [names for _, names, *_ in elements if any(name.startswith("on") for name in names)]
    assert all(src.startswith("data:image/jpeg;base64,") for *_, src, _ in elements if src is not None)
    assert all(href.startswith("#pair-") for *_, href in elements if href is not None)
    assert tab.locator("img").count() == len(found) + len(found.neighbours)
    for picture in tab.locator("img").all():
        picture.hover()  # the "onmouseover" of a class name would be heard
    assert tab.evaluate("document.images[0].naturalWidth") > 0
    assert tab.locator("h1").evaluate("one => getComputedStyle(one).fontSize") == "22.4px"  # 1.4rem
    tab.screenshot(path=tmp_path / "page.png", full_page=True)
    assert said == []
    tab.context.close()
