"""Images of some classes only."""

import numpy as np
import pytest
import torch
from PIL import Image

from medvlp.data.cards import load_card
from medvlp.data.datasets import load_dataset
from medvlp.data.files import sha256
from medvlp.data.image_sets import Files, ImageSet, Pixels
from medvlp.data.tensor_files import Shipped

TWO = ["severe retinopathy", "mild retinopathy"]  # labels 3 and 1 of the whole card


@pytest.fixture(scope="module")
def data():
    return load_dataset("phantom-fundus", num_shots=6)


def test_the_images_of_some_classes_are_labelled_anew(data):
    card = data.card.with_classes(TWO)
    some = data.train.of_classes(card)
    rows = [i for i, label in enumerate(data.train.labels.tolist()) if label in (3, 1)]
    assert some.ids == [data.train.ids[i] for i in rows]
    assert some.groups == [data.train.groups[i] for i in rows]
    assert some.labels.tolist() == [{3: 0, 1: 1}[int(data.train.labels[i])] for i in rows]
    assert some.card is card and some.counts == dict.fromkeys(TWO, 6)
    assert all(some[k][0].tobytes() == data.train[i][0].tobytes() for k, i in enumerate(rows))
    assert torch.equal(some.latents.labels, data.train.labels[rows])  # the world's


def test_all_classes_in_their_order_are_the_same_set(data):
    assert data.train.of_classes(data.card).fingerprint == data.train.fingerprint
    other = data.train.of_classes(data.card.with_classes(data.card.classnames[::-1]))
    assert other.fingerprint != data.train.fingerprint and torch.equal(other.labels, 4 - data.train.labels)


def test_data_of_some_classes_are_their_three_splits(data):
    some = data.of_classes(TWO)
    assert some.card.classnames == TWO and some.record["classes"] == TWO
    for name, images in some.splits.items():
        assert images.card is some.card and images.split == name
        assert images.counts == {c: data.splits[name].counts[c] for c in TWO}
    assert "classes" not in data.record
    assert np.array_equal(some.summary().columns, [*TWO, "total"])


def test_a_class_without_images_is_refused(data):
    with pytest.raises(ValueError, match="unknown class 'melanoma' in card 'phantom-fundus'"):
        data.train.of_classes(load_card("phantom-derm"))


def test_each_image_has_a_hash_of_its_content_alone(data, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    pixels[4] = pixels[1]
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(6)]
    files = Files(tmp_path, names)
    shipped = Shipped(tmp_path, names, files.hashes, "tiny", "")
    assert files.content() == shipped.content() == sha256(*files.hashes)
    labels = torch.zeros(6, dtype=torch.long)
    for store in (files, shipped, Pixels(pixels, np.arange(6))):
        images = ImageSet(data.card, "train", names, labels, names, store)
        assert [images.hashes.index(one) for one in images.hashes] == [0, 1, 2, 3, 1, 5]
        assert images.subset([5, 2]).hashes == [images.hashes[i] for i in (5, 2)]
        assert images.with_transform(np.asarray).hashes == images.hashes
    assert Pixels(pixels.reshape(6, 4, 16, 3), np.arange(6)).hashes[0] != images.hashes[0]


def test_phantoms_are_known_by_what_they_are_made_of(data):
    images = data.train
    assert len(set(images.hashes)) == len(images)
    other = data.train.of_classes(data.card.with_classes(TWO))  # other labels, the same phantoms
    assert set(other.hashes) < set(images.hashes)
    assert images.subset([3, 0]).hashes == [images.hashes[i] for i in (3, 0)]
    changed = type(images.store)(images.world, images.latents.flip(0), images.store.size)
    assert set(changed.hashes).isdisjoint(images.hashes)
