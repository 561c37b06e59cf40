"""Image features of a frozen CLIP, computed once and kept on disk.

Features are kept image by image: in a folder for each clip (its fingerprint: weights, architecture,
preprocessing) and view, by the hash of the image's content; those of random views also by the image's id,
which they are drawn by. So a set with other images among them, another split or a fold computes the new ones
only, and what is stopped goes on where it was.

Of some images the package ships what one CLIP computed: `medvlp.data.tensor_files.shipped_features`. These
are taken whether the images are here or not, so that numbers are the same with and without them.
`python -m medvlp.backbone.features CARD CLIP ROOT` writes them where the images are.
"""

import gzip
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.sources import random_turn
from medvlp.data.cards import load_card
from medvlp.data.datasets import read_files
from medvlp.data.errors import brief, check_kinds
from medvlp.data.files import atomic_write, cache_folder, check_writable, file_hashes, on_disk, sha256, short
from medvlp.data.folders import Problems
from medvlp.data.image_sets import PhantomSet
from medvlp.data.tables import tables_of
from medvlp.data.tensor_files import (
    FEATURES,
    SHIPPED_KIND,
    Blocks,
    Shipped,
    shipped_features,
    shipped_path,
    write_tensors,
)

VERSION = "4"  # of the files' layout and of how views are drawn
CROP = 0.08  # the smallest part of the image's area that a random view keeps, as in most papers' recipes
AT_MOST, SECONDS = 256, 1  # images that are encoded, and time that goes by, before features are written


@dataclass
class Features:
    """Image features of one data set, in its order."""

    features: Tensor  # (N, D) float32, L2-normalised
    labels: Tensor  # (N,) int64
    ids: list[str]


def image_features(
    clip: Clip,
    images: Any,
    view: int | None = None,
    cache_dir: str | Path | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    progress: bool = True,
    crop: float = CROP,
    flip: bool = True,
) -> Features:
    """Features of every image of a data set, from the cache where they were computed before.

    Args:
        clip: the frozen model.
        images: An `ImageSet`, or anything with `fingerprint`, `ids`, `labels`, `with_transform(transform)`
            and `[i] -> (image, label)`; without `hashes` features are kept for this set alone.
        view: None for the model's own preprocessing; a number for one random view of each image (random
            resized crop, bicubic, and flip). A view depends on its number and the image's id alone.
        cache_dir: default: the environment's MEDVLP_CACHE, or ~/.cache/medvlp.
        batch_size: images encoded at once.
        num_workers: processes that read and preprocess while the model encodes. Default: one a core, 8 at
            most, for more than one batch; none where processes cannot be forked.
        progress: show a bar when computing takes over two seconds.
        crop: the smallest part of an image's area that a random view keeps.
        flip: whether random views are mirrored, half of them.

    Features are written while they are computed. After an error all that were computed are kept.

    Raises:
        ValueError: an empty data set, or an image that is broken or whose features are not finite.
        OSError: a cache folder that cannot be written; found before anything is computed.
        FileNotFoundError: images that are not here, and a clip or a view whose features are not shipped.

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> train = medvlp.image_features(clip, data.train)
        >>> train.features.shape, train.labels.tolist()
        (torch.Size([4, 128]), [1, 1, 0, 0])
    """
    check_kinds(image_features, locals())
    if not hasattr(images, "fingerprint"):
        raise TypeError(f"images must be an ImageSet, such as data.train, not {type(images).__name__}.")
    if len(images.ids) == 0:
        raise ValueError("there are no images to encode: the data set is empty.")
    labels, ids = torch.as_tensor(images.labels, dtype=torch.long), list(images.ids)
    store = _shipped(images)
    if store and view is not None:
        raise store.missing("there are no random views (views, cache_views, multiplier_views may be 0)")
    usual = view is None or (crop, flip) == (CROP, True)
    facts = {
        "version": VERSION,
        "clip_fingerprint": clip.fingerprint,
        "view": ("evaluation" if view is None else str(view)) + ("" if usual else f", {crop=}, {flip=}"),
    }
    base = Path(cache_dir).expanduser() if cache_dir else cache_folder()
    folder = base / "features" / sha256(json.dumps(facts, sort_keys=True))
    # what the clip is called changes nothing
    blocks = Blocks(folder, "feature cache", facts | {"clip": clip.name}, same=facts)
    hashes = getattr(images, "hashes", None) or [f"{images.fingerprint} {i}" for i in range(len(ids))]
    keys = [sha256(*key) for key in (zip(hashes) if view is None else zip(hashes, ids, strict=True))]
    features = blocks.read(keys)  # {key: (D,)}
    if view is None and len(features) < len(set(keys)):
        known = shipped_features(clip.fingerprint)
        features |= {key: known[one] for key, one in zip(keys, hashes, strict=True) if one in known}
    missing = {key: i for i, key in reversed([*enumerate(keys)]) if key not in features}
    if missing and store:
        other = " with these weights in this precision" if clip.name == store.clip else ""
        raise store.missing(f"there are no features of clip {brief(clip.name)}{other}")
    if missing:
        check_writable(folder, "the feature cache (MEDVLP_CACHE says where)")
        rows = sorted(missing.values())  # of images that are the same the first
        load = partial(ImageLoader, clip, images, crop=crop, flip=flip)
        workers = default_workers(len(rows), batch_size) if num_workers is None else num_workers
        encoded = _encode(clip, load, rows, view, batch_size, workers, progress)
        features |= _keep(blocks, keys, encoded)
    broken = [i for i, key in enumerate(keys) if key not in features]
    if broken:
        raise ValueError(
            f"the features of {len(broken)} images are not finite, the first '{short(ids[broken[0]])}'; look "
            "at that image, or load the clip with precision='fp32'."
        )
    return Features(torch.from_numpy(np.stack([features[key] for key in keys])), labels, ids)


