"""KgCoOp: what its penalty holds the context to."""

import pytest
import torch

from medvlp.backbone.clip import Clip, load_clip
from medvlp.methods.prompt_tuning.kgcoop import KgCoOp
from tests.backbone import small_clips
from tests.methods.small import make_card

CARD = make_card()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    return load_clip(small_clips.openai_kind(tmp_path_factory.mktemp("clip")), device="cpu")


def test_there_is_no_penalty_where_the_context_is_the_template(clip, f):
    method = KgCoOp(clip, CARD, templates=["a photo of a {}."])
    assert method.training_logits(f)[1].abs().max() < 1e-5


def test_the_first_template_of_the_card_is_the_default(clip):
    assert len(CARD.templates) > 1
    first, every = (KgCoOp(clip, CARD, templates=CARD.templates[:n]) for n in (1, None))
    assert torch.equal(KgCoOp(clip, CARD).w, first.w) and not torch.allclose(first.w, every.w)


def test_the_penalty_alone_leads_to_the_template(clip, f):
    method = KgCoOp(clip, CARD, ctx_init="", n_ctx=4)
    sgd = torch.optim.SGD([method.ctx], lr=0.02, momentum=0.9)
    penalties = []
    for _ in range(30):
        penalty = method.training_logits(f)[1].mean()
        sgd.zero_grad()
        penalty.backward()
        sgd.step()
        penalties.append(penalty.item())
    assert penalties[-1] < 0.5 * penalties[0]


def test_as_many_numbers_are_learned_as_published(clip):
    def count(M: int, w: int) -> int:
        return M * w

    method = KgCoOp(clip, CARD)
    learned = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert learned == count(len(method.ctx), clip.text_width)
    assert count(len(method.ctx), w=512) == 2_048  # ViT-B/16


def test_what_makes_no_sense_is_an_error(clip):
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        KgCoOp(clip, CARD, weight=-1)
    with pytest.raises(ValueError, match=r"template 'a photo' has no \{\} for the class name"):
        KgCoOp(clip, CARD, templates=["a photo"])
