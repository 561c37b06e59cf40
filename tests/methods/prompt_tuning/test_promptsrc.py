"""PromptSRC: what its constraints hold it to, and without them IVLP."""

import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip
from medvlp.methods.base import own_tensors
from medvlp.methods.prompt_tuning.ivlp import IVLP
from medvlp.methods.prompt_tuning.promptsrc import PromptSRC
from medvlp.study.training.callbacks import EpochAverage
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.methods.small import make_card, make_set

CARD = make_card()
TEXTS = [f"a photo of a {name}." for name in CARD.classnames]
LABELS = torch.tensor([0, 1, 2, 0])
OFF = {"text_weight": 0.0, "image_weight": 0.0, "logits_weight": 0.0}


class ImagesSeen:
    """How many images the image tower is given, prompted or not, while inside."""

    def __init__(self, clip: Clip) -> None:
        self.conv1, self.counts = clip.model.visual.conv1, []

    def __enter__(self) -> list[int]:
        self.hook = self.conv1.register_forward_pre_hook(lambda _, args: self.counts.append(len(args[0])))
        return self.counts

    def __exit__(self, *error) -> None:
        self.hook.remove()


def test_the_frozen_texts_are_the_mean_over_templates_before_it_is_normalised(clip):
    src = PromptSRC(clip, CARD)
    for c, name in enumerate(CARD.classnames):
        ids = clip.tokenizer([template.replace("{}", name) for template in CARD.templates])
        mean = clip.model.encode_text(ids, normalize=False).mean(dim=0)
        assert torch.allclose(src.frozen_text_features[c], F.normalize(mean, dim=-1), atol=1e-5)
    own = PromptSRC(clip, CARD, templates=["a photo of a {}."])
    assert torch.allclose(own.frozen_text_features, clip.encode_texts(TEXTS), atol=1e-5)


def test_at_the_frozen_towers_nothing_is_added(clip, images):
    src = PromptSRC(clip, CARD, templates=["a photo of a {}."], depth=1, image_depth=0)
    f = clip.encode_images(images)
    logits, penalty = src.training_logits(f)
    assert torch.equal(logits, src.logits_from_features(f))
    assert torch.allclose(penalty, torch.zeros(4), atol=1e-5)
    with torch.no_grad():
        src.ctx.mul_(-3)
    assert (src.training_logits(f)[1] > 0.01).all()


def test_without_weights_it_trains_as_ivlp_and_reads_each_image_once(clip, images):
    src = PromptSRC(clip, CARD, **OFF)
    with ImagesSeen(clip) as counts:
        penalty = src.training_logits(images)[1]
    assert counts == [4] and penalty.abs().max() == 0
    train = make_set(CARD, [0, 1, 2] * 4)
    same = {"epochs": 3, "batch_size": 4, "lr": 0.01, "views": 0, "num_workers": 0, "keep": "last"}
    config = TrainConfig(**same, average=False)
    ivlp, constrained = IVLP(clip, CARD), PromptSRC(clip, CARD)
    losses = [fit(m, train, None, config, progress=False).loss.tolist() for m in (src, ivlp, constrained)]
    assert losses[0] == losses[1]
    for name, tensor in own_tensors(ivlp).items():
        assert torch.equal(tensor, own_tensors(src)[name])
        assert not torch.equal(tensor, own_tensors(constrained)[name])


def test_the_constraints_hold_it_near_the_frozen_towers(clip, images):
    train = make_set(CARD, [0, 1, 2] * 4)
    config = TrainConfig(epochs=6, batch_size=4, lr=0.01, views=0, num_workers=0, keep="last")
    f0, distances = clip.encode_images(images), {}
    for name, weights in (("free", OFF), ("held", {})):
        src = PromptSRC(clip, CARD, **weights)
        fit(src, train, None, config, progress=False)
        t = src.class_features()
        distances[name] = (
            (t - src.frozen_text_features).abs().mean(),
            (src.image_features(images) - f0).abs().mean(),
        )
    assert all(held < free for held, free in zip(distances["held"], distances["free"], strict=True))


def test_the_frozen_tower_reads_training_images_only(clip, images):
    src = PromptSRC(clip, CARD)
    with ImagesSeen(clip) as counts:
        src.training_logits(images)
    assert counts == [4, 4]
    with ImagesSeen(clip) as counts:
        src(images)
    assert counts == [4]


def test_with_cached_features_only_texts_learn(clip, tmp_path):
    src = PromptSRC(clip, CARD, image_depth=0, logit_scale=50.0)
    assert set(own_tensors(src)) == {"ctx"}
    config = TrainConfig(epochs=4, batch_size=6, lr=0.01, views=2, keep="last", warmup_lr=None)
    history = fit(src, make_set(CARD, [0, 1, 2] * 6), None, config, cache_dir=tmp_path, progress=False)
    assert history.loss.iloc[-1] < history.loss.iloc[0]


def test_the_average_is_the_authors_gaussian(clip):
    average = EpochAverage.published(PromptSRC(clip, CARD), 20)
    assert (average.mean, average.std, average.tensors) == (15.0, 1.0, None)
    assert EpochAverage.published(IVLP(clip, CARD), 20) is None
