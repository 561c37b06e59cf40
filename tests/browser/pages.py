"""Notebooks and pages in the browser, as the tests use them.

lab.open(cells)        a notebook of these cells, in a page of its own, as a `Page`
lab.open_file(path)    the same of a notebook's copy
page.run()             runs its cells, one after the other, and waits for the last
page.output(2)         the output of the third cell
page.press("Enter")    one key, or several one after the other
page.errors            what the console called an error, and every dialog
page.outside           addresses of other machines that were asked for
open_html(...)         a page that is a file, and what it says
"""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

READY = 120  # seconds that a busy machine may take to start a server, or a kernel to run a cell


class Page:
    """One notebook in the browser. `page` is playwright's, for all that is not here."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.errors: list[str] = []
        self.outside: list[str] = []
        own = (url.split("/lab/")[0] + "/", "data:", "blob:")
        page.on("request", lambda one: self.outside.append(one.url) if not one.url.startswith(own) else 0)
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else 0)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._on_dialog)
        page.goto(url, timeout=1000 * READY)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=1000 * READY)
        page.wait_for_function(f"() => {KERNEL}?.status === 'idle'", timeout=1000 * READY)

    def _on_dialog(self, dialog: Any) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def run(self) -> None:
        """Run all cells as Run All does; AssertionError that names the error where one fails."""
        ran = self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
        if not ran:
            raise AssertionError(self.page.evaluate(FAILED))

    def output(self, cell: int) -> Any:
        """The output of a cell, a playwright `Locator`; cells count from 0."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-Cell-outputArea")

    def press(self, *keys: str) -> None:
        """Press these keys one after the other."""
        for key in keys:
            self.page.keyboard.press(key)

    def dark(self) -> None:
        """Switch to JupyterLab's dark theme."""
        theme = "{theme: 'JupyterLab Dark'}"
        self.page.evaluate(f"() => jupyterapp.commands.execute('apputils:change-theme', {theme})")
        self.page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")

    def screenshot(self, path: Path) -> None:
        """Write what is seen, for people to look at."""
        self.page.screenshot(path=path)


FAILED = """() => jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
  .flatMap(cell => cell.outputs ?? []).filter(output => output.output_type === 'error')
  .map(output => `${output.ename}: ${output.evalue}`)"""
KERNEL = "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"


class Lab:
    """A JupyterLab, and pages of it."""

    def __init__(self, browser: Any, url: str, token: str, root: Path) -> None:
        self.browser, self.url, self.token, self.root = browser, url, token, root
        self.pages: list[Page] = []

    def open(self, cells: list[str]) -> Page:
        """A new notebook of these code cells, in a page of its own."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = self.root / f"{secrets.token_hex(4)}.ipynb"
        nbformat.write(notebook, path)
        return self._open(path.name)

    def open_file(self, path: Path) -> Page:
        """A copy of this notebook, in a page of its own."""
        shutil.copyfile(path, self.root / path.name)
        return self._open(path.name)

    def _open(self, name: str) -> Page:
        page = self.browser.new_context(viewport={"width": 1400, "height": 1300}).new_page()
        self.pages.append(Page(page, f"{self.url}/lab/tree/{name}?reset&token={self.token}"))
        return self.pages[-1]


def open_html(
    chromium: Any, url: str, pictures: str = "data:image/", **context: Any
) -> tuple[Any, list[str]]:
    """A page that is a file, and what it says from then on: to the console, by alerts, to the network.

    Of the network, only `pictures` that are in the page itself are left out.
    """
    tab = chromium.new_context(viewport={"width": 1200, "height": 900}, **context).new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: said.append(f"page error: {error}"))
    tab.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on(
        "request", lambda one: None if one.url.startswith(pictures) else said.append(f"request: {one.url}")
    )
    tab.goto(url, wait_until="networkidle")
    assert said.pop(0) == f"request: {url}"
    return tab, said


def drag(mouse: Any, box: dict[str, float], corners: Sequence[tuple[float, float]]) -> None:
    """Drag the mouse past these corners of a box, given from 0 to 1 to the right and down."""
    start, *rest = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    mouse.move(*start)
    mouse.down()
    for place in rest:
        mouse.move(*place, steps=4)
    mouse.up()
