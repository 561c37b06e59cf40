"""VPT: equal to its equations written out, and without prompts to zero-shot."""

import pytest
import torch

from medvlp.methods.prompt_tuning.vpt import VPT
from medvlp.methods.zero_shot import ZeroShot
from tests.methods.small import make_card

CARD = make_card()


def test_deep_is_in_all_blocks_and_shallow_in_the_first(clip, images):
    deep, shallow = VPT(clip, CARD), VPT(clip, CARD, depth=1)
    assert len(deep.image_prompts) == 2
    assert torch.equal(deep.image_prompts[:1], shallow.image_prompts)
    assert (deep(images) - shallow(images)).abs().max() > 1e-3


@pytest.mark.parametrize("templates", [None, ["a photo of a {}."]])
def test_without_prompts_it_is_zero_shot(clip, images, templates):
    vpt = VPT(clip, CARD, depth=0, templates=templates)
    zero_shot = ZeroShot(clip, CARD, "classnames", templates=templates)
    assert torch.allclose(vpt(images), zero_shot(images), atol=1e-4)
    assert torch.equal(vpt.logits_from_features(clip.encode_images(images)), vpt(images))
    assert not any(p.requires_grad for p in vpt.parameters())


def test_texts_are_encoded_before_training_and_not_again(clip, images):
    vpt, calls = VPT(clip, CARD), []
    hook = clip.token_embedding.register_forward_pre_hook(lambda *_: calls.append(1))
    vpt(images)
    hook.remove()
    assert not calls and not vpt.text_features.requires_grad
