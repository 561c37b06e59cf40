"""What the tests of show share: the embedded CLIP, and phantoms that it knows."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from medvlp.backbone.clip import Clip
    from medvlp.data.datasets import Data


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
