"""LinearProbe: scikit-learn's answer in a module, learned from what there is to learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medvlp.backbone.features import image_features
from medvlp.methods.adapters.linear_probe import C_GRID, LinearProbe
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.methods.small import make_card, make_set


def sets(n_cls: int, shuffled: bool = False):
    card = make_card(n_cls)
    labels = [i % n_cls for i in range(30)]
    seen = np.random.default_rng(0).permutation(labels) if shuffled else labels
    train, val, test = (
        make_set(card, labels, split, seed) for seed, split in enumerate(("train", "val", "test"))
    )
    if shuffled:
        train.labels = torch.tensor(seen)
    return card, train, val, test


@pytest.mark.parametrize("n_cls", [2, 3])
def test_learns_what_can_be_separated(clip, tmp_path, n_cls):
    card, train, val, test = sets(n_cls)
    probe = LinearProbe(clip, card)
    fit(probe, train, val, cache_dir=tmp_path)
    predicted = probe.logits_from_features(image_features(clip, test, cache_dir=tmp_path).features).argmax(1)
    assert (predicted == test.labels).float().mean() > 0.9


@pytest.mark.parametrize("n_cls", [2, 3])
def test_probabilities_are_scikit_learns(clip, tmp_path, n_cls):
    card, train, val, test = sets(n_cls, shuffled=True)  # nothing to learn, so no probability is 0 or 1
    probe = LinearProbe(clip, card)
    fit(probe, train, val, cache_dir=tmp_path)
    x, x_test = (image_features(clip, s, cache_dir=tmp_path).features for s in (train, test))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=probe.chosen_C, max_iter=2000))
    expected = model.fit(x.numpy(), train.labels.numpy()).predict_proba(x_test.numpy())
    probabilities = probe.logits_from_features(x_test).softmax(1)
    assert probabilities.shape == (30, n_cls)
    assert probabilities.numpy() == pytest.approx(expected, abs=1e-3)


def test_balanced_classes_count_the_same_however_many_images_they_have(clip, tmp_path):
    """Nothing to learn from shuffled labels, so the frequent class wins, unless classes are weighed."""
    card = make_card(2)
    train = make_set(card, [i % 2 for i in range(40)])
    train.labels = torch.tensor(np.random.default_rng(0).permutation([0] * 34 + [1] * 6))
    val = make_set(card, [0, 1] * 10, "val", seed=1)
    x = image_features(clip, val, cache_dir=tmp_path).features
    share = {}
    for class_weight in (None, "balanced"):
        probe = LinearProbe(clip, card, class_weight=class_weight)
        fit(probe, train, val, cache_dir=tmp_path)
        assert LinearProbe(clip, card, **probe.config).config == {"class_weight": class_weight}
        share[class_weight] = probe.logits_from_features(x).softmax(1)[:, 0].mean().item()
    assert share[None] > 0.7 > 0.6 > share["balanced"] > 0.4


def test_C_is_the_best_on_validation_and_the_search_is_kept(clip, tmp_path):
    card, train, val, _ = sets(3)
    probe = LinearProbe(clip, card)
    fit(probe, train, val, cache_dir=tmp_path)
    search = probe.search
    assert list(search["C"]) == list(C_GRID)
    best = search[search["val_balanced_accuracy"] == search["val_balanced_accuracy"].max()]
    assert probe.chosen_C == best.loc[best["val_log_loss"].idxmin(), "C"]
    accuracy = (
        probe.logits_from_features(image_features(clip, val, cache_dir=tmp_path).features).argmax(1)
        == val.labels
    )
    assert accuracy.float().mean().item() == pytest.approx(
        best["val_balanced_accuracy"].iloc[0]
    )  # classes are equal


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_C_of_the_search_ends_at_the_minimum(clip, tmp_path, shuffled):
    card, train, val, _ = sets(3, shuffled)
    probe = LinearProbe(clip, card)
    fit(probe, train, val, cache_dir=tmp_path)
    assert len(probe.search) == len(C_GRID)


def test_validation_may_lack_a_class(clip, tmp_path):
    card, train, val, _ = sets(3)
    probe = LinearProbe(clip, card)
    fit(probe, train, val.subset([0, 1, 3, 4]), cache_dir=tmp_path)
    assert probe.search["val_balanced_accuracy"].max() == 1


def test_an_unfitted_probe_says_so(clip):
    with pytest.raises(RuntimeError, match="the linear probe is not fitted; call medvlp.fit"):
        LinearProbe(clip, make_card())(torch.zeros(1, 3, clip.image_size, clip.image_size))


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([0, 1, 0], [0, 1], "no training image of 'keratosis'; a probe needs"),
        ([0, 1, 2, 7], [0, 1], "of the train set of card .lesions. has label 7, outside"),
    ],
)
def test_errors_name_what_is_wrong(clip, train, val, message):
    card = make_card()
    with pytest.raises(ValueError, match=message):
        fit(LinearProbe(clip, card), make_set(card, train), make_set(card, val, "val"))


def test_it_takes_no_steps(clip, tmp_path):
    card, train, val, _ = sets(3)
    history = fit(LinearProbe(clip, card), train, val, cache_dir=tmp_path, progress=False)
    assert history["epoch"].tolist() == [0] and history["val_accuracy"][0] == 1


def test_without_validation_images_C_cannot_be_chosen(clip):
    card, train, _, _ = sets(2)
    with pytest.raises(ValueError, match="needs validation images to choose C; give val"):
        fit(LinearProbe(clip, card), train, None, TrainConfig(keep="last"))


def test_it_says_where_the_best_C_is_an_end_of_the_grid(clip, tmp_path):
    card, train, val, _ = sets(3)
    probe = LinearProbe(clip, card)
    assert "C=" not in repr(probe)
    fit(probe, train, val, cache_dir=tmp_path)
    for C, words in (
        (C_GRID[0], "C=0.0001, the smallest that was tried: a smaller one may be better"),
        (1.0, "C=1  (clip)"),
        (C_GRID[-1], "C=100, the largest that was tried: a larger one may be better"),
    ):
        probe.chosen_C = C
        assert words in repr(probe).replace("\n", "")
    assert probe.search["C"].max() == C_GRID[-1]
