"""How often must captions name a disease before CLIP knows the name? A study on phantoms.

`python notebooks/name_rate.py STORE` pre-trains the embedded CLIP from scratch, once for each
rate and seed, and measures zero-shot accuracy by class name and by symptoms on the way. What is measured is
kept in the store as runs are, so that the command, called again, goes on where it was. What was found ships
with the package: `shipped_study("name_rate")`.
"""

import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch

from medvlp.backbone.clip import Clip
from medvlp.backbone.pretrain import PretrainConfig, normalise, pretrain
from medvlp.data.cards import load_card
from medvlp.data.files import sha256
from medvlp.data.phantoms.worlds import get_world
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.ablation.store import DONE, RunStore
from medvlp.study.ablation.study import Study

RATES = (0.0003, 0.003, 0.03, 0.3)
SEEDS = (0, 1, 2)
STEPS = 100
MEASURED_AT = (25, 50, 100)  # steps
KNOWLEDGE = ("classnames", "symptoms")
GIVEN = ["name_rate", "step", "knowledge"]
N_IMAGES = 6_000  # for training
N_TEST = 1_000
TEST_SEED = 20_240_901  # a stream that no pre-training draws from


def name_rate_study(
    store: str | Path,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
    world: str = "derm",
    progress: bool = True,
) -> Study:
    """Pre-train at every rate and seed that the store lacks, and return the study of all.

    Its runs have name_rate (the share of captions that name a disease), step, knowledge, accuracy, and
    "names read", how many captions named a disease until then, on average.
    """
    place, settings = RunStore(store), {}
    place.check_writable()
    for seed, rate in product(seeds, rates):
        runs = runs_of(rate, seed, world)
        settings |= runs
        if all(place.read(run_id) for run_id in runs):
            continue
        start, accuracies = time.perf_counter(), pretraining(rate, seed, world, progress)
        for run_id, run in runs.items():
            names_read = rate * run["step"] * PretrainConfig.batch_size
            metrics = {"accuracy": accuracies[run["step"], run["knowledge"]], "names read": names_read}
            record = {"status": DONE, "settings": run, "given": GIVEN, "inputs": run, "metrics": metrics}
            times = {"finished": datetime.now(UTC).isoformat(), "seconds": time.perf_counter() - start}
            place.write(run_id, record | times)
    return Study(store, settings)


def runs_of(rate: float, seed: int, world: str = "derm") -> dict[str, dict[str, Any]]:
    """What is measured in one pre-training: {run id: its settings}."""
    start = {"method": "ZeroShot", "data": f"phantom-{world}", "seed": seed, "name_rate": rate}
    start |= {"steps": STEPS, "images": N_IMAGES}
    runs = [start | {"step": step, "knowledge": kind} for step, kind in product(MEASURED_AT, KNOWLEDGE)]
    return {sha256(json.dumps(run, sort_keys=True))[:16]: run for run in runs}


def pretraining(rate: float, seed: int, world_name: str, progress: bool) -> dict[tuple[int, str], float]:
    """Pre-train at one rate and seed: {(step, knowledge): zero-shot accuracy}."""
    world, card = get_world(world_name), load_card(f"phantom-{world_name}")
    latents = world.sample(N_TEST, TEST_SEED)
    images = normalise(world.render(latents))  # (N, 3, 64, 64)
    accuracies = {}

    @torch.no_grad()
    def measure(step: int, clip: Clip) -> None:
        if step in MEASURED_AT:
            for kind in KNOWLEDGE:
                predicted = ZeroShot(clip, card, kind)(images).argmax(dim=1)  # (N,)
                right = (predicted == latents.labels).float().mean().item()
                accuracies[step, kind] = round(right, 4)

    config = PretrainConfig((world_name,), N_IMAGES, STEPS, name_rate=rate, seed=seed)
    pretrain(config, measure, progress)
    return accuracies


if __name__ == "__main__":
    print(name_rate_study(sys.argv[1]).runs.to_string())
