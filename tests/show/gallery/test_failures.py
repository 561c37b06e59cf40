"""The gallery: what is in it, in which order, and what argued for it."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medvlp import BiomedCoOp, ViP, ZeroShot, image_features
from medvlp.show import failures, right_and_wrong
from medvlp.show.gallery.failures import describe
from medvlp.show.gallery.reasons import misled_by, nearest_images, symptom_evidence
from tests.methods.small import make_card, make_set

LABELS = [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.fixture(scope="module")
def card():
    return make_card()


@pytest.fixture(scope="module")
def images(card):
    return make_set(card, LABELS, "test", seed=1)


@pytest.fixture(scope="module")
def train(card):
    return make_set(card, [0, 1, 2] * 5, "train", seed=2)


@pytest.fixture(scope="module")
def phantoms(data):
    return data.test.subset(range(400))


def logits_of(predicted: list[int], sure: list[float]) -> torch.Tensor:
    logits = torch.zeros(len(predicted), 3)
    logits[torch.arange(len(predicted)), torch.tensor(predicted)] = torch.tensor(sure)
    return logits


# wrong are images 1 (nevus as melanoma), 4 (the same, surer) and 5 (keratosis as nevus, surest)
PREDICTED, SURE = [0, 0, 2, 0, 0, 1, 0, 1], [9.0, 1.0, 1.0, 1.0, 2.0, 3.0, 1.0, 1.0]


@pytest.fixture
def found(images):
    return failures(logits_of(PREDICTED, SURE), images)


def test_the_wrong_images_come_by_confidence_with_the_probabilities_of_both_classes(found, images):
    assert list(found.table["image"]) == [5, 4, 1] and not found.table["correct"].any()
    first = found.table.iloc[0]
    assert (first["true"], first["predicted"]) == ("keratosis", "nevus")
    p = np.exp(3) / (np.exp(3) + 2)
    assert first["confidence"] == pytest.approx(p)
    assert first["p_true"] == pytest.approx((1 - p) / 2)
    assert first["margin"] == pytest.approx(p - (1 - p) / 2)
    assert "3 of 8 wrong" in found.title and len(found) == 3
    assert found.symptoms.empty and found.neighbours.empty and "misled_by" not in found.table


def test_pairs_are_counted_and_a_pair_can_be_taken_out(found):
    pairs = found.pairs()
    assert pairs[["true", "predicted", "images"]].to_numpy().tolist() == [
        ["nevus", "melanoma", 2],
        ["keratosis", "nevus", 1],
    ]
    assert pairs["confidence"][0] == pytest.approx(found.table["confidence"][1:].mean())
    assert list(found.pair("nevus", "melanoma").table["image"]) == [4, 1]
    assert len(found.pair("melanoma", "nevus")) == 0
    with pytest.raises(ValueError, match="did you mean 'nevus'"):
        found.pair("nevos", "melanoma")


def test_where_leaves_out_what_is_right_or_unsure(images):
    logits = logits_of(PREDICTED, SURE)
    everything = describe("all", images, np.arange(8), logits, logits)
    confident = everything.where(
        ~everything.table["correct"] & (everything.table["confidence"] >= 0.7), "wrong and sure"
    )
    assert list(confident.table["image"]) == [5, 4]  # image 0 is surer, and right
    assert confident.title.endswith("wrong and sure: 2") and len(everything) == 8


def test_right_and_wrong_are_the_images_that_one_alone_gets_right(images):
    right = logits_of([0, 1, 1, 0, 0, 2, 0, 1], [2.0] * 8)  # wrong on 2 and 4
    found = right_and_wrong(right, logits_of(PREDICTED, SURE), images, names=("names", "symptoms"))
    assert list(found.table["image"]) == [5, 1]
    assert found.table["predicted"].tolist() == ["nevus", "melanoma"]
    p = np.exp(2) / (np.exp(2) + 2)
    assert found.table["note"].tolist() == [f"names is right, with {p:.2f}"] * 2
    assert found.title.startswith("names right, symptoms wrong")


def test_a_method_gives_what_its_logits_give(clip, card, images, train):
    method = ZeroShot(clip, card)
    features = image_features(clip, images).features
    by_method = failures(method, images, train)
    by_logits = failures(method.logits_from_features(features), images, train, clip)
    pd.testing.assert_frame_equal(by_method.table, by_logits.table)
    pd.testing.assert_frame_equal(by_method.neighbours, by_logits.neighbours)
    assert len(by_method.symptoms) and by_logits.symptoms.empty
    assert by_method.neighbours.groupby("image").size().eq(3).all()
    near = by_method.neighbours.iloc[0]
    theirs = image_features(clip, train).features
    assert near["cosine"] == pytest.approx((features[near["image"]] @ theirs.T).max().item(), abs=1e-6)
    assert near["classname"] == card.classnames[int(train.labels[near["neighbour"]])]
    first = by_method.where(by_method.table["image"] == by_method.table["image"][0])
    assert set(first.symptoms["image"]) == set(first.neighbours["image"]) == {by_method.table["image"][0]}


def test_argued_symptoms_add_up_to_the_class_score(clip, card, images):
    method = ZeroShot(clip, card)
    features = image_features(clip, images).features
    logits = method.logits_from_features(features) / clip.logit_scale  # (N, n_cls), mean cosines
    found = describe("all", images, np.arange(8), method, logits)
    sums = found.symptoms.groupby(["image", "classname"])["argued"].sum()
    for (image, classname), total in sums.items():
        c = card.classnames.index(classname)
        assert total == pytest.approx((logits[image, c] - logits[:, c].mean()).item(), abs=1e-6)
    for _, row in found.table.iterrows():
        assert set(sums[row["image"]].index) == {row["true"], row["predicted"]}
    for _, of_class in found.symptoms.groupby(["image", "classname"]):
        assert of_class["argued"].is_monotonic_decreasing


def test_methods_without_symptom_scores_have_a_gallery_without_them(clip, card, images, train):
    for method in (ZeroShot(clip, card, "classnames"), BiomedCoOp(clip, card)):  # this one reads symptoms
        found = describe("all", images, np.arange(8), method, logits_of(PREDICTED, SURE), train)
        assert found.symptoms.empty and len(found.neighbours) == 24


def test_symptoms_of_vip_weigh_what_its_merge_prompt_attends_to(clip, card, images):
    method = ViP(clip, card)
    nn.init.normal_(method.g)
    features = image_features(clip, images).features
    labels = np.array(LABELS)
    found = symptom_evidence(method, features, np.arange(8), labels, labels)
    attention = method.merge_weights().set_index(["classname", "symptom"])["weight"]
    assert attention.groupby("classname").std().gt(1e-4).all()
    for _, row in found.iterrows():
        assert row["weight"] == pytest.approx(attention[row["classname"], row["symptom"]])
        assert row["argued"] == pytest.approx(row["weight"] * (row["score"] - row["usual"]))


def test_nearest_images_are_those_of_the_highest_cosine_and_another_name():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 6)) for n in (700, 20))  # more than are compared at a time
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    names, theirs = [f"p{i % 30}" for i in range(700)], [f"p{i % 10}" for i in range(20)]
    places, cosines = nearest_images(torch.from_numpy(x), names, torch.from_numpy(y), theirs, 4)
    for i in range(700):
        allowed = [j for j in range(20) if theirs[j] != names[i]]
        best = sorted(allowed, key=lambda j: -(x[i] @ y[j]))[:4]
        assert places[i].tolist() == best
        assert cosines[i] == pytest.approx(y[best] @ x[i])


def test_an_image_is_not_its_own_neighbour_and_few_images_have_few_neighbours(clip, card, images):
    wrong = logits_of([1, 2, 0, 1, 2, 0, 1, 2], [1.0] * 8)
    found = failures(wrong, images, train=images, clip=clip, n_neighbours=8)
    assert (found.neighbours["image"] != found.neighbours["neighbour"]).all()
    assert found.neighbours.groupby("image").size().eq(7).all()


def test_a_method_that_looks_at_one_attribute_is_misled_by_that_attribute(phantoms):
    shown = phantoms.latents.attributes[:, phantoms.world.index("veil")]
    found = failures(torch.stack([shown, ~shown], dim=1).float(), phantoms)  # melanoma where there is a veil
    assert len(found) > 20 and len(found.pairs()) == 2
    says = {"melanoma": "veil present", "nevus": "veil absent"}
    assert (found.table["misled_by"] == found.table["predicted"].map(says)).all()
    nats = np.log([0.8 / 0.25, 0.75 / 0.2]).round(3)
    assert found.table["evidence"].round(3).isin(nats).all()


def test_the_best_rule_is_bayes_rule_and_nothing_misleads_against_all_evidence(phantoms):
    best = phantoms.world.posterior(phantoms.latents.attributes).argmax(dim=1)
    rows = np.arange(len(phantoms))
    found = misled_by(phantoms, rows, 1 - phantoms.labels.numpy())
    assert found["best_rule"].tolist() == [phantoms.world.classnames[c] for c in best.tolist()]
    p = phantoms.world.probability  # (2, K)
    likelihood = torch.where(phantoms.latents.attributes[:, None], p, 1 - p)  # (N, 2, K)
    own, other = likelihood[rows, phantoms.labels], likelihood[rows, 1 - phantoms.labels]  # (N, K) each
    nothing = (other <= own).all(dim=1)
    assert (found["misled_by"].isna().to_numpy() == nothing.numpy()).all()
    assert found["evidence"].to_numpy() == pytest.approx((other / own).log().max(dim=1).values.clamp(min=0))


def test_phantoms_of_some_classes_are_read_by_their_names(phantoms):
    swapped = phantoms.of_classes(phantoms.card.with_classes(["nevus", "melanoma"]))
    rows = np.arange(len(phantoms))
    one = misled_by(phantoms, rows, 1 - phantoms.labels.numpy())
    other = misled_by(swapped, rows, 1 - swapped.labels.numpy())
    pd.testing.assert_frame_equal(one, other)


def test_a_method_without_failures_has_an_empty_gallery(images, tmp_path):
    found = failures(logits_of(LABELS, [1.0] * 8), images)
    assert len(found) == 0 and found.pairs().empty and "0 of 8 wrong" in repr(found)
    assert "There are none" in found.to_html(tmp_path / "none.html").read_text()
    with pytest.raises(ValueError, match="no image to show"):
        found.figure()


def test_bad_input_is_refused_in_a_sentence(clip, card, images, train):
    for arguments, message in (
        ((torch.zeros(8, 2), images), r"\(8, 2\); these images need \(8, 3\)"),
        ((torch.full((8, 3), torch.nan), images), "not finite"),
        ((torch.zeros(8, 3), images, train), "give clip="),
        ((ZeroShot(clip, make_card(2)), images), "build both from one card"),
        ((torch.zeros(0, 3), images.subset(np.arange(0))), "is empty"),
        ((torch.zeros(2, 3), make_set(card, [0, 3])), "outside the card's classes, 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            failures(*arguments)


def test_the_figure_shows_classes_and_what_argued_and_typesets_nothing(clip, images, phantoms):
    card = make_card()
    method = ZeroShot(clip, card, symptoms={name: ["$\\frac{1}{$ spots", "dots"] for name in card.classnames})
    fig = failures(method, images).figure(n=2, columns=2)
    fig.canvas.draw()  # "$\frac{1}{$" as mathematics would raise an error
    assert len(fig.axes) == 2 and all(len(ax.images) == 1 for ax in fig.axes)
    assert all(", predicted " in ax.get_title().replace("\n", " ") for ax in fig.axes)
    shown = phantoms.latents.attributes[:, 0]
    misled = failures(torch.stack([shown, ~shown], dim=1).float(), phantoms).figure(n=3)
    assert all("misled by: veil" in ax.get_title() for ax in misled.axes[:3])


def test_a_notebook_shows_the_table_escaped_and_without_ids(found, images):
    hostile = found.where([True] * 3)
    hostile.table["note"] = "<script>alert(1)</script>"
    html = hostile._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "mathjax_ignore" in html
    assert not any(name in html or name in repr(found) for name in images.ids)
