"""Grids: their product and union, whose key is whose, and what a value is."""

import numpy as np
import pytest
import torch

from medvlp.knowledge.representations import Representations
from medvlp.knowledge.symptoms.sets import SymptomSet
from medvlp.methods.adapters.linear_probe import LinearProbe
from medvlp.methods.vip import ViP
from medvlp.study.ablation.grid import Named, combinations, content, label, sort_keys
from tests.methods.small import SYMPTOMS, make_card

KINDS = {"ViP": ViP, "LinearProbe": LinearProbe}


def test_a_grid_is_the_product_of_its_lists_and_several_are_their_union():
    grid = {"method": "ViP", "seed": range(1, 3), "lr": (0.1, 0.2)}
    found = combinations([grid, {"method": np.array(["A"])}])
    expected = [{"method": "ViP", "seed": s, "lr": lr} for s in (1, 2) for lr in (0.1, 0.2)]
    assert found == [*expected, {"method": "A"}]


def test_a_mapping_or_a_list_in_a_list_is_one_value():
    (found,) = combinations({"symptoms": SYMPTOMS, "templates": [["a {}.", "the {}."]]})
    assert found == {"symptoms": SYMPTOMS, "templates": ["a {}.", "the {}."]}


def test_keys_go_where_they_belong():
    settings = {"method": "ViP", "lr": 0.1, "n_ctx": 2, "num_shots": 4, "config.seed": 7, "method.seed": 8}
    config, arguments = sort_keys(settings, "ViP", KINDS)
    assert config == {"lr": 0.1, "seed": 7}
    assert arguments == {"n_ctx": 2, "seed": 8}


@pytest.mark.parametrize(
    ("key", "method", "words"),
    [
        ("n_ctxx", "ViP", "unknown key 'n_ctxx' in the grid; did you mean 'n_ctx'"),
        ("learning_rate", "ViP", "unknown key 'learning_rate'"),
        ("method.lr", "ViP", "unknown key 'method.lr'"),
        ("csc", "LinearProbe", r"LinearProbe has no 'csc' \(of this grid's methods: ViP\); write two grids"),
        ("class_weight", "LinearProbe", "write 'config.class_weight' or 'method.class_weight'"),
    ],
)
def test_a_key_that_nothing_takes_is_an_error(key, method, words):
    with pytest.raises(ValueError, match=words):
        sort_keys({"method": method, key: 1}, method, KINDS)


def test_content_is_the_same_for_the_same_value_and_another_for_another():
    card = make_card()
    by_hand = SymptomSet.from_phrases(card, card.symptoms())
    assert content(by_hand) == content(card.symptoms()) == content(Named("mine", card.symptoms()))
    assert content(by_hand) != content(card.symptoms("useless"))
    a, b = torch.zeros(2, 3), torch.zeros(2, 3)
    assert content({"melanoma": a}) == content({"melanoma": b}) != content({"melanoma": a + 1})
    assert content({"melanoma": a}) != content({"melanoma": a.reshape(3, 2)})
    assert content(Representations({"nevus": a})) != content(Representations({"nevus": a + 1}))
    assert content(np.int64(3)) == 3 and content((1, 2)) == [1, 2]
    with pytest.raises(TypeError, match="cannot hold a function"):
        content(content)


def test_labels_stand_in_tables():
    assert [label(v) for v in (3, True, "x", None, np.float64(0.5))] == [3, True, "x", "default", 0.5]
    assert label(["a {}.", "the {}."]) == "a {}., the {}."
    assert label(Named("mine", SYMPTOMS)) == "mine"
    assert label(SYMPTOMS).startswith("dict ") and label(SYMPTOMS) != label({"nevus": ["round"]})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"method": "ViP", "seed": []}, "no value for 'seed'"),
        ([], "there is no grid"),
        ("ViP", "a grid is a mapping such as"),
        (["ViP"], "a grid is a mapping such as"),
        (None, "a grid is a mapping such as"),
        ({"method": {"ViP", "CoOp"}}, "'method' is a set; give its values in a list"),
        ({"method": iter(["ViP"])}, "'method' is a list_iterator; give its values in a list"),
    ],
)
def test_what_is_no_grid(grid, message):
    with pytest.raises(ValueError, match=message):
        combinations(grid)
