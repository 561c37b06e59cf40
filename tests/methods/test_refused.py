"""Options that make no sense: each method says which one, and what to give."""

import pytest
import torch

from medvlp.knowledge.representations import Representations
from medvlp.methods import METHODS
from tests.methods.small import SYMPTOMS, make_card

CARD = make_card()
ROWS = {name: torch.ones(n, 24) for name, n in zip(CARD.classnames, (13, 10, 12), strict=True)}
CONTEXT = ("CoOp", "CoCoOp", "KgCoOp", "BiomedCoOp")
DEEP = ("VPT", "IVLP", "MaPLe", "PromptSRC")
NO_PHRASES = "the symptoms of 'nevus' must be a list of phrases"

WRONG = {  # method or methods: options and what the error says of them
    CONTEXT: [
        ({"position": "back"}, "unknown position 'back'.*'end', 'middle', 'front'"),
        ({"n_ctx": 0}, "n_ctx must be at least 1, got 0"),
        ({"ctx_init": "a photo", "n_ctx": 3}, "ctx_init='a photo' has 2 tokens, but n_ctx is 3; leave n_ctx"),
        ({"ctx_init": "", "n_ctx": 80}, "'melanoma', with 80 context vectors: .* takes at most 77"),
    ],
    ("KgCoOp",): [
        ({"weight": -1}, "weight must be at least 0, got -1"),
        ({"templates": ["a photo"]}, r"template 'a photo' has no \{\} for the class name"),
    ],
    ("BiomedCoOp",): [
        ({"kdsp_weight": -1}, "kdsp_weight must be at least 0, got -1"),
        ({"tau": 0.5}, "tau must be at least 1, .*, got 0.5"),
        ({"symptoms": {"melanoma": ["dark"]}}, "no symptoms for 'nevus', 'keratosis'"),
        ({"knowledge": "simptoms"}, "unknown kind of knowledge 'simptoms'.*'symptoms', 'useless'"),
    ],
    DEEP: [
        ({"depth": 4}, "depth must be from [01] to [23], the tower's blocks, got 4"),
        ({"n_ctx": 0}, "n_ctx must be at least 1, got 0"),
    ],
    ("VPT",): [
        ({"n_ctx": 0}, "got 0; depth=0 has none"),
        ({"depth": 3}, "depth must be from 0 to 2, the tower's blocks, got 3"),
        ({"templates": ["skin"]}, "template 'skin' has no {} for the class name"),
    ],
    ("IVLP",): [
        ({"n_image_ctx": 0}, "n_image_ctx must be at least 1, got 0; image_depth=0 has none"),
        ({"depth": 0}, "depth must be from 1 to 3, the tower's blocks, got 0"),
        ({"image_depth": 3}, "image_depth must be from 0 to 2, the tower's blocks, got 3"),
    ],
    ("PromptSRC",): [
        ({"image_weight": -1}, "image_weight must be at least 0, got -1"),
        ({"templates": ["skin"]}, "template 'skin' has no {} for the class name"),
        ({"templates": []}, r"templates is \[\]; give a list"),
    ],
    ("ViP",): [
        ({"position": "back"}, "unknown position 'back'.*'end', 'middle', 'front'"),
        ({"aggregation": "maen"}, "unknown aggregation 'maen'; did you mean 'mean'"),
        ({"n_ctx": 0}, "n_ctx must be at least 1, got 0; context=False"),
        ({"knowledge": "incorrect"}, "unknown kind of knowledge 'incorrect'.*'symptoms', 'useless'"),
        ({"symptoms": {"melanoma": ["dark"]}}, "no symptoms for 'nevus', 'keratosis'"),
    ],
    ("CILMP",): [
        ({"intervention": "conditonal"}, "unknown intervention 'conditonal'; did you mean 'conditional'"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 25}, "rank must be at most the width of the hidden states, 24, got 25"),
        ({"depth": 0}, "depth must be from 1 to 3, the tower's blocks, got 0"),
        ({"depth": 4}, "depth must be from 1 to 3, the tower's blocks, got 4"),
        ({"image_depth": 3}, "image_depth must be from 0 to 2, the tower's blocks, got 3"),
        ({"n_ctx": 0}, "n_ctx must be at least 1, got 0"),
        ({"prefix_length": -1}, "prefix_length must be at least 0, got -1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"logit_scale": 0}, "logit_scale must be above 0, got 0"),
        ({"condition_scale": -1}, "condition_scale must be at least 0, got -1"),
        ({"condition_scale": float("nan")}, "condition_scale must be at least 0, got nan"),
        ({"suffix_length": 7}, "'nevus' has .* of 10 rows, fewer than prefix_length 4 [+] suffix_length 7"),
    ],
    ("CLIPAdapter",): [
        ({"ratio": 1.2}, "ratio must be from 0 to 1, got 1.2"),
        ({"reduction": 41}, "reduction must be from 1 to 40"),
        ({"reduction": 0}, "reduction must be from 1 to 40"),
        ({"knowledge": "class"}, "unknown knowledge 'class'"),
    ],
    ("LinearProbe",): [({"class_weight": "balance"}, "unknown class_weight .*; did you mean 'balanced'")],
    ("LPPlusPlus",): [
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"knowledge": "names"}, "unknown knowledge 'names'"),
    ],
    ("TextProbe",): [
        ({"multiplier_views": -1}, "multiplier_views must be at least 0, got -1"),
        ({"knowledge": "names"}, "unknown knowledge 'names'"),
    ],
    ("TipAdapter",): [
        ({"alpha": -1.0}, "alpha must be at least 0, got -1"),
        ({"beta_max": 0.1}, "alpha_max and beta_max must be above 0.1, got 3.0 and 0.1"),
        ({"cache_crop": 0}, "cache_crop is a part of the image above 0 and up to 1, got 0"),
        ({"cache_views": -1}, "cache_views must be at least 0, got -1"),
        ({"knowledge": "symptom"}, "unknown knowledge 'symptom'"),
    ],
    ("ZeroShot",): [
        ({"knowledge": "symptom"}, "'symptom' in card 'lesions'; did you mean 'symptoms'. .*'templates'"),
        ({"symptoms": SYMPTOMS | {"melanom": ["dark"]}}, "class 'melanom' in .* did you mean 'melanoma'."),
        ({"symptoms": {"nevus": ["round"]}}, "no symptoms for 'melanoma', 'keratosis'; give some for every"),
        ({"symptoms": SYMPTOMS | {"nevus": "round"}}, f"{NO_PHRASES}, not 'round'"),
        ({"symptoms": SYMPTOMS | {"nevus": []}}, NO_PHRASES),
        ({"symptoms": SYMPTOMS | {"nevus": ["round", " ."]}}, NO_PHRASES),
        ({"knowledge": "classnames", "symptoms": SYMPTOMS}, "knowledge='classnames' reads no symptoms"),
        ({"templates": ["a {}."]}, "knowledge='symptoms' reads no templates"),
        ({"knowledge": "templates", "templates": ["a mole"]}, "template 'a mole' has no {} for the class"),
        ({"knowledge": "templates", "templates": []}, r"templates is \[\]; give a list"),
    ],
}
CASES = [(name, *case) for names, cases in WRONG.items() for name in names for case in cases]


@pytest.mark.parametrize(("name", "options", "message"), CASES)
def test_options_that_make_no_sense_are_named(clip, name, options, message):
    given = {"representations": Representations(ROWS)} if name == "CILMP" else {}
    with pytest.raises(ValueError, match=message):
        METHODS[name](clip, CARD, **given, **options)
