"""IVLP: at its start equal to zero-shot, and no work is done twice."""

import pytest
import torch

from medvlp.methods.prompt_tuning.ivlp import IVLP
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.methods.small import make_card, make_set

CARD = make_card()
TEXTS = [f"a photo of a {name}." for name in CARD.classnames]


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
    hook = clip.token_embedding.register_forward_pre_hook(lambda _, args: rows.append(tuple(args[0].shape)))
    ivlp(images)
    hook.remove()
    assert rows == [(3, max(len(clip.tokenize([text])[0]) for text in TEXTS))]
