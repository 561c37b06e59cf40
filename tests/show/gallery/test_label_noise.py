"""Wrong labels that were planted are found far better than by chance."""

import copy

import numpy as np
import pytest
import torch

from medvlp import load_dataset
from medvlp.show import label_noise_suspects
from medvlp.show.gallery.doubtful import confident_label
from medvlp.show.gallery.reasons import misled_by
from tests.methods.small import make_card, make_set


@pytest.fixture(scope="module")
def train():
    return load_dataset("phantom-fundus").train.subset(range(800))


def _filled(images, found, places_of) -> np.ndarray:
    """A label for every image: the one suggested where there is one."""
    labels = images.labels.numpy().copy()
    labels[found.table["image"]] = found.table["predicted"].map(places_of)
    return labels


def with_labels(images, labels, groups=None):
    """The same images, labelled otherwise."""
    other = copy.copy(images)
    other.labels, other.groups = labels, groups or images.groups
    return other


@pytest.fixture(scope="module")
def planted(train):
    """8 % of the labels moved on to the class two further; and which these are."""
    flipped = torch.from_numpy(np.random.default_rng(0).random(len(train)) < 0.08)
    return with_labels(train, torch.where(flipped, (train.labels + 2) % 5, train.labels)), flipped.numpy()


def test_planted_wrong_labels_are_found(clip, train, planted):
    noisy, flipped = planted
    found = label_noise_suspects(noisy, clip)
    places = found.table["image"].to_numpy()
    precision, recall = flipped[places].mean(), flipped[places].sum() / flipped.sum()
    assert precision > 2.5 * flipped.mean() and recall > 0.6 and len(places) < 0.3 * len(noisy)
    assert flipped[places[:30]].mean() > 0.5  # the least probable label first
    assert found.table["p_true"].is_monotonic_increasing
    truth = np.array(train.card.classnames)[train.labels[places.tolist()]]
    own = flipped[places]
    assert (found.table["predicted"].to_numpy()[own] == truth[own]).mean() > 0.6  # chance: one of four
    assert (found.table["true"] != found.table["predicted"]).all()
    places_of = {name: k for k, name in enumerate(train.card.classnames)}
    evidence = misled_by(noisy, places.copy(), _filled(noisy, found, places_of))  # of the suggested class
    assert found.table["misled_by"].tolist() == evidence["misled_by"].tolist()
    assert found.words == ("label", "suggested")


def test_the_same_seed_finds_the_same_and_shows_images_of_other_groups(clip, planted):
    noisy, _ = planted
    in_threes = with_labels(noisy, noisy.labels, [str(i // 3) for i in range(len(noisy))])
    one, other = (label_noise_suspects(in_threes, clip) for _ in range(2))
    assert one.table.equals(other.table)
    assert (one.neighbours["image"] // 3 != one.neighbours["neighbour"] // 3).all()


def test_a_label_is_doubted_where_another_class_reaches_its_own_images_mean():
    labels = np.array([0, 0, 0, 1, 1, 2])
    p = np.array(
        [
            [0.9, 0.05, 0.05],
            [0.2, 0.7, 0.1],  # class 1 reaches 0.6, the mean of its own: doubted
            [0.35, 0.5, 0.15],  # class 1 is the most probable, and does not reach it: not doubted
            [0.1, 0.8, 0.1],
            [0.5, 0.4, 0.1],  # class 0 reaches (0.9 + 0.2 + 0.35) / 3: doubted
            [0.1, 0.1, 0.8],
        ]
    )
    assert confident_label(p, labels).tolist() == [0, 1, 0, 1, 0, 2]


def test_too_few_groups_or_neighbours_are_refused(clip):
    images = make_set(make_card(), [0] * 6 + [1] * 6 + [2] * 3)
    for some, n_neighbours, folds, message in (
        (images, 3, 5, r"class 'keratosis' has 3 group\(s\) of images for 5 folds"),
        (images, 3, 1, "at least 2 folds"),
        (images, 15, 5, "15 images allow 1 to 14"),
        (images.subset(np.arange(0)), 15, 5, "is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            label_noise_suspects(some, clip, n_neighbours, folds)
