"""What all tests share: no network, no windows, a cache of their own, and the folder of real data sets."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from medvlp.backbone.clip import Clip

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads this once
matplotlib.use("Agg")
gc.disable()  # until all is imported, of which nothing is garbage


class Scheduling(LoadScopeScheduling):
    """A worker runs a whole file, so that what its tests share is made once; notebooks one by one.

    The files of browser/ share a JupyterLab and go to one worker.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith("tests/browser/"):
            return "tests/browser"
        return nodeid if file == "tests/test_notebooks.py" else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Give each worker its tests."""
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the notebooks' runs, then slow files: last, they would keep one worker waiting."""
    marks: dict[Path, set[str]] = {}
    for item in items:
        marks.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers())
    items.sort(key=lambda item: (not item.get_closest_marker("notebook"), "slow" not in marks[item.path]))


def pytest_collection_finish() -> None:
    """Collect garbage again, but look no more at what has been imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Point the feature cache at a folder of this run, also for the kernels that notebooks start."""
    base = tmp_path_factory.getbasetemp()  # of this worker; beside it one that all workers share
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVLP_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of real data sets, or skip the test where there is none."""
    folder = os.environ.get("MEDVLP_DATA")
    if not folder:
        pytest.skip("needs real images: set MEDVLP_DATA to the folder that holds chest_xray/")
    return Path(folder)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> "Clip":
    """Return a small CLIP with random weights, on the CPU. Tests leave it as it is."""
    from medvlp.backbone.clip import load_clip
    from tests.backbone import small_clips

    return load_clip(small_clips.open_clip_kind(tmp_path_factory.mktemp("clip")), device="cpu")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute in one thread, so that sums are the same, and quick, on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the repository."""
    return Path(__file__).resolve().parents[1]
