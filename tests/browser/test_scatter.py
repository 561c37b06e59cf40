"""The interactive map in a browser: hover, lasso, keys and buttons, as a file and inside JupyterLab."""

import json

from medvlp.show import scatter_page
from tests.browser.pages import drag, open_html
from tests.show.maps.test_page import HOSTILE, images, make_maps

CELLS = [
    """
import pandas as pd
import medvlp
from medvlp.show.maps.embeddings import Embeddings, image_points, symptom_points
from medvlp.show.maps.page import scatter_page
clip = medvlp.load_clip("tiny", device="cpu")
data = medvlp.load_dataset("phantom-derm")
few = data.test.subset(range(40))
both = Embeddings.concat([image_points(clip, few), symptom_points(medvlp.ZeroShot(clip, data.card))])
maps = both.points.assign(x=both.vectors[:, 0], y=both.vectors[:, 1])
maps = maps.assign(n_neighbors=15, min_dist=0.1, metric="cosine", seed=1)
""",
    "scatter_page(maps, few)",
]


ALL = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99)]  # corners around all points
LEFT = [(0.01, 0.99), (0.01, 0.6), (0.4, 0.6), (0.4, 0.99)]  # around those at the lower left


def open_page(chromium, tmp_path, page, scheme="light"):
    """A page as a file, and what it says."""
    return open_html(chromium, page.save(tmp_path / "map.html").as_uri(), color_scheme=scheme)


def chosen(tab) -> list[int]:
    return json.loads(tab.locator("#rows").input_value() or "[]")


def lasso(tab, corners) -> None:
    drag(tab.mouse, tab.locator("#map").bounding_box(), corners)


def test_hover_and_lasso_by_mouse(chromium, tmp_path):
    maps = make_maps()[:7]  # from the lower left to the upper right
    tab, said = open_page(chromium, tmp_path, scatter_page(maps, images()))
    box = tab.locator("#map").bounding_box()
    tab.mouse.move(box["x"] + 0.03 * box["width"], box["y"] + 0.97 * box["height"])
    assert tab.locator("#card").inner_text() == "what: image\nclassname: nevus\nmethod: CLIP"
    assert tab.locator("#card .thumb").count() == 1
    lasso(tab, LEFT)
    assert chosen(tab) == [0, 1, 2] and tab.locator("#count").inner_text() == "3 chosen:"
    assert tab.locator("#chosen figure .thumb").count() == 3
    tab.get_by_role("button", name="nevus").click()  # hidden points are not caught
    lasso(tab, LEFT)
    assert chosen(tab) == [1]
    tab.get_by_role("button", name="Empty the choice").click()
    assert chosen(tab) == [] and said == []


def test_every_mark_is_reached_by_keyboard(chromium, tmp_path):
    maps = make_maps()[:7].assign(x=[0, 1, 2, 0, 1, 2, 1], y=[0, 0, 0, 2, 2, 2, 1])  # two rows, one between
    tab, said = open_page(chromium, tmp_path, scatter_page(maps), "dark")
    tab.keyboard.press("Tab")
    assert tab.evaluate("() => document.activeElement.id") == "map"
    for i in range(7):
        tab.keyboard.press("PageDown")
        tab.keyboard.press("Enter")
        assert chosen(tab) == list(range(i + 1))
    assert tab.locator("#card").inner_text().startswith("what: class")
    tab.keyboard.press("Escape")
    for key in ("PageDown", "ArrowRight", "Enter", "ArrowUp", "Enter", "ArrowUp", "ArrowLeft", "Enter"):
        tab.keyboard.press(key)
    assert chosen(tab) == [1, 3, 6]
    for key in ("+", "+", "-", "0", "Escape"):
        tab.keyboard.press(key)
    assert chosen(tab) == [] and said == []
    tab.screenshot(path=tmp_path / "dark.png")


def test_zoom_brings_marks_apart(chromium, tmp_path):
    tab, _ = open_page(chromium, tmp_path, scatter_page(make_maps()[:7]))
    lasso(tab, ALL)
    assert len(chosen(tab)) == 7
    for _ in range(4):
        tab.get_by_role("button", name="Zoom in").click()
    lasso(tab, ALL)
    assert 0 < len(chosen(tab)) < 7
    tab.get_by_role("button", name="Show all").click()
    lasso(tab, ALL)
    assert len(chosen(tab)) == 7


def test_hostile_names_are_text(chromium, tmp_path):
    tab, said = open_page(chromium, tmp_path, scatter_page(make_maps(classname=HOSTILE), title=HOSTILE))
    assert tab.locator("h1").inner_text() == HOSTILE
    assert tab.get_by_role("button", name="alert(1)").inner_text().strip() == HOSTILE
    lasso(tab, ALL)
    assert HOSTILE in tab.locator("#chosen").inner_text()
    assert said == [] and tab.locator("img").count() == 0


def test_without_scripts_the_page_says_what_to_do(chromium, tmp_path):
    page = scatter_page(make_maps()).save(tmp_path / "map.html").as_uri()
    for scripts in (True, False):
        tab = chromium.new_context(java_script_enabled=scripts).new_page()
        tab.goto(page)
        assert tab.locator("noscript").is_visible() != scripts
        tab.context.close()


def test_in_jupyterlab(lab, tmp_path):
    page = lab.open(CELLS)
    page.run()
    frame = page.page.frame_locator("iframe[title='interactive map']")
    frame.locator("#map").focus()
    page.press("ArrowRight", "ArrowRight", "Enter")
    assert frame.locator("#count").inner_text() == "1 chosen:"
    drag(page.page.mouse, frame.locator("#map").bounding_box(), ALL)
    n = int(frame.locator("#count").inner_text().split()[0])
    assert n > 40 and frame.locator("#chosen .thumb").count() == 40
    page.screenshot(tmp_path / "lab.png")
    assert page.errors == []