def training_features(
    clip: Clip,
    images: Any,
    views: int,
    cache_dir: str | Path | None = None,
    progress: bool = True,
    num_workers: int | None = None,
    crop: float = CROP,
    flip: bool = True,
) -> Tensor:
    """Normalised features of `views` random views of each image, (views, N, D), on the clip's device.

    0 views: the view of evaluation, (1, N, D). `fit` trains on these with the same `views`.
    """
    numbers = range(views) if views else [None]
    options = {"cache_dir": cache_dir, "progress": progress, "num_workers": num_workers}
    options |= {"crop": crop, "flip": flip}
    features = [image_features(clip, images, view, **options).features for view in numbers]
    return torch.stack(features).to(clip.device)


class RandomView:
    """Seeded random views of PIL images: crop of any size, bicubic resize, flip, normalisation."""

    def __init__(self, clip: Clip, crop: float = CROP, flip: bool = True) -> None:
        bicubic = v2.InterpolationMode.BICUBIC
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(clip.image_size, (crop, 1.0), interpolation=bicubic),
                v2.RandomHorizontalFlip(0.5 if flip else 0.0),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"]),
            ]
        )

    def __call__(self, image: Image.Image, image_id: str, view: int) -> Tensor:
        """View number `view` of `image`, (3, S, S); torch's random state stays as it was."""
        seed = int(sha256(f"view {view}", image_id)[:15], 16)
        with random_turn(seed):
            return self.transform(image)


class Views(Dataset):
    """Images as the clip sees them. Item (i, view) is (tensor (3, S, S), label) of image i.

    `view` is the number of a random view, or None for the model's own preprocessing.
    """

    def __init__(self, clip: Clip, images: Any, crop: float = CROP, flip: bool = True) -> None:
        if store := _shipped(images):
            raise store.missing("what looks at pixels cannot be done")
        self.images, self.ids = images.with_transform(None), images.ids
        self.clip, self.crop, self.flip = clip, crop, flip

    @cached_property
    def random_view(self) -> RandomView:
        """What draws random views; only then must it be known how the clip preprocesses."""
        return RandomView(self.clip, self.crop, self.flip)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: tuple[int, int | None]) -> tuple[Tensor, int]:
        i, view = item
        image, label = self.images[i]
        if view is None:
            return self.clip.preprocess(image), label
        return self.random_view(image, self.ids[i], view), label


