"""What all tests share: no network, no windows, a cache of their own, and the folder of real data sets."""

import os
from pathlib import Path

import matplotlib
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads this once
matplotlib.use("Agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the notebooks' runs, which take longest: last, they would keep one worker waiting."""
    items.sort(key=lambda item: item.get_closest_marker("notebook") is None)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Point the feature cache at a folder of this run, also for the kernels that notebooks start."""
    folder = tmp_path_factory.mktemp("cache")
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
def repository() -> Path:
    """Return the root of the repository."""
    return Path(__file__).resolve().parents[1]
