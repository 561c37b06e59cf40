"""CoOp: what is learned, and of which class."""

import pytest
import torch

from medvlp.backbone.clip import Clip, load_clip
from medvlp.methods.prompt_tuning.coop import CoOp
from tests.backbone import small_clips
from tests.methods.small import make_card

CARD = make_card()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    return load_clip(small_clips.openai_kind(tmp_path_factory.mktemp("clip")), device="cpu")


def test_class_specific_context_changes_its_own_class_only(clip):
    coop = CoOp(clip, CARD, csc=True)
    before = coop.class_features()
    with torch.no_grad():
        coop.ctx[1] *= -20
    after = coop.class_features()
    assert torch.allclose(after[[0, 2]], before[[0, 2]], atol=1e-6)
    assert (after[1] - before[1]).norm() > 1e-3


def test_as_many_numbers_are_learned_as_published(clip):
    def count(M: int, w: int) -> int:
        return M * w

    coop = CoOp(clip, CARD)
    assert sum(p.numel() for p in coop.parameters() if p.requires_grad) == count(len(coop.ctx), 48)
    assert count(len(coop.ctx), w=512) == 8_192  # ViT-B/16
