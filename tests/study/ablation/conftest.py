"""What the tests of studies share."""

from pathlib import Path

import pytest

from tests.backbone import small_clips
from tests.study.ablation.small_study import COUNTS


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small CLIP."""
    folder = tmp_path_factory.mktemp("small_clip")
    small_clips.open_clip_kind(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small CLIP, in which runs are counted."""
    (tmp_path / "clip").symlink_to(clip_folder)
    monkeypatch.setenv(COUNTS, str(tmp_path / "counts.txt"))
    return tmp_path
