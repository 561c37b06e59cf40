"""How often must captions name a disease before CLIP knows the name? A study on phantoms.

`python -m medvlp.study.ablation.name_rate STORE` pre-trains the embedded CLIP from scratch, once for each
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
from torch import Tensor

from medvlp.backbone.clip import Clip
from medvlp.backbone.pretrain import PretrainConfig, normalise, pretrain
from medvlp.data.cards import DataCard, load_card
from medvlp.data.files import sha256
from medvlp.data.phantoms.worlds import get_world
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.ablation.store import DONE, RunStore
from medvlp.study.ablation.study import Study

RATES = (0.0003, 0.003, 0.03, 0.3)
SEEDS = (0, 1)
STEPS = 150
MEASURED_AT = (50, 100, 150)  # steps
KNOWLEDGE = ("classnames", "symptoms")
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
    place = RunStore(store)
    place.check_writable()
    settings = {}
    for seed, rate in product(seeds, rates):
        wanted = {
            _id(one): one
            for step, knowledge in product(MEASURED_AT, KNOWLEDGE)
            for one in [settings_of(rate, seed, step, knowledge, world)]
        }
        settings |= wanted
        if any(place.read(run_id) is None for run_id in wanted):
            start, accuracies = time.perf_counter(), pretraining(rate, seed, world, progress)
            for run_id, one in wanted.items():
                metrics = {
                    "accuracy": accuracies[one["step"], one["knowledge"]],
                    "names read": rate * one["step"] * PretrainConfig.batch_size,
                }
                place.write(run_id, record_of(one, metrics, time.perf_counter() - start))
    return Study(store, settings)


def settings_of(rate: float, seed: int, step: int, knowledge: str, world: str = "derm") -> dict[str, Any]:
    """What a run depends on."""
    start = {"method": "ZeroShot", "data": f"phantom-{world}", "knowledge": knowledge, "seed": seed}
    return start | {"name_rate": rate, "step": step, "steps": STEPS, "images": N_IMAGES}


def record_of(settings: dict[str, Any], metrics: dict[str, float], seconds: float | None) -> dict[str, Any]:
    """A run's record for the store."""
    return {
        "status": DONE,
        "settings": settings,
        "given": ["name_rate", "step", "knowledge"],
        "inputs": settings,
        "finished": datetime.now(UTC).isoformat(),
        "seconds": seconds,
        "metrics": metrics,
    }


def pretraining(rate: float, seed: int, world_name: str, progress: bool) -> dict[tuple[int, str], float]:
    """Pre-train at one rate and seed: {(step, knowledge): accuracy}."""
    world, card = get_world(world_name), load_card(f"phantom-{world_name}")
    latents = world.sample(N_TEST, TEST_SEED)
    images = normalise(world.render(latents))  # (N, 3, 64, 64)
    accuracies = {}

    def watch(step: int, clip: Clip) -> None:
        if step in MEASURED_AT:
            for knowledge in KNOWLEDGE:
                accuracies[step, knowledge] = accuracy(clip, card, knowledge, images, latents.labels)

    config = PretrainConfig((world_name,), N_IMAGES, STEPS, name_rate=rate, seed=seed)
    pretrain(config, watch, progress)
    return accuracies


@torch.no_grad()
def accuracy(clip: Clip, card: DataCard, knowledge: str, images: Tensor, labels: Tensor) -> float:
    """Zero-shot accuracy; images (N, 3, 64, 64) normalised, labels (N,)."""
    predicted = ZeroShot(clip, card, knowledge)(images).argmax(dim=1)  # (N,)
    return round((predicted == labels).float().mean().item(), 4)


def _id(settings: dict[str, Any]) -> str:
    return sha256(json.dumps(settings, sort_keys=True))[:16]


if __name__ == "__main__":
    print(name_rate_study(sys.argv[1]).runs.to_string())
