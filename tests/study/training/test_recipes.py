"""What a method may bring to `fit`: a recipe, a penalty, hooks before and after; and the optimisers."""

from dataclasses import asdict, replace
from functools import partial
from math import isnan
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.methods.adapters.linear_probe import LinearProbe
from medvlp.methods.adapters.text_probe import TextProbe
from medvlp.methods.adapters.tip_adapter import TipAdapter
from medvlp.methods.base import Method, own_tensors
from medvlp.methods.cilmp import CILMP
from medvlp.methods.vip import ViP
from medvlp.study.evaluation import evaluate
from medvlp.study.training.batches import epoch_order
from medvlp.study.training.callbacks import EpochAverage
from medvlp.study.training.config import TrainConfig, recipe
from medvlp.study.training.fit import fit
from tests.methods.small import make_set
from tests.study.training.small_training import CARD, Prototypes, Tinted, small_sets

RUN = TrainConfig(epochs=3, batch_size=6, lr=0.5, views=0, num_workers=0, keep="last", warmup_lr=None)
QUIET = {"progress": False}


class Pulled(Prototypes):
    """Prototypes with a penalty that pulls the weights of the image's own features to zero."""

    recipe: ClassVar[dict] = {"epochs": 2, "batch_size": 4, "lr": 0.25, "views": 0}
    average: ClassVar[dict] = {"mean": 0.5, "std": 0.25}

    def training_logits(self, f: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits_from_features(f), (f @ self.weight.T).square().sum(dim=1)


class PulledImages(Tinted):
    """The same for a method that reads images."""

    def training_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), self.tint.square().sum().expand(len(images))


class NearestMean(Method):
    """Class means of the training features: fitted before training, by no gradient."""

    def __init__(self, clip: Clip, card) -> None:
        super().__init__(clip, card, locals())
        self.register_buffer("means", torch.zeros(len(card.classnames), clip.embed_dim))
        self.calls: list[tuple] = []

    def before_training(self, train, val, reading) -> None:
        found = image_features(self.clip, train, **vars(reading))
        self.means.copy_(torch.stack([found.features[found.labels == c].mean(0) for c in range(3)]))
        self.calls.append(("before", train.split, val and val.split))

    def after_training(self, val, reading) -> None:
        self.calls.append(("after", val and val.split, self.training))

    def logits_from_features(self, f: Tensor) -> Tensor:
        return -torch.cdist(f, self.means)


def test_fit_without_a_config_uses_the_methods_recipe(clip):
    assert recipe(Pulled) == TrainConfig(epochs=2, batch_size=4, lr=0.25, views=0)
    history = fit(Pulled(clip, CARD), *small_sets(), **QUIET)
    assert len(history) == 2 and history["lr"][1] == 0.25
    assert recipe(ViP) == TrainConfig()


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_a_last_smaller_batch_is_left_out_or_kept(clip, drop_last, sizes):
    config = replace(RUN, batch_size=4, drop_last=drop_last)
    assert [len(batch) for batch in epoch_order(config, 10, 1)[0]] == sizes
    assert [len(batch) for batch in epoch_order(config, 3, 1)[0]] == [3]
    train, val = make_set(CARD, [0, 1, 2, 0, 1]), make_set(CARD, [0, 1, 2], "val")
    method = Prototypes(clip, CARD)
    seen = []
    plain = method.training_logits
    method.training_logits = lambda f: (seen.append(len(f)), plain(f))[1]
    fit(method, train, val, replace(config, epochs=1), **QUIET)
    assert seen == ([4] if drop_last else [4, 1])


def test_training_sees_the_views_of_its_recipe(clip, tmp_path):
    train, val = make_set(CARD, [0, 1, 2] * 2), make_set(CARD, [0, 1, 2], "val")
    for kind in (Prototypes, Tinted):
        for views in (2, "fresh"):
            weights = []
            for how in ({}, {"crop": 0.5}, {"flip": False}):
                method = kind(clip, CARD)
                config = replace(RUN, epochs=1, batch_size=6, views=views, keep="last", num_workers=0, **how)
                fit(method, train, val, config, cache_dir=tmp_path, progress=False)
                weights.append(torch.cat([p.detach().flatten() for p in own_tensors(method).values()]))
            assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("class_weight", "weight"), [(None, [1.0, 1.0, 1.0]), ("balanced", [24 / 36, 24 / 18, 24 / 18])]
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", [Prototypes, Pulled])
def test_training_is_the_plain_loop(clip, kind, optimizer, class_weight, weight):
    """With twice as many images of the first class, and the optimisers written out."""
    train, val = make_set(CARD, [0, 0, 1, 2] * 6), make_set(CARD, [0, 1, 2], "val")
    config = replace(RUN, optimizer=optimizer, lr=0.05, weight_decay=0.1, class_weight=class_weight)
    config = replace(config, average=False)
    method, plain = kind(clip, CARD), kind(clip, CARD)
    history = fit(method, train, val, config, **QUIET)
    features, w = image_features(clip, train), plain.weight
    m, v, buffer, t = torch.zeros_like(w), torch.zeros_like(w), None, 0
    for epoch in range(1, 4):
        lr, losses = config.learning_rate(epoch), []
        for rows in epoch_order(config, len(train), epoch)[0]:
            f, y = features.features[rows], features.labels[rows]
            of_images = -plain.logits_from_features(f).log_softmax(dim=1)[range(len(y)), y]  # (b,)
            loss = (of_images * torch.tensor(weight)[y]).mean()
            if kind is Pulled:
                loss = loss + (f @ w.T).pow(2).sum() / len(y)
            (g,) = torch.autograd.grad(loss, w)
            with torch.no_grad():
                if optimizer == "sgd":  # torch's: velocity starts as the first gradient
                    g = g + 0.1 * w
                    buffer = g if buffer is None else 0.9 * buffer + g
                    w -= lr * buffer
                else:  # Loshchilov & Hutter 2019, algorithm 2
                    t += 1
                    w *= 1 - lr * 0.1
                    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                    w -= lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            losses.append(loss.item())
        assert history["loss"][epoch - 1] == pytest.approx(np.mean(losses), rel=1e-4)
        assert history["lr"][epoch - 1] == lr
    assert torch.allclose(method.weight, w, atol=1e-5)
    assert not torch.allclose(method.weight, kind(clip, CARD).weight, atol=1e-2)


