"""CoOp: what is learned, and of which class."""

import torch

from medvlp.methods.prompt_tuning.coop import CoOp
from tests.methods.small import make_card

CARD = make_card()


def test_class_specific_context_changes_its_own_class_only(clip):
    coop = CoOp(clip, CARD, csc=True)
    before = coop.class_features()
    with torch.no_grad():
        coop.ctx[1] *= -20
    after = coop.class_features()
    assert torch.allclose(after[[0, 2]], before[[0, 2]], atol=1e-6)
    assert (after[1] - before[1]).norm() > 1e-3
