"""Faithfulness: a perfect reader passes, gibberish does not, and only one attribute is changed at a time."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from medvlp import CoOp, LinearProbe, ZeroShot, get_world, load_clip, load_dataset
from medvlp.data.phantoms.worlds import DRAWINGS
from medvlp.show import (
    claims_of,
    counterfactual,
    counterfactual_figure,
    counterfactual_summary,
    faithfulness,
    faithfulness_controls,
    faithfulness_figure,
    flip,
    flip_all,
    gibberish,
    twin_figure,
    what_is_seen,
)
from medvlp.show.explanations.controls import shuffled_claims
from medvlp.show.explanations.faithfulness import auroc_ends, mean_auroc
from medvlp.show.explanations.twins import Flips
from tests.backbone.small_clips import open_clip_kind
from tests.methods.small import make_card, make_set

N = 48


@pytest.fixture(scope="module")
def flips(zero, data):
    return flip_all(zero, data.test, n_images=N)


@pytest.fixture(scope="module")
def perfect():
    """What a method would score that reads every symptom of derm right, and votes by their means."""
    world, n = get_world("derm"), 40
    latents = world.sample(n, seed=6)
    card = load_dataset("phantom-derm", num_shots=1).card
    rows = [(name, phrase) for name, phrases in card.symptoms().items() for phrase in phrases]
    versions = [latents, *(latents.flip(k) for k in range(len(world.attributes)))]
    scores = np.stack(
        [
            [[a[k] == says for k, says in (world.reading(p) for _, p in rows)] for a in v.attributes.tolist()]
            for v in versions
        ]
    ).astype(float)  # (1 + K, N, M)
    logits = np.stack([scores[..., :8].mean(axis=2), scores[..., 8:].mean(axis=2)], axis=2)
    symptoms = pd.DataFrame(rows, columns=["classname", "symptom"])
    return Flips(world, latents, card.classnames, symptoms, scores, logits)


@pytest.mark.parametrize("name", list(DRAWINGS))
def test_every_symptom_of_the_phantom_cards_claims_what_its_card_says(name):
    card = load_dataset(f"phantom-{name}", num_shots=1).card
    claims = claims_of(get_world(name), card.symptoms())
    assert list(claims) == list(dict.fromkeys(p for phrases in card.symptoms().values() for p in phrases))
    for info in card.classes:
        for symptom in info.knowledge["symptoms"]:
            attribute, says = claims[symptom.text]
            assert f"attribute {attribute}, {'present' if says else 'absent'}" in symptom.criterion
    assert claims_of(get_world(name), card.symptoms("useless")) == {}


def test_a_flipped_set_is_the_same_images_but_for_one_attribute(data):
    images = data.test.subset([4, 9, 700])
    twins = flip(images, "scar")
    assert twins.ids == images.ids and torch.equal(twins.labels, images.labels)
    assert (twins.attributes != images.attributes)["scar"].all()
    assert twins.attributes.drop(columns="scar").equals(images.attributes.drop(columns="scar"))
    assert twins.fingerprint != images.fingerprint
    drawn = images.world.render(images.latents.flip(images.world.index("scar")), 64)[2].permute(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(twins.image(2)), drawn.numpy())
    with pytest.raises(ValueError, match="attribute 'scra'"):
        flip(images, "scra")
    with pytest.raises(ValueError, match="give phantoms"):
        flip(make_set(make_card(), [0, 1]), "scar")


def test_scores_are_those_of_the_images_themselves(clip, data, zero, flips):
    rows = np.sort(np.random.default_rng(1).permutation(len(data.test))[:N])
    images = data.test.subset(rows)
    for k, part in ((0, images), (1 + 7, flip(images, "scar"))):
        pixels = torch.stack([clip.preprocess(part.image(i)) for i in (0, 20)])
        with torch.no_grad():
            f = clip.encode_images(pixels)
            scores = torch.cat(list(zero.symptom_scores(f).values()), dim=1)
        np.testing.assert_allclose(flips.scores[k, [0, 20]], scores, atol=1e-5)
        np.testing.assert_allclose(flips.logits[k, [0, 20]], zero.logits_from_features(f), rtol=1e-4)


def test_a_perfect_reader_passes_every_test(perfect):
    table = faithfulness(perfect, n_bootstrap=50)
    assert len(table) == 16
    assert (table[["AUROC", "low", "high", "as drawn"]] == 1).all(axis=None)
    summary = counterfactual_summary(counterfactual(perfect))
    assert (summary["more"] == 1).all() and (summary["most"] == 1).all() and (summary["wrong"] == 0).all()
    assert mean_auroc(perfect) == 1 and auroc_ends(perfect, n_bootstrap=20) == (1, 1)


def test_a_reader_of_opposites_fails_every_test(perfect):
    opposite = replace(perfect, scores=1 - perfect.scores)
    assert (faithfulness(opposite, n_bootstrap=20)["AUROC"] == 0).all()
    summary = counterfactual_summary(counterfactual(opposite))
    assert (summary["more"] == 0).all() and (summary["wrong"] == 1).all()


def test_a_reader_of_the_class_alone_is_found_out(perfect):
    """High on the images as drawn, chance where the attribute itself is changed."""
    melanoma = (perfect.latents.labels == 0).numpy().astype(float)  # (N,)
    scores = np.broadcast_to(melanoma[None, :, None], perfect.scores.shape)
    veil = (
        faithfulness(replace(perfect, scores=scores), n_bootstrap=20)
        .query("symptom == 'a blue-white veil'")
        .iloc[0]
    )
    assert veil["as drawn"] > 0.75
    assert veil["AUROC"] == 0.5


def test_counterfactual_by_hand(perfect):
    """One image, one attribute: what moves, what does not, and what is decided."""
    perfect.scores.setflags(write=True)
    scores = perfect.scores.copy()
    k = perfect.world.index("scar")
    j, other = 7, 2  # a white scar-like area; an irregular notched border
    scores[1 + k, 0, other] = scores[0, 0, other] - 0.6  # a side effect in image 0
    scores[1 + k, 0, 15] = scores[0, 0, 15]  # full pigmentation does not answer
    moved = replace(perfect, scores=scores)
    row = counterfactual(moved).query("attribute == 'scar' and image == 0").iloc[0]
    assert row["added"] == (not perfect.present(k)[0])
    assert row["matching"] == pytest.approx((1 + 0) / 2)
    assert row["others"] == pytest.approx(0.6 / 14) and row["largest"] == pytest.approx(0.6)
    assert abs(scores[1 + k, 0, j] - scores[0, 0, j]) == 1
    best = perfect.world.posterior(perfect.latents.flip(0).attributes).argmax(1)
    was = perfect.world.posterior(perfect.latents.attributes).argmax(1)
    veil = counterfactual(moved).query("attribute == 'veil'")
    np.testing.assert_array_equal(veil["best flipped"], (best != was).numpy())
    np.testing.assert_array_equal(veil["flipped"], veil["before"] != veil["after"])


def test_the_embedded_clip_knows_every_attribute_by_its_words(flips):
    table = faithfulness(flips, n_bootstrap=100).set_index("symptom")
    assert (table["low"] > 0.9).all()
    true = np.concatenate([flips.present(0), ~flips.present(0)])
    by_hand = roc_auc_score(true, np.concatenate([flips.scores[0, :, 0], flips.scores[1, :, 0]]))
    assert table.loc["a blue-white veil", "AUROC"] == pytest.approx(by_hand)
    summary = counterfactual_summary(counterfactual(flips))
    assert (summary["more"] > 0.9).all()
    assert summary.loc["all", "images"] == N


def test_why_is_in_the_towers(clip, data, tmp_path):
    train = load_dataset("phantom-derm", num_shots=100).train
    seen = what_is_seen(clip, train, data.test, n_images=N)
    assert seen["probe"].min() > 0.9 and seen["moved"].min() > 0.3 and seen["wordings"].max() < 0.6
    blind = load_clip(open_clip_kind(tmp_path))  # with random weights
    unseen = what_is_seen(blind, train, data.test, n_images=N)
    assert unseen.loc["border", "probe"] < 0.75 and unseen["moved"].max() < seen["moved"].min()


def test_controls_are_at_chance(zero, data, flips):
    table = faithfulness_controls(zero, data.test, n_draws=12, n_images=N, n_bootstrap=100)
    assert table.loc["symptoms", "low"] > 0.7 and table.loc["symptoms", "net low"] > 0.4
    for control in ("shuffled", "gibberish"):
        assert abs(table.loc[control, "AUROC"] - 0.5) < 0.06
        assert abs(table.loc[control, "net"]) < 0.1
    assert table.loc["symptoms", "more"] == pytest.approx(
        counterfactual_summary(counterfactual(flips)).loc["all", "more"]
    )
    assert "shuffled, same sign" in table.index
    with pytest.raises(ValueError, match="n_draws is 1"):
        faithfulness_controls(zero, data.test, n_draws=1)


def test_gibberish_is_new_words_of_the_same_lengths():
    phrases = ["a blue-white veil", "round", "black dots", "many small dots here"]
    nonsense = gibberish(phrases, seed=3)
    assert list(nonsense) == phrases and len(set(nonsense.values())) == 4
    assert sorted(len(p.split()) for p in nonsense.values()) == [1, 2, 3, 4]
    assert not set(" ".join(phrases).split()) & set(" ".join(nonsense.values()).split())
    assert gibberish(phrases, seed=3) == nonsense != gibberish(phrases, seed=4)
    order = {tuple(len(p.split()) for p in gibberish(phrases, seed).values()) for seed in range(20)}
    assert len(order) > 3  # lengths do not tell which phrase a nonsense stands for


def test_shuffled_claims_leave_no_attribute_in_its_place():
    claims = claims_of(get_world("cxr"), load_dataset("phantom-cxr", num_shots=1).card.symptoms())
    for seed in range(10):
        shuffled = shuffled_claims(claims, seed, turn=False)
        assert all(shuffled[p][0] != claims[p][0] and shuffled[p][1] == claims[p][1] for p in claims)
        assert sorted(shuffled.values()) == sorted(claims.values())
    turned = [shuffled_claims(claims, seed)[p][1] != claims[p][1] for seed in range(10) for p in claims]
    assert 0.2 < np.mean(turned) < 0.8
    with pytest.raises(ValueError, match="two attributes"):
        shuffled_claims({"round": ("asymmetry", False)})


def test_a_method_without_symptoms_still_decides(clip, data):
    coop = CoOp(clip, data.card)
    table = counterfactual(coop, data.test, n_images=10)
    assert table["matching"].isna().all() and len(table) == 80
    summary = counterfactual_summary(table)
    assert summary["more"].isna().all() and summary["flips"].notna().all()
    with pytest.raises(ValueError, match="no symptom scores"):
        faithfulness(coop, data.test, n_images=4)


def test_errors_say_what_to_give(clip, data, zero, flips):
    useless = ZeroShot(clip, data.card, knowledge="useless")
    chests = load_dataset("phantom-cxr", num_shots=1).test
    for call, message in (
        (lambda: faithfulness(zero, make_set(data.card, [0])), "give phantoms"),
        (lambda: faithfulness(zero, None), "faithfulness is measured .*: give phantoms"),
        (lambda: counterfactual(zero, None), "give phantoms"),
        (lambda: twin_figure(LinearProbe(clip, data.card), data.test, "veil"), "has no symptom scores"),
        (lambda: counterfactual(zero, data.test, n_images=0), "n_images is 0"),
        (lambda: faithfulness(useless, data.test, n_images=4), "names an attribute of the derm world"),
        (lambda: flip_all(zero, chests), "build both from one card"),
        (lambda: faithfulness(flips, claims={"black dots": ("viel", True)}), "attribute 'viel'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_figures(zero, data, flips):
    table, summary = faithfulness(flips, n_bootstrap=20), counterfactual_summary(counterfactual(flips))
    seen = pd.DataFrame({"probe": 0.7}, index=[a.name for a in flips.world.attributes])
    drawn = [
        faithfulness_figure(table, seen),
        counterfactual_figure({"a $": summary, "b": summary}),
        twin_figure(zero, data.test, "veil", 2),
    ]
    for fig in drawn:
        assert isinstance(fig, Figure)
        fig.canvas.draw()
    bars = [bar.get_width() for bar in drawn[1].axes[0].patches]
    np.testing.assert_allclose(bars, summary["more"])
    labels = [label.get_text() for label in drawn[2].axes[-1].get_yticklabels()]
    assert {label for label in labels if label.endswith("*")} == {"a blue-white veil *", "clear warm tones *"}
