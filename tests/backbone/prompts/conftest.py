"""One small CLIP of each kind of towers, for all tests of prompts."""

import pytest

from medvlp.backbone.clip import Clip, load_clip
from tests.backbone import small_clips

KINDS = ["open_clip_kind", "openai_kind", "eos_kind", "siglip_kind", "coca_kind", "biomedclip_kind"]
KINDS += ["sigmoid_kind", "t5_kind"]  # whose tokenizers are of sentence pieces


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clip]:
    """The CLIPs by the name of their maker in `small_clips`. Tests leave them as they are."""
    folder = tmp_path_factory.mktemp("clips")
    return {kind: load_clip(getattr(small_clips, kind)(folder / kind), device="cpu") for kind in KINDS}
