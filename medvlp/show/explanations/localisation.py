"""Do maps point at what they name? Measured on phantoms, where the pixels of an attribute are known."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip
from medvlp.data.errors import unknown_name
from medvlp.data.image_sets import PhantomSet
from medvlp.methods.zero_shot import symptom_text
from medvlp.show.explanations.patch_maps import occlusion, patch_features, rollout
from medvlp.show.faithfulness.twins import flip, some
from medvlp.study.ablation.statistics import t_interval

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
    """
    for name in maps:
        if name not in MAPS:
            raise ValueError(unknown_name("map", name, MAPS))
    images = some(images, n_images, seed)
    rows = []
    for attribute in tqdm(images.world.attributes, desc="localisation", leave=False, delay=2):
        present = images.attributes[:, images.world.index(attribute.name)]  # (N,)
        twins = flip(images, attribute.name)
        shares, found = [], {name: [] for name in maps}
        with torch.no_grad():
            t = clip.encode_texts([symptom_text(attribute.present[0])])[0]  # (D,)
            for part in torch.arange(len(images)).split(BATCH):
                one, other = (_pixels(clip, which, part) for which in (images, twins))  # (B, 3, S, S) each
                shown = torch.where(present[part, None, None, None], one, other).to(clip.device)
                for name in maps:
                    drawn = MAPS[name](clip, shown, t).cpu()  # (B, H', W')
                    changed = changed_patches(clip, one, other, drawn.shape[1:])  # (B, H', W')
                    found[name] += map(_auroc, changed, drawn)
                shares.append(changed.float().mean(dim=(1, 2)))  # (B,)
        for name, values in found.items():
            known = [value for value in values if np.isfinite(value)]
            low, high = t_interval(known)
            row = {"attribute": attribute.name, "map": name, "patches": torch.cat(shares).mean().item()}
            rows.append(row | {"AUROC": np.mean(known) if known else np.nan, "low": low, "high": high})
    return pd.DataFrame(rows)


def changed_patches(clip: Clip, one: Tensor, other: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches differ between images and their twins, preprocessed: (B, 3, S, S) -> (B, H', W') bool."""
    std = torch.tensor(clip.preprocess_cfg["std"])[:, None, None]  # (3, 1, 1)
    visible = ((one - other) * std).abs().amax(dim=1, keepdim=True) > VISIBLE  # (B, 1, S, S)
    return F.adaptive_avg_pool2d(visible.float(), grid)[:, 0] > COVERED


def _auroc(truth: Tensor, scores: Tensor) -> float:
    if truth.all() or not truth.any():
        return float("nan")
    return float(roc_auc_score(truth.flatten(), scores.flatten()))


def _pixels(clip: Clip, images: PhantomSet, numbers: Tensor) -> Tensor:
    """These images preprocessed, (B, 3, S, S)."""
    return torch.stack([clip.preprocess(images.image(i)) for i in numbers.tolist()])
