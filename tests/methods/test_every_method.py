"""What every method must do, asked of all of them in the registry."""

import inspect
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from medvlp.knowledge.representations import Representations
from medvlp.methods import METHODS
from medvlp.methods.base import Method, arguments_of, own_tensors, trainable_parameters
from medvlp.study.ablation.study import run_ablation
from medvlp.study.evaluation import evaluate
from medvlp.study.prediction import predict
from medvlp.study.saving import load, save, transfer
from medvlp.study.training.callbacks import EpochAverage
from medvlp.study.training.config import TrainConfig, recipe
from medvlp.study.training.fit import fit
from tests.methods.small import SYMPTOMS, make_card, make_set

CARD = make_card()
LABELS = torch.tensor([0, 1, 2, 0])
ROWS = Representations({name: torch.randn(9, 12) for name in CARD.classnames})
CASES = [  # method, options, the first parts of its own tensors' names
    ("ZeroShot", {"knowledge": "symptoms", "symptoms": SYMPTOMS}, set()),
    ("ZeroShot", {"knowledge": "templates", "templates": ["skin with {}."]}, set()),
    ("LinearProbe", {"class_weight": "balanced"}, {"linear", "fitted"}),
    ("TextProbe", {"constraint": False, "knowledge": "templates"}, {"w", "multipliers"}),
    ("TipAdapter", {"n_cache": 4, "trained": True}, {"keys", "values", "alpha", "beta"}),
    ("TipAdapter", {"n_cache": 4, "alpha": 0.5}, {"keys", "values", "alpha", "beta"}),
    ("CLIPAdapter", {"ratio": 0.5, "reduction": 8}, {"W1", "W2"}),
    ("LPPlusPlus", {"steps": 3, "knowledge": "classnames"}, {"w", "b", "alpha"}),
    ("SSText", {"plus": True}, {"w"}),
    ("CoOp", {"n_ctx": 2, "csc": True, "position": "middle"}, {"ctx"}),
    ("CoCoOp", {"n_ctx": 2, "ctx_init": "", "position": "front"}, {"ctx", "meta_net"}),
    ("KgCoOp", {"weight": 2.0, "templates": ["skin with {}."]}, {"ctx"}),
    ("BiomedCoOp", {"tau": 2.0, "symptoms": SYMPTOMS, "ctx_init": "skin with"}, {"ctx"}),
    ("VPT", {"n_ctx": 3, "depth": 1}, {"image_prompts"}),
    ("IVLP", {"n_ctx": 3, "depth": 1}, {"ctx", "image_prompts"}),
    ("IVLP", {"image_depth": 0}, {"ctx"}),
    ("MaPLe", {"n_ctx": 3, "depth": 1}, {"ctx", "A", "b"}),
    ("PromptSRC", {"n_ctx": 3, "templates": ["skin with {}."]}, {"ctx", "image_prompts"}),
    ("ViP", {"n_ctx": 2, "csc": True, "symptoms": SYMPTOMS}, {"ctx", "g", "Wq", "Wk"}),
    ("ViP", {"aggregation": "mean"}, {"ctx"}),
    ("ViP", {"aggregation": "max"}, {"ctx"}),
    ("ViP", {"context": False, "position": "front"}, {"g", "Wq", "Wk"}),
    ("CILMP", {"representations": ROWS, "rank": 2}, {"ctx", "image_prompts", "sites"}),
    ("CILMP", {"representations": ROWS, "image_depth": 0, "dropout": 0.0}, {"ctx", "sites"}),
]
every = pytest.mark.parametrize(
    ("name", "options", "own"), CASES, ids=[f"{name}-{'-'.join(options)}" for name, options, _ in CASES]
)


@pytest.fixture(scope="module")
def images(clip):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, clip.image_size, clip.image_size, generator=generator)


