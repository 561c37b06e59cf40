"""Folders that tests of loading share."""

from pathlib import Path

import pytest

from tests.data.squares import draw_classes


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Class folders of twenty images each, in a folder of the test's own."""
    return draw_classes(tmp_path)
