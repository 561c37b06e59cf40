"""The family held to numbers that the authors' own code computed; tests/golden/README.md says how.

Of every case: logits, the loss and its terms, gradients, one step of the optimiser at the recipe's full rate,
and a short training by `fit`.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.backbone import features
from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.features import Features
from medvlp.data.cards import DataCard
from medvlp.data.image_sets import ImageSet
from medvlp.methods import METHODS
from medvlp.methods.adapters import tip_adapter
from medvlp.methods.base import Method, learned_parameters, own_tensors
from medvlp.study.training import batches
from medvlp.study.training import fit as training
from medvlp.study.training.batches import Batch, FeatureBatches, Logits, make_optimizer
from medvlp.study.training.config import recipe
from tests.backbone import small_clips
from tests.backbone.small_clips import FAMILY, as_float32

LIMIT = 5e-5  # the largest relative difference, of norms
ON_ITS_OWN = ("clip", "bert_text", "biomedcoop_bert", "tip")  # files that are no case like the others
CASES = sorted(path.stem for path in FAMILY.glob("*.npz") if path.stem not in ON_ITS_OWN)
NAMES = ["melanoma", "actinic keratosis", "squamous_cell_carcinoma"]
WEIGHTS = {  # a term of the loss: its weight among the method's arguments
    "BiomedCoOp": {"sccm": "sccm_weight", "kdsp": "kdsp_weight"},
    "PromptSRC": {"text": "text_weight", "image": "image_weight", "logits": "logits_weight"},
    "KgCoOp": {"penalty": "weight"},
}
TENSORS: dict[str, Callable[[Method, Tensor], dict[str, Tensor]]] = {  # what else the authors' code has
    "BiomedCoOp": lambda method, f: {"w": method.w},
    "CLIPAdapter": lambda method, f: {"adapted": method.adapted(f)},
    "CoCoOp": lambda method, f: {"pi": method.meta_net(f)},
    "KgCoOp": lambda method, f: {"w": method.w},
    "PromptSRC": lambda method, f: {"t0": method.frozen_text_features},
}


class Case:
    """The numbers of one file."""

    def __init__(self, name: str) -> None:
        self.file = np.load(FAMILY / f"{name}.npz")
        self.meta: dict[str, Any] = json.loads(str(self.file["meta"])) if "meta" in self.file.files else {}

    def __contains__(self, key: str) -> bool:
        return key in self.file.files

    def __getitem__(self, key: str) -> Tensor:
        return as_float32(self.file[key])

    def named(self, start: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, by what follows."""
        return {key.removeprefix(start): self[key] for key in self.file.files if key.startswith(start)}

    def build(self, clip: Clip, **changes: Any) -> Method:
        """The method, with the learned tensors that the authors' code began with."""
        method = METHODS[self.meta["method"]](clip, make_card(), **self.meta["kwargs"] | changes)
        if self.meta["method"] == "TextProbe":  # CLAP's code leaves the underscores in the third name
            agree(method.text_features[:2], self["term/t"][:2], "t")
            method.text_features.copy_(self["term/t"])
        return put(method, self.named("p/"))


class Tensors:
    """Images that are preprocessed already, as an image set's store."""

    def __init__(self, tensors: Tensor) -> None:
        self.tensors = tensors

    def image(self, i: int) -> Tensor:
        return self.tensors[i]

    def content(self) -> str:
        return str(self.tensors.double().sum().item())


def make_card(templates: tuple[str, ...] = ("a photo of a {}.",)) -> DataCard:
    classes = [{"name": name, "knowledge": {"symptoms": ["one", "two"]}} for name in NAMES]
    card = {"name": "small", "title": "Small", "modality": "a photo", "source": {"kind": "folder"}}
    return DataCard.model_validate(card | {"templates": templates, "classes": classes})


def make_set(images: Tensor, labels: Tensor, split: str = "train") -> ImageSet:
    ids = [f"{i}.png" for i in range(len(labels))]
    return ImageSet(make_card(), split, ids, labels, ids, Tensors(images))


def put(method: Method, tensors: dict[str, Tensor]) -> Method:
    with torch.no_grad():
        for name, tensor in tensors.items():
            own_tensors(method)[name].copy_(tensor)
    return method.eval()


def agree(ours: Tensor | float, theirs: Tensor, what: str, scale: Tensor | None = None) -> None:
    """Assert that the difference is small beside `scale`, by default the authors' numbers."""
    ours = torch.as_tensor(ours).detach().double()
    assert ours.shape == theirs.shape, what
    difference, size = (ours - theirs).norm(), (theirs if scale is None else scale).double().norm()
    assert difference <= LIMIT * max(size, 1e-12), f"{what}: {difference / size:.1e}"


def loss_of(method: Method, inputs: Tensor, labels: Tensor, from_features: bool) -> Tensor:
    """The loss of a batch, as `fit` computes it."""
    logits, penalty = Logits(method.train(), from_features)(inputs)
    return F.cross_entropy(logits, labels) + penalty.mean()


