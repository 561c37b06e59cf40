"""Decisions that a change which means nothing turns round: a shift, a mirror image, a little more light."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import ImageLoader
from medvlp.data.cards import DataCard
from medvlp.data.errors import check_kinds
from medvlp.data.image_sets import ImageSet
from medvlp.methods.base import Method
from medvlp.show.gallery.failures import Failures, describe, name_of
from medvlp.study.evaluation import evaluating

Change = Callable[[Tensor], Tensor]  # preprocessed images (B, 3, S, S) -> changed ones

SHIFT = 1 / 32  # of the image's side: 2 pixels of 64, 7 of 224
LIGHT = 0.1
ONE_SIDED = ("chest",)  # a modality that names one of these shows organs that belong on one side
_BATCH = 64


def harmless_changes(clip: Clip, card: DataCard) -> dict[str, Change]:
    """Changes by name that should leave every decision alone, on images as `clip.preprocess` makes them.

    Shifts to the four sides by `SHIFT` of the side (the border is repeated), 10 % more and less light, and
    the mirror image: not where the card's modality names a chest, whose heart would be on the other side.
    """
    step = max(1, round(SHIFT * clip.image_size))
    moves = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    changes: dict[str, Change] = {
        f"shifted {step} pixels {side}": _shift(dy * step, dx * step) for side, (dy, dx) in moves.items()
    }
    for word, factor in (("brighter", 1 + LIGHT), ("darker", 1 - LIGHT)):
        changes[f"{LIGHT:.0%} {word}"] = _light(clip, factor)
    if not any(word in card.modality.lower() for word in ONE_SIDED):
        changes["mirrored"] = lambda images: images.flip(-1)
    return changes


def _shift(down: int, right: int) -> Change:
    def change(images: Tensor) -> Tensor:
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        rows, columns = (rows - down).clamp(0, len(rows) - 1), (columns - right).clamp(0, len(columns) - 1)
        return images[..., rows[:, None], columns]

    return change


def _light(clip: Clip, factor: float) -> Change:
    def change(images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(clip.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        return ((images * std + mean) * factor).clamp(0, 1).sub(mean).div(std)

    return change


def stability(
    method: Method, images: ImageSet, train: ImageSet | None = None, changes: dict[str, Change] | None = None
) -> Failures:
    """The images whose predicted class a harmless change turns round, right or wrong before.

    Args:
        method: a method.
        images: images of its classes.
        train: training images, of which the nearest are found.
        changes: functions of preprocessed images by name; default `harmless_changes`.

    Returns:
        Those images as they are unchanged, the most confident first; the note names the changes that turn the
        decision, and the class that each turns it to.

    Raises:
        ValueError: no change, no image, or other classes than the method's.

    Example:
        >>> import medvlp
        >>> from medvlp.show import stability
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> turned = stability(zero, data.test.subset(range(40)), changes={"nothing": lambda images: images})
        >>> len(turned)
        0
    """
    check_kinds(stability, locals())
    images.check(method.card, name_of(method))
    changes = harmless_changes(method.clip, images.card) if changes is None else changes
    if not changes:
        raise ValueError("there is no change to try; leave changes out for the harmless ones.")
    loader = ImageLoader.in_order(method.clip, images, _BATCH, num_workers=0)
    unchanged, decided = [], []
    with evaluating(method):
        for batch, _ in tqdm(loader, desc="stability", unit="batch", leave=False, delay=2):
            pixels = batch.to(method.clip.device)  # (B, 3, S, S)
            unchanged.append(method(pixels).float().cpu())
            changed = [method(change(pixels)).argmax(dim=1).cpu() for change in changes.values()]
            decided.append(torch.stack(changed))  # (n_changes, B)
    logits, decisions = torch.cat(unchanged), torch.cat(decided, dim=1).numpy()  # (N, n_cls), (n_changes, N)
    turned = decisions != logits.argmax(dim=1).numpy()  # (n_changes, N)
    rows = np.flatnonzero(turned.any(axis=0))
    classnames, names = images.card.classnames, list(changes)
    notes = [_note(classnames, names, decisions[:, i], turned[:, i]) for i in rows]
    title = (
        f"{name_of(method)} on {images.card.name}, {images.split}: {len(rows)} of {len(images)} decisions "
        "flip under a harmless change"
    )
    return describe(title, images, rows, method, logits, train, None, notes)


def _note(classnames: list[str], names: list[str], decisions: np.ndarray, turned: np.ndarray) -> str:
    """Such as "nevus when mirrored, shifted 2 pixels up"; decisions and turned are (n_changes,)."""
    by_class: dict[str, list[str]] = {}
    for k in np.flatnonzero(turned):
        by_class.setdefault(classnames[decisions[k]], []).append(names[k])
    return "; ".join(f"{classname} when {', '.join(changes)}" for classname, changes in by_class.items())