def shaken(method: Method) -> Method:
    """The method, in evaluation mode, with learned tensors that are no longer those of the start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in own_tensors(method).values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            else:
                tensor.fill_(True)  # a linear probe is fitted
    return method.eval()


def test_no_method_is_left_out():
    assert {name for name, _, _ in CASES} == set(METHODS)


def test_the_default_knowledge_is_templates_where_a_class_has_one_feature_and_symptoms_elsewhere():
    signatures = {name: inspect.signature(kind).parameters for name, kind in METHODS.items()}
    defaults = {name: own["knowledge"].default for name, own in signatures.items() if "knowledge" in own}
    one_feature = ["TipAdapter", "CLIPAdapter", "TextProbe", "LPPlusPlus", "SSText"]
    expected = dict.fromkeys(one_feature, "templates")
    assert defaults == expected | dict.fromkeys(["ZeroShot", "BiomedCoOp", "ViP"], "symptoms")


@every
def test_only_its_own_tensors_learn(clip, images, name, options, own):
    method = METHODS[name](clip, CARD, **options)
    if name != "CoCoOp":  # of whose few ReLUs none is left alive
        shaken(method)
    method.train()
    assert {tensor.split(".")[0] for tensor in own_tensors(method)} == own
    learned = {key: p for key, p in method.named_parameters() if p.requires_grad}
    trains_nothing = name in ("ZeroShot", "LinearProbe", "LPPlusPlus", "SSText") or (
        name == "TipAdapter" and "trained" not in options
    )
    assert bool(learned) != trains_nothing
    inputs = clip.encode_images(images) if method.keeps_image_tower else images
    logits, penalty = method.training_logits(inputs)
    assert logits.shape == (4, 3) and penalty.shape == (4,) and (penalty >= 0).all()
    if learned:
        (F.cross_entropy(logits, LABELS) + penalty.mean()).backward()
        assert all(p.grad.norm() > 0 for p in learned.values())
    assert not any(p.requires_grad or p.grad is not None for p in clip.parameters())
    assert not clip.model.training


@every
def test_logits_are_those_of_its_features(clip, images, name, options, own):
    method = shaken(METHODS[name](clip, CARD, **options))
    logits, f = method(images), method.image_features(images)
    assert logits.shape == (4, 3) and torch.equal(method.logits_from_features(f), logits)
    assert torch.allclose(f.norm(dim=1), torch.ones(4))
    assert torch.equal(f, clip.encode_images(images)) == method.keeps_image_tower
    t = method.class_features(f) if method.conditional else method.class_features()
    assert t.shape == ((4,) if method.conditional else ()) + (3, clip.embed_dim)
    assert torch.allclose(t.norm(dim=-1), torch.ones(t.shape[:-1]), atol=1e-5)
    if name not in ("LinearProbe", "TipAdapter", "LPPlusPlus"):  # weights and votes are no cosines
        assert logits.abs().max() <= method.logit_scale * (1 + 1e-5)
    adapted = method.adapted(f)
    if name not in ("LinearProbe", "TipAdapter", "LPPlusPlus") and options.get("knowledge") != "symptoms":
        by_hand = method.logit_scale * (adapted[:, None] * t).sum(dim=-1)
        assert torch.allclose(logits, by_hand, atol=1e-3)


@every
def test_a_logit_scale_of_ones_own_changes_the_logits_only(clip, images, name, options, own):
    if "logit_scale" not in METHODS[name](clip, CARD, **options).config:
        return
    plain, scaled = (shaken(METHODS[name](clip, CARD, **options, **s)) for s in ({}, {"logit_scale": 7.0}))
    if name != "TipAdapter":  # whose votes have a factor of their own
        assert torch.allclose(scaled(images), 7 / clip.logit_scale * plain(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="logit_scale must be above 0, got -1"):
        METHODS[name](clip, CARD, **options, logit_scale=-1.0)
    with pytest.raises(ValueError, match="logit_scale must be above 0, got 0"):
        METHODS[name](clip, CARD, **options, logit_scale=0.0)


@every
def test_the_seed_decides_the_start_and_leaves_other_random_numbers_alone(clip, name, options, own):
    config = METHODS[name](clip, CARD, **options).config
    if "seed" not in config:
        return
    drawn = {"ctx_init": ""} if "ctx_init" in config else {}  # words would be the same for any seed
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    a, b, c = (own_tensors(METHODS[name](clip, CARD, **options | drawn, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    for key in a:
        assert torch.equal(a[key], b[key]) and not torch.equal(a[key], c[key])


@every
def test_the_configuration_and_the_file_build_the_same_again(clip, images, tmp_path, name, options, own):
    method = METHODS[name](clip, CARD, **options)
    given = {"representations": ROWS} if name == "CILMP" else {}
    assert {key: method.config[key] for key in options if key not in given} == {
        key: value for key, value in options.items() if key not in given
    }
    again = METHODS[name](clip, CARD, **json.loads(json.dumps(method.config)) | given)
    assert again.config == method.config and repr(again) == repr(method)
    assert f"card={CARD.name!r}" in repr(method)
    if name != "LinearProbe":  # which has no weights before it is fitted
        assert torch.equal(again.eval()(images), method.eval()(images))
    save(shaken(method), tmp_path / "method.safetensors")
    loaded = load(tmp_path / "method.safetensors", clip, CARD, **given)
    assert type(loaded) is METHODS[name] and loaded.config == method.config
    saved, read = own_tensors(method), own_tensors(loaded)
    assert saved.keys() == read.keys() and all(torch.equal(saved[key], read[key]) for key in saved)
    if name in ("LinearProbe", "TipAdapter", "CLIPAdapter", "TextProbe", "LPPlusPlus", "SSText"):
        # one small product: where a tensor lies in memory may change the last bit
        assert torch.allclose(loaded(images), method(images), atol=1e-5)
    else:
        assert torch.equal(loaded(images), method(images))


@every
def test_an_underscore_in_a_class_name_is_read_as_a_space(clip, images, name, options, own):
    if name == "LinearProbe":  # which reads no names
        return
    logits = []
    for mark in (" ", "_"):
        new = {old: f"skin{mark}{old}" for old in CARD.classnames}
        named = [info.model_copy(update={"name": new[info.name]}) for info in CARD.classes]
        card, given = CARD.model_copy(update={"classes": named}), dict(options)
        if "symptoms" in given:
            given["symptoms"] = {new[old]: phrases for old, phrases in SYMPTOMS.items()}
        if "representations" in given:
            given["representations"] = Representations({new[old]: rows for old, rows in ROWS.states.items()})
        logits.append(shaken(METHODS[name](clip, card, **given))(images))
    assert torch.equal(*logits)


def passing_on(kind: type[Method], how: str) -> type[Method]:
    """A class of one's own that leaves the arguments to the method it derives from."""

    class NamedPassedOn(kind):
        def __init__(self, clip, card, **kwargs):
            super().__init__(clip, card, **kwargs)

    class AllPassedOn(kind):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    return {"named": NamedPassedOn, "all": AllPassedOn, "none": type("Plain", (kind,), {})}[how]


