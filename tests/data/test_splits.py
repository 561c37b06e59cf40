import warnings

import numpy as np
import pytest

from medvlp.data.splits import few_shot, split


def patients(seed=0, n_cls=3, n_groups=200):
    """Labels and groups of 1 to 12 images, the classes unequal."""
    rng = np.random.default_rng(seed)
    labels, groups = [], []
    for group in range(n_groups):
        size = rng.integers(1, 13)
        labels += [min(int(rng.geometric(0.5)) - 1, n_cls - 1)] * size
        groups += [f"p{group}"] * size
    order = rng.permutation(len(labels))
    return np.array(labels)[order], np.array(groups)[order]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.37, 0.5])
@pytest.mark.parametrize("seed", [1, 2])
def test_groups_stay_whole_and_every_class_hits_the_fraction(fraction, seed):
    labels, groups = patients()
    kept, held = split(labels, groups, fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert not set(groups[kept]) & set(groups[held])
    for label in range(3):
        assert abs((labels[held] == label).sum() - fraction * (labels == label).sum()) <= 6  # half a group


def test_without_groups_the_split_is_exact():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    _, held = split(labels, None, 0.1, seed=1)
    assert np.bincount(labels[held]).tolist() == [10, 5, 1]


def test_a_rare_class_is_on_both_sides():
    labels = np.repeat([0, 1], [1000, 2])
    kept, held = split(labels, None, 0.1, seed=3)
    assert (labels[kept] == 1).sum() == (labels[held] == 1).sum() == 1
    kept, held = split(labels, None, 0.95, seed=3)
    assert (labels[kept] == 1).sum() == (labels[held] == 1).sum() == 1


def test_the_seed_decides():
    labels, groups = patients()
    first, again, other = (split(labels, groups, 0.2, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_group_with_several_labels_stays_whole():
    labels = np.array([0, 0, 1, 0, 1, 1, 0, 1] * 10)
    groups = [f"p{i // 4}" for i in range(80)]
    kept, held = split(labels, groups, 0.3, seed=1)
    assert len(held) == 24
    assert not {groups[i] for i in kept} & {groups[i] for i in held}


def test_a_class_of_one_group_cannot_be_split():
    with pytest.raises(ValueError, match=r"'nevus' cannot be split: its 3 image\(s\) make 1 group\(s\)"):
        split([0, 0, 1, 1, 1], ["a", "b", "c", "c", "c"], 0.2, seed=1, classnames=["melanoma", "nevus"])


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split([0, 0], None, fraction, seed=1)


def test_shots_are_nested_balanced_and_decided_by_the_seed():
    labels, _ = patients()
    four, eight = few_shot(labels, 4, seed=1), few_shot(labels, 8, seed=1)
    assert set(four) < set(eight)
    assert np.bincount(labels[eight]).tolist() == [8, 8, 8]
    assert few_shot(labels, 4, seed=1).tolist() == four.tolist()
    assert few_shot(labels, 4, seed=2).tolist() != four.tolist()


def test_too_few_images_for_the_shots_names_the_class():
    with pytest.raises(ValueError, match=r"class 'nevus' has 1 training image\(s\), fewer than num_shots=2"):
        few_shot([0, 0, 1], 2, seed=1, classnames=["melanoma", "nevus"])
    with pytest.raises(ValueError, match=r"class 'third' has 0 training image"):
        few_shot([0, 0, 1, 1], 2, seed=1, classnames=["first", "second", "third"])
    with pytest.raises(ValueError, match="at least 1"):
        few_shot([0, 1], 0, seed=1)


def test_three_thousand_groups_raise_no_warning():
    labels, groups = patients(n_groups=3000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept, held = split(labels, groups, 0.1, seed=1)
    assert len(held) == pytest.approx(0.1 * len(labels), abs=18)
    assert len(kept) + len(held) == len(labels)
