"""A grid of 100 runs on cached features, against its training steps alone.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_ablation

The grid is ViP on a phantom card: 5 learning rates, 2 numbers of context vectors, 10 seeds; --runs says
how many of these 100 are made, in tens. One side is `run_ablation` in this process as a user calls it,
and all that it does: planning, building the methods, reading features, steps, validation after each
epoch, the test images, the store. The other side is the same number of steps on ready tensors: forward,
cross-entropy, backward, SGD. The two take turns, ten runs at a time, and each of the ten calls loads CLIP
and data again. Image features are in the cache beforehand; how long that took is printed. The ratio is of
the sums of both sides. With few shots an epoch has few steps, and its validation weighs more.
"""

import tempfile
from itertools import product
from pathlib import Path

import torch

from medvlp.backbone.clip import load_clip
from medvlp.backbone.features import image_features
from medvlp.methods.vip import ViP
from medvlp.study.ablation.sources import ALL, load_parts
from medvlp.study.ablation.study import run_ablation
from medvlp.study.training.config import TrainConfig
from tests.benchmarks.timing import Clock, learn, options, sgd_of

LRS, CONTEXTS, SEEDS = (0.0005, 0.001, 0.002, 0.004, 0.008), (2, 4), range(1, 11)


def steps_alone(vip: ViP, features: torch.Tensor, labels: torch.Tensor, config: TrainConfig) -> float:
    """Seconds of a run's steps: features (N, D), labels (N,)."""
    sgd, clock = sgd_of(vip.train(), config.lr), Clock()
    for _ in range(config.epochs):
        order, full = torch.randperm(len(labels)), len(labels) // config.batch_size * config.batch_size
        for rows in order[: full or None].split(config.batch_size):
            learn(sgd, vip.logits_from_features(features[rows]), labels[rows])
    return clock.look()


def main() -> None:
    args = options(__doc__, card="phantom-derm", clip="tiny", epochs=2, num_shots=ALL, runs=100).parse_args()

    clip, parts = load_clip(args.clip, device="cpu"), load_parts(args.card, None)
    num_shots = ALL if args.num_shots == ALL else int(args.num_shots)
    config = {"epochs": args.epochs}
    with tempfile.TemporaryDirectory() as folder:
        cache, store = Path(folder) / "cache", Path(folder) / "store"
        clock, features, labels = Clock(), {}, {}
        for seed in SEEDS if num_shots != ALL else SEEDS[:1]:
            train, val = parts.cut(num_shots, seed)
            for view in range(TrainConfig.views):
                features[seed] = image_features(clip, train, view, cache).features  # (N, D)
            labels[seed] = train.labels  # (N,)
            image_features(clip, val, cache_dir=cache)
        image_features(clip, parts.data.test, cache_dir=cache)
        print(f"image features: {clock.look():.1f} s, once")

        whole = steps = 0.0
        for i, (lr, n_ctx) in enumerate(product(LRS, CONTEXTS), start=1):
            for seed in SEEDS:
                vip = ViP(clip, parts.data.card, n_ctx=n_ctx, seed=seed)
                cut, recipe = seed if seed in features else SEEDS[0], TrainConfig(lr=lr, **config)
                steps += steps_alone(vip, features[cut], labels[cut], recipe)
            clock.look()
            study = run_ablation(
                {"method": "ViP", "num_shots": num_shots, "lr": lr, "n_ctx": n_ctx, "seed": SEEDS},
                store=store,
                data=args.card,
                clip=args.clip,
                config=config,
                cache_dir=cache,
                progress=False,
            )
            whole += clock.look()
            if len(study.failures()):
                raise SystemExit(study.failures()["traceback"][0])
            print(f"{10 * i} runs: whole {whole:.1f} s, steps {steps:.1f} s", flush=True)
            if 10 * i == args.runs:
                break
    n = args.epochs * max(1, len(train) // recipe.batch_size)
    print(f"{10 * i} runs of {n} steps, {args.card}, {args.clip}, {torch.get_num_threads()} threads")
    print(f"whole {whole:.1f} s, steps alone {steps:.1f} s: ratio {whole / steps:.3f} (target: below 1.3)")


if __name__ == "__main__":
    main()
