"""Both methods' training steps on a GPU, as one JSON: `bash tests/benchmarks/on_gpu.sh OUT.json`.

ViT-B/16 with random weights, batches of 32 and 64 images, float32 and bfloat16. Of a step: seconds (median),
the most memory that torch allocated, kernels launched, and for CILMP the multiply-adds that its logits and
gradients need over what this machine's matrix products reach in that time ("share of peak"). Of ViP also
images a second with cached features and with the image tower in every step.
Without a GPU the embedded CLIP and small batches take the same way on the CPU, to show that it works.
"""

import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.profiler import ProfilerActivity, profile

from medvlp.backbone.clip import load_clip
from medvlp.data.cards import load_card
from medvlp.methods.vip import ViP
from tests.benchmarks.bench_cilmp import Trainer, needed, rate
from tests.benchmarks.timing import learn, options, sgd_of, timed

CUDA = torch.cuda.is_available()
BATCHES, PRECISIONS = ((32, 64), ("fp32", "bf16")) if CUDA else ((2, 4), ("fp32",))
DEVICE, CLIP = ("cuda", "ViT-B-16/random") if CUDA else ("cpu", "tiny")
WIDTH = 4096 if CUDA else 64  # of CILMP's representations


def step_facts(step: Callable[[], object], rounds: int) -> dict[str, float | None]:
    """Seconds of a step (median), GiB and launches; the last two are None on a CPU."""
    step()  # warm-up
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(timed(step) for _ in range(rounds))
    facts: dict[str, float | None] = {"seconds": seconds, "GiB": None, "launches": None}
    if CUDA:
        facts["GiB"] = torch.cuda.max_memory_allocated() / 2**30
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            step()
        facts["launches"] = sum(event.count for event in seen.key_averages() if "LaunchKernel" in event.key)
    return facts


def of_cilmp(batch: int, precision: str, rounds: int) -> dict[str, float | None]:
    """A training step of CILMP."""
    args = SimpleNamespace(clip=CLIP, device=DEVICE, precision=precision, batch_size=batch, d=WIDTH)
    trainer = Trainer(args)
    facts = step_facts(lambda: trainer.step("ours"), rounds)
    reached = needed(trainer.cilmp, batch) / facts["seconds"]
    return facts | {"share of peak": reached / rate(trainer.cilmp, batch)}


def of_vip(batch: int, precision: str, rounds: int) -> dict[str, float | None]:
    """A training step of ViP, on cached features and with the image tower in it."""
    clip, card = load_clip(CLIP, device=DEVICE, precision=precision), load_card("pneumonia")
    vip = ViP(clip, card)
    sgd, labels = sgd_of(vip, lr=0.002), (torch.arange(batch) % 2).to(clip.device)
    images = torch.randn(batch, 3, clip.image_size, clip.image_size).to(clip.device, clip.dtype)
    with torch.no_grad():
        features = clip.encode_images(images)

    def uncached() -> None:
        with torch.no_grad():
            f = clip.encode_images(images)
        learn(sgd, vip.logits_from_features(f), labels)

    facts = step_facts(lambda: learn(sgd, vip.logits_from_features(features), labels), rounds)
    facts["images a second"] = batch / facts["seconds"]
    facts["images a second, uncached"] = batch / step_facts(uncached, rounds)["seconds"]
    return facts


def main() -> None:
    parser = options(__doc__, rounds=20)
    parser.add_argument("out", type=Path, help="the JSON to write")
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if CUDA else platform.processor() or "CPU"
    found = {"device": device, "torch": torch.__version__, "clip": CLIP, "steps": []}
    for precision in PRECISIONS:
        for batch in BATCHES:
            for method, measure in (("ViP", of_vip), ("CILMP", of_cilmp)):
                facts = measure(batch, precision, args.rounds)
                found["steps"].append({"method": method, "batch": batch, "precision": precision} | facts)
                print(json.dumps(found["steps"][-1]), flush=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
