"""Where in an image? Cosines of patches with texts, attention rolled out, and what is lost when a patch is.

The first two are not what the image feature is made of: patches were never trained to match texts, and often
match best where nothing is (Li et al., arXiv 2304.05653, call it opposite visualization); attention is not
importance. How far to trust each map is measured on phantoms: `localisation.localisation`.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from PIL import Image
from torch import Tensor, nn

from medvlp.backbone.blocks import project
from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.image_walk import can_walk_image
from medvlp.methods.zero_shot import symptom_text
from medvlp.show.figures.basic import closed


def patch_similarity(clip: Clip, image: Image.Image | Tensor, texts: Sequence[str]) -> Tensor:
    """Cosine of every patch with every text: (H', W', n_texts), one value a patch.

    A patch's feature is its token after the last block, brought to the shared space as the class token is
    (`patch_features`). Texts are read as `ZeroShot` reads symptoms, with a full stop.

    Args:
        clip: With a vision transformer as its image tower.
        image: A PIL image, or one that `clip.preprocess` made, (3, S, S).
        texts: Symptoms, or other short texts.

    Raises:
        ValueError: an image tower without patch tokens, such as a ResNet; no text, or no list of them.
    """
    with torch.no_grad():
        t = _text_features(clip, texts)  # (n, D)
        return (patch_features(clip, _pixels(clip, image)) @ t.T)[0].cpu()  # (H', W', n)


def attention_rollout(clip: Clip, image: Image.Image | Tensor) -> Tensor:
    """How much of each patch reaches the class token, by attention alone: (H', W'), sums to at most 1.

        A_l = (mean over heads of softmax(q k^T / sqrt(e)) + I) / 2,      rollout = A_depth ... A_2 A_1

    and of that the class token's row (Abnar & Zuidema, "Quantifying Attention Flow in Transformers", ACL
    2020, arXiv 2005.00928). What is missing to 1 is the class token's own. It knows neither values nor MLPs,
    nor any text: it is the same for every class.

    Args:
        clip: With a vision transformer as its image tower.
        image: A PIL image, or one that `clip.preprocess` made, (3, S, S).

    Raises:
        ValueError: an image tower without a class token that attends, such as a ResNet.
    """
    with torch.no_grad():
        return rollout(clip, _pixels(clip, image))[0].cpu()


def occlusion_map(clip: Clip, image: Image.Image | Tensor, texts: Sequence[str], patches: int = 8) -> Tensor:
    """How much of the image's cosine with each text is lost without each patch: (H', W', n_texts).

    Each patch in turn takes the mean colour of the image (Zeiler and Fergus, "Visualizing and Understanding
    Convolutional Networks", ECCV 2014, arXiv 1311.2901, who cover with grey). Above 0 the patch spoke for the
    text. It is a change of the score itself, so it works with every tower, and costs an image for each patch.

    Args:
        clip: With any image tower.
        image: A PIL image, or one that `clip.preprocess` made, (3, S, S).
        texts: Symptoms, or other short texts.
        patches: H' and W'.

    Raises:
        ValueError: no text, no list of them, or a number of patches that is not from 2 to S.
    """
    with torch.no_grad():
        t = _text_features(clip, texts)  # (n, D)
        return occlusion(clip, _pixels(clip, image), t, patches)[0].cpu()


def occlusion(clip: Clip, images: Tensor, t: Tensor, patches: int = 8) -> Tensor:
    """`occlusion_map` of preprocessed images (B, 3, S, S) and text features t (n, D): (B, H', W', n)."""
    size = images.shape[-1]
    if not 2 <= patches <= size:
        raise ValueError(f"patches must be from 2 to {size}, the side of an image, got {patches}.")
    edges = torch.linspace(0, size, patches + 1).round().int().tolist()
    means = images.mean(dim=(2, 3), keepdim=True)  # (B, 3, 1, 1)
    losses, whole = [], clip.encode_images(images) @ t.T  # (B, n)
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            covered = images.clone()
            covered[:, :, top:bottom, left:right] = means
            losses.append(whole - clip.encode_images(covered) @ t.T)
    return torch.stack(losses, dim=1).unflatten(1, (patches, patches))  # (B, H', W', n)


def patch_features(clip: Clip, images: Tensor) -> Tensor:
    """Features of the patches, ln_post and projection as for the class token: (B, H', W', D), L2-normalised.

    images (B, 3, S, S), preprocessed. ValueError for a tower without patch tokens.
    """
    visual = _transformer(clip)
    with _inputs(visual.transformer, outputs=True) as seen:
        clip.encode_images(images)
    (x,) = seen  # (B, 1 + N, width)
    x = visual.ln_post(x[:, 1:])  # (B, N, width)
    x = x if visual.proj is None else x @ visual.proj  # (B, N, D)
    return F.normalize(x.float(), dim=-1).unflatten(1, visual.grid_size)


def rollout(clip: Clip, images: Tensor) -> Tensor:
    """`attention_rollout` of preprocessed images (B, 3, S, S): (B, H', W')."""
    visual = _transformer(clip)
    blocks = list(visual.transformer.resblocks)
    with _inputs(*blocks) as seen:
        clip.encode_images(images)
    rolled = None
    for block, x in zip(blocks, seen, strict=True):
        A = (_attention(block, x).mean(dim=1) + torch.eye(x.shape[1], device=x.device)) / 2  # (B, L, L)
        rolled = A if rolled is None else A @ rolled
    return rolled[:, 0, 1:].unflatten(1, visual.grid_size)  # (B, H', W')


def map_figure(
    image: Image.Image, maps: Tensor | np.ndarray, titles: Sequence[str], label: str = "cosine"
) -> Figure:
    """An image and its maps over it, all on one colour scale.

    Args:
        image: The image as the method sees it: its square middle is shown.
        maps: (H', W') or (H', W', n).
        titles: One a map.
        label: What the colours mean.

    Raises:
        ValueError: another number of titles than of maps.
    """
    maps = np.asarray(maps, dtype=float)
    maps = maps[..., None] if maps.ndim == 2 else maps  # (H', W', n)
    n = maps.shape[2]
    if len(titles) != n:
        raise ValueError(f"{len(titles)} titles for {n} maps; give one each.")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    fig, axes = plt.subplots(1, n + 1, figsize=(2.1 * (n + 1) + 0.6, 2.7), layout="constrained")
    axes[0].set_title("image", fontsize=9)
    for ax in axes:
        ax.imshow(square, extent=(0, 1, 1, 0))
        ax.set_axis_off()
    for ax, title, i in zip(axes[1:], titles, range(n), strict=True):
        shades = ax.imshow(
            maps[..., i], extent=(0, 1, 1, 0), cmap="cividis", alpha=0.65, vmin=maps.min(), vmax=maps.max()
        )
        ax.set_title(textwrap.fill(title, 20), fontsize=9, parse_math=False)
    fig.colorbar(shades, ax=list(axes), label=label, shrink=0.8)
    return closed(fig)


def _text_features(clip: Clip, texts: Sequence[str]) -> Tensor:
    """Texts as `ZeroShot` reads symptoms, (n, D); ValueError for one text without its list."""
    if isinstance(texts, str):
        raise ValueError(f"texts is one text; give a list, such as [{texts!r}].")
    return clip.encode_texts([symptom_text(text) for text in texts])


def _pixels(clip: Clip, image: Image.Image | Tensor) -> Tensor:
    """One preprocessed image, (1, 3, S, S)."""
    if isinstance(image, Image.Image):
        image = clip.preprocess(image.convert("RGB"))  # (3, S, S)
    return clip.checked(image[None])


def _transformer(clip: Clip) -> VisionTransformer:
    visual = clip.model.visual
    if not (can_walk_image(visual) and visual.transformer.batch_first):
        raise ValueError(
            f"the image tower of clip {clip.name!r} ({type(visual).__name__}) has no patches that a class "
            "token attends to; maps need a vision transformer, such as 'ViT-B-16-quickgelu/openai'."
        )
    return visual


def _attention(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Who attends to whom in a block, from its input: (B, L, width) -> (B, heads, L, L), rows sum to 1."""
    q, k = project(block, block.ln_1(x), "qk").chunk(2, dim=-1)  # (B, L, width) each
    q, k = (y.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for y in (q, k))  # (B, heads, L, e)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float().softmax(dim=-1)


@contextmanager
def _inputs(*modules: nn.Module, outputs: bool = False) -> Iterator[list[Tensor]]:
    """What each module is given, in the order in which they run; or, with `outputs`, what it returns."""
    seen: list[Tensor] = []
    if outputs:
        handles = [m.register_forward_hook(lambda _, __, output: seen.append(output)) for m in modules]
    else:
        handles = [m.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for m in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
