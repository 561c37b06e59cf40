"""SS-Text and SS-Text+: the formula, worked out class by class in float64, and the loss it minimises."""

import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.features import image_features
from medvlp.methods.adapters import ss_text
from medvlp.methods.adapters.ss_text import SSText
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.training.fit import fit
from tests.methods.small import make_card, make_set

CARD = make_card()
TRAIN = make_set(CARD, [0, 0, 0, 0, 1, 1, 2])
SCALE = 7.0


def fitted(clip, cache, train=TRAIN, val=None, **options) -> SSText:
    method = SSText(clip, CARD, logit_scale=SCALE, **options)
    history = fit(method, train, val, cache_dir=cache, progress=False)
    assert history["epoch"].tolist() == [0]
    return method


def by_hand(f, labels, t, plus: bool, least: float = 1e-3) -> torch.Tensor:
    """The weights (n_cls, D), class by class."""
    N, rows = len(f), []
    for c, text in enumerate(t):
        mine = [f[i] for i in range(N) if labels[i] == c]
        counted = len(mine) if plus else N
        if mine:
            weight = 1 / (N * max(1 / counted, least))
            text = text + weight * SCALE * torch.stack(mine).sum(dim=0)
        rows.append(text)
    if not plus:
        return torch.stack(rows)
    mean = sum(rows) / len(rows)
    return torch.stack([w - (2 * w - mean) / (2 * w - mean).norm() for w in rows])


@pytest.mark.parametrize("rows", [range(7), range(6)], ids=["every class", "a class without an image"])
@pytest.mark.parametrize("plus", [False, True])
def test_the_weights_are_those_of_the_formula(clip, cache, plus, rows):
    train = TRAIN.subset(list(rows))
    method, zero = fitted(clip, cache, train, plus=plus), ZeroShot(clip, CARD, "templates")
    f, t = image_features(clip, train, cache_dir=cache).features.double(), zero.text_features.double()
    expected = by_hand(f, train.labels.tolist(), t, plus)
    assert torch.allclose(method.w.double(), expected, rtol=1e-5, atol=1e-5)
    logits = SCALE * f @ F.normalize(expected, dim=1).T
    assert torch.allclose(method.logits_from_features(f.float()).double(), logits, atol=1e-4)


def test_the_loss_of_the_docstring_is_least_there(clip, cache):
    method = fitted(clip, cache)
    f = image_features(clip, TRAIN, cache_dir=cache).features.double()
    t, w = method.text_features.double(), method.w.double().clone().requires_grad_()
    pulled = -(SCALE * f * w[TRAIN.labels]).sum(dim=1).mean()
    (pulled + 0.5 * (1 / len(f)) * (w - t).square().sum()).backward()
    assert w.grad.abs().max() < 1e-5 < method.w.std()


@pytest.mark.parametrize("plus", [False, True])
def test_of_many_images_lambda_falls_no_further(clip, cache, plus, monkeypatch):
    monkeypatch.setattr(ss_text, "LEAST", 1 / 3)
    method = fitted(clip, cache, plus=plus)
    f = image_features(clip, TRAIN, cache_dir=cache).features.double()
    expected = by_hand(f, TRAIN.labels.tolist(), method.text_features.double(), plus, least=1 / 3)
    assert torch.allclose(method.w.double(), expected, rtol=1e-5, atol=1e-5)


def test_before_fit_it_is_zero_shot_and_validation_images_play_no_part(clip, cache, f):
    zero = ZeroShot(clip, CARD, "templates")
    assert torch.allclose(SSText(clip, CARD).logits_from_features(f), zero.logits_from_features(f), atol=1e-4)
    with_val = fitted(clip, cache, val=make_set(CARD, [0, 1, 2], "val", seed=1))
    assert torch.equal(with_val.w, fitted(clip, cache).w)
    assert not torch.allclose(fitted(clip, cache, plus=True).w, with_val.w, atol=0.1)
