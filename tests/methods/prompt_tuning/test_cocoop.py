"""CoCoOp: image by image, and CoOp where the meta-net says nothing."""

import pytest
import torch
import torch.nn.functional as F

from medvlp.methods.prompt_tuning.cocoop import CoCoOp
from medvlp.methods.prompt_tuning.coop import CoOp
from tests.methods.small import make_card

CARD = make_card()


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_without_its_meta_net_it_is_coop_with_that_context(clip, f, position):
    method = CoCoOp(clip, CARD, n_ctx=4, ctx_init="", position=position, seed=3)
    coop = CoOp(clip, CARD, n_ctx=4, position=position)
    with torch.no_grad():
        coop.ctx.copy_(method.ctx)
        moved = method.logits_from_features(f)
        for p in method.meta_net.parameters():
            p.zero_()
    assert torch.allclose(method.logits_from_features(f), coop.logits_from_features(f), atol=1e-5)
    assert not torch.allclose(method.logits_from_features(f), moved, atol=1e-3)


def test_an_image_depends_on_no_other_however_many_there_are(clip):
    method = CoCoOp(clip, CARD)
    f = F.normalize(torch.randn(200, clip.embed_dim, generator=torch.Generator().manual_seed(1)), dim=-1)
    with torch.no_grad():  # 600 texts, more than are encoded at once
        logits = method.logits_from_features(f)
        assert logits.shape == (200, 3)
        for b in (0, 84, 85, 86, 199):
            assert torch.allclose(logits[b], method.logits_from_features(f[b : b + 1])[0], atol=1e-4)


def test_the_meta_net_starts_as_torch_starts_linear_layers(clip):
    method = CoCoOp(clip, CARD)
    for layer in (method.meta_net[0], method.meta_net[2]):
        bound = layer.in_features**-0.5
        for p in layer.parameters():
            assert p.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
