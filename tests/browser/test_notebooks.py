"""Notebooks 6 and 7 in a real JupyterLab: run from top to bottom, and used as a reader would use them.

The copies are smaller: fewer images, seeds, epochs and draws, so that each takes less than a minute.
"""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.browser.pages import drag, open_html
from tests.browser.test_widgets import (
    CONTRAST,
    button,
    handle,
    turn_the_edit_down_and_off,
    unfold_the_table,
)

expect = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is missing").expect

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
FAILURES = {r"epochs=\d+": "epochs=2", r"n_draws=\d+": "n_draws=2", r"n_images=\d+": "n_images=10"}
FAILURES |= {r"steps=\d+": "steps=12"}
PROMPTS = {r"epochs=\d+": "epochs=2", r"load_dataset\(card_name": "load_dataset(card_name, num_shots=100"}
BROKEN = "() => [...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.alt)"


class Notebook:
    """A smaller copy of a notebook, run in a page of its own. Cells are found by a piece of their code."""

    def __init__(self, lab: Any, name: str, folder: Path, smaller: dict[str, str], **parameters: Any) -> None:
        notebook = nbformat.read(FOLDER / name, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None  # what is seen is of this run
                for code, shorter in smaller.items():
                    cell.source = re.sub(code, shorter, cell.source)
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
        nbformat.write(notebook, folder / name)
        for beside in ("figures", "notebooks"):  # as in a checkout, so figures are saved here
            (lab.root / beside).mkdir(exist_ok=True)
        self.cells = notebook.cells
        self.page = lab.open_file(folder / name)
        self.tab = self.page.page
        self.page.run()

    def view(self, name: str) -> Any:
        """A page beside the notebook, as JupyterLab shows it: without scripts until it is trusted."""
        open_page = f"jupyterapp.commands.execute('docmanager:open', {{path: {name!r}}})"
        self.tab.evaluate(f"() => {open_page}.then(() => 0)")
        return self.tab.frame_locator(".jp-HTMLViewer iframe")

    def output(self, code: str) -> Any:
        """The output of the one cell with this piece of code."""
        found = [i for i, cell in enumerate(self.cells) if cell.cell_type == "code" and code in cell.source]
        assert len(found) == 1, f"{len(found)} cells have {code!r}"
        return self.page.output(found[0])

    def check(self) -> None:
        """No error, no warning and no broken picture is seen; nothing was asked of other machines."""
        outputs = self.tab.locator(".jp-Notebook .jp-OutputArea-output")
        assert outputs.count() > 15
        errors = self.tab.locator("[data-mime-type='application/vnd.jupyter.error']")
        expect(outputs.and_(errors)).to_have_count(0)
        expect(outputs.filter(has_text="Warning")).to_have_count(0)
        assert self.tab.evaluate(BROKEN) == []
        assert self.page.errors == [] and self.page.outside == []


def test_failure_cases(lab, chromium, tmp_path):
    book = Notebook(
        lab, "06_failure_cases.ipynb", tmp_path, FAILURES, n_images=40, other_cards=("phantom-fundus",)
    )
    book.check()
    use_symptom_explorer(book, tmp_path)
    use_phantom_lab(book, tmp_path)
    book.check()
    printed = book.output('to_html("runs/failures.html"').inner_text()
    page = lab.root / re.search(r"^(runs/\S+\.html): [\d.]+ MB", printed, re.MULTILINE)[1]
    open_gallery(chromium, page, tmp_path)
    viewed = book.view("runs/failures.html")
    viewed.get_by_role("link", name="melanoma").first.click()
    expect(viewed.get_by_role("heading", name="nevus, predicted melanoma").first).to_be_in_viewport()


def use_symptom_explorer(book: Notebook, folder: Path) -> None:
    cell = book.output("SymptomExplorer(zero")
    status, picture = cell.locator("[role=status]"), cell.locator("img")
    mean = cell.get_by_text(re.compile("^melanoma: mean of the used"))
    veil = button(cell, "a blue-white veil")
    decision, used = status.inner_text(), mean.inner_text()
    veil.click()
    expect(veil).to_contain_text("✗")
    expect(mean).not_to_have_text(used)
    cell.scroll_into_view_if_needed()
    book.page.screenshot(folder / "symptoms.png")
    book.page.press("Space")  # takes it back
    expect(status).to_have_text(decision)
    expect(mean).to_have_text(used)

    first = picture.get_attribute("alt")
    handle(cell, "image").focus()
    book.page.press("ArrowRight")
    number = int(re.fullmatch(r"image (\d+) of phantom-derm", first)[1])
    expect(picture).to_have_attribute("alt", f"image {number + 1} of phantom-derm")
    expect(status).not_to_have_text(decision)

    own = cell.get_by_label("symptom", exact=True)
    own.focus()
    book.tab.keyboard.type("many brown dots")
    book.page.press("Tab", "Enter")
    expect(button(cell, "✓ many brown dots")).to_have_count(1)
    expect(own).to_have_value("")
    expect(mean).not_to_have_text(used)


def use_phantom_lab(book: Notebook, folder: Path) -> None:
    cell = book.output("PhantomLab({")
    picture = cell.locator("img")
    rows = cell.locator("table", has_text="Probabilities; drawn as").locator("tbody tr")
    expect(rows).to_have_count(2)
    methods = [rows.first.locator("td").nth(column) for column in (2, 3)]  # zero-shot, ViP
    before, pixels = [one.inner_text() for one in methods], picture.get_attribute("src")
    veil = handle(cell, "veil")
    present = float(veil.get_attribute("aria-valuenow")) > 50
    veil.focus()
    book.page.press(*10 * ["ArrowLeft" if present else "ArrowRight"])
    expect(veil).to_have_attribute("aria-valuenow", "0.0" if present else "100.0")
    for one, text in zip(methods, before, strict=True):
        expect(one).not_to_have_text(text)
    assert picture.get_attribute("src") != pixels
    cell.scroll_into_view_if_needed()
    book.page.screenshot(folder / "phantom.png")
    button(cell, "Reset").click()
    for one, text in zip(methods, before, strict=True):
        expect(one).to_have_text(text)


def open_gallery(chromium: Any, path: Path, folder: Path) -> None:
    """The page as a file, in a browser."""
    tab, said = open_html(chromium, path.as_uri())
    expect(tab.get_by_role("heading", name="ZeroShot on phantom-derm, test").first).to_be_visible()
    assert tab.locator("article").count() > 50
    assert tab.locator("img").first.evaluate("one => one.naturalWidth") > 0
    assert said == []
    tab.screenshot(path=folder / "gallery.png")
    tab.context.close()


def test_prompt_umap(lab, tmp_path):
    book = Notebook(lab, "07_prompt_umap.ipynb", tmp_path, PROMPTS, n_images=60, seeds=(1, 2))
    book.check()
    unfold_the_table(book.page, book.output("TrainingMonitor()"), epochs=2)
    use_map(book, tmp_path)
    use_intervention_explorer(book, tmp_path)
    book.check()
    viewed = book.view("runs/prompts.html")
    expect(viewed.locator("noscript")).to_be_visible()
    assert "press Trust HTML" in viewed.locator("noscript").inner_text()
    book.page.screenshot(tmp_path / "untrusted.png")
    book.tab.get_by_role("button", name="Trust HTML").click()
    expect(viewed.get_by_role("button", name="nevus")).to_be_visible()
    expect(viewed.locator("noscript")).to_be_hidden()
    book.page.screenshot(tmp_path / "prompts.png")


def use_map(book: Notebook, folder: Path) -> None:
    cell = book.output("scatter_page(maps")
    cell.scroll_into_view_if_needed()
    frame = cell.frame_locator("iframe[title='interactive map']")
    data, box = json.loads(frame.locator("#data").text_content()), frame.locator("#map").bounding_box()
    side, mouse = box["width"] - 2, book.tab.mouse  # without its border
    places = [  # in the window
        tuple(box[axis] + 1 + ((data[axis][i] - 0.5) * 0.94 + 0.5) * side for axis in "xy")
        for i in range(len(data["x"]))
    ]
    card, count = frame.locator("#card"), frame.locator("#count")
    mouse.move(*places[0])  # an image: they come first
    expect(card).to_contain_text("what: image")
    expect(card.locator(".thumb")).to_have_count(1)
    mouse.move(*places[-1])  # ViP's symptoms after training come last
    expect(card).to_contain_text(re.compile("text: .+\nmethod: ViP\nstage: after"))
    book.page.screenshot(folder / "map.png")

    down = sorted(y for _, y in places)
    caught = max(range(10, len(down) - 10), key=lambda i: down[i] - down[i - 1])  # those above the widest gap
    bottom = ((down[caught - 1] + down[caught]) / 2 - box["y"]) / box["height"]
    drag(mouse, box, [(0.004, 0.004), (0.996, 0.004), (0.996, bottom), (0.004, bottom)])
    expect(count).to_have_text(f"{caught} chosen:")
    expect(frame.locator("#chosen figure")).to_have_count(caught)

    frame.locator("#map").focus()
    book.page.press("Escape")
    expect(count).to_have_text("Nothing is chosen.")
    book.page.press(*2 * ["PageDown", "Enter"])
    expect(count).to_have_text("2 chosen:")
    expect(frame.locator("#rows")).to_have_value(re.compile(r"\[\d+, \d+\]"))


def use_intervention_explorer(book: Notebook, folder: Path) -> None:
    cell = book.output("InterventionExplorer(cilmp")
    turn_the_edit_down_and_off(book.page, cell)
    book.page.screenshot(folder / "intervention.png")
    book.page.dark()
    assert cell.locator("[role=status] span").evaluate(CONTRAST) > 4.5
    book.page.screenshot(folder / "dark.png")
