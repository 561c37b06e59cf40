"""What the tests of training and evaluation share."""

import pytest
from tqdm.auto import tqdm

from medvlp.data.datasets import ImageSet
from tests.study.training.small_training import small_sets


@pytest.fixture(scope="session")
def sets() -> tuple[ImageSet, ImageSet]:
    """Return training and validation images of coloured squares."""
    return small_sets()


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What is written beside each progress bar that may be shown."""
    bars, init = [], tqdm.__init__

    def noting(self: tqdm, *args: object, **options: object) -> None:
        init(self, *args, **options)
        if not self.disable:
            bars.append(options.get("desc"))

    monkeypatch.setattr(tqdm, "__init__", noting)
    return bars