def check_gradients_and_one_step(method: Method, loss: Tensor, case: Case) -> None:
    loss.backward()
    learned = learned_parameters(method)
    assert learned.keys() == case.named("g/").keys()
    for name, parameter in learned.items():
        agree(parameter.grad, case[f"g/{name}"], f"gradient of {name}")
    start = {name: parameter.detach().clone() for name, parameter in learned.items()}
    make_optimizer(recipe(method), learned.values()).step()
    for name, parameter in learned.items():
        agree(parameter, case[f"step/{name}"], f"step of {name}", case[f"step/{name}"] - start[name])


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    clip = load_clip(small_clips.family_kind(tmp_path_factory.mktemp("clip")), device="cpu")
    clip.preprocess = lambda image: image  # the images of the cases are tensors
    return clip


@pytest.fixture(scope="module")
def images() -> Tensor:
    return Case("clip")["in/images"]  # (8, 3, 32, 32)


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return Case("clip")["in/labels"]  # (8,)


@pytest.fixture
def in_their_order(monkeypatch) -> None:
    """Let `fit` take images 0 to 3 and then 4 to 7, in the view of evaluation, as their trainer was given."""
    halves = [torch.arange(4), torch.arange(4, 8)]
    monkeypatch.setattr(batches, "epoch_order", lambda config, n, epoch: (halves, [None] * n))


@pytest.fixture
def their_views(monkeypatch) -> Callable[[Tensor, Tensor | None], None]:
    """Give features of random views (K, N, D), and of validation images, in place of computing them."""

    def give(views: Tensor, val: Tensor | None = None) -> None:
        def image_features(clip, images, view=None, *args, **kwargs) -> Features:
            numbers = val if view is None else views[view]
            return Features(F.normalize(numbers, dim=-1), images.labels, images.ids)

        for module in (features, tip_adapter):
            monkeypatch.setattr(module, "image_features", image_features)

    return give


def test_every_method_of_the_family_is_held():
    # baselines, or held elsewhere
    others = {"ZeroShot", "LinearProbe", "ViP", "CILMP", "TipAdapter", "SSText", "LPPlusPlus"}
    assert {Case(name).meta["method"] for name in CASES} == METHODS.keys() - others
    assert len(CASES) + 2 == 25


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_gradients_and_one_step_are_the_authors(clip, images, labels, their_views, name):
    case = Case(name)
    method, x, y, from_features = case.build(clip), images[:4], labels[:4], False
    if "batch/f" in case:  # CLAP: cached features of random views; lambda comes from them
        x, y, from_features = F.normalize(case["batch/f"], dim=-1), case["batch/y"], True
        their_views(case["in/view_features"])
        method.before_training(make_set(images, labels), None)
        if method.constraint:
            agree(method.multipliers, case["term/multipliers"], "lambda")
    agree(method(images), case["logits8"], "logits of 8")
    agree(method(images[:4]), case["logits"], "logits")

    loss = loss_of(method, x, y, from_features)
    agree(loss, case["term/loss"], "loss")
    f = clip.encode_images(images[:4])
    for what, tensor in TENSORS.get(case.meta["method"], lambda method, f: {})(method, f).items():
        agree(tensor, case[f"term/{what}"], what)
    weights = WEIGHTS.get(case.meta["method"], {})
    for term, weight in weights.items():
        others = {other: 0.0 for other in weights.values() if other != weight}
        alone = case.build(clip, **others)
        penalty = alone.training_logits(f if alone.keeps_image_tower else images[:4])[1]
        agree(penalty.mean(), case[f"term/{term}"], term)
    check_gradients_and_one_step(method, loss, case)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("clap")])
def test_a_short_training_ends_where_the_authors_ends(clip, images, labels, in_their_order, tmp_path, name):
    case = Case(name)
    method, epochs = case.build(clip), case.meta["epochs"]
    config = replace(recipe(method), epochs=epochs, batch_size=4, views=0, keep="last", num_workers=0)
    train = make_set(images, labels)
    history = training.fit(method, train, None, config, cache_dir=tmp_path, progress=False)
    assert history["lr"].tolist() == pytest.approx(case["run_lr"].tolist())
    for tensor, start in case.named("p/").items():
        end = case[f"run/{tensor}"]
        agree(own_tensors(method)[tensor], end, tensor, end - start)


@pytest.mark.parametrize("name", ["clap_l2", "clap_none"])
def test_clap_trained_on_the_views_that_the_authors_drew_ends_where_theirs_ends(
    clip, images, labels, their_views, monkeypatch, name
):
    case = Case(name)

    class Drawn(FeatureBatches):
        """Two batches of 4 in each epoch, of images and views that the authors' trainer drew."""

        def __init__(self, *args) -> None:
            pairs = zip(F.normalize(case["seen/f"], dim=-1), case["seen/y"], strict=True)
            self.batches = [Batch(f, y, len(y)) for f, y in pairs]

        def epoch(self, epoch: int, process: int, n_processes: int) -> list[Batch]:
            return self.batches[2 * epoch - 2 : 2 * epoch]

    their_views(case["in/view_features"])  # of which lambda is computed
    monkeypatch.setattr(training, "FeatureBatches", Drawn)
    method = case.build(clip)
    config = replace(recipe(method), epochs=case.meta["epochs"], batch_size=4)
    training.fit(method, make_set(images, labels), None, config, progress=False)
    agree(method.w, case["run/w"], "w", case["run/w"] - case["p/w"])