class ImageLoader(DataLoader):
    """Batches of images as the clip sees them, (B, 3, S, S), and labels, (B,).

    Processes send them through pipes: shared memory, which torch would use, is small in containers. Nothing
    is drawn from torch's random state.

    Args:
        clip: Its preprocessing is used.
        images: As `image_features` takes them.
        batches: For each batch the images' numbers and views, see `Views`.
        num_workers: Processes that read images.
        persistent: Whether they stay for the next pass over the batches.
        crop: Of random views, as `image_features` takes it.
        flip: Likewise.
    """

    def __init__(
        self,
        clip: Clip,
        images: Any,
        batches: Sequence[Sequence[tuple[int, int | None]]],
        num_workers: int,
        persistent: bool = False,
        crop: float = CROP,
        flip: bool = True,
    ) -> None:
        """Nothing is read yet; see the class."""
        super().__init__(
            Views(clip, images, crop, flip),
            batch_sampler=batches,
            num_workers=num_workers,
            persistent_workers=persistent and num_workers > 0,
            collate_fn=_arrays,
            generator=torch.Generator(),  # or it would draw from the caller's random numbers
        )

    @classmethod
    def in_order(cls, clip: Clip, images: Any, batch_size: int, num_workers: int) -> "ImageLoader":
        """All images in the data set's order, as evaluation sees them."""
        items = [(i, None) for i in range(len(images.ids))]
        batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        return cls(clip, images, batches, num_workers)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the batches."""
        for images, labels in super().__iter__():
            yield torch.from_numpy(images), torch.from_numpy(labels)


def _shipped(images: Any) -> Shipped | None:
    """What the package ships of these images, where they are not here."""
    store = getattr(images, "store", None)
    return store if isinstance(store, Shipped) else None


def _arrays(items: Sequence[tuple[Tensor, int]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*items, strict=True)
    return torch.stack(images).numpy(), np.array(labels)


def _keep(
    blocks: Blocks, keys: Sequence[str], encoded: Iterable[tuple[list[int], Tensor]]
) -> dict[str, np.ndarray]:
    """Write features as they come; those that are finite, by key, also where the rest cannot be computed."""
    features, unwritten, written_at = {}, {}, time.monotonic()
    try:
        for rows, batch in encoded:  # (B,), (B, D)
            finite = batch.isfinite().all(dim=1).tolist()
            unwritten |= {keys[i]: f for i, f, good in zip(rows, batch.numpy(), finite, strict=True) if good}
            if len(unwritten) >= AT_MOST or time.monotonic() > written_at + SECONDS:
                features |= unwritten
                blocks.write(unwritten)
                unwritten, written_at = {}, time.monotonic()
    finally:
        if unwritten:
            blocks.write(unwritten)
    return features | unwritten


def _encode(
    clip: Clip, load: Callable, rows: list[int], view: int | None, size: int, workers: int, progress: bool
) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of images and their normalised features, (B, D) on the CPU, a batch at a time.

    Of a batch with an image that cannot be read the others come one by one before the error.
    """
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]

    def encoded(batches: Sequence[Sequence[int]], workers: int) -> Iterator[Tensor]:
        for pixels, _ in load([[(i, view) for i in batch] for batch in batches], workers):  # (B, 3, S, S)
            with torch.no_grad():
                features = clip.encode_images(pixels).cpu()
            yield features

    left = iter(batches)
    what = "image features" if view is None else f"image features, view {view}"
    with tqdm(total=len(rows), desc=what, unit="image", delay=2, disable=not progress) as bar:
        try:
            for features in encoded(batches, workers):
                yield next(left), features
                bar.update(len(features))
        except (OSError, ValueError):
            for i in next(left, []):
                with suppress(OSError, ValueError):
                    yield [i], next(encoded([[i]], 0))
            raise


def readers(images: Any, batch_size: int, num_workers: int | None) -> int:
    """Processes that read images whose features are not kept: as asked, else `default_workers`.

    None for phantoms, which every process would draw again.
    """
    if num_workers is not None:
        return num_workers
    return 0 if isinstance(images, PhantomSet) else default_workers(len(images.ids), batch_size)


def default_workers(n_images: int, batch_size: int) -> int:
    """Processes that read images when nobody says how many: see `image_features`."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    forked = method == "fork"  # spawned processes would run the caller's script again
    if not forked or n_images <= batch_size:
        return 0
    try:
        multiprocessing.Lock()
    except OSError:  # no room for it: a container whose /dev/shm is full or missing
        return 0
    return min(len(os.sched_getaffinity(0)), 8)


def main(card: str, clip: str, root: Path) -> None:
    """Write what the package ships of a card's images: the features that a clip computes of them."""
    described, tower = load_card(card), load_clip(clip, device="cpu")
    parts = read_files(described, root, Problems("raise"))[0].values()
    loaders = [ImageLoader.in_order(tower, images, 64, default_workers(len(images), 64)) for images in parts]
    with torch.no_grad():
        features = torch.cat([tower.encode_images(x) for one in loaders for x, _ in tqdm(one)])  # (N, D)
    names, base = [name for images in parts for name in images.store.names], next(iter(parts)).store.folder
    raw = bytearray().join(map(bytes.fromhex, file_hashes(base, names)))
    hashes = torch.frombuffer(raw, dtype=torch.uint8).reshape(len(names), -1)  # (N, 32)
    folder = shipped_path(described.source.folder)
    facts = {"names": names, "clip": tower.name, "fingerprint": tower.fingerprint}
    tensors = {"hashes": hashes, "features": features.half()}
    write_tensors(folder / FEATURES, tensors, SHIPPED_KIND, facts)
    for table in tables_of(described):
        with atomic_write(folder / f"{table}.gz") as part:
            part.write_bytes(gzip.compress(on_disk(base, table).read_bytes(), mtime=0))
    print(f"{len(names)} images; written to {folder}")


if __name__ == "__main__":
    typer.run(main)