def test_a_penalty_on_features_is_the_same_from_images(clip):
    """views="fresh" reads images even where the image tower is frozen."""
    train, val = small_sets()
    methods = [Pulled(clip, CARD) for _ in range(2)]
    inputs = torch.stack([clip.preprocess(train.image(i)) for i in range(4)])
    f = clip.encode_images(inputs)
    from medvlp.study.training.batches import Logits

    for a, b in zip(Logits(methods[0], True)(f), Logits(methods[1], False)(inputs), strict=True):
        assert torch.allclose(a, b, atol=1e-6) and a.shape[0] == 4
    history = fit(methods[0], train, val, replace(RUN, views="fresh", epochs=1), **QUIET)
    assert np.isfinite(history["loss"]).all()


def test_a_penalty_of_a_method_that_reads_images(clip):
    train, val = small_sets()
    free, pulled = Tinted(clip, CARD), PulledImages(clip, CARD)
    for method in (free, pulled):
        with torch.no_grad():
            method.tint.fill_(2.0)
        fit(method, train, val, replace(RUN, lr=0.05), **QUIET)
    assert pulled.tint.abs().max() < 0.8 * free.tint.abs().max()


def test_a_method_that_is_fitted_before_training_takes_no_steps(clip):
    train, val = small_sets()
    method = NearestMean(clip, CARD)
    history = fit(method, train, val, **QUIET)
    assert method.calls == [("before", "train", "val"), ("after", "val", False)]
    assert history["epoch"].tolist() == [0] and history["best"].tolist() == [True]
    assert isnan(history["loss"][0])
    value = evaluate(method, val, n_bootstrap=10).table()["value"]
    assert history["val_accuracy"][0] == value["accuracy"] > 1 / 3
    last = fit(NearestMean(clip, CARD), train, None, TrainConfig(keep="last"), **QUIET)
    assert last["best"].tolist() == [False]


def test_after_training_sees_the_weights_that_are_kept(clip):
    class Noting(Prototypes):
        def after_training(self, val, reading) -> None:
            self.seen = (own_tensors(self)["weight"].clone(), val.split, self.training)

    method = Noting(clip, CARD)
    fit(method, *small_sets(), replace(RUN, keep="best", lr=50.0), **QUIET)
    weight, split, training = method.seen
    assert torch.equal(weight, method.weight) and (split, training) == ("val", False)


@pytest.mark.parametrize(
    "make",
    [
        LinearProbe,
        partial(TextProbe, multiplier_views=2),
        partial(TipAdapter, cache_views=2),
        partial(TipAdapter, cache_views=2, trained=True),
    ],
    ids=["LinearProbe", "TextProbe", "TipAdapter", "TipAdapter-F"],
)
def test_without_progress_no_bar_is_shown(clip, tmp_path, bars, make):
    for progress in (False, True):
        config = TrainConfig(epochs=1, batch_size=4, views=0)
        fit(make(clip, CARD), *small_sets(), config, cache_dir=tmp_path / str(progress), progress=progress)
        assert ("image features" in bars) == bool(bars) == progress


def test_the_published_average_is_scaled_to_the_epochs(clip):
    average = EpochAverage.published(Pulled(clip, CARD), 40)
    assert (average.mean, average.std, average.tensors) == (20, 10, None)
    assert EpochAverage.published(Prototypes(clip, CARD), 40) is None
    cilmp = CILMP(clip, CARD, {name: torch.randn(9, 12) for name in CARD.classnames}, image_depth=0)
    average = EpochAverage.published(cilmp, 100)
    assert (average.mean, average.std, average.tensors) == (100, 30, ("ctx",))


def test_the_defaults_are_coops_trainer():
    said = {"epochs": 50, "batch_size": 32, "lr": 0.002, "drop_last": True, "optimizer": "sgd", "eps": 1e-8}
    said |= {"momentum": 0.9, "weight_decay": 5e-4, "schedule": "epoch", "warmup_lr": 1e-5, "seed": 1}
    said |= {"precision": "fp32", "views": 4, "crop": 0.08, "flip": True, "class_weight": None}
    said |= {"metric": "accuracy", "keep": "best", "average": None, "num_workers": None}
    assert asdict(TrainConfig()) == said
