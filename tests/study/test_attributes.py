"""How well a CLIP reads attributes by their wordings, beside a probe and a second expert."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import medvlp
from medvlp.data.card_parts import Attribute
from medvlp.study.attributes import attribute_accuracy, wordings_of


@pytest.fixture(scope="module")
def data():
    return medvlp.load_dataset("phantom-derm")


@pytest.fixture(scope="module")
def clip():
    return medvlp.load_clip("tiny", device="cpu")


@pytest.fixture(scope="module")
def table(clip, data):
    return attribute_accuracy(clip, data.test.subset(range(300)), data.train.subset(range(600)), 100)


def test_it_is_the_mean_recall_of_the_nearest_wording(clip, data, table):
    images = data.test.subset(range(300))
    features = medvlp.image_features(clip, images).features
    attribute = images.world.attributes[0]
    there = images.latents.attributes[:, 0]
    present, absent = (
        clip.encode_texts(list(texts)).mean(0) for texts in (attribute.present, attribute.absent)
    )
    says = features @ (present / present.norm()) > features @ (absent / absent.norm())
    recalls = [(says == there)[there == truth].float().mean().item() for truth in (True, False)]
    row = table.loc[attribute.name]
    assert row["read"] == pytest.approx(np.mean(recalls), abs=1e-9)
    assert row["low"] <= row["read"] <= row["high"] and row["images"] == 300
    assert row[["values", "chance"]].tolist() == [2, 0.5]


def test_what_the_probe_reads_is_what_the_image_tower_sees(table):
    assert "second" not in table
    assert (table["probe"] >= table["read"] - 0.05).mean() > 0.8
    assert table["probe"].max() > 0.95


def test_a_second_expert_and_images_that_nobody_looked_at(clip, data):
    images = data.test.subset(range(120))
    first = images.attributes
    name = first.columns[0]
    first = first.assign(**{name: first[name].where(np.arange(120) < 80)})
    other = {"absent": "present", "present": "absent"}
    second = images.attributes[name].where(np.arange(120) % 4 > 0, images.attributes[name].map(other))
    second = images.attributes.assign(**{name: second})
    second.iloc[40:] = np.nan
    noted = annotated_phantoms(images, (first, second))
    row = attribute_accuracy(clip, noted, n_bootstrap=10).loc[name]
    truth = (first[name] == "present").to_numpy()[:40]
    answers = (second[name] == "present").to_numpy()[:40]
    recalls = [(answers == truth)[truth == value].mean() for value in (True, False)]
    assert row["images"] == 80 and row["second"] == pytest.approx(np.mean(recalls))


def annotated_phantoms(images: medvlp.ImageSet, annotations: tuple[pd.DataFrame, ...]) -> medvlp.ImageSet:
    """Phantoms as a set whose card names the attributes."""
    values = {a.name: {"absent": list(a.absent), "present": list(a.present)} for a in images.world.attributes}
    attributes = [Attribute(name=n, column=n, values=v) for n, v in values.items()]
    card = images.card.model_copy(update={"attributes": attributes})
    facts = card, "test", images.ids, images.labels, images.groups, images.store
    return medvlp.ImageSet(*facts, annotations=annotations)


def test_images_of_which_nothing_is_known():
    card = medvlp.load_card("pneumonia")
    images = medvlp.load_dataset("phantom-derm", num_shots=1).test
    facts = card, "test", images.ids, images.labels, images.groups, images.store
    with pytest.raises(ValueError, match="card 'pneumonia' has no attributes"):
        wordings_of(medvlp.ImageSet(*facts))
    assert replace(images, annotations=()).attributes.shape[1] == len(images.world.attributes)
