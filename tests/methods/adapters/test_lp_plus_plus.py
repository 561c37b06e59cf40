"""LP++: its start, its rates and its steps, worked out by hand in float64."""

import numpy as np
import pytest
import torch

from medvlp.backbone.features import image_features
from medvlp.methods.adapters.lp_plus_plus import LPPlusPlus
from medvlp.methods.base import Reading
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.training.fit import fit
from tests.methods.small import make_card, make_set

CARD = make_card()
TRAIN = make_set(CARD, [0, 0, 0, 0, 1, 1, 2])


def in_float64(method: LPPlusPlus) -> LPPlusPlus:
    """The method with its own numbers in float64, its CLIP as it is."""
    for name in ("w", "b", "alpha"):
        getattr(method, name).data = getattr(method, name).data.double()
    method.text_features = method.text_features.double()
    return method


def by_hand(f: np.ndarray, y: np.ndarray, t: np.ndarray, steps: int) -> tuple[np.ndarray, ...]:
    """w (n_cls, D), b and alpha (n_cls,), by the gradients of the mean cross-entropy."""
    N, one_hot = len(f), np.eye(len(t))[y]  # (N, n_cls)
    w = np.stack([f[y == c].sum(axis=0) for c in range(len(t))])
    b, cosines = np.zeros(len(t)), f @ t.T
    agreeing = [cosines[y == c, c].mean() if (y == c).any() else 0.0 for c in range(len(t))]
    alpha = np.full(len(t), 250 * np.mean(agreeing))
    rate, rate_alpha = 4 * N / np.linalg.eigvalsh(f.T @ f).max(), N / (4 * (cosines**2).sum(axis=0).max())
    v_w, v_b, summed = np.zeros_like(w), np.zeros_like(b), np.zeros_like(alpha)
    for step in range(1, steps + 1):
        logits = f @ w.T + b + alpha * cosines
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (p / p.sum(axis=1, keepdims=True) - one_hot) / N  # (N, n_cls)
        summed += (error * cosines).sum(axis=0)
        v_w, v_b = 0.9 * v_w + error.T @ f, 0.9 * v_b + error.sum(axis=0)
        w, b = w - rate * v_w, b - rate * v_b
        if step % 10 == 0:
            alpha = alpha - rate_alpha * summed
    return w, b, alpha


@pytest.mark.parametrize("steps", [0, 9, 25])
@pytest.mark.parametrize("rows", [range(7), range(6)], ids=["every class", "a class without an image"])
def test_the_start_and_the_steps_are_those_of_the_formulas(clip, cache, steps, rows):
    train = TRAIN.subset(list(rows))
    f = image_features(clip, train, cache_dir=cache).features.double()
    method = in_float64(LPPlusPlus(clip, CARD, steps=steps))
    method.before_training(train, None, Reading(cache))
    t = method.text_features.numpy()
    assert np.allclose(np.linalg.norm(t, axis=1), 1)
    for own, expected in zip(
        (method.w, method.b, method.alpha),
        by_hand(f.numpy(), train.labels.numpy(), t, steps),
        strict=True,
    ):
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-8, atol=1e-9)
    logits = f @ method.w.T + method.b + method.alpha * (f @ method.text_features.T)
    assert torch.allclose(method.logits_from_features(f), logits)


def test_before_fit_it_is_zero_shot_and_after_it_fits_the_training_images(clip, cache, f):
    method, zero = LPPlusPlus(clip, CARD), ZeroShot(clip, CARD, "templates")
    assert torch.allclose(method.logits_from_features(f), zero.logits_from_features(f), atol=1e-4)
    history = fit(method, TRAIN, None, cache_dir=cache, progress=False)
    x = image_features(clip, TRAIN, cache_dir=cache).features
    assert method.logits_from_features(x).argmax(dim=1).equal(TRAIN.labels)
    assert history["epoch"].tolist() == [0] and not any(p.requires_grad for p in method.parameters())
    with_val = LPPlusPlus(clip, CARD)
    fit(with_val, TRAIN, make_set(CARD, [0, 1, 2], "val", seed=1), cache_dir=cache, progress=False)
    assert torch.equal(with_val.w, method.w) and torch.equal(with_val.alpha, method.alpha)
