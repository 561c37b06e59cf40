"""KgCoOp: what its penalty holds the context to."""

import torch

from medvlp.methods.prompt_tuning.kgcoop import KgCoOp
from tests.methods.small import make_card

CARD = make_card()


def test_there_is_no_penalty_where_the_context_is_the_template(clip, f):
    method = KgCoOp(clip, CARD, templates=["a photo of a {}."])
    assert method.training_logits(f)[1].abs().max() < 1e-5


def test_the_first_template_of_the_card_is_the_default(clip):
    assert len(CARD.templates) > 1
    first, every = (KgCoOp(clip, CARD, templates=CARD.templates[:n]) for n in (1, None))
    assert torch.equal(KgCoOp(clip, CARD).w, first.w) and not torch.allclose(first.w, every.w)
