"""MaPLe: IVLP whose image prompts are linear functions of its text prompts."""

import pytest
import torch
from torch import nn

from medvlp.backbone.clip import load_clip
from medvlp.methods.prompt_tuning.ivlp import IVLP
from medvlp.methods.prompt_tuning.maple import MaPLe
from tests.backbone import small_clips
from tests.methods.small import make_card

CARD = make_card()


def uncoupled(maple: MaPLe) -> IVLP:
    """IVLP with free image prompts of the values that MaPLe's have."""
    depth, n_ctx, _ = maple.ctx.shape
    ivlp = IVLP(maple.clip, CARD, n_ctx=n_ctx, n_image_ctx=n_ctx, depth=depth, image_depth=depth)
    with torch.no_grad():
        ivlp.ctx.copy_(maple.ctx)
        ivlp.image_prompts.copy_(maple.image_prompts)
    return ivlp


@pytest.mark.parametrize("depth", [1, 2])
def test_the_image_prompts_are_linear_layers_of_the_text_prompts(clip, depth):
    maple = MaPLe(clip, CARD, depth=depth)
    for i in range(depth):
        F_i = nn.Linear(48, 64)
        F_i.load_state_dict({"weight": maple.A[i].detach(), "bias": maple.b[i].detach()})
        assert torch.allclose(maple.image_prompts[i], F_i(maple.ctx[i]), atol=1e-6)


def test_with_its_coupling_off_it_is_ivlp(clip, images):
    maple = MaPLe(clip, CARD)
    ivlp = uncoupled(maple)
    assert torch.equal(maple(images), ivlp(images))
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    (maple(images) * weights).sum().backward()
    (ivlp(images) * weights).sum().backward()
    P, dQ = ivlp.ctx, ivlp.image_prompts.grad  # (depth, n, w), (depth, n, width)
    assert torch.allclose(maple.A.grad, dQ.mT @ P, atol=1e-5)
    assert torch.allclose(maple.b.grad, dQ.sum(dim=1), atol=1e-5)
    assert torch.allclose(maple.ctx.grad, P.grad + dQ @ maple.A, atol=1e-5)


def test_it_starts_as_the_authors_start(clip):
    maple = MaPLe(clip, CARD, n_ctx=2)
    words = clip.token_embedding(clip.tokenize(["a photo"])[0, 1:3])
    assert torch.equal(maple.ctx[0], words)
    assert not torch.equal(maple.A[0], maple.A[1])
    for p in (maple.A, maple.b):
        assert 0.9 * 48**-0.5 < p.abs().max() <= 48**-0.5
    one = MaPLe(clip, CARD, n_ctx=8)  # more than there are words
    assert one.ctx.std().item() == pytest.approx(0.02, rel=0.2)


def test_deeper_coupling_functions_start_from_one_draw(tmp_path):
    cfg = {
        "embed_dim": 40,
        "vision_cfg": small_clips.VISION | {"layers": 3},
        "text_cfg": small_clips.TEXT | {"layers": 4},
    }
    maple = MaPLe(load_clip(small_clips.write_clip(tmp_path, cfg), device="cpu"), CARD)
    assert maple.ctx.shape == (3, 2, 48)
    assert torch.equal(maple.A[1], maple.A[2]) and torch.equal(maple.b[1], maple.b[2])
    assert not torch.equal(maple.A[0], maple.A[1])
    assert not torch.equal(maple.ctx[1], maple.ctx[2])
