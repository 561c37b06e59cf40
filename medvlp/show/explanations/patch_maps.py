"""Where in an image? Cosines of patches with texts, attention rolled out, and what is lost when a patch is.

The first two are not what the image feature is made of: patches were never trained to match texts, and often
match best where nothing is (Li et al., arXiv 2304.05653, call it opposite visualization); attention is not
importance. How far to trust each map `localisation` measures on phantoms, whose attributes' pixels are known.
"""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from open_clip.transformer import VisionTransformer
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.slots import symptom_text
from medvlp.backbone.prompts.walks import can_walk_image
from medvlp.data.errors import check_choice, check_kinds
from medvlp.data.html import Table
from medvlp.data.image_sets import PhantomSet
from medvlp.show.explanations.twins import flip, phantoms, some
from medvlp.show.figures.basic import closed
from medvlp.study.ablation.statistics import t_interval


def patch_similarity(clip: Clip, image: Image.Image | Tensor, texts: Sequence[str]) -> Tensor:
    """Cosine of every patch with every text: (H', W', n_texts), one value a patch.

    A patch's feature is its token after the last block, brought to the shared space as the class token is
    (`patch_features`). Texts are read as `ZeroShot` reads symptoms, with a full stop.

    Args:
        clip: With a vision transformer as its image tower.
        image: A PIL image, or one that `clip.preprocess` made, (3, S, S).
        texts: Symptoms, or other short texts.

    Raises:
        ValueError: an image tower without patch tokens, such as a ResNet; no text.

    Example:
        >>> import medvlp
        >>> from medvlp.show import patch_similarity
        >>> image = medvlp.load_dataset("phantom-derm", num_shots=2).test.image(0)
        >>> patch_similarity(medvlp.load_clip("tiny"), image, ["black dots", "a clean rim"]).shape
        torch.Size([8, 8, 2])
    """
    check_kinds(patch_similarity, locals())
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

    Example:
        >>> import medvlp
        >>> from medvlp.show import attention_rollout
        >>> image = medvlp.load_dataset("phantom-derm", num_shots=2).test.image(0)
        >>> rolled = attention_rollout(medvlp.load_clip("tiny"), image)
        >>> rolled.shape, bool(0 < rolled.sum() <= 1)
        (torch.Size([8, 8]), True)
    """
    check_kinds(attention_rollout, locals())
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
        ValueError: no text, or a number of patches that is not from 2 to S.

    Example:
        >>> import medvlp
        >>> from medvlp.show import occlusion_map
        >>> image = medvlp.load_dataset("phantom-derm", num_shots=2).test.image(0)
        >>> occlusion_map(medvlp.load_clip("tiny"), image, ["black dots"], patches=4).shape
        torch.Size([4, 4, 1])
    """
    check_kinds(occlusion_map, locals())
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
    for (top, bottom), (left, right) in product(pairwise(edges), repeat=2):
        covered = images.clone()
        covered[:, :, top:bottom, left:right] = means
        losses.append(whole - clip.encode_images(covered) @ t.T)
    return torch.stack(losses, dim=1).unflatten(1, (patches, patches))  # (B, H', W', n)


def patch_features(clip: Clip, images: Tensor) -> Tensor:
    """Features of the patches of images (B, 3, S, S), as the class token's: (B, H', W', D), L2-normalised."""
    visual = _transformer(clip)
    with _watched(visual.transformer) as seen:
        clip.encode_images(images)
    ((_, x),) = seen  # (B, 1 + N, width)
    x = visual.ln_post(x[:, 1:])  # (B, N, width)
    x = x if visual.proj is None else x @ visual.proj  # (B, N, D)
    return F.normalize(x.float(), dim=-1).unflatten(1, visual.grid_size)


def rollout(clip: Clip, images: Tensor) -> Tensor:
    """`attention_rollout` of preprocessed images (B, 3, S, S): (B, H', W')."""
    visual = _transformer(clip)
    blocks = list(visual.transformer.resblocks)
    with _watched(*blocks) as seen:
        clip.encode_images(images)
    rolled = None
    for block, (x, _) in zip(blocks, seen, strict=True):
        y = block.ln_1(x)
        _, weights = block.attn(y, y, y)  # (B, L, L), the mean over heads; rows sum to 1
        A = (weights.float() + torch.eye(x.shape[1], device=x.device)) / 2  # (B, L, L)
        rolled = A if rolled is None else A @ rolled
    return rolled[:, 0, 1:].unflatten(1, visual.grid_size)  # (B, H', W')


