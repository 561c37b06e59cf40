"""CLIPAdapter: what is left when a part is off, and how it starts."""

import pytest
import torch

from medvlp.backbone.features import image_features
from medvlp.methods.adapters.clip_adapter import CLIPAdapter
from medvlp.methods.zero_shot import ZeroShot
from tests.methods.small import make_card, make_set

CARD = make_card()
TRAIN = make_set(CARD, [0, 1, 2, 1, 1, 0])


@pytest.fixture(scope="module")
def images(clip) -> torch.Tensor:
    return torch.stack([clip.preprocess(TRAIN.image(i)) for i in range(len(TRAIN))])


@pytest.mark.parametrize("knowledge", ["classnames", "templates", "symptoms"])
def test_without_the_adapter_it_is_zero_shot(clip, images, knowledge):
    zero = ZeroShot(clip, CARD, knowledge)(images)
    assert torch.allclose(CLIPAdapter(clip, CARD, ratio=0.0, knowledge=knowledge)(images), zero, atol=1e-5)
    half = CLIPAdapter(clip, CARD, ratio=0.5, knowledge=knowledge)(images)
    assert not torch.allclose(half, zero, atol=1e-2)


def test_the_start_is_torchs_and_the_seed_decides_it(clip):
    a, b, c = (CLIPAdapter(clip, CARD, seed=seed, reduction=1) for seed in (1, 1, 2))
    assert torch.equal(a.W1, b.W1) and not torch.equal(a.W1, c.W1)
    linear = torch.nn.Linear(40, 40, bias=False)
    for W in (a.W1, linear.weight):  # uniform up to 1 / sqrt(D)
        assert 0.95 / 40**0.5 < W.abs().max() <= 1 / 40**0.5


def test_the_class_features_do_not_pass_through_the_text_tower_again(clip, tmp_path, monkeypatch):
    adapter = CLIPAdapter(clip, CARD)
    f = image_features(clip, TRAIN, cache_dir=tmp_path).features
    monkeypatch.setattr(clip.model, "encode_text", None)
    assert adapter.logits_from_features(f).shape == (6, 3)
