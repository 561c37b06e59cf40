"""Prompts in the layers of both towers: by hooks and by walks, the same numbers and only the needed work."""

import threading

import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.prompts.hooks import (
    encode_deep_images,
    encode_deep_text,
    image_blocks,
    image_width,
    text_blocks,
)
from medvlp.backbone.prompts.slots import SLOT, find_slots
from medvlp.backbone.prompts.walks import (
    SlotVectors,
    TextWalk,
    can_walk_image,
    can_walk_text,
    encode_text_prompts,
    walk_image,
)
from tests.backbone import small_clips

KINDS = ["open_clip_kind", "openai_kind", "eos_kind", "siglip_kind", "coca_kind", "biomedclip_kind"]
WALKED = KINDS[:3]
N_CTX, P, S = 2, 2, 1
NAMES, ROWS = ["nevus", "seborrheic keratosis of skin", "dark lesion"], [5, 3, 7]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def layout(clip: Clip, names: list[str] = NAMES, rows: list[int] = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    counts = [N_CTX + n for n in rows]
    texts = [" ".join([SLOT] * n + [name]) + "." for n, name in zip(counts, names, strict=True)]
    return find_slots(clip, texts)


def draw_vectors(
    clip: Clip, depth: int, B: int, n_cls: int = 3, middle: int = sum(ROWS) - 9
) -> list[SlotVectors]:
    w = clip.text_width
    return [
        SlotVectors(
            draw(N_CTX, w, seed=3 * i).requires_grad_(),
            draw(B, n_cls, P + S, w, seed=3 * i + 1).requires_grad_(),
            draw(middle, w, seed=3 * i + 2).requires_grad_(),
        )
        for i in range(depth)
    ]


def in_order(v: SlotVectors, rows: list[int] = ROWS) -> torch.Tensor:
    """(B, M, w), class after class."""
    B, pieces = len(v.edges), []
    for edges, middle in zip(v.edges.unbind(1), v.middle.split([n - P - S for n in rows]), strict=True):
        pieces += [v.ctx.expand(B, -1, -1), edges[:, :P], middle.expand(B, -1, -1), edges[:, P:]]
    return torch.cat(pieces, dim=1)


def walked(clip: Clip, vectors: list[SlotVectors]) -> torch.Tensor:
    text = clip.model.text
    return TextWalk(text, *layout(clip), N_CTX, P, S)(text, vectors)


def hooked(clip: Clip, vectors: list[SlotVectors]) -> torch.Tensor:
    return encode_deep_text(clip, *layout(clip), [in_order(v) for v in vectors])


def grads(features: torch.Tensor, vectors: list[SlotVectors]) -> list[torch.Tensor]:
    weights = draw(*features.shape, seed=99)
    return list(torch.autograd.grad((features * weights).sum(), [x for v in vectors for x in v]))


def n_hooks(clip: Clip) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in clip.modules())


