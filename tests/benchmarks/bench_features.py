"""Images a second through the feature cache, against bare `encode_image` on ready tensors.

    python tests/benchmarks/bench_features.py

Through the cache means: read and decode a JPEG, preprocess, encode, write the cache file. Both sides
run in one process, in turns, on ViT-B/16 with random weights at 224 pixels. The images are the first
chest X-rays of $MEDVLP_DATA/chest_xray where that is set, else noise of 224 x 224 written as JPEG.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from parts import options
from PIL import Image

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.features import image_features
from medvlp.data.files import sha256


class Pictures(torch.utils.data.Dataset):
    """Image files, in the shape that `image_features` takes."""

    def __init__(self, paths, transform=None):
        self.paths, self.transform = paths, transform
        self.ids = [str(path) for path in paths]
        self.labels = torch.zeros(len(paths), dtype=torch.long)
        self.fingerprint = sha256(*self.ids)

    def with_transform(self, transform):
        return Pictures(self.paths, transform)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        image = Image.open(self.paths[i]).convert("RGB")
        return (self.transform(image) if self.transform else image), 0


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
def time_bare(clip: Clip, images: torch.Tensor, batch_size: int) -> float:
    start = time.perf_counter()
    for batch in images.split(batch_size):
        clip.model.encode_image(batch.to(clip.device)).cpu()
    return len(images) / (time.perf_counter() - start)


def time_cached(clip: Clip, data: Pictures, batch_size: int) -> float:
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        image_features(clip, data, cache_dir=cache, batch_size=batch_size, progress=False)
        return len(data) / (time.perf_counter() - start)


def main() -> None:
    defaults = {"clip": "ViT-B-16/random", "images": 128, "batch_size": 32, "rounds": 4, "device": "auto"}
    args = options(__doc__, **defaults).parse_args()

    clip = load_clip(args.clip, device=args.device)
    clip.fingerprint  # noqa: B018  (computed once a process, not once a data set)
    with tempfile.TemporaryDirectory() as folder:
        paths, kind = find_pictures(args.images, Path(folder))
        data = Pictures(paths)
        images = torch.stack([clip.preprocess(data[i][0]) for i in range(len(data))])  # (N, 3, S, S)
        time_bare(clip, images[: args.batch_size], args.batch_size)  # warm up
        bare, cached = [], []
        for i in range(args.rounds):  # each side goes first in turn: a machine may slow down or recover
            for side in (bare, cached) if i % 2 == 0 else (cached, bare):
                if side is bare:
                    bare.append(time_bare(clip, images, args.batch_size))
                else:
                    cached.append(time_cached(clip, data, args.batch_size))
            print(
                f"round {i + 1}: bare {bare[-1]:.2f}, through the cache {cached[-1]:.2f} images/s", flush=True
            )
    ratio = statistics.median(cached) / statistics.median(bare)
    print(f"{args.clip} on {clip.device}, {torch.get_num_threads()} threads; {len(paths)} {kind}")
    for side, rates in (("bare", bare), ("through the cache", cached)):
        print(f"{side}: median {statistics.median(rates):.2f} images/s")
    print(f"ratio {ratio:.3f} (target: at least 0.9)")


if __name__ == "__main__":
    main()
