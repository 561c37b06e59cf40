"""What the tests of training and evaluation share."""

import pytest

from medvlp.data.datasets import ImageSet
from tests.study.training.small_training import small_sets


@pytest.fixture(scope="session")
def sets() -> tuple[ImageSet, ImageSet]:
    """Return training and validation images of coloured squares."""
    return small_sets()