def test_biomedcoop_with_a_bert_tower(tmp_path, labels):
    case, clip = Case("biomedcoop_bert"), load_clip(small_clips.family_bert_kind(tmp_path), device="cpu")
    method = METHODS["BiomedCoOp"](clip, make_card(), **case.meta["kwargs"])
    agree(method.ctx, case["p/ctx"], "start")
    f = F.normalize(case["in/features"], dim=-1)
    agree(method.logits_from_features(f), case["logits"], "logits")
    loss = loss_of(method, f, labels[:4], True)
    agree(loss, case["term/loss"], "loss")
    loss.backward()
    agree(method.ctx.grad, case["g/ctx"], "gradient of ctx")
    for term, other in (("sccm", "kdsp_weight"), ("kdsp", "sccm_weight")):
        alone = METHODS["BiomedCoOp"](clip, make_card(), **case.meta["kwargs"] | {other: 0.0})
        agree(alone.training_logits(f)[1].mean(), case[f"term/{term}"], term)


def test_tip_adapter_f_trained_by_its_recipe_ends_where_the_authors_ends(
    clip, images, labels, in_their_order, tmp_path
):
    case = Case("tip")

    class TheirKeys(METHODS["TipAdapter"]):
        """With the authors' mean over views, which is normalised after it."""

        def before_training(self, *args, **kwargs) -> None:
            super().before_training(*args, **kwargs)
            put(self, {"keys": case["keys"]})

    card = make_card(tuple(case.meta["templates"]))
    tip = TheirKeys(clip, card, trained=True, cache_views=0, logit_scale=100.0)
    config = replace(recipe(tip), epochs=5, batch_size=4, views=0, keep="last")
    training.fit(tip, make_set(images, labels), None, config, cache_dir=tmp_path, progress=False)
    agree(tip.keys, case["run/keys"], "keys", case["run/keys"] - case["keys"])


def test_biomedcoop_s_bert_tower_has_dropout_in_training_where_it_is_asked_for(tmp_path):
    case, clip = Case("biomedcoop_bert"), load_clip(small_clips.family_bert_kind(tmp_path), device="cpu")
    f = F.normalize(case["in/features"], dim=-1)
    ours, theirs = (
        METHODS["BiomedCoOp"](clip, make_card(), **case.meta["kwargs"] | {"sccm_weight": 0.0} | more).train()
        for more in ({}, {"text_dropout": True})
    )
    with torch.no_grad():
        without = ours.training_logits(f)[1].mean()
        torch.manual_seed(0)
        draws = torch.stack([theirs.training_logits(f)[1].mean() for _ in range(40)])
        torch.manual_seed(0)
        assert theirs.training_logits(f)[1].mean() == draws[0]  # the draws are those of the seed
        assert not any(module.training for module in clip.modules())
        theirs.eval()
        assert torch.equal(theirs.logits_from_features(f), ours.logits_from_features(f))
    assert torch.equal(without, ours.training_logits(f)[1].mean())
    assert draws.std() > 0.1 * without and draws.mean() != without


def test_tip_adapter(clip, images, labels, their_views):
    case = Case("tip")
    card = make_card(tuple(case.meta["templates"]))
    train, val = make_set(images, labels), make_set(torch.zeros(96), case["in/val_labels"], "val")
    their_views(case["in/view_features"], case["in/val_features"])
    tip = METHODS["TipAdapter"](clip, card, trained=True, cache_views=1, logit_scale=100.0)
    tip.before_training(train, None)
    agree(tip.keys, case["keys1"], "keys of one view")
    agree(tip.values, case["values"], "values")
    agree(tip.text_features, case["text"], "text features")

    put(tip, {"keys": case["keys"]})
    agree(tip(images), case["logits"], "logits")
    loss = loss_of(tip, images[:4], labels[:4], False)
    agree(loss, case["loss"], "loss")
    loss.backward()
    agree(tip.keys.grad, case["g/keys"], "gradient of keys")

    make_optimizer(recipe(tip), [tip.keys]).step()
    agree(tip.keys, case["step/keys"], "step of keys", case["step/keys"] - case["keys"])

    put(tip, {"keys": case["keys"]})
    tip.after_training(val)
    agree(torch.stack([tip.beta, tip.alpha]), case["best"], "beta and alpha")
    ours, theirs = 100 * tip.search["val_accuracy"].to_numpy(), case["grid_acc"].numpy()  # (4000,)
    assert (np.abs(ours - theirs) > 1e-3).sum() <= 1  # of one pair, an image whose classes nearly tie
    assert np.abs(ours - theirs).max() < 1.05  # one of 96 images
