"""IVLP: equal to its equations written out, and at its start to zero-shot."""

import pytest
import torch

from medvlp.methods.prompt_tuning.ivlp import IVLP
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.methods.prompt_tuning import deep_oracle
from tests.methods.small import make_card, make_set, shake

CARD = make_card()
TEXTS = [f"a photo of a {name}." for name in CARD.classnames]


@pytest.mark.parametrize(("depth", "image_depth"), [(1, 1), (2, 1), (3, 2), (1, 2)])
def test_logits_and_gradients_are_those_of_the_equations(clip, images, depth, image_depth):
    ivlp = shake(IVLP(clip, CARD, n_ctx=2, n_image_ctx=3, depth=depth, image_depth=image_depth))
    learned = ivlp.ctx, ivlp.image_prompts
    assert [p.shape for p in learned] == [(depth, 2, 48), (image_depth, 3, 64)]
    f = deep_oracle.image_features(clip, images, ivlp.image_prompts)
    t = deep_oracle.text_features(clip, TEXTS, ivlp.ctx)
    expected, logits = clip.logit_scale * f @ t.T, ivlp(images)
    assert torch.allclose(logits, expected, atol=1e-4)
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((x * weights).sum(), learned) for x in (logits, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
        assert (b.flatten(1).norm(dim=1) > 0).all()  # of every block's


@pytest.mark.parametrize("n_ctx", [1, 4])
def test_without_image_prompts_it_starts_as_zero_shot(clip, images, n_ctx):
    ivlp = IVLP(clip, CARD, n_ctx=n_ctx, depth=1, image_depth=0)
    zero_shot = ZeroShot(clip, CARD, "classnames", templates=["a photo of a {}."])
    assert torch.allclose(ivlp(images), zero_shot(images), atol=1e-4)
    f = clip.encode_images(images)
    assert torch.equal(ivlp.logits_from_features(f), ivlp(images))
    deep = IVLP(clip, CARD, n_ctx=n_ctx, depth=2, image_depth=0)
    assert (deep(images) - zero_shot(images)).abs().max() > 1e-3


def test_with_cached_features_no_image_is_encoded_twice(clip, tmp_path):
    train = make_set(CARD, [0, 1, 2] * 4)
    ivlp, calls = IVLP(clip, CARD, image_depth=0), []
    hook = clip.model.visual.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    config = TrainConfig(epochs=3, batch_size=4, views=0, keep="last")
    fit(ivlp, train, None, config, cache_dir=tmp_path, progress=False)
    hook.remove()
    assert sum(calls) == len(train)


def test_texts_are_encoded_once_a_batch(clip, images):
    ivlp, rows = IVLP(clip, CARD), []
    hook = clip.model.text.register_forward_pre_hook(lambda _, args: rows.append(tuple(args[0].shape)))
    ivlp(images)
    hook.remove()
    assert rows == [(3, max(len(clip.tokenize([text])[0]) for text in TEXTS))]


def test_prompts_that_cannot_be_are_refused(clip):
    with pytest.raises(ValueError, match="n_image_ctx must be at least 1, got 0; image_depth=0 has none"):
        IVLP(clip, CARD, n_image_ctx=0)
    with pytest.raises(ValueError, match="depth must be from 1 to 3, the tower's blocks, got 0"):
        IVLP(clip, CARD, depth=0)
    with pytest.raises(ValueError, match="image_depth must be from 0 to 2, the tower's blocks, got 3"):
        IVLP(clip, CARD, image_depth=3)