@every
@pytest.mark.parametrize("how", ["named", "all", "none"])
def test_a_class_of_ones_own_that_passes_its_arguments_on_keeps_them(clip, tmp_path, name, options, own, how):
    kind = passing_on(METHODS[name], how)
    method = kind(clip, CARD, **options)
    assert method.config == METHODS[name](clip, CARD, **options).config
    assert list(arguments_of(kind)) == list(arguments_of(METHODS[name]))
    given = {"representations": ROWS} if name == "CILMP" else {}
    save(shaken(method), tmp_path / "method.safetensors")
    loaded = load(tmp_path / "method.safetensors", clip, CARD, kind, **given)
    assert loaded.config == method.config
    assert all(torch.equal(one, own_tensors(loaded)[key]) for key, one in own_tensors(method).items())


def test_arguments_that_no_file_can_name_are_an_error_where_they_must_be_named(clip, tmp_path):
    class Unnamed(METHODS["ZeroShot"]):
        def __init__(self, clip, card, *args):
            super().__init__(clip, card, *args)

    method, images = Unnamed(clip, CARD, "templates"), make_set(CARD, [0, 1, 2], "test")
    assert len(evaluate(method, images, n_bootstrap=10).table())
    for call in (
        lambda: save(method, tmp_path / "file"),
        lambda: transfer(method, CARD),
        lambda: run_ablation(
            {"method": "Unnamed"}, store=tmp_path, data="phantom-derm", methods={"Unnamed": Unnamed}
        ),
    ):
        with pytest.raises(TypeError, match=r"Unnamed takes \*args, which have no names.*write them out"):
            call()


