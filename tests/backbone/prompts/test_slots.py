"""Learned vectors in unmodified text towers: where they go, what they change, and that nothing stays."""

import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.prompts import hooks as prompt_hooks
from medvlp.backbone.prompts.slots import SLOT, find_slots, word_tokens
from medvlp.backbone.prompts.walks import encode_prompts
from tests.backbone import small_clips

KINDS = ["open_clip_kind", "openai_kind", "siglip_kind", "eos_kind", "coca_kind", "biomedclip_kind"]
PIECES = ["sigmoid_kind", "t5_kind"]  # "X" is two pieces to their tokenizers
TEXTS = [f"{SLOT} {SLOT} dark lesion.", f"{SLOT} {SLOT} irregular border of an X-ray, round."]


def draw(clip: Clip, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, clip.text_width, generator=torch.Generator().manual_seed(seed))


def hooks(clip: Clip) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in clip.modules()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_that_are_word_embeddings_read_as_these_words(clips, kind):
    clip = clips[kind]
    tokens, slots = find_slots(clip, TEXTS)
    words = clip.tokenize(["dark round"])[0]
    words = words[words != 0][1:3]  # between start and end of text
    read = encode_prompts(clip, tokens, slots, clip.token_embedding(words))
    plain = [text.replace(SLOT, "dark", 1).replace(SLOT, "round") for text in TEXTS]
    if kind == "biomedclip_kind" or kind == "siglip_kind":  # padding or its place matters: the same tokens
        assert torch.equal(tokens.masked_scatter(slots, words.expand(2, 2)), clip.tokenize(plain))
    assert torch.allclose(F.normalize(read, dim=-1), clip.encode_texts(plain), atol=1e-6)
    assert hooks(clip) == (0 if kind == "biomedclip_kind" else 1)  # Clip's own, which cuts the mask


@pytest.mark.parametrize("kind", [*KINDS, *PIECES])
def test_every_vector_is_seen_in_its_own_text_only(clips, kind):
    clip = clips[kind]
    tokens, slots = find_slots(clip, TEXTS)
    prompts = draw(clip, 2, 2).requires_grad_()
    features = encode_prompts(clip, tokens, slots, prompts)  # (2, D)
    (grad,) = torch.autograd.grad(features[0].square().sum(), prompts)
    assert (grad[0].norm(dim=-1) > 0).all()
    assert torch.equal(grad[1], torch.zeros_like(grad[1]))
    changed = prompts.detach().clone()
    changed[1, 0] *= -1
    again = encode_prompts(clip, tokens, slots, changed)
    assert torch.allclose(again[0], features[0], atol=1e-6)
    assert (again[1] - features[1]).norm() > 1e-4


def test_vectors_enter_in_order(clip):
    tokens, slots = find_slots(clip, [f"{SLOT} dark {SLOT} red {SLOT}."])
    assert slots[0].nonzero().flatten().tolist() == [1, 3, 5]
    dot, spot, hair = (clip.token_embedding(clip.tokenize([w])[0, 1]) for w in ("dot", "spot", "hair"))
    read = encode_prompts(clip, tokens, slots, torch.stack([dot, spot, hair]))
    expected = clip.encode_texts(["dot dark spot red hair."])
    assert torch.allclose(F.normalize(read, dim=-1), expected, atol=1e-6)
    other = encode_prompts(clip, tokens, slots, torch.stack([hair, spot, dot]))
    assert (F.normalize(other, dim=-1) - expected).norm() > 1e-3


@pytest.mark.parametrize("kind", ["open_clip_kind", "openai_kind", "eos_kind", "biomedclip_kind"])
def test_cut_sequences_give_what_full_ones_give(clips, kind):
    clip = clips[kind]
    tokens, slots = find_slots(clip, TEXTS)
    rest = (0, clip.context_length - tokens.shape[1])
    full = F.pad(tokens, rest), F.pad(slots, rest)  # 0 is the padding of both tokenizers
    assert tokens.shape[1] < clip.context_length
    prompts = draw(clip, 2).requires_grad_()
    cut, whole = (encode_prompts(clip, *text, prompts) for text in ((tokens, slots), full))
    assert torch.allclose(cut, whole, atol=1e-5, rtol=0)
    grads = [torch.autograd.grad(t.sum(), prompts)[0] for t in (cut, whole)]
    assert torch.allclose(*grads, atol=1e-4, rtol=1e-4)


def test_half_precision_towers_take_float32_vectors(tmp_path):
    name = small_clips.open_clip_kind(tmp_path)
    clip, half = load_clip(name, "cpu"), load_clip(name, "cpu", precision="bf16")
    tokens, slots = find_slots(clip, TEXTS)
    prompts = draw(clip, 2).requires_grad_()
    read = encode_prompts(half, tokens, slots, prompts)
    assert read.dtype == torch.float32
    cosines = F.cosine_similarity(read, encode_prompts(clip, tokens, slots, prompts))
    assert cosines.min() > 0.999
    read.sum().backward()
    assert prompts.grad.dtype == torch.float32
    assert prompts.grad.norm() > 0


