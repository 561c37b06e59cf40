"""A JupyterLab on loopback and a headless Chromium: notebooks as a student sees them.

It needs Chromium (`apt install chromium`, or its path in MEDVLP_CHROMIUM) and the Python package playwright;
where one of them is missing the tests are skipped, with the reason. The server answers on 127.0.0.1 only, to
a token made for this run, and has settings of its own. Nothing is fetched from outside.
`pages.py` says how the tests use them.
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

import pytest

from tests.browser.pages import READY, Lab

SETTINGS = {  # nothing asks for the network, nothing stands before the notebook
    "apputils-extension/notification": {
        "checkForUpdates": False,
        "fetchNews": "false",
        "doNotDisturbMode": True,
    },
    "notebook-extension/tracker": {"windowingMode": "none"},  # all outputs are in the page, seen or not
}
FOLDERS = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
FOLDERS += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
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
    paths = [os.environ.get("MEDVLP_CHROMIUM"), *map(shutil.which, CHROMIUMS)]
    path = next(filter(None, paths), None)
    if path is None:
        pytest.skip("there is no Chromium: install it, or set MEDVLP_CHROMIUM to its path")
    playwright.expect.set_options(timeout=30_000)  # milliseconds; a busy machine is slow to answer
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has none
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Start a JupyterLab with its own settings: its address, its token and its folder."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is missing: the extra `notebooks` has it")
    home, root = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks")
    for name, values in SETTINGS.items():
        path = home / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, url = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"),
        *("--LabApp.expose_app_in_browser=True", "--LabApp.news_url="),
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    environment = os.environ | {name: str(home / name) for name in FOLDERS}
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
