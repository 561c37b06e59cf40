"""A JupyterLab on loopback and a headless Chromium: notebooks as a student sees them.

It needs Chromium (`apt install chromium`, or its path in MEDVLP_CHROMIUM) and the Python package playwright;
where one of them is missing the tests are skipped, with the reason. The server answers on 127.0.0.1 only, to
a token made for this run, and has settings of its own. Nothing is fetched from outside.

    lab.open(cells)        a notebook of these cells, in a page of its own, as a `Page`
    lab.open_file(path)    the same of a notebook's copy
    page.run()             runs its cells, one after the other, and waits for the last
    page.output(2)         the output of the third cell
    page.errors            what the console called an error, and every dialog
    page.outside           addresses of other machines that were asked for
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

READY = 120  # seconds that a busy machine may take to start a server, or a kernel to run a cell
SETTINGS = {  # nothing asks for the network, nothing stands before the notebook
    "apputils-extension/notification": {
        "checkForUpdates": False,
        "fetchNews": "false",
        "doNotDisturbMode": True,
    },
    "notebook-extension/tracker": {"windowingMode": "none"},  # all outputs are in the page, seen or not
}
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test here slow."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Start a headless Chromium, a playwright `Browser`; skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is missing")
    named = os.environ.get("MEDVLP_CHROMIUM")
    found = named or next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium: install it, or set MEDVLP_CHROMIUM to its path")
    playwright.expect.set_options(timeout=30_000)  # milliseconds; a busy machine is slow to answer
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has none
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Start a JupyterLab with its own settings: its address, its token and its folder."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is missing: the extra `notebooks` has it")
    home, root = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks")
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, url = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"),
        *("--LabApp.expose_app_in_browser=True", "--LabApp.news_url="),
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    environment = os.environ | {name: str(home / folder) for name, folder in folders.items()}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(f"{url}/api/status?token={token}", process, home / "log")
            yield url, token, root
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(2 * READY):
        if process.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.5)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def lab(chromium: Any, server: tuple[str, str, Path]) -> Iterator[Lab]:
    """Give the tests a JupyterLab; its pages are closed and its kernels ended afterwards."""
    lab = Lab(chromium, *server)
    yield lab
    for page in lab.pages:
        page.page.evaluate("() => jupyterapp.serviceManager.sessions.shutdownAll()")
        page.page.context.close()
