"""Image features of the training images, for methods that need them before the first step."""

from pathlib import Path

import torch
from torch import Tensor

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.data.datasets import ImageSet


def training_features(
    clip: Clip, images: ImageSet, views: int, cache_dir: str | Path | None, progress: bool = True
) -> Tensor:
    """Normalised features of `views` random views of each image, (views, N, D), on the clip's device.

    0 views: the view of evaluation, (1, N, D). They are those that `fit` trains on with the same `views`,
    and are cached as those are.
    """
    numbers = range(views) if views else [None]
    found = [image_features(clip, images, view, cache_dir, progress=progress).features for view in numbers]
    return torch.stack(found).to(clip.device)