@every
def test_images_of_other_classes_are_refused(clip, name, options, own):
    method = shaken(METHODS[name](clip, CARD, **options))
    other = CARD.with_classes(CARD.classnames[::-1])
    train, val = make_set(other, [0, 1, 2]), make_set(other, [0, 1, 2], "val")
    for call in (lambda: fit(method, train, val), lambda: evaluate(method, val)):
        with pytest.raises(ValueError, match="same order"):
            call()


AVERAGED = [case for case in CASES if METHODS[case[0]].average] + [("CoOp", {}, {"ctx"})]


@pytest.mark.parametrize(
    ("name", "options", "own"), AVERAGED, ids=["-".join([case[0], *case[1]]) for case in AVERAGED]
)
def test_fit_averages_what_was_published_so_unless_told_not_to(clip, tmp_path, name, options, own):
    train, val = make_set(CARD, [0, 1, 2] * 4), make_set(CARD, [0, 1, 2], "val")
    recipe_of = recipe(METHODS[name])
    assert recipe_of.average is None

    def fitted(callbacks=(), **changes) -> tuple[dict, torch.Tensor]:
        method = METHODS[name](clip, CARD, **options)
        few = {"epochs": 4, "batch_size": 4, "views": 0, "num_workers": 0, "warmup_lr": None}
        config = replace(recipe_of, **few | changes)
        history = fit(method, train, val, config, callbacks=callbacks, cache_dir=tmp_path, progress=False)
        return {key: tensor.clone() for key, tensor in own_tensors(method).items()}, history

    def same(one: dict, other: dict) -> bool:
        return all(torch.equal(one[key], other[key]) for key in one)

    plain, history = fitted(average=False)
    assert "average_weight" not in history
    average = EpochAverage.published(METHODS[name](clip, CARD, **options), 4)
    averaged = fitted([average], average=False)[0] if average else plain
    assert same(averaged, plain) == (average is None)
    assert same(fitted()[0], averaged)
    by_default = average or EpochAverage(4)
    assert same(
        fitted(average=True)[0],
        fitted([EpochAverage(4, by_default.mean, by_default.std, by_default.tensors)])[0],
    )
    # the best epoch is asked for, so it is what comes out
    assert same(fitted(keep="best", metric="loss")[0], fitted(keep="best", metric="loss", average=False)[0])


@pytest.mark.parametrize("name", ["CoOp", "KgCoOp", "BiomedCoOp", "ViP"])
def test_class_specific_context_changes_its_own_class_only(clip, name):
    method = METHODS[name](clip, CARD, csc=True)
    assert method.ctx.shape[0] == 3 and method.ctx.shape[2] == clip.text_width
    before = method.class_features()
    with torch.no_grad():
        method.ctx[1] *= -20
    after = method.class_features()
    assert torch.allclose(after[[0, 2]], before[[0, 2]], atol=1e-6)
    assert (after[1] - before[1]).norm() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("CoOp", {}, 8_192),
        ("CoCoOp", {}, 35_360),
        ("KgCoOp", {}, 2_048),
        ("MaPLe", {}, 3_555_072),
        ("IVLP", {}, 46_080),
        ("PromptSRC", {}, 46_080),
        ("VPT", {}, 12 * 8 * 768),
        ("VPT", {"depth": 1}, 8 * 768),
        ("IVLP", {"depth": 12, "image_depth": 12, "n_ctx": 2, "n_image_ctx": 2}, 12 * 2 * (512 + 768)),
        ("IVLP", {"image_depth": 0}, 9 * 4 * 512),
        ("ViP", {}, 527_872),
    ],
)
def test_vit_b_16_has_as_many_learned_numbers_as_the_authors_have(vit_b_16, name, options, count):
    """ViP's authors report 527,360 of two classes; each has a merge prompt of 512 numbers."""
    table = trainable_parameters(METHODS[name](vit_b_16, CARD, **options))
    assert table.loc["total", "count"] == count


SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "warmup_lr": 1e-5, "keep": "last"}
ADAMW = {"optimizer": "adamw", "eps": 1e-4, "weight_decay": 0.01, "warmup_lr": None, "keep": "best"}
ADAMW |= {"schedule": "step", "drop_last": False, "crop": 0.5}
PUBLISHED = {  # method: epochs, batch size, learning rate and the rest of its authors' recipe
    "TextProbe": (300, 256, 0.1, SGD | {"weight_decay": 0, "views": 20}),
    "TipAdapter": (20, 256, 0.001, ADAMW),
    "CLIPAdapter": (50, 32, 0.002, SGD),
    "CoOp": (200, 32, 0.002, SGD),
    "CoCoOp": (10, 1, 0.002, SGD),
    "KgCoOp": (100, 128, 0.002, SGD),
    "BiomedCoOp": (100, 4, 0.0025, SGD | {"flip": False}),
    "VPT": (5, 4, 0.0025, SGD | {"views": "fresh"}),
    "IVLP": (20, 4, 0.0025, SGD | {"views": "fresh"}),
    "MaPLe": (5, 4, 0.0035, SGD | {"views": "fresh"}),
    "PromptSRC": (20, 4, 0.0025, SGD | {"views": "fresh"}),
    "CILMP": (100, 64, 0.0025, SGD),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_recipe_is_the_authors(name):
    config = recipe(METHODS[name])
    assert isinstance(config, TrainConfig)
    if name in PUBLISHED:
        *numbers, rest = PUBLISHED[name]
        assert [config.epochs, config.batch_size, config.lr] == numbers
        assert {key: getattr(config, key) for key in rest} == rest


def test_one_recipe_serves_ivlp_and_promptsrc():
    assert recipe(METHODS["IVLP"]) == recipe(METHODS["PromptSRC"])


def test_a_module_that_is_no_method_is_refused(clip, tmp_path):
    module, images = torch.nn.Linear(2, 2), make_set(CARD, [0, 1, 2])
    for call in (
        lambda: fit(module, images, None, TrainConfig(keep="last")),
        lambda: evaluate(module, images),
        lambda: predict(module, images.image(0)),
        lambda: save(module, tmp_path / "file"),
    ):
        with pytest.raises(
            TypeError, match="method is of kind Linear; it should be Method, such as .*derives"
        ):
            call()


TEXTS = {"position": "end", "ctx_init": "a photo of a"}
DEFAULTS = {  # what a constructor chooses where nothing is said, as its docstring has it from the authors
    "BiomedCoOp": TEXTS
    | {"sccm_weight": 1, "kdsp_weight": 1, "tau": 1.5, "csc": False, "text_dropout": False},
    "CILMP": {"intervention": "conditional", "rank": 8, "prefix_length": 4, "suffix_length": 4, "n_ctx": 4}
    | {"n_image_ctx": 4, "dropout": 0.1, "dropout_per_image": False, "orthonormal": False}
    | {"condition_scale": 1},
    "CLIPAdapter": {"ratio": 0.2, "reduction": 4, "knowledge": "templates"},
    "CoCoOp": TEXTS,
    "CoOp": TEXTS | {"ctx_init": "", "csc": False},
    "IVLP": {"n_ctx": 4, "n_image_ctx": 4, "ctx_init": "a photo of a"},
    "KgCoOp": TEXTS | {"weight": 8, "csc": False},
    "LPPlusPlus": {"steps": 300, "knowledge": "templates"},
    "LinearProbe": {},
    "MaPLe": {"n_ctx": 2, "ctx_init": "a photo of a"},
    "PromptSRC": {"n_ctx": 4, "n_image_ctx": 4, "ctx_init": "a photo of a"}
    | {"text_weight": 25, "image_weight": 10, "logits_weight": 1},
    "SSText": {"plus": False, "knowledge": "templates"},
    "TextProbe": {"constraint": True, "multiplier_views": 20, "knowledge": "templates"},
    "TipAdapter": {"trained": False, "alpha": 1.17, "beta": 1, "tune": True, "alpha_max": 3, "beta_max": 7}
    | {"cache_views": 10, "cache_crop": 0.5, "knowledge": "templates", "n_cache": 0},
    "VPT": {"n_ctx": 8},
    "ViP": {"n_ctx": 4, "csc": False, "position": "end", "context": True, "aggregation": "merge"},
    "ZeroShot": {},
}
READS = {"BiomedCoOp": "symptoms", "ViP": "symptoms", "ZeroShot": "symptoms"}  # as its `knowledge`


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_are_the_published_ones(name):
    said = {key: one.default for key, one in arguments_of(METHODS[name]).items() if one.default is not None}
    said.pop("seed", None)
    assert said == DEFAULTS[name] | ({"knowledge": READS[name]} if name in READS else {})
