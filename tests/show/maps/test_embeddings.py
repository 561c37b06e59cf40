"""Embeddings: which vectors are collected, and what the table says of each."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from medvlp import (
    CILMP,
    IVLP,
    CLIPAdapter,
    CoCoOp,
    CoOp,
    LinearProbe,
    Method,
    ViP,
    ZeroShot,
    image_features,
)
from medvlp.methods import METHODS
from medvlp.show import Embeddings, class_points, image_points, llm_points, modality_gap, symptom_points
from medvlp.show.maps.embeddings import COLUMNS
from tests.methods.small import SYMPTOMS, make_card, make_set

LABELS = [0, 1, 2, 2, 1]
PHRASES = [phrase for phrases in SYMPTOMS.values() for phrase in phrases]


@pytest.fixture(scope="module")
def images():
    return make_set(make_card(), LABELS)


@pytest.fixture(scope="module")
def cilmp(clip):
    random = torch.Generator().manual_seed(3)
    states = {name: torch.randn(5 + i, 24, generator=random) for i, name in enumerate(SYMPTOMS)}
    return CILMP(clip, make_card(), states, prefix_length=2, suffix_length=1, rank=3)


def pair(vectors, modality=("image", "image", "text", "text")):
    return Embeddings(np.array(vectors), pd.DataFrame({"what": "x", "modality": list(modality)}))


def test_images_are_told_by_class_and_number(clip, images):
    found = image_points(ZeroShot(clip, images.card), images, stage="before")
    assert list(found.points) == COLUMNS
    assert found.points["classname"].tolist() == [images.card.classnames[y] for y in LABELS]
    assert found.points["image"].tolist() == [0, 1, 2, 3, 4]
    assert set(found.points["stage"]) == {"before"} and set(found.points["method"]) == {"CLIP"}
    np.testing.assert_array_equal(found.vectors, image_features(clip, images).features.numpy())
    np.testing.assert_array_equal(image_points(clip, images).vectors, found.vectors)


def test_a_prompted_or_adapted_tower_has_image_features_of_its_own(clip, images):
    frozen = image_points(clip, images)
    pixels = torch.stack([clip.preprocess(images.image(i)) for i in range(len(images))])
    for method in (IVLP(clip, images.card), CLIPAdapter(clip, images.card)):
        found = image_points(method, images)
        with torch.no_grad():
            logits = method(pixels)
            t = torch.from_numpy(class_points(method).vectors)  # (n_cls, D)
        own = clip.logit_scale * torch.from_numpy(found.vectors) @ t.T
        torch.testing.assert_close(own, logits, atol=1e-3, rtol=1e-4)
        assert set(found.points["method"]) == {type(method).__name__}
        assert not np.allclose(found.vectors, frozen.vectors, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("CILMP", "CoCoOp", "LinearProbe")])
def test_every_method_has_a_point_a_class(clip, name):
    card = make_card()
    found = class_points(METHODS[name](clip, card), stage="after")
    assert found.points["classname"].tolist() == card.classnames
    assert found.points["image"].isna().all() and set(found.points["method"]) == {name}
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)


def test_class_points_give_the_methods_own_logits(clip, images):
    card = images.card
    f = image_features(clip, images).features  # (N, D)
    for method in (CoOp(clip, card), ViP(clip, card), ZeroShot(clip, card, "templates")):
        t = torch.from_numpy(class_points(method).vectors)
        with torch.no_grad():
            torch.testing.assert_close(clip.logit_scale * f @ t.T, method.logits_from_features(f))
    probe = LinearProbe(clip, card)
    probe.before_training(images, images)
    found = class_points(probe)
    weight = F.normalize(probe.linear.weight.detach(), dim=-1)
    np.testing.assert_allclose(found.vectors, weight.numpy(), atol=1e-6)
    assert set(found.points["modality"]) == {"weights"}


def test_texts_that_depend_on_the_image_have_a_point_an_image_and_class(clip, images, cilmp):
    for method in (CoCoOp(clip, images.card), cilmp):
        with pytest.raises(ValueError, match="differ from image to image; give images"):
            class_points(method)
        found, seen = class_points(method, images), image_points(method, images)
        assert len(found) == 5 * 3
        row = found.points.query("image == 3 and classname == 'nevus'").index.item()
        cosine = found.vectors[row] @ seen.vectors[3]
        pixels = clip.preprocess(images.image(3))[None]
        with torch.no_grad():
            logits = method.eval()(pixels)[0]
        assert clip.logit_scale * cosine == pytest.approx(float(logits[1]), abs=1e-3)


def test_collecting_leaves_the_methods_mode_as_it_was(images, cilmp):
    cilmp.train()
    first = class_points(cilmp, images)
    assert cilmp.training
    np.testing.assert_array_equal(class_points(cilmp, images).vectors, first.vectors)  # no dropout


def test_symptoms_are_told_by_class_and_text(clip):
    card = make_card()
    plain, learned = symptom_points(ZeroShot(clip, card)), symptom_points(ViP(clip, card), "before")
    for found in (plain, learned):
        assert found.points["text"].tolist() == PHRASES
        assert found.points["classname"].tolist() == [c for c, s in SYMPTOMS.items() for _ in s]
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    texts = [f"{phrase}." for phrase in PHRASES]
    np.testing.assert_allclose(plain.vectors, clip.encode_texts(texts).numpy(), atol=1e-6)
    assert not np.allclose(plain.vectors, learned.vectors, atol=1e-2)
    without = symptom_points(ViP(clip, card, context=False))
    np.testing.assert_allclose(without.vectors, plain.vectors, atol=1e-6)
    with pytest.raises(ValueError, match="has no symptoms to score"):
        symptom_points(CoOp(clip, card))


def test_llm_rows_before_and_after_the_intervention(images, cilmp):
    found = llm_points(cilmp, images, site=1)
    before = found.points["stage"] == "before intervention"
    assert before.sum() == 3 * 3 and (~before).sum() == 5 * 3 * 3
    assert set(found.points["text"]) == {"prefix 1", "prefix 2", "suffix 1"}
    where = "image == 4 and classname == 'keratosis' and text == 'suffix 1'"
    row = found.points[~before].query(where).index.item()
    f = torch.from_numpy(image_points(cilmp, images).vectors[4:])  # (1, D)
    with torch.no_grad():
        h = cilmp.h_last[2, 0]  # (d,)
        edited = cilmp.sites[1].suffix(h, f)[0]
    np.testing.assert_allclose(found.vectors[row], edited.numpy(), atol=1e-5)
    row = found.points[before].query("classname == 'keratosis' and text == 'suffix 1'").index.item()
    np.testing.assert_array_equal(found.vectors[row], h.numpy())
    with pytest.raises(ValueError, match="site must be from 0 to"):
        llm_points(cilmp, images, site=99)
    with pytest.raises(ValueError, match="ViP intervenes in no representations; give a CILMP"):
        llm_points(ViP(cilmp.clip, cilmp.card), images)


def test_an_intervention_that_knows_no_image_has_one_point_a_row(clip, images):
    states = {name: torch.randn(4, 12) for name in SYMPTOMS}
    switches = {"prefix_length": 1, "suffix_length": 0, "rank": 2}
    found = llm_points(CILMP(clip, make_card(), states, intervention="unconditional", **switches), images)
    assert found.points["stage"].tolist() == ["before intervention"] * 3 + ["after intervention"] * 3
    assert found.points["image"].isna().all()
    with pytest.raises(ValueError, match="has no intervention"):
        llm_points(CILMP(clip, make_card(), states, intervention="none"), images)


def test_put_together_and_taken_apart(clip, images):
    parts = [image_points(clip, images), symptom_points(ZeroShot(clip, images.card))]
    both = Embeddings.concat(parts)
    assert repr(both) == "Embeddings(14 points of 128 dimensions: 5 image, 9 symptom)"
    assert list(both.points["classname"].cat.categories) == images.card.classnames
    again = both.take(both.points["what"] == "symptom")
    np.testing.assert_array_equal(again.vectors, parts[1].vectors)
    pd.testing.assert_frame_equal(again.points, parts[1].points)
    assert both.take([7, 2]).points["text"].tolist() == [PHRASES[2], ""]
    with pytest.raises(ValueError, match="points of 2, 128 dimensions lie in different spaces"):
        Embeddings.concat([parts[0], pair(np.eye(4)[:, :2] + 1)])
    with pytest.raises(ValueError, match="no embeddings"):
        Embeddings.concat([])


def test_the_gap_of_two_modalities_is_the_distance_of_their_centroids():
    angles = np.array([0.0, 0.4, 2.0, 2.6])
    found = modality_gap(pair(3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)))
    assert found[["first", "second"]].to_numpy().tolist() == [["image", "text"]]
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    gap = np.linalg.norm(unit[:2].mean(axis=0) - unit[2:].mean(axis=0))
    between = np.mean([np.cos(a - b) for a in angles[:2] for b in angles[2:]])
    assert found["gap"][0] == pytest.approx(gap, abs=1e-6)
    assert found["between"][0] == pytest.approx(between, abs=1e-6)
    assert found["within_first"][0] == pytest.approx(np.cos(0.4), abs=1e-6)
    assert found["within_second"][0] == pytest.approx(np.cos(0.6), abs=1e-6)


def test_centring_takes_each_modalitys_mean_away():
    rng = np.random.default_rng(0)
    cones = rng.normal(size=(100, 16)) + 5 * np.repeat(np.eye(16)[:2], 50, axis=0)
    both = pair(cones, ["image"] * 50 + ["text"] * 50)
    centred = both.centred()
    np.testing.assert_allclose(centred.vectors[:50], cones[:50] - cones[:50].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(centred.vectors[50:].mean(axis=0), 0, atol=1e-5)
    assert modality_gap(both)["gap"][0] > 0.8 and modality_gap(centred)["gap"][0] < 0.2
    with pytest.raises(ValueError, match="unknown column 'modalty' in the points; did you mean 'modality'"):
        both.centred("modalty")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((3, 2)), r"vectors of shape \(3, 2\) do not fit a table of 4 points"),
        (
            np.array([[1, 0], [0, 0], [1, 1], [2, 1]]),
            "1 vectors are zero or not finite, the first is point 1",
        ),
        (np.array([[1, 0], [1, 2], [1, np.nan], [np.inf, 1]]), "2 vectors .* the first is point 2"),
    ],
)
def test_vectors_without_a_place_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        pair(vectors)


def test_methods_without_class_features_say_so(clip):
    card = make_card()
    with pytest.raises(RuntimeError, match="the linear probe is not fitted"):
        class_points(LinearProbe(clip, card))
    with pytest.raises(NotImplementedError, match="Method has no class features"):
        class_points(Method(clip, card, {}))
