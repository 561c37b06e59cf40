"""Images a second through the feature cache, against bare `encode_image` on ready tensors.

    python -m tests.benchmarks.bench_features

Through the cache means: read and decode a JPEG, preprocess, encode, write the cache file. Both sides
run in one process, in turns, on ViT-B/16 with random weights at 224 pixels. The images are the first
chest X-rays of $MEDVLP_DATA/chest_xray where that is set, else noise of 224 x 224 written as JPEG.
"""

import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.features import image_features
from medvlp.data.cards import load_card
from medvlp.data.image_sets import Files, ImageSet
from tests.benchmarks.timing import options, timed


def find_pictures(n: int, folder: Path) -> tuple[list[Path], str]:
    root = os.environ.get("MEDVLP_DATA")
    if root:
        paths = sorted((Path(root) / "chest_xray").rglob("*.jpeg"))[:n]
        if len(paths) == n:
            return paths, "chest X-rays"
    rng = np.random.default_rng(0)
    for i in range(n):
        noise = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((224, 224)).save(folder / f"{i:04d}.jpeg", quality=90)
    return sorted(folder.glob("*.jpeg")), "JPEGs of 224 x 224"


@torch.no_grad()
def encode_bare(clip: Clip, images: torch.Tensor, batch_size: int) -> None:
    for batch in images.split(batch_size):
        clip.model.encode_image(batch.to(clip.device)).cpu()


def encode_cached(clip: Clip, pictures: ImageSet, batch_size: int) -> None:
    with tempfile.TemporaryDirectory() as cache:
        image_features(clip, pictures, cache_dir=cache, batch_size=batch_size, progress=False)


def main() -> None:
    defaults = {"clip": "ViT-B-16/random", "images": 128, "batch_size": 32, "rounds": 4, "device": "auto"}
    args = options(__doc__, **defaults).parse_args()

    clip = load_clip(args.clip, device=args.device)
    clip.fingerprint  # noqa: B018  (computed once a process, not once a data set)
    with tempfile.TemporaryDirectory() as folder:
        paths, kind = find_pictures(args.images, Path(folder))
        ids, labels = list(map(str, paths)), torch.zeros(len(paths), dtype=torch.long)
        pictures = ImageSet(load_card("pneumonia"), "test", ids, labels, ids, Files(Path(folder), ids))
        images = torch.stack([clip.preprocess(image) for image, _ in pictures])  # (N, 3, S, S)
        encode_bare(clip, images[: args.batch_size], args.batch_size)  # warm up
        sides = {
            "bare": lambda: encode_bare(clip, images, args.batch_size),
            "through the cache": lambda: encode_cached(clip, pictures, args.batch_size),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for i in range(args.rounds):  # each side goes first in turn: a machine may slow down or recover
            for side in list(sides) if i % 2 == 0 else reversed(sides):
                rates[side].append(len(paths) / timed(sides[side]))
            shown = ", ".join(f"{side} {rates[side][-1]:.2f}" for side in sides)
            print(f"round {i + 1}: {shown} images/s", flush=True)
    print(f"{args.clip} on {clip.device}, {torch.get_num_threads()} threads; {len(paths)} {kind}")
    medians = {side: statistics.median(values) for side, values in rates.items()}
    for side, median in medians.items():
        print(f"{side}: median {median:.2f} images/s")
    print(f"ratio {medians['through the cache'] / medians['bare']:.3f} (target: at least 0.9)")


if __name__ == "__main__":
    main()
