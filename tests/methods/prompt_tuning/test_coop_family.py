"""What CoOp, CoCoOp, KgCoOp and BiomedCoOp share: texts, starts, configurations, training."""

import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import load_clip
from medvlp.data.datasets import load_dataset
from medvlp.methods.prompt_tuning.biomedcoop import BiomedCoOp
from medvlp.methods.prompt_tuning.cocoop import CoCoOp
from medvlp.methods.prompt_tuning.coop import ContextPrompts, CoOp
from medvlp.methods.prompt_tuning.kgcoop import KgCoOp
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.evaluation import evaluate, predict_logits
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.backbone import small_clips
from tests.methods.small import make_card, make_set

CARD = make_card()
ALL = [CoOp, CoCoOp, KgCoOp, BiomedCoOp]
KINDS = ["openai_kind", "siglip_kind", "eos_kind", "coca_kind", "biomedclip_kind"]
LABELS = torch.tensor([0, 1, 2, 0, 1])


def without_meta_net(method: ContextPrompts) -> ContextPrompts:
    """The method, whose texts are now the same for all images."""
    if isinstance(method, CoCoOp):
        for p in method.meta_net.parameters():
            torch.nn.init.zeros_(p)
    return method


# --- texts ---


@pytest.mark.parametrize("kind", ALL)
def test_the_words_a_photo_of_a_are_zero_shot(clip, f, kind):
    method = without_meta_net(kind(clip, CARD, ctx_init="a photo of a"))
    zero_shot = ZeroShot(clip, CARD, "classnames", templates=["a photo of a {}."])
    assert torch.allclose(method.logits_from_features(f), zero_shot.logits_from_features(f), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_tower(tmp_path, kind):
    clip = load_clip(getattr(small_clips, kind)(tmp_path), device="cpu")
    images = torch.randn(2, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    f = clip.encode_images(images)
    expected = ZeroShot(clip, CARD, "classnames", templates=["a photo of a {}."]).logits_from_features(f)
    for build in ALL:
        method = without_meta_net(build(clip, CARD, ctx_init="a photo of a"))
        assert torch.allclose(method(images), expected, atol=1e-3)
        F.cross_entropy(method.logits_from_features(f), torch.tensor([0, 1])).backward()
        assert method.ctx.grad.norm() > 0


# --- starts and configurations ---


def test_the_start_is_drawn_or_the_words(clip):
    drawn = CoOp(clip, CARD)
    assert drawn.ctx.shape == (16, clip.text_width)
    assert drawn.ctx.std().item() == pytest.approx(0.02, rel=0.1)
    assert CoOp(clip, CARD, n_ctx=3, csc=True).ctx.shape == (3, 3, clip.text_width)
    words = clip.token_embedding(clip.tokenize(["a photo of a"])[0, 1:5])
    assert torch.equal(CoOp(clip, CARD, n_ctx=4, ctx_init="a photo of a").ctx, words)
    each = CoOp(clip, CARD, ctx_init="a photo of a", csc=True).ctx
    assert torch.equal(each, words.expand(3, -1, -1))


@pytest.mark.parametrize("kind", ALL)
def test_of_words_with_several_tokens_as_many_are_learned_as_there_are_words(clip, f, kind):
    """As in the authors' code; the other tokens stay in the text."""
    words = "dermoscopy image of"
    ids = clip.tokenize([words])[0, 1:-1]
    assert len(ids) == 5
    method = kind(clip, CARD, ctx_init=words)
    assert torch.equal(method.ctx, clip.token_embedding(ids[:3]))
    every = kind(clip, CARD, ctx_init=words, n_ctx=5)
    assert torch.equal(every.ctx, clip.token_embedding(ids))
    zero_shot = ZeroShot(clip, CARD, "classnames", templates=[words + " {}."]).logits_from_features(f)
    for one in (method, every):
        logits = without_meta_net(one).logits_from_features(f)
        assert torch.allclose(logits, zero_shot, atol=1e-4)
        with torch.no_grad():
            one.ctx.neg_()
        assert not torch.allclose(one.logits_from_features(f), zero_shot, atol=1e-2)
    # where the name stands elsewhere, the words are no beginning of a text: all of their tokens are learned
    assert len(kind(clip, CARD, ctx_init=words, position="front").ctx) == 5


# --- training ---


@pytest.fixture(scope="module")
def phantoms():
    """The embedded CLIP, 16 images a class to learn from, and 150 others."""
    data = load_dataset("phantom-derm", num_shots=16)
    return load_clip("tiny", device="cpu"), data.train, data.test.subset(torch.arange(150))


@pytest.mark.parametrize("kind", ALL)
def test_it_learns_on_phantoms(phantoms, kind):
    clip, train, test = phantoms
    method = kind(clip, train.card)
    before = F.cross_entropy(predict_logits(method, train), train.labels)
    config = TrainConfig(epochs=15, batch_size=8, views=0, keep="last", warmup_lr=None)
    fit(method, train, None, config, progress=False)
    assert F.cross_entropy(predict_logits(method, train), train.labels) < before - 0.02
    assert evaluate(method, test, n_bootstrap=200).table().loc["balanced accuracy", "low"] > 0.5


PHRASES = ["dark", "round", "ragged", "waxy", "blue and gray", "even brown color", "white dots"]
PROMPTS = {c: [f"{phrase} {c[0]}" for phrase in PHRASES] for c in CARD.classnames}


@pytest.mark.parametrize(
    ("kind", "options", "lr"),
    [(KgCoOp, {}, 0.02), (BiomedCoOp, {"symptoms": PROMPTS, "kdsp_weight": 5.0}, 0.005)],
)
def test_the_penalties_alone_lead_to_the_texts(clip, f, kind, options, lr):
    method = kind(clip, CARD, ctx_init="", n_ctx=4, **options)
    sgd = torch.optim.SGD([method.ctx], lr=lr, momentum=0.9)
    penalties = []
    for _ in range(30):
        penalty = method.training_logits(f)[1].mean()
        sgd.zero_grad()
        penalty.backward()
        sgd.step()
        penalties.append(penalty.item())
    assert penalties[-1] < 0.5 * penalties[0]


@pytest.mark.parametrize("kind", [KgCoOp, BiomedCoOp])
def test_a_weight_of_zero_trains_as_coop(clip, kind):
    zero = {"weight": 0.0} if kind is KgCoOp else {"sccm_weight": 0.0, "kdsp_weight": 0.0}
    train, val = make_set(CARD, [0, 1, 2] * 4), make_set(CARD, [0, 1, 2] * 2, "val", seed=1)
    config = TrainConfig(epochs=3, batch_size=4, views=0)
    plain = CoOp(clip, CARD, ctx_init="a photo of a")
    method, held = kind(clip, CARD, **zero), kind(clip, CARD)
    start = method.ctx.detach().clone()
    losses = [fit(m, train, val, config, progress=False).loss.tolist() for m in (plain, method, held)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(method.ctx, plain.ctx)
    assert not torch.equal(method.ctx, start)
    assert not torch.equal(held.ctx, plain.ctx)


# --- errors ---