def test_shapes_that_do_not_fit_are_named(clip):
    tokens, slots = find_slots(clip, TEXTS)
    with pytest.raises(
        ValueError, match=r"prompts \(3, 48\) do not fit .* wants prompts \(2, 2, 48\) or \(2, 48\)"
    ):
        encode_prompts(clip, tokens, slots, draw(clip, 3))
    with pytest.raises(ValueError, match=r"tokens \(1, \d+\)"):
        encode_prompts(clip, tokens[:1], slots, draw(clip, 2))


def test_a_text_with_fewer_slots_than_the_first_is_named(clip):
    tokens, slots = find_slots(clip, [f"{SLOT} {SLOT}", f"{SLOT} {SLOT}", f"many {SLOT}"])
    for prompts in (draw(clip, 2), draw(clip, 1), draw(clip, 3, 2)):
        with pytest.raises(ValueError, match="slots of text 0: 2, of text 2: 1; all must have as many"):
            encode_prompts(clip, tokens, slots, prompts)


def test_a_tower_with_another_embedding_is_an_error(clip, monkeypatch):
    tokens, slots = find_slots(clip, TEXTS)
    unused = torch.nn.Embedding(10, clip.text_width)
    monkeypatch.setattr(Clip, "token_embedding", unused)
    with pytest.raises(RuntimeError, match="did not look its tokens up"):
        prompt_hooks.encode_deep_text(clip, tokens, slots, [draw(clip, 1, 4)])
    assert not unused._forward_hooks


def test_slots_that_are_no_tokens_of_their_own_are_an_error(clip):
    with pytest.raises(ValueError, match="'XX spots' shows 1 of 2 places for learned vectors: the tokenizer"):
        find_slots(clip, [f"{SLOT}{SLOT} spots"])


@pytest.mark.parametrize("kind", PIECES)
def test_vectors_of_sentence_pieces_read_as_the_words_and_stand_side_by_side(clips, kind):
    clip = clips[kind]
    start, ids = word_tokens(clip, "a photo of a")
    tokens, slots = find_slots(clip, [f"{SLOT} {SLOT} {SLOT} {SLOT} dark lesion.", f"{SLOT} " * 4 + "lung."])
    assert start == 0 and len(ids) == 4
    assert slots.nonzero()[:, 1].tolist() == [0, 1, 2, 3] * 2
    read = encode_prompts(clip, tokens, slots, clip.token_embedding(ids))
    plain = clip.encode_texts(["a photo of a dark lesion.", "a photo of a lung."])
    torch.testing.assert_close(F.normalize(read, dim=-1), plain, atol=1e-6, rtol=0)


def test_a_tokenizer_without_a_placeholder_of_one_token_is_named(clip, monkeypatch):
    tokenizer = clip.tokenizer
    spread = lambda texts, **how: tokenizer([" ".join(text) for text in texts], **how)  # noqa: E731
    monkeypatch.setattr(clip, "tokenizer", spread)
    monkeypatch.setattr("medvlp.backbone.prompts.slots.PLACEHOLDERS", (("dark", "pale"),))
    with pytest.raises(ValueError, match="no two words of one token each among 'dark', 'pale'"):
        find_slots(clip, [f"{SLOT} spots"])


@pytest.mark.parametrize("kind", [*KINDS, *PIECES])
def test_word_tokens_are_where_the_words_stand_in_a_text(clips, kind):
    clip = clips[kind]
    start, ids = word_tokens(clip, "dark round spots")
    whole = clip.tokenize(["dark round spots."])[0]
    assert len(ids) >= 3 and torch.equal(whole[start : start + len(ids)], ids.cpu())
    assert word_tokens(clip, "")[0] == start and len(word_tokens(clip, "")[1]) == 0


@pytest.mark.parametrize("kind", ["open_clip_kind", "biomedclip_kind"])
def test_the_memory_of_many_texts_is_bounded(clips, kind, monkeypatch):
    clip = clips[kind]
    tokens, slots = find_slots(clip, TEXTS * 6)

    def read(at_once: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Features, a gradient, numbers kept for the backward pass, and the most texts at once."""
        monkeypatch.setattr(prompt_hooks, "PROMPTED_AT_ONCE", at_once)
        sizes, kept, prompts = [], [], draw(clip, 2).requires_grad_()
        counted = clip.token_embedding.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            features = encode_prompts(clip, tokens, slots, prompts)
            features.square().sum().backward()
        counted.remove()
        return features.detach(), prompts.grad, sum(kept), max(sizes)

    whole, in_fours = read(12), read(4)
    assert (whole[3], in_fours[3]) == (12, 4)
    assert in_fours[2] < whole[2] / 10
    torch.testing.assert_close(in_fours[0], whole[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(in_fours[1], whole[1], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(encode_prompts(clip, tokens, slots, draw(clip, 2)), in_fours[0])
    assert hooks(clip) == (0 if kind == "biomedclip_kind" else 1)


def test_named_texts_are_tokenized_together(clip, monkeypatch):
    tokenize, calls = clip.tokenize, []
    monkeypatch.setattr(clip, "tokenize", lambda texts: calls.append(len(texts)) or tokenize(texts))
    texts = TEXTS * 20
    find_slots(clip, texts, [f"text {i}" for i in range(40)])
    assert calls == [40, 40]
    texts[7] = f"{SLOT}{SLOT} spots"
    with pytest.raises(ValueError, match="^text 7: .* shows 1 of 2 places"):
        find_slots(clip, texts, [f"text {i}" for i in range(40)])
