"""Notebooks 6 and 7 in a real JupyterLab: run from top to bottom, and what they leave for a reader.

The copies are smaller: fewer images, seeds, epochs and draws.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.browser.pages import open_html
from tests.browser.test_widgets import unfold_the_table

expect = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is missing").expect

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SMALLER = {
    r"epochs=\d+": "epochs=2",
    r"n_draws=\d+": "n_draws=2",
    r"n_images=\d+": "n_images=10",
    r"steps=\d+": "steps=12",
    r"range\((500|800)\)": "range(100)",
    r"(?m)^(data|cells) = .*$": r"\g<0>\n\1 = one_in_eight(\1)",
}
ONE_IN_EIGHT = """
import dataclasses

def one_in_eight(data):  # images of each split
    parts = {name: images.subset(range(0, len(images), 8)) for name, images in data.splits.items()}
    return dataclasses.replace(data, **parts)
"""
BROKEN = "() => [...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.alt)"


class Notebook:
    """A smaller copy of a notebook, run in a page of its own. Cells are found by a piece of their code."""

    def __init__(self, lab: Any, name: str, folder: Path, **parameters: Any) -> None:
        notebook = nbformat.read(FOLDER / name, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None  # what is seen is of this run
                for code, shorter in SMALLER.items():
                    cell.source = re.sub(code, shorter, cell.source)
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
                cell.source += ONE_IN_EIGHT
        nbformat.write(notebook, folder / name)
        # as in a checkout: diagrams are shown from here, and figures saved
        shutil.copytree(FOLDER.parent / "figures", lab.root / "figures", dirs_exist_ok=True)
        (lab.root / "notebooks").mkdir(exist_ok=True)
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
    book = Notebook(lab, "06_failure_cases.ipynb", tmp_path, n_images=40, other_cards=("phantom-fundus",))
    book.check()
    for widget in ("SymptomExplorer(zero", "PhantomLab({"):  # how they are used, test_widgets.py shows
        expect(book.output(widget).locator("[role=status]")).to_be_visible()
    printed = book.output('to_html("runs/failures.html"').inner_text()
    page = lab.root / re.search(r"^(runs/\S+\.html): [\d.]+ MB", printed, re.MULTILINE)[1]
    open_gallery(chromium, page, tmp_path)
    viewed = book.view("runs/failures.html")
    viewed.get_by_role("link", name="melanoma").first.click()
    expect(viewed.get_by_role("heading", name="nevus, predicted melanoma").first).to_be_in_viewport()


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
    book = Notebook(lab, "07_prompt_umap.ipynb", tmp_path, n_images=60, seeds=(1, 2))
    book.check()
    unfold_the_table(book.page, book.output("TrainingMonitor()"), epochs=2)
    expect(book.output("InterventionExplorer(cilmp").locator("[role=status]")).to_be_visible()
    mapped = book.output("scatter_page(maps").frame_locator("iframe[title='interactive map']")
    expect(mapped.get_by_role("button", name="nevus")).to_be_visible()
    viewed = book.view("runs/prompts.html")
    expect(viewed.locator("noscript")).to_be_visible()
    assert "press Trust HTML" in viewed.locator("noscript").inner_text()
    book.page.screenshot(tmp_path / "untrusted.png")
    book.tab.get_by_role("button", name="Trust HTML").click()
    expect(viewed.get_by_role("button", name="nevus")).to_be_visible()
    expect(viewed.locator("noscript")).to_be_hidden()
    book.page.screenshot(tmp_path / "prompts.png")
