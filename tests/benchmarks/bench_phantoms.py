"""Phantom images a second at 64 pixels, drawn many at a time and one at a time.

python -m tests.benchmarks.bench_phantoms
"""

import statistics

import torch

from medvlp.data.phantoms.worlds import DRAWINGS, get_world
from tests.benchmarks.timing import Clock

N, SINGLE, ROUNDS = 1024, 64, 5


def main() -> None:
    print(f"{torch.get_num_threads()} threads; medians of {ROUNDS} rounds, images a second")
    for name in DRAWINGS:
        world = get_world(name)
        latents = world.sample(N, seed=1)
        world.render(latents[:SINGLE])  # warm up
        together, alone = [], []
        for _ in range(ROUNDS):
            clock = Clock()
            world.render(latents)
            together.append(N / clock.look())
            for i in range(SINGLE):
                world.render(latents[i : i + 1])
            alone.append(SINGLE / clock.look())
        many, one = statistics.median(together), statistics.median(alone)
        print(f"{name:8} together {many:6.0f}   one by one {one:6.0f}   ratio {many / one:.1f}x")


if __name__ == "__main__":
    main()
