"""KgCoOp: the penalty written out, and what holds the context back."""

import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip, load_clip
from medvlp.methods.prompt_tuning.coop import CoOp
from medvlp.methods.prompt_tuning.kgcoop import KgCoOp
from tests.backbone import small_clips
from tests.methods.prompt_tuning import coop_oracle
from tests.methods.small import make_card

CARD = make_card()
LABELS = torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    return load_clip(small_clips.openai_kind(tmp_path_factory.mktemp("clip")), device="cpu")


def test_penalty_and_gradient_are_those_of_the_formula(clip, f):
    method = KgCoOp(clip, CARD, weight=8.0)
    ctx = method.ctx.detach().clone().requires_grad_()
    t = coop_oracle.text_features(clip, CARD.classnames, ctx)
    w = clip.encode_texts([f"a dermoscopy image of {name}." for name in CARD.classnames])
    cosines = [F.cosine_similarity(t[c], w[c], dim=0) for c in range(3)]
    expected = 8.0 * (1 - sum(cosines) / 3)
    assert expected > 0.1
    assert expected.item() == pytest.approx(4.0 * (t - w).square().sum(dim=1).mean().item(), rel=1e-3)

    logits, penalty = method.training_logits(f)
    assert torch.equal(logits, method.logits_from_features(f))
    assert penalty.shape == (5,)
    assert penalty.tolist() == pytest.approx([expected.item()] * 5, rel=1e-4)
    (F.cross_entropy(clip.logit_scale * f @ t.T, LABELS) + expected).backward()
    (F.cross_entropy(logits, LABELS) + penalty.mean()).backward()
    assert torch.allclose(method.ctx.grad, ctx.grad, atol=1e-4 * float(ctx.grad.abs().max()))


def test_there_is_no_penalty_where_the_context_is_the_template(clip, f):
    method = KgCoOp(clip, CARD, templates=["a photo of a {}."])
    assert method.training_logits(f)[1].abs().max() < 1e-5


def test_without_weight_it_is_coop(clip, f):
    method, coop = KgCoOp(clip, CARD, weight=0.0), CoOp(clip, CARD, ctx_init="a photo of a")
    logits, penalty = method.training_logits(f)
    assert torch.equal(logits, coop.logits_from_features(f))
    assert torch.equal(penalty, torch.zeros(5))


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
