"""ZeroShot against the definition, computed by hand from open_clip's own encode_text."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip, load_clip
from medvlp.methods.zero_shot import ZeroShot, score_table
from tests.methods.small import SYMPTOMS, make_card

CARD = make_card()


@pytest.fixture(scope="module")
def images(clip) -> torch.Tensor:
    return torch.randn(5, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))


def text_feature(clip: Clip, text: str) -> torch.Tensor:
    """(D,), normalised, from all 77 tokens."""
    return F.normalize(clip.model.encode_text(clip.tokenizer([text])), dim=-1)[0]


def image_features(clip: Clip, images: torch.Tensor) -> torch.Tensor:
    return F.normalize(clip.model.encode_image(images), dim=-1)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4)


def test_classnames_are_the_first_template(clip, images):
    texts = [text_feature(clip, f"a dermoscopy image of {name}.") for name in CARD.classnames]
    by_hand = clip.logit_scale * image_features(clip, images) @ torch.stack(texts).T
    assert close(ZeroShot(clip, CARD, "classnames")(images), by_hand)


def test_templates_are_the_normalised_mean_of_normalised_features(clip, images):
    ensemble = []
    for name in CARD.classnames:
        features = torch.stack([text_feature(clip, t.format(name)) for t in CARD.templates])
        ensemble.append(features.mean(0) / features.mean(0).norm())
    by_hand = clip.logit_scale * image_features(clip, images) @ torch.stack(ensemble).T
    assert close(ZeroShot(clip, CARD, "templates")(images), by_hand)


def test_symptoms_are_the_mean_of_the_cosines(clip, images):
    f = image_features(clip, images)
    by_hand = torch.zeros(5, 3)
    for b in range(5):
        for c, phrases in enumerate(SYMPTOMS.values()):
            cosines = [float(f[b] @ text_feature(clip, f"{phrase}.")) for phrase in phrases]
            by_hand[b, c] = clip.logit_scale * np.mean(cosines)
    zero = ZeroShot(clip, CARD)
    assert close(zero(images), by_hand)
    assert (zero.text_features.norm(dim=1) < 0.999).all()  # the mean is not normalised again


def test_one_template_is_the_classnames(clip):
    names, one = (
        ZeroShot(clip, CARD, kind, templates=["skin with {}."]) for kind in ("classnames", "templates")
    )
    assert close(names.text_features, one.text_features)


def test_other_kinds_of_knowledge_of_the_card(clip):
    useless = ZeroShot(clip, CARD, "useless")
    assert useless.symptoms == dict.fromkeys(SYMPTOMS, ["a photo of skin"])
    assert close(useless.text_features[0], useless.text_features[2])  # the same words for every class


def test_order_and_repetition_of_symptoms_do_not_matter(clip, images):
    logits = ZeroShot(clip, CARD)(images)
    turned = {name: phrases[::-1] for name, phrases in SYMPTOMS.items()}
    doubled = {name: phrases * 2 for name, phrases in SYMPTOMS.items()}
    assert close(ZeroShot(clip, CARD, symptoms=turned)(images), logits)
    assert close(ZeroShot(clip, CARD, symptoms=doubled)(images), logits)
    weighted = SYMPTOMS | {"nevus": ["round shape", "round shape", "even brown color"]}
    changed = ZeroShot(clip, CARD, symptoms=weighted)(images)
    assert not close(changed[:, 1], logits[:, 1])
    assert close(changed[:, [0, 2]], logits[:, [0, 2]])


def test_label_order_is_the_cards_whatever_the_users(clip, images):
    backwards = dict(reversed(SYMPTOMS.items()))
    zero = ZeroShot(clip, CARD, symptoms=backwards)
    assert list(zero.symptoms) == CARD.classnames
    assert close(zero(images), ZeroShot(clip, CARD)(images))


def test_a_symptom_ends_in_one_full_stop(clip):
    plain, stopped = (
        ZeroShot(clip, make_card(2), symptoms={"melanoma": [s], "nevus": ["b"]}) for s in ("a", " a. ")
    )
    assert close(plain.text_features, stopped.text_features)


def test_symptom_scores_and_explanation_add_up_to_the_logits(clip, images):
    zero = ZeroShot(clip, CARD)
    features = clip.encode_images(images)
    scores = zero.symptom_scores(features)
    assert {name: tuple(s.shape) for name, s in scores.items()} == {
        "melanoma": (5, 3),
        "nevus": (5, 2),
        "keratosis": (5, 4),
    }
    table = score_table(zero.symptom_scores(features[2:3]), zero.symptoms)
    assert list(table.columns) == ["classname", "symptom", "score"]
    assert list(table["symptom"]) == [phrase for phrases in SYMPTOMS.values() for phrase in phrases]
    means = table.groupby("classname", sort=False)["score"].mean()
    assert list(means.index) == CARD.classnames
    assert clip.logit_scale * means.to_numpy() == pytest.approx(zero(images)[2].numpy(), abs=1e-3)


def test_text_features_move_with_the_module_and_follow_from_its_config(clip):
    zero = ZeroShot(clip, CARD)
    assert all(name.startswith("clip.") for name in zero.state_dict())  # there is nothing of its own to save
    assert torch.equal(ZeroShot(clip, CARD, **zero.config).text_features, zero.text_features)
    other = ZeroShot(load_clip(clip.name, device="cpu"), CARD).to("meta")
    assert other.text_features.device.type == other.encoded_texts.device.type == "meta"


def test_names_have_no_symptoms_to_score(clip):
    with pytest.raises(ValueError, match="ZeroShot has no symptoms to score"):
        ZeroShot(clip, CARD, "classnames").symptom_scores(torch.zeros(1, clip.embed_dim))
