"""A training of ViP alone, and two at once, each with a thread for every core of this machine.

    python -m tests.benchmarks.bench_side_by_side

OpenMP's threads wait for each other by spinning. Where another program has one of the cores, all wait for
the thread that has none. `make` sets GOMP_SPINCOUNT, which on Linux lets them sleep instead. Both ways are
timed in processes of their own, as the library reads it when it is loaded. --epochs 8 shows more, and takes
some minutes.
"""

import os
import subprocess
import sys

from tests.benchmarks.timing import options, timed

SPIN = "GOMP_SPINCOUNT"
WAYS = {"as OpenMP waits": {}, f"{SPIN}=1000": {SPIN: "1000"}}


def train(epochs: int) -> None:
    """Say when all is loaded, wait for a line, then train and print the seconds."""
    import medvlp  # here, for it brings PyTorch

    clip, data = medvlp.load_clip("tiny", device="cpu"), medvlp.load_dataset("phantom-derm", num_shots=400)
    vip, run = medvlp.ViP(clip, data.card), medvlp.TrainConfig(epochs=epochs, views=0)
    for part in (data.train, data.val):
        medvlp.image_features(clip, part, progress=False)
    print("ready", flush=True)
    sys.stdin.readline()
    print(timed(lambda: medvlp.fit(vip, data.train, data.val, run, progress=False)), flush=True)


def seconds(n: int, way: dict[str, str], epochs: int) -> float:
    """How long `n` trainings that begin at once take: the slower one's seconds."""
    env = {k: v for k, v in os.environ.items() if k not in (SPIN, "OMP_NUM_THREADS")} | way
    command = [sys.executable, "-m", "tests.benchmarks.bench_side_by_side", "--train", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    runs = [subprocess.Popen([*command, "--epochs", str(epochs)], **pipes) for _ in range(n)]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    return max(float(run.communicate()[0]) for run in runs)


def main() -> None:
    """Print seconds and ratios."""
    arguments = options(__doc__, epochs=2, train=0).parse_args()
    if arguments.train:
        return train(arguments.epochs)
    for name, way in WAYS.items():
        alone, both = (seconds(n, way, arguments.epochs) for n in (1, 2))
        print(f"{name}: alone {alone:.2f} s, two at once {both:.2f} s, ratio {both / alone:.1f}", flush=True)


if __name__ == "__main__":
    main()
