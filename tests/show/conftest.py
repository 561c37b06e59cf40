"""What the tests of show share: the embedded CLIP, and phantoms that it knows."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from medvlp.backbone.clip import Clip
    from medvlp.data.datasets import Data
    from medvlp.methods.zero_shot import ZeroShot


@pytest.fixture(scope="session")
def clip() -> "Clip":
    """Return the embedded CLIP, which knows phantoms, on the CPU. Tests leave it as it is."""
    from medvlp.backbone.clip import load_clip

    return load_clip("tiny", device="cpu")


@pytest.fixture(scope="session")
def data() -> "Data":
    """Return phantoms of skin lesions, all of them."""
    from medvlp.data.datasets import load_dataset

    return load_dataset("phantom-derm")


@pytest.fixture(scope="session")
def zero(clip: "Clip", data: "Data") -> "ZeroShot":
    """Return zero-shot with the symptoms of the phantoms' card. Tests leave it as it is."""
    from medvlp.methods.zero_shot import ZeroShot

    return ZeroShot(clip, data.card)


@pytest.fixture(scope="session")
def pixels(clip: "Clip", data: "Data") -> "Tensor":
    """Return the first three test images, preprocessed: (3, 3, S, S)."""
    import torch

    return torch.stack([clip.preprocess(data.test.image(i)) for i in range(3)])
