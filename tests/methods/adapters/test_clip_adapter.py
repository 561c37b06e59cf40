"""CLIPAdapter: its formula on features that are not normalised, and what is left when a part is off."""

import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.methods.adapters.clip_adapter import CLIPAdapter
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.methods.small import make_card, make_set

CARD = make_card()
TRAIN = make_set(CARD, [0, 1, 2, 1, 1, 0])


@pytest.fixture(scope="module")
def images(clip) -> torch.Tensor:
    return torch.stack([clip.preprocess(TRAIN.image(i)) for i in range(len(TRAIN))])


def plain_logits(clip: Clip, images: torch.Tensor, W1: torch.Tensor, W2: torch.Tensor, ratio: float):
    """As the authors have it: the adapter reads the tower's own features, of any length."""
    raw = clip.model.encode_image(images)  # (B, D)
    assert (raw.norm(dim=1) - 1).abs().min() > 0.05
    hidden = torch.einsum("hd,bd->bh", W1, raw).clamp(min=0)
    mixed = ratio * torch.einsum("dh,bh->bd", W2, hidden).clamp(min=0) + (1 - ratio) * raw
    texts = clip.encode_texts([f"a dermoscopy image of {name}." for name in CARD.classnames])
    return clip.logit_scale * mixed / mixed.norm(dim=1, keepdim=True) @ texts.T


@pytest.mark.parametrize("ratio", [0.2, 0.7, 1.0])
def test_logits_are_the_authors_though_features_are_normalised_first(clip, images, ratio):
    adapter = CLIPAdapter(clip, CARD, ratio=ratio, knowledge="classnames")
    assert adapter.W1.shape == (10, 40) and adapter.W2.shape == (40, 10)
    expected = plain_logits(clip, images, adapter.W1, adapter.W2, ratio)
    assert torch.allclose(adapter(images), expected, atol=1e-4)


@pytest.mark.parametrize("knowledge", ["classnames", "templates", "symptoms"])
def test_without_the_adapter_it_is_zero_shot(clip, images, knowledge):
    zero = ZeroShot(clip, CARD, knowledge)(images)
    assert torch.allclose(CLIPAdapter(clip, CARD, ratio=0.0, knowledge=knowledge)(images), zero, atol=1e-5)
    half = CLIPAdapter(clip, CARD, ratio=0.5, knowledge=knowledge)(images)
    assert not torch.allclose(half, zero, atol=1e-2)


def test_it_is_trained_as_plain_sgd_trains_it(clip, images, tmp_path):
    config = TrainConfig(epochs=4, lr=0.1, views=0, keep="last", warmup_lr=None)
    adapter = CLIPAdapter(clip, CARD, ratio=0.5, knowledge="classnames")
    fit(adapter, TRAIN, None, config, cache_dir=tmp_path, progress=False)

    start = CLIPAdapter(clip, CARD, ratio=0.5, knowledge="classnames")
    W1, W2 = (W.detach().clone().requires_grad_() for W in (start.W1, start.W2))
    sgd = torch.optim.SGD([W1, W2], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for epoch in range(1, 5):
        sgd.param_groups[0]["lr"] = config.learning_rate(epoch)
        sgd.zero_grad()
        F.cross_entropy(plain_logits(clip, images, W1, W2, 0.5), TRAIN.labels).backward()
        sgd.step()
    assert torch.allclose(adapter.W1, W1, atol=1e-5) and torch.allclose(adapter.W2, W2, atol=1e-5)
    assert (W1 - start.W1).abs().max() > 1e-3


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.2}, "ratio must be from 0 to 1, got 1.2"),
        ({"reduction": 41}, "reduction must be from 1 to 40"),
        ({"reduction": 0}, "reduction must be from 1 to 40"),
        ({"knowledge": "class"}, "unknown knowledge 'class'"),
    ],
)
def test_errors_name_what_is_wrong(clip, options, message):
    with pytest.raises(ValueError, match=message):
        CLIPAdapter(clip, CARD, **options)
