"""VPT, IVLP, MaPLe, PromptSRC: what holds for all of them, and the texts that they share."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip, load_clip
from medvlp.data.datasets import load_dataset
from medvlp.data.image_sets import ImageSet
from medvlp.methods.prompt_tuning.ivlp import IVLP, ClassTexts
from medvlp.methods.prompt_tuning.maple import MaPLe
from medvlp.methods.prompt_tuning.promptsrc import PromptSRC
from medvlp.methods.prompt_tuning.vpt import VPT
from medvlp.study.evaluation import predict_logits
from medvlp.study.training.config import recipe
from medvlp.study.training.fit import fit
from tests.backbone import small_clips
from tests.methods.small import make_card, trained

KINDS = [VPT, IVLP, MaPLe, PromptSRC]
TOWERS = ["openai_kind", "siglip_kind", "eos_kind", "coca_kind", "biomedclip_kind"]
CARD = make_card()
LABELS = torch.tensor([0, 1, 2, 0])


def draw_images(clip: Clip, n: int = 4) -> torch.Tensor:
    shape = n, 3, clip.image_size, clip.image_size
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# --- all methods ---


@pytest.mark.parametrize("tower", TOWERS)
def test_any_tower(tmp_path, tower):
    clip = load_clip(getattr(small_clips, tower)(tmp_path), device="cpu")
    images = draw_images(clip, 2)
    for kind in KINDS:
        method = kind(clip, CARD)
        logits = method(images)
        assert logits.shape == (2, 3)
        F.cross_entropy(logits, LABELS[:2]).backward()
        assert all(p.grad.norm() > 0 for p in trained(method).values())
    words = [f"a photo of a {name}." for name in CARD.classnames]
    t = IVLP(clip, CARD, depth=1, image_depth=0).class_features()
    assert torch.allclose(t, clip.encode_texts(words), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_of_few_blocks_has_prompts_in_all_and_no_more(clip, kind):
    method = kind(clip, CARD)
    assert len(method.image_prompts) == 2
    if kind is not VPT:
        assert len(method.ctx) == (2 if kind is MaPLe else 3)


# --- texts ---


def features(clip: Clip, texts: list[str]) -> torch.Tensor:
    """(N, D), normalised, from all 77 tokens."""
    return F.normalize(clip.model.encode_text(clip.tokenizer(texts)), dim=-1)


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 4])
def test_what_the_vectors_do_not_replace_of_the_words_stays(clip, n_ctx):
    texts = ClassTexts(clip, ["seborrheic_keratosis", "nevus"], n_ctx)
    assert texts.first.shape == (n_ctx, clip.text_width)
    expected = features(clip, ["a photo of a seborrheic keratosis.", "a photo of a nevus."])
    assert torch.allclose(texts(clip, texts.first[None]), expected, atol=1e-5)
    other = clip.token_embedding(clip.tokenize(["the scan in one"])[0, 1 : 1 + n_ctx])
    words = " ".join(["the", "scan", "in", "one"][:n_ctx] + ["a", "photo", "of", "a"][n_ctx:])
    expected = features(clip, [f"{words} seborrheic keratosis.", f"{words} nevus."])
    assert torch.allclose(texts(clip, other[None]), expected, atol=1e-5)


@pytest.mark.parametrize("words", ["", "a photo"])
def test_words_of_fewer_tokens_are_left_out(clip, words):
    texts = ClassTexts(clip, ["nevus", "melanoma"], 4, words)
    assert texts.first is None
    ctx = clip.token_embedding(clip.tokenize(["the scan in one"])[0, 1:5])
    expected = features(clip, ["the scan in one nevus.", "the scan in one melanoma."])
    assert torch.allclose(texts(clip, ctx[None]), expected, atol=1e-5)
    drawn = IVLP(clip, CARD, ctx_init=words, n_ctx=40).ctx
    assert drawn.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_class_name_that_is_too_long_is_shown(clip):
    with pytest.raises(
        ValueError, match=r"text 'a photo of a very .*nevus\.' \(396 letters\) has 8\d tokens"
    ):
        ClassTexts(clip, ["very " * 75 + "nevus"], 2)


# --- phantoms ---


@pytest.fixture(scope="module")
def phantoms() -> tuple[Clip, ImageSet, ImageSet]:
    data = load_dataset("phantom-cxr")
    return load_clip("tiny", device="cpu"), data.train, data.test.subset(range(200))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_phantoms(phantoms, kind):
    clip, train, test = phantoms
    method = kind(clip, train.card, **({"templates": ["a photo of a {}."]} if kind is VPT else {}))

    def accuracy() -> float:
        return (predict_logits(method, test).argmax(dim=1) == test.labels).double().mean().item()

    assert accuracy() < 0.6  # these words tell the embedded CLIP little
    n, epochs = (400, 4) if kind is PromptSRC else (200, 2)  # which is held near the frozen CLIP
    config = replace(recipe(kind), epochs=epochs, views=0, lr=0.02, warmup_lr=None)
    history = fit(method, train.subset(range(n)), None, config, progress=False)
    assert history.loss.iloc[-1] < 0.95 * history.loss.iloc[0]
    assert accuracy() > (0.65 if kind is PromptSRC else 0.7)
