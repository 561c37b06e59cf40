import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from medvlp import load_clip
from medvlp.show import attention_rollout, localisation, occlusion_map, patch_map_figure, patch_similarity
from medvlp.show.explanations.patch_maps import changed_patches, patch_features, rollout
from tests.backbone.small_clips import TEXT, write_clip


def test_patches_are_read_as_the_class_token_is(clip, pixels):
    """The tower's own blocks by hand; the class token beside the patches must be the image feature."""
    visual = clip.model.visual
    with torch.no_grad():
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)  # (B, N, width)
        x = torch.cat([visual.class_embedding.expand(3, 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(x)
        for block in visual.transformer.resblocks:
            x = block(x)
        f = F.normalize(visual.ln_post(x) @ visual.proj, dim=-1)  # (B, 1 + N, D)
        torch.testing.assert_close(f[:, 0], clip.encode_images(pixels))
        torch.testing.assert_close(patch_features(clip, pixels).flatten(1, 2), f[:, 1:])


def test_similarities_are_cosines_in_the_order_of_the_texts(clip, data, pixels):
    texts = ["a blue-white veil", "black dots"]
    maps = patch_similarity(clip, data.test.image(1), texts)
    assert maps.shape == (*clip.model.visual.grid_size, 2)
    assert maps.abs().max() <= 1
    one = patch_similarity(clip, pixels[1], ["black dots."])  # a full stop more is the same symptom
    torch.testing.assert_close(one[..., 0], maps[..., 1])
    with pytest.raises(ValueError, match="no text"):
        patch_similarity(clip, pixels[1], [])


def test_rollout_is_the_product_of_the_heads_own_weights(clip, pixels):
    """Against softmax(q k^T / sqrt(e)) of each head, written out."""
    visual, seen = clip.model.visual, []
    blocks = visual.transformer.resblocks
    hooks = [b.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for b in blocks]
    with torch.no_grad():
        clip.encode_images(pixels)
        rolled = torch.eye(seen[0].shape[1]).expand(3, -1, -1)
        for block, x in zip(blocks, seen, strict=True):
            qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
            q, k = (y.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for y in qkv[:2])
            weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)  # (B, L, L)
            rolled = (weights + torch.eye(x.shape[1])) / 2 @ rolled
        for hook in hooks:
            hook.remove()
        found = rollout(clip, pixels)
    torch.testing.assert_close(found.flatten(1), rolled[:, 0, 1:], rtol=1e-4, atol=1e-6)
    assert (found > 0).all() and (found.sum(dim=(1, 2)) < 1).all()
    torch.testing.assert_close(attention_rollout(clip, pixels[2]), found[2], rtol=1e-4, atol=1e-6)


def test_occlusion_is_the_loss_of_the_cosine(clip, pixels):
    text = "a large diameter"
    found = occlusion_map(clip, pixels[0], [text], patches=2)  # (2, 2, 1)
    covered = pixels[:1].clone()
    covered[:, :, 32:, :32] = pixels[0].mean(dim=(1, 2))[:, None, None]
    with torch.no_grad():
        t = clip.encode_texts([f"{text}."])[0]
        loss = (clip.encode_images(pixels[:1]) - clip.encode_images(covered)) @ t
    torch.testing.assert_close(found[1, 0], loss, rtol=1e-4, atol=1e-6)
    plain = occlusion_map(clip, torch.full_like(pixels[0], 0.3), [text])
    assert plain.abs().max() < 1e-5  # nothing to lose
    with pytest.raises(ValueError, match="from 2 to 64"):
        occlusion_map(clip, pixels[0], [text], patches=1)


def test_a_tower_without_patch_tokens_is_refused(data, tmp_path):
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    resnet = load_clip(write_clip(tmp_path, {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}))
    for draw, images in ((attention_rollout, data.test.image(0)), (localisation, data.test)):
        with pytest.raises(ValueError, match="needs? a vision transformer"):
            draw(resnet, images)


def test_changed_patches_are_those_whose_pixels_change(clip):
    one = torch.zeros(1, 3, 64, 64)
    other = one.clone()
    other[:, 1, 8:16, 24:32] = 1  # exactly one patch of 8 pixels
    other[:, :, 40, 40] = 1  # one pixel: 1 of 64
    other[:, :, 50:, :] = 0.01  # too little to see
    changed = changed_patches(clip, one, other, (8, 8))
    assert changed.nonzero().tolist() == [[0, 1, 3]]


def test_localisation_tells_attributes_and_maps_apart(clip, data):
    table = localisation(clip, data.test, n_images=12)
    assert list(table["map"].unique()) == ["similarity", "rollout"]
    assert (table["low"] <= table["AUROC"]).all() and (table["AUROC"] <= table["high"]).all()
    by = table.set_index(["attribute", "map"])["AUROC"]
    assert by["veil", "rollout"] > 0.6  # attention goes where the veil is,
    assert by["veil", "similarity"] < 0.4  # and patches match its words best elsewhere
    with pytest.raises(ValueError, match="map 'rolout'"):
        localisation(clip, data.test, ["rolout"])


def test_the_figure_shows_every_map(data):
    maps = np.random.default_rng(0).random((8, 8, 2))
    fig = patch_map_figure(data.test.image(0), maps, ["$\\frac", "a title that is far too long for one line"])
    assert isinstance(fig, Figure)
    fig.canvas.draw()
    shown = [ax.images[-1].get_array() for ax in fig.axes[1:3]]
    np.testing.assert_allclose(np.stack(shown, axis=-1), maps)
    with pytest.raises(ValueError, match="1 titles for 2 maps"):
        patch_map_figure(data.test.image(0), maps, ["one"])
