"""A step of pre-training an embedded CLIP with this package's Muon, and with `torch.optim.Muon`.

    python -m tests.benchmarks.bench_pretrain

Both take the same steps to rounding (tests/backbone/test_pretrain.py). torch's has its products in bfloat16
on every processor; ours in the precision that `AnnotatedConfig` finds right for this one.
"""

import statistics

import torch

from medvlp.backbone.pretrain import TINY, Muon, new_clip
from medvlp.backbone.pretrain_annotated import AnnotatedConfig
from tests.benchmarks.timing import options, timed


def main() -> None:
    args = options(__doc__, images=64, texts=96, steps=10, rounds=4).parse_args()
    config, clip, draws = AnnotatedConfig(), new_clip(), torch.Generator().manual_seed(0)
    matrices = [p for name, p in clip.model.named_parameters() if p.ndim == 2 and ".resblocks." in name]
    size = TINY["vision_cfg"]["image_size"]
    images = torch.randn(args.images, 3, size, size, generator=draws)
    texts = clip.tokenize(["a dermoscopy image with black dots and a smooth border."] * args.texts)
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    sides = {
        "medvlp": Muon(matrices, config.lr, config.weight_decay, dtype),
        "torch": torch.optim.Muon(matrices, config.lr, config.weight_decay, adjust_lr_fn="match_rms_adamw"),
    }

    def steps(optimiser: torch.optim.Optimizer) -> None:
        for _ in range(args.steps):
            clip.model.zero_grad()
            (clip.model.encode_image(images) @ clip.model.encode_text(texts).T).square().mean().backward()
            optimiser.step()

    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for i in range(args.rounds + 1):  # the first is not counted; each side goes first in turn
        for side in list(sides) if i % 2 == 0 else reversed(sides):
            seconds[side].append(timed(lambda side=side: steps(sides[side])) / args.steps)
    medians = {side: statistics.median(values[1:]) for side, values in seconds.items()}
    processor = torch.backends.cpu.get_cpu_capability()
    print(f"{torch.get_num_threads()} threads, {processor}; our Muon's products in {dtype}")
    for side, median in medians.items():
        print(f"{side}: median {median:.3f} s a step")
    print(f"ratio {medians['torch'] / medians['medvlp']:.2f}")


if __name__ == "__main__":
    main()
