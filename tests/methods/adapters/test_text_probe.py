"""TextProbe: zero-shot at the start, and held near it by CLAP's penalty."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.methods.adapters.text_probe import TextProbe
from medvlp.methods.base import Reading
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.methods.small import SYMPTOMS, make_card, make_set

CARD = make_card()
TRAIN = make_set(CARD, [0, 1, 2, 1, 1, 0])
RUN = TrainConfig(epochs=5, lr=0.5, weight_decay=0.0, views=0, keep="last", warmup_lr=None)


@pytest.fixture(scope="module")
def x(clip, cache) -> torch.Tensor:
    return image_features(clip, TRAIN, cache_dir=cache).features


def raw_names(clip: Clip) -> torch.Tensor:
    """The class names' features (n_cls, D) as the tower gives them."""
    texts = clip.tokenizer([f"a dermoscopy image of {name}." for name in CARD.classnames])
    return clip.model.encode_text(texts)


@pytest.mark.parametrize("knowledge", ["classnames", "templates"])
def test_before_the_first_step_it_is_zero_shot(clip, x, knowledge):
    probe = TextProbe(clip, CARD, knowledge=knowledge)
    assert torch.allclose(
        probe.logits_from_features(x), ZeroShot(clip, CARD, knowledge).logits_from_features(x), atol=1e-4
    )
    assert probe.penalty() == 0


def test_the_start_has_the_lengths_of_the_towers_features(clip):
    raw = raw_names(clip)
    assert (raw.norm(dim=1) - 1).abs().min() > 0.05
    assert torch.allclose(TextProbe(clip, CARD, knowledge="classnames").w, raw, atol=1e-4)
    symptoms = TextProbe(clip, CARD, knowledge="symptoms")
    assert torch.allclose(symptoms.w.norm(dim=1), raw.norm(dim=1), atol=1e-4)
    means = torch.stack(
        [clip.encode_texts([f"{s}." for s in phrases]).mean(0) for phrases in SYMPTOMS.values()]
    )
    assert torch.allclose(F.cosine_similarity(symptoms.w, means), torch.ones(3), atol=1e-5)


def test_a_class_without_training_images_keeps_one(clip, cache):
    probe = TextProbe(clip, CARD, multiplier_views=0)
    probe.before_training(TRAIN.subset([0, 1, 3]), None, Reading(cache))
    assert probe.multipliers[2] == 1 and (probe.multipliers[:2] < 1).all()


def test_the_penalty_holds_the_weights_near_the_texts(clip, cache):
    def moved(**options) -> float:
        probe = TextProbe(clip, CARD, multiplier_views=0, **options)
        fit(probe, TRAIN, None, replace(RUN, epochs=50), cache_dir=cache, progress=False)
        return (probe.w - probe.text_features).norm().item()

    assert 0 < moved() < 0.7 * moved(constraint=False)
