"""Phantom images a second at 64 pixels, drawn many at a time and one at a time.

python tests/benchmarks/bench_phantoms.py
"""

import statistics
import time

import torch

from medvlp.data.phantoms.worlds import DRAWINGS, get_world

N, SINGLE, ROUNDS = 1024, 64, 5


def main() -> None:
    print(f"{torch.get_num_threads()} threads; medians of {ROUNDS} rounds, images a second")
    for name in DRAWINGS:
        world = get_world(name)
        latents = world.sample(N, seed=1)
        world.render(latents[:SINGLE])  # warm up
        together, alone = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            world.render(latents)
            together.append(N / (time.perf_counter() - start))
            start = time.perf_counter()
            for i in range(SINGLE):
                world.render(latents[i : i + 1])
            alone.append(SINGLE / (time.perf_counter() - start))
        many, one = statistics.median(together), statistics.median(alone)
        print(f"{name:8} together {many:6.0f}   one by one {one:6.0f}   ratio {many / one:.1f}x")


if __name__ == "__main__":
    main()