def patch_map_figure(
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

    Example:
        >>> import medvlp
        >>> from medvlp.show import attention_rollout, patch_map_figure
        >>> image = medvlp.load_dataset("phantom-derm", num_shots=2).test.image(0)
        >>> figure = patch_map_figure(image, attention_rollout(medvlp.load_clip("tiny"), image), ["rollout"])
        >>> [ax.get_title() for ax in figure.axes[:2]]
        ['image', 'rollout']
    """
    check_kinds(patch_map_figure, locals())
    maps = np.atleast_3d(np.asarray(maps, dtype=float))  # (H', W', n)
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
    scale = {"vmin": maps.min(), "vmax": maps.max()}
    for ax, title, i in zip(axes[1:], titles, range(n), strict=True):
        shades = ax.imshow(maps[..., i], extent=(0, 1, 1, 0), cmap="cividis", alpha=0.65, **scale)
        ax.set_title(textwrap.fill(title, 20), fontsize=9)
    fig.colorbar(shades, ax=list(axes), label=label, shrink=0.8)
    return closed(fig)


def _text_features(clip: Clip, texts: Sequence[str]) -> Tensor:
    """Texts as `ZeroShot` reads symptoms, (n, D)."""
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


@contextmanager
def _watched(*modules: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What each module is given and what it returns, in the order in which they run."""
    seen: list[tuple[Tensor, Tensor]] = []
    with ExitStack() as hooks:
        for module in modules:
            handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
            hooks.enter_context(handle)
        yield seen


VISIBLE = 12 / 255  # a pixel has changed where one of its channels has by more than this
COVERED = 0.1  # a patch belongs to an attribute that changes more than this share of its pixels
BATCH = 64
MAPS: dict[str, Callable[[Clip, Tensor, Tensor], Tensor]] = {  # (B, 3, S, S), (D,) -> (B, H', W')
    "similarity": lambda clip, images, t: patch_features(clip, images) @ t,
    "rollout": lambda clip, images, t: rollout(clip, images),
    "occlusion": lambda clip, images, t: occlusion(clip, images, t[None])[..., 0],
}


def localisation(
    clip: Clip,
    images: PhantomSet,
    maps: Sequence[str] = ("similarity", "rollout"),
    n_images: int | None = 100,
    seed: int = 1,
) -> pd.DataFrame:
    """How well maps tell the patches of an attribute from the others, in images that show it.

    Which patches those are is seen by drawing the image without the attribute (`flip`): they are the ones
    whose pixels change. An image without the attribute is taken as its twin, which has it.

    Args:
        clip: With a vision transformer as its image tower; for occlusion any.
        images: Phantoms, such as `data.test`.
        maps: Which: "similarity" (`patch_similarity`), "rollout" (`attention_rollout`, which reads no words),
            "occlusion" (`occlusion_map`, 64 times as slow).
        n_images: How many of them are used, drawn by `seed`; None: all.
        seed: Of the images.

    Returns:
        A row an attribute and map: attribute, map; patches, the mean share of the patches that change; AUROC,
        low, high: the mean over images of how well the map for the attribute's plainest wording ranks those
        patches above the image's others, with `t_interval` over images. Chance is 0.5; below it a map points
        away. Images in which every patch changes, or none, are left out; NaN where that leaves none.

    Raises:
        ValueError: an unknown map, images that are no phantoms, a tower without patches.

    Example:
        >>> import medvlp
        >>> from medvlp.show import localisation
        >>> images = medvlp.load_dataset("phantom-derm", num_shots=2).test
        >>> table = localisation(medvlp.load_clip("tiny"), images, maps=["similarity"], n_images=3)
        >>> table["attribute"].tolist() == list(images.attributes)
        True
    """
    check_kinds(localisation, locals())
    for name in maps:
        check_choice("map", name, MAPS)
    images = some(phantoms(images), n_images, seed).with_transform(clip.preprocess)
    rows = []
    for attribute in tqdm(images.world.attributes, desc="localisation", leave=False, delay=2):
        present = images.latents.attributes[:, images.world.index(attribute.name)]  # (N,)
        twins = flip(images, attribute.name).with_transform(clip.preprocess)
        shares, aurocs = [], {name: [] for name in maps}
        with torch.no_grad():
            t = clip.encode_texts([symptom_text(attribute.present[0])])[0]  # (D,)
            for part in torch.arange(len(images)).split(BATCH):
                pairs = [(images[i][0], twins[i][0]) for i in part.tolist()]
                one, other = map(torch.stack, zip(*pairs, strict=True))  # (B, 3, S, S) each
                shown = torch.where(present[part, None, None, None], one, other).to(clip.device)
                for name in maps:
                    drawn = MAPS[name](clip, shown, t).cpu()  # (B, H', W')
                    changed = changed_patches(clip, one, other, drawn.shape[1:])  # (B, H', W')
                    aurocs[name] += map(_auroc, changed, drawn)
                shares.append(changed.float().mean(dim=(1, 2)))  # (B,)
        for name, values in aurocs.items():
            known = [value for value in values if np.isfinite(value)]
            low, high = t_interval(known, least=0, most=1)
            row = {"attribute": attribute.name, "map": name, "patches": torch.cat(shares).mean().item()}
            rows.append(row | {"AUROC": np.mean(known) if known else np.nan, "low": low, "high": high})
    return Table(rows)


def changed_patches(clip: Clip, one: Tensor, other: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches differ between images and their twins, preprocessed: (B, 3, S, S) -> (B, H', W') bool."""
    std = torch.tensor(clip.preprocess_cfg["std"])[:, None, None]  # (3, 1, 1)
    visible = ((one - other) * std).abs().amax(dim=1, keepdim=True) > VISIBLE  # (B, 1, S, S)
    return F.adaptive_avg_pool2d(visible.float(), grid)[:, 0] > COVERED


def _auroc(truth: Tensor, scores: Tensor) -> float:
    mixed = truth.any() and not truth.all()
    return float(roc_auc_score(truth.flatten(), scores.flatten())) if mixed else float("nan")