class Counted:
    """Numbers of tokens that each block's MLP sees while inside."""

    def __init__(self, blocks: torch.nn.Module) -> None:
        self.blocks, self.rows = blocks, []

    def __enter__(self) -> list[int]:
        def count(_, args):
            self.rows.append(args[0].numel() // args[0].shape[-1])

        self.hooks = [block.mlp.register_forward_pre_hook(count) for block in self.blocks]
        return self.rows

    def __exit__(self, *error) -> None:
        for hook in self.hooks:
            hook.remove()


# --- text ---


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", WALKED)
def test_a_walk_through_the_text_tower_gives_what_hooks_give(clips, kind, depth, B):
    clip, vectors = clips[kind], draw_vectors(clips[kind], depth, B)
    a, b = walked(clip, vectors), hooked(clip, vectors)
    assert a.shape == (B, 3, clip.embed_dim)
    assert torch.allclose(a, b, atol=1e-5)
    for x, y in zip(grads(a, vectors), grads(b, vectors), strict=True):
        assert torch.allclose(x, y, atol=1e-4, rtol=1e-3)
        assert y.norm() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_only_towers_that_are_known_are_walked(clips, kind):
    assert can_walk_text(clips[kind].model.text) == (kind in WALKED)
    assert can_walk_image(clips[kind].model.visual) == (kind not in ("coca_kind", "biomedclip_kind"))


def test_a_walk_leaves_out_what_is_overwritten(clip):
    n_live = int(sum(len(clip.tokenize([f"{name}."])[0]) - 1 for name in NAMES))
    B = 2
    full = B * int((layout(clip)[0] != 0).sum())  # without padding
    for depth, expected in ((3, [n_live * B, n_live * B, 3 * B]), (2, [n_live * B, full + 3 * B])):
        walk = TextWalk(clip.model.text, *layout(clip), N_CTX, P, S)
        with Counted(text_blocks(clip)) as rows:
            walk(clip.model.text, draw_vectors(clip, depth, B))
        shown = rows if depth == 3 else [rows[0], sum(rows[1:])]  # then block by block for texts of a length
        assert shown == expected


@pytest.mark.parametrize("kind", KINDS)
def test_every_site_and_slot_matters_to_its_own_class_and_image(clips, kind):
    clip = clips[kind]
    tokens, slots = layout(clip)
    depth, M = len(text_blocks(clip)), int(slots.sum())
    vectors = [draw(2, M, clip.text_width, seed=i).requires_grad_() for i in range(depth)]
    features = encode_deep_text(clip, tokens, slots, vectors)  # (2, 3, D)
    found = torch.autograd.grad(features[1, 1].square().sum(), vectors)
    own = slots.nonzero()[:, 0] == 1
    for grad in found:
        assert (grad[1, own].norm(dim=-1) > 0).all()
        assert grad[0].abs().max() == 0
        assert grad[1, ~own].abs().max() == 0


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_with_vectors_anywhere_read_as_with_hooks(clips, kind, depth, B):
    clip = clips[kind]
    depth = min(depth, len(text_blocks(clip)))
    texts = [f"{SLOT} dark {SLOT}.", f"pale {SLOT}.", f"{SLOT} {SLOT} round and {SLOT} spots."]
    tokens, slots = find_slots(clip, texts)
    vectors = [draw(B, 6, clip.text_width, seed=i).requires_grad_() for i in range(depth)]
    a, b = (read(clip, tokens, slots, vectors) for read in (encode_text_prompts, encode_deep_text))
    assert a.shape == (B, 3, clip.embed_dim)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    weights = draw(*a.shape, seed=99)
    found, expected = (torch.autograd.grad((f * weights).sum(), vectors) for f in (a, b))
    for x, y in zip(found, expected, strict=True):
        assert torch.allclose(x, y, atol=1e-4, rtol=1e-3)
        assert (y.norm(dim=-1) > 0).all()


def test_texts_are_walked_with_the_end_of_text_alone_in_the_last_block(clip):
    tokens, slots = find_slots(clip, [f"{SLOT} {SLOT} {name}." for name in NAMES])
    with Counted(text_blocks(clip)) as rows:
        encode_text_prompts(clip, tokens, slots, [draw(2, 6, clip.text_width)])
    assert rows == [2 * tokens.numel(), 2 * tokens.numel(), 2 * 3]


def test_slots_that_do_not_follow_the_start_are_an_error(clip):
    tokens, slots = find_slots(clip, [f"{SLOT} dark {SLOT}."])
    with pytest.raises(ValueError, match="must follow its start-of-text token"):
        TextWalk(clip.model.text, tokens, slots, 1, 1, 0)


# --- padding ---


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_padding_and_placeholders_are_never_read(clip, depth, monkeypatch):
    vectors = draw_vectors(clip, depth, 2)
    expected = walked(clip, vectors)
    expected_grads = grads(expected, vectors)
    tokens, slots = layout(clip)
    assert (tokens[:, -1] == 0).any(), "a text is shorter than another"
    poisoned = clip.token_embedding.weight.detach().clone()
    poisoned[tokens[slots]] = torch.nan
    poisoned[0] = torch.nan
    monkeypatch.setitem(clip.token_embedding._parameters, "weight", torch.nn.Parameter(poisoned, False))
    assert hooked(clip, vectors).isnan().any(), "those that read padding see it"
    features = walked(clip, vectors)
    assert torch.equal(features, expected)
    for a, b in zip(grads(features, vectors), expected_grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("depth", [2, 3])
def test_no_memory_is_read_before_it_is_written(clip, depth):
    vectors = draw_vectors(clip, depth, 2)
    expected = walked(clip, vectors).detach()
    expected_grads = grads(walked(clip, vectors), vectors)
    torch.use_deterministic_algorithms(True)  # new memory is then filled with NaN
    try:
        assert torch.empty(3).isnan().all()
        features = walked(clip, vectors)
        found = grads(features, vectors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.allclose(features, expected, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected_grads, strict=True))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_class_of_nan_leaves_the_others_alone(clip, depth):
    vectors = draw_vectors(clip, depth, 2)
    expected = walked(clip, vectors)
    with torch.no_grad():
        for v in vectors:
            v.edges[:, 1] = torch.nan
    features = walked(clip, vectors)
    assert features[:, 1].isnan().all()
    assert torch.allclose(features[:, [0, 2]], expected[:, [0, 2]], atol=1e-6)


# --- images ---


def draw_images(clip: Clip, n: int = 2) -> torch.Tensor:
    return draw(n, 3, clip.image_size, clip.image_size) / 0.3


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", WALKED)
def test_a_walk_through_the_image_tower_gives_what_hooks_give(clips, kind, depth):
    clip = clips[kind]
    prompts = draw(depth, 3, image_width(clip)).requires_grad_()
    a = walk_image(clip.model.visual, draw_images(clip), prompts)
    b = encode_deep_images(clip, draw_images(clip), prompts)
    assert torch.allclose(a, b, atol=1e-5)
    weights = draw(*a.shape, seed=1)
    x, y = (torch.autograd.grad((f * weights).sum(), prompts)[0] for f in (a, b))
    assert torch.allclose(x, y, atol=1e-4)
    assert (y.norm(dim=-1) > 0).all()


def test_the_image_walk_leaves_out_prompts_and_the_last_patches(clip):
    patches = (clip.image_size // 8) ** 2
    for depth, expected in ((2, [2 * (1 + patches), 2]), (1, [2 * (1 + patches), 2])):
        with Counted(image_blocks(clip)) as rows:
            walk_image(clip.model.visual, draw_images(clip), draw(depth, 3, image_width(clip)))
        assert rows == expected or depth == 1
    assert rows[-1] == 2  # the class tokens


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_reach_every_image_tower_and_pooling_does_not_see_them(clips, kind):
    clip = clips[kind]
    depth = len(image_blocks(clip))
    prompts = draw(depth, 3, image_width(clip)).requires_grad_()
    features = encode_deep_images(clip, draw_images(clip), prompts)
    assert features.shape == (2, clip.embed_dim)
    (grad,) = torch.autograd.grad(features.square().sum(), prompts)
    assert (grad.flatten(1).norm(dim=-1) > 0).all()


def test_an_averaging_tower_is_read_by_hooks(tmp_path):
    vision = small_clips.VISION | {"pool_type": "avg"}
    cfg = {"embed_dim": 40, "vision_cfg": vision, "text_cfg": small_clips.TEXT}
    clip = load_clip(small_clips.write_clip(tmp_path, cfg), device="cpu")
    assert not can_walk_image(clip.model.visual)
    visual, prompts, images = clip.model.visual, draw(2, 3, 64), draw_images(clip)
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(2, 1, -1), x], dim=1) + visual.positional_embedding
    n = x.shape[1]
    x = torch.cat([x, prompts[0].expand(2, -1, -1)], dim=1)
    x = visual.transformer.resblocks[0](visual.ln_pre(x))
    x = torch.cat([x[:, :n], prompts[1].expand(2, -1, -1)], dim=1)
    x = visual.ln_post(visual.transformer.resblocks[1](x)[:, 1:n]).mean(dim=1) @ visual.proj
    assert torch.allclose(encode_deep_images(clip, images, prompts), x, atol=1e-5)


def test_a_tower_without_tokens_is_an_error(tmp_path):
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    cfg = {"embed_dim": 40, "vision_cfg": vision, "text_cfg": small_clips.TEXT}
    clip = load_clip(small_clips.write_clip(tmp_path, cfg), device="cpu")
    with pytest.raises(ValueError, match="ModifiedResNet, is no vision transformer, .* image_depth=0"):
        image_blocks(clip)


# --- hooks ---


def test_the_towers_are_left_as_they_were_also_after_errors(clip):
    before = n_hooks(clip)
    hooked(clip, draw_vectors(clip, 3, 2))
    encode_deep_images(clip, draw_images(clip), draw(2, 3, image_width(clip)))
    assert n_hooks(clip) == before

    def fail(*_):
        raise ZeroDivisionError("inside the tower")

    for module, call in (
        (clip.model.text.ln_final, lambda: hooked(clip, draw_vectors(clip, 3, 2))),
        (clip.model.visual.ln_post, lambda: encode_deep_images(clip, draw_images(clip), draw(2, 3, 64))),
    ):
        broken = module.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            call()
        broken.remove()
    assert n_hooks(clip) == before
    plain = clip.model.encode_text(clip.tokenizer(["dark lesion."]))
    assert torch.allclose(F.normalize(plain, dim=-1), clip.encode_texts(["dark lesion."]), atol=1e-6)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("amid", [False, True])
@pytest.mark.parametrize("kind", ["open_clip_kind", "biomedclip_kind"])
def test_nested_calls_do_not_disturb_each_other(clips, kind, amid, fails):
    clip = clips[kind]
    depth = len(text_blocks(clip))
    a, b = draw_vectors(clip, depth, 1), draw_vectors(clip, depth, 2)
    with torch.no_grad():
        alone = [hooked(clip, v) for v in (a, b)]
        plain = clip.encode_texts(["dark lesion."])
    inner = []

    def call_again(*_):
        if inner:
            return
        inner.append(None)
        inner.append(clip.encode_texts(["dark lesion."]))
        inner.append(hooked(clip, b))
        if fails:
            with pytest.raises(IndexError):
                clip.model.encode_text(torch.full((1, 8), 10**6))

    place = text_blocks(clip)[1] if amid else clip.model.text  # which has not read its tokens yet
    outer = place.register_forward_pre_hook(call_again)
    try:
        with torch.no_grad():
            read = hooked(clip, a)
    finally:
        outer.remove()
    assert torch.equal(read, alone[0])
    assert torch.equal(inner[1], plain)
    assert torch.equal(inner[2], alone[1])


def test_threads_do_not_disturb_each_other(clip):
    vectors = [draw_vectors(clip, 3, n + 1) for n in range(3)]
    alone = [hooked(clip, v).detach() for v in vectors]
    all_inside = threading.Barrier(3, timeout=60)
    read: list = [None] * 3

    def call(i: int) -> None:
        with torch.no_grad():
            read[i] = hooked(clip, vectors[i])

    def wait(*_) -> None:
        all_inside.wait()

    waiting = clip.model.text.register_forward_pre_hook(wait)
    threads = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waiting.remove()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(read, alone, strict=True))
    assert n_hooks(clip) == 1  # Clip's own, which cuts the mask
