"""What the tests of studies share."""

from pathlib import Path

import pytest

from tests.study.ablation.small_study import COUNTS, clip_name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small CLIP, in which runs are counted."""
    clip_name(tmp_path)
    monkeypatch.setenv(COUNTS, str(tmp_path / "counts.txt"))
    return tmp_path
