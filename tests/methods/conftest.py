"""What tests of methods share beside the small CLIP: images, features, a folder for cached ones."""

from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip
from tests.backbone import small_clips


@pytest.fixture(scope="session")
def vit_b_16() -> Clip:
    """Of the shape of ViT-B/16, with no values: what memory holds is zeros."""
    cfg = open_clip.get_model_config("ViT-B-16")
    with torch.device("meta"):
        model = open_clip.CustomTextCLIP(**cfg)
    model = model.to_empty(device="cpu").eval()
    model.visual.preprocess_cfg = {"size": 224, "mean": small_clips.MEAN, "std": small_clips.STD}
    return Clip("ViT-B/16", model, open_clip.get_tokenizer("ViT-B-16"), cfg)


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
