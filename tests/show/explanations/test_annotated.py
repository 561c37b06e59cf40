"""Truth of explanations where experts noted what images show: the measure, its strata, its errors."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import medvlp
from medvlp.show import claims_of, faithfulness, faithfulness_controls
from medvlp.show.explanations.annotated import claims_made, shuffled_values, stratified_auroc


def by_pairs(true, score, strata, weights):
    """The same, pair by pair."""
    won = of = 0.0
    for i in np.flatnonzero(true):
        for j in np.flatnonzero(~true & (strata == strata[i])):
            of += weights[i] * weights[j]
            won += weights[i] * weights[j] * ((score[i] > score[j]) + (score[i] == score[j]) / 2)
    return won / of if of else np.nan


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_share_of_pairs_of_one_stratum(seed):
    draws = np.random.default_rng(seed)
    true, score = draws.random(40) < 0.4, draws.integers(6, size=40).astype(float)  # with ties
    strata, weights = draws.integers(4, size=40), draws.integers(3, size=(3, 40)).astype(float)
    pairs = [by_pairs(true, score, strata, row) for row in weights]
    assert stratified_auroc(true, score, strata, weights) == pytest.approx(pairs)
    ones = np.ones((1, 40))
    assert stratified_auroc(true, score, 0 * strata, ones)[0] == pytest.approx(roc_auc_score(true, score))


def test_knowing_the_class_is_worth_nothing_within_classes():
    classes = np.repeat([0, 1, 2], 30)
    true = np.random.default_rng(1).random(90) < np.array([0.9, 0.5, 0.0])[classes]
    ones = np.ones((1, 90))
    assert stratified_auroc(true, -classes.astype(float), 0 * classes, ones)[0] > 0.8
    assert stratified_auroc(true, -classes.astype(float), classes, ones)[0] == 0.5
    assert np.isnan(stratified_auroc(classes == 0, classes.astype(float), classes, ones)[0])


@pytest.fixture(scope="module")
def annotated(data):
    """Phantoms as an expert would describe them, and what their symptoms claim."""
    images = data.test.subset(range(100))
    claims = claims_of(images.world, images.card.symptoms())
    claims = {phrase: {name: ["present" if says else "absent"]} for phrase, (name, says) in claims.items()}
    return replace(images, annotations=(images.attributes,)), claims


def test_as_drawn_it_agrees_with_the_phantoms(annotated, zero):
    images, claims = annotated
    table = faithfulness(zero, images, claims, n_images=None, n_bootstrap=50)
    phantoms = faithfulness(zero, replace(images, annotations=()), n_images=None, n_bootstrap=10)
    assert table["AUROC"].tolist() == pytest.approx(phantoms["as drawn"].tolist(), abs=1e-6)
    assert table[["symptom", "attribute", "says"]].equals(phantoms[["symptom", "attribute", "says"]])
    assert (table["low"] <= table["AUROC"]).all() and (table["AUROC"] <= table["high"]).all()
    colours = table[table["attribute"] == "colors"]  # which this CLIP sees, whatever the class
    assert (colours["within low"] > 0.6).all()


def test_images_that_nobody_looked_at_do_not_count(annotated, zero):
    images, claims = annotated
    shown = images.attributes
    veil = shown["veil"].where(np.arange(100) < 60)
    part = replace(images.subset(range(60)), annotations=(shown[:60],))
    facts = images.card, "test", images.ids, images.labels, images.groups, images.store
    missing = medvlp.ImageSet(*facts, annotations=(shown.assign(veil=veil),))
    some, fewer = (faithfulness(zero, one, claims, None, 10) for one in (missing, part))
    about = some["attribute"] == "veil"
    assert some.loc[about, "images"].eq(60).all() and some.loc[~about, "images"].eq(100).all()
    assert some.loc[about, "AUROC"].tolist() == fewer.loc[about, "AUROC"].tolist()


def test_what_cannot_be_measured_is_refused(annotated, zero):
    images, claims = annotated
    with pytest.raises(ValueError, match="no symptom of the method claims a value.*Write claims beside"):
        faithfulness(zero, images)  # the card's phrases of phantoms have none
    phrase = next(iter(claims))
    with pytest.raises(ValueError, match="attribute 'vail' in card 'phantom-derm'; did you mean 'veil'"):
        faithfulness(zero, images, {phrase: {"vail": ["present"]}})
    bare = medvlp.ImageSet(images.card, "test", images.ids, images.labels, images.groups, images.store)
    with pytest.raises(ValueError, match="give phantoms.*or.*images of a card with attributes"):
        faithfulness(zero, bare)
    templates = medvlp.ZeroShot(zero.clip, zero.card, knowledge="templates")
    with pytest.raises(ValueError, match="symptoms"):
        faithfulness(templates, images, claims)


def test_the_card_says_what_its_symptoms_claim_where_nothing_else_is_given(annotated, zero):
    images, claims = annotated
    front = images.card.model_dump() | {"source": {"kind": "csv", "file": "a.csv", "columns": {"path": "p"}}}
    values = {"present": ["is"], "absent": ["not"]}
    front["attributes"] = [{"name": name, "values": values} for name in images.attributes]
    for info in front["classes"]:
        for symptom in info["knowledge"]["symptoms"]:
            symptom["claims"] = claims[symptom["text"]]
    of_card = medvlp.ZeroShot(zero.clip, medvlp.DataCard.model_validate(front))
    assert claims_made(of_card, None, images) == claims_made(zero, claims, images)


def test_real_cells(clip, data_root):
    """A CLIP that has read nothing about cells is near chance within classes; the table is whole."""
    data = medvlp.load_dataset("wbcatt", data_root)
    table = faithfulness(medvlp.ZeroShot(clip, data.card), data.test, n_images=150, n_bootstrap=20)
    assert set(table["attribute"]) <= set(data.test.attributes) and len(table) == 37
    assert table["images"].eq(150).all() and table["says"].str.contains(" or ").sum() == 1
    assert pd.notna(table["AUROC"]).all()


def test_controls_stay_at_chance_and_symptoms_do_not(annotated, zero):
    images, claims = annotated
    table = faithfulness_controls(zero, images, claims, n_draws=6, n_images=None, n_bootstrap=40)
    assert table.index.tolist() == ["symptoms", "shuffled", "gibberish"]
    assert table.loc["symptoms", "within low"] > 0.55
    for control in ("shuffled", "gibberish"):
        row = table.loc[control]
        assert row["within low"] <= row["within"] <= row["within high"]
        assert abs(row["within"] - 0.5) < 0.12 and row["within"] < table.loc["symptoms", "within"]
    rows = faithfulness(zero, images, claims, n_images=None, n_bootstrap=2).drop_duplicates("symptom")
    means = rows.mean(numeric_only=True)
    assert table.loc["symptoms", ["AUROC", "within"]].tolist() == pytest.approx(means[["AUROC", "within"]])


def test_shuffled_symptoms_keep_their_scores_and_speak_of_another_attribute(annotated, zero):
    images, claims = annotated
    made = claims_made(zero, claims, images)
    shuffled = shuffled_values(made, seed=1)
    assert [(c.classname, c.j, c.symptom) for c in made] == [(c.classname, c.j, c.symptom) for c in shuffled]
    assert all(one.attribute != other.attribute for one, other in zip(made, shuffled, strict=True))
    assert shuffled != shuffled_values(made, seed=2)
    with pytest.raises(ValueError, match="two attributes or more"):
        shuffled_values([claim for claim in made if claim.attribute == "veil"], seed=1)


def test_a_probe_and_a_second_expert_stand_beside_the_score(annotated, zero, data):
    images, claims = annotated
    train = data.train.subset(range(150))
    again = images.attributes.copy()
    again.iloc[50:] = np.nan  # saw half, and the same
    twice = replace(images, annotations=(images.attributes, again))
    table = faithfulness(zero, twice, claims, None, 10, train=train)
    assert table["second"].eq(1).all() and table["second within"].dropna().eq(1).all()
    assert table.groupby("attribute")["probe"].first().max() > 0.95
    alone = faithfulness(zero, images, claims, None, 10)
    assert not {"probe", "second"} & set(alone)
    assert alone["AUROC"].equals(table["AUROC"])
