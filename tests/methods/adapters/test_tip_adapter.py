"""TipAdapter: its cache, its search, and what is left when a part is off."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.methods.adapters import tip_adapter
from medvlp.methods.adapters.tip_adapter import TipAdapter
from medvlp.methods.base import Reading
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.methods.small import make_card, make_set

CARD = make_card()
TRAIN = make_set(CARD, [0, 1, 2, 1, 1, 0])
VAL = make_set(CARD, [0, 1, 2] * 5, "val", seed=1)
TEST = make_set(CARD, [0, 1, 2] * 3, "test", seed=2)


@pytest.fixture(scope="module")
def f(clip, cache) -> torch.Tensor:
    return image_features(clip, TEST, cache_dir=cache).features


def filled(clip: Clip, cache, **options) -> TipAdapter:
    tip = TipAdapter(clip, CARD, **options)
    tip.before_training(TRAIN, None, Reading(cache))
    return tip


@pytest.mark.parametrize("knowledge", ["templates", "classnames", "symptoms"])
def test_without_the_cache_it_is_zero_shot(clip, cache, f, knowledge):
    tip = filled(clip, cache, alpha=0.0, knowledge=knowledge, cache_views=0)
    zero = ZeroShot(clip, CARD, knowledge).logits_from_features(f)
    assert torch.allclose(tip.logits_from_features(f), zero, atol=1e-5)
    assert not torch.allclose(
        filled(clip, cache, knowledge=knowledge, cache_views=0).logits_from_features(f), zero, atol=0.1
    )


def test_a_sharp_cache_alone_is_the_nearest_training_image(clip, cache, f):
    tip = filled(clip, cache, alpha=1e6, beta=500.0, cache_views=0)
    keys = image_features(clip, TRAIN, cache_dir=cache).features
    nearest = TRAIN.labels[(f @ keys.T).argmax(dim=1)]
    votes = tip.logits_from_features(f) - filled(clip, cache, alpha=0.0, cache_views=0).logits_from_features(
        f
    )
    assert torch.equal(votes.argmax(dim=1), nearest)


def test_keys_are_the_means_of_views_and_values_the_labels(clip, cache):
    tip = filled(clip, cache, cache_views=3)
    views = [image_features(clip, TRAIN, view, cache, crop=0.5).features for view in range(3)]
    assert torch.allclose(tip.keys, F.normalize(sum(views), dim=1), atol=1e-6)
    assert tip.values.tolist() == np.eye(3)[[0, 1, 2, 1, 1, 0]].tolist()
    assert tip.config["n_cache"] == 6
    evaluation = filled(clip, cache, cache_views=0).keys
    assert torch.allclose(evaluation, image_features(clip, TRAIN, cache_dir=cache).features, atol=1e-6)


@pytest.mark.parametrize("labels", [[0, 1, 2] * 5, [2, 2, 0] * 5])
def test_the_search_takes_the_first_best_of_the_authors_grid(clip, cache, labels):
    val = make_set(CARD, [0, 1, 2] * 5, "val", seed=1)
    val.labels = torch.tensor(labels)
    tip = filled(clip, cache, cache_views=0, alpha_max=30, beta_max=13)
    tip.after_training(val, Reading(cache))
    betas, alphas = (np.linspace(0.1, end, n, endpoint=False) for end, n in ((13, 200), (30, 20)))
    assert tip.search["beta"].to_numpy() == pytest.approx(betas.repeat(20))
    assert tip.search["alpha"].to_numpy() == pytest.approx(np.tile(alphas, 200))

    f_val = image_features(clip, val, cache_dir=cache).features
    best = tip.search["val_accuracy"].max()
    chosen = tip.search[tip.search["val_accuracy"] == best].iloc[0]
    assert (tip.beta.item(), tip.alpha.item()) == pytest.approx((chosen["beta"], chosen["alpha"]))
    for row in (*tip.search.iloc[::400].itertuples(), chosen):
        tip.alpha.fill_(row.alpha)
        tip.beta.fill_(row.beta)
        predicted = tip.logits_from_features(f_val).argmax(dim=1)
        assert (predicted == val.labels).float().mean().item() == pytest.approx(row.val_accuracy)


def test_the_search_holds_a_bounded_number_of_cosines(clip, cache, monkeypatch):
    tip, sizes = filled(clip, cache, cache_views=0), []
    votes = tip._votes
    monkeypatch.setattr(tip, "_votes", lambda a, beta: sizes.append(a.numel()) or votes(a, beta))
    tip.after_training(VAL, Reading(cache))
    assert max(sizes) == len(VAL) * len(TRAIN)
    whole, room = tip.search, 4 * (len(TRAIN) + 20 * 3)  # four images
    sizes.clear()
    monkeypatch.setattr(tip_adapter, "AT_ONCE", room)
    tip.after_training(VAL, Reading(cache))
    assert max(sizes) == 4 * len(TRAIN) and sum(sizes) == 200 * len(VAL) * len(TRAIN)
    pd.testing.assert_frame_equal(tip.search, whole)


def test_fit_fills_the_cache_searches_on_validation_and_takes_no_step(clip, cache):
    tip = TipAdapter(clip, CARD, cache_views=2)
    history = fit(tip, TRAIN, VAL, cache_dir=cache, progress=False)
    assert history["epoch"].tolist() == [0] and len(tip.search) == 4000
    assert history["val_accuracy"][0] == pytest.approx(tip.search["val_accuracy"].max())
    keys = tip.keys.clone()
    fit(tip, TRAIN, VAL, cache_dir=cache, progress=False)  # anew, from the start
    assert torch.equal(tip.keys, keys)


def test_without_validation_or_search_alpha_and_beta_stay(clip, cache):
    plain = TipAdapter(clip, CARD, alpha=2.5, beta=3.5, cache_views=0)
    fit(plain, TRAIN, None, TrainConfig(keep="last"), cache_dir=cache, progress=False)
    untuned = TipAdapter(clip, CARD, alpha=2.5, beta=3.5, cache_views=0, tune=False)
    fit(untuned, TRAIN, VAL, cache_dir=cache, progress=False)
    for tip in (plain, untuned):
        assert (tip.alpha.item(), tip.beta.item(), tip.search) == (2.5, 3.5, None)


def test_an_empty_cache_says_so(clip):
    with pytest.raises(RuntimeError, match=r"the cache is empty; call medvlp\.fit"):
        TipAdapter(clip, CARD)(torch.zeros(1, 3, 32, 32))
