"""What tests of methods share beside the small CLIP: images, features, a folder for cached ones."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip


@pytest.fixture(scope="module")
def images(clip: Clip) -> torch.Tensor:
    """Four images of noise, (4, 3, S, S)."""
    return torch.randn(4, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def f(clip: Clip) -> torch.Tensor:
    """Five features as the image tower's, normalised, (5, D)."""
    return F.normalize(torch.randn(5, clip.embed_dim, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the image features of one file of tests."""
    return tmp_path_factory.mktemp("cache")
