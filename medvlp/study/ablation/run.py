"""One run of a study: build the method, train it, test it, and keep what came out."""

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from medvlp import __version__
from medvlp.backbone.features import image_features
from medvlp.backbone.sources import random_turn
from medvlp.data.cards import DataCard
from medvlp.data.datasets import ImageSet
from medvlp.data.files import sha256
from medvlp.methods import METHODS
from medvlp.methods.base import Method, Reading, learned_parameters
from medvlp.study.ablation.plan import Run
from medvlp.study.ablation.store import DONE, FAILED, RunStore, pack, unpack
from medvlp.study.evaluation import finite_logits, loss_and_metrics
from medvlp.study.metrics import metric_values
from medvlp.study.saving import base_and_new, transfer
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit

BUSY = "busy"  # another process works on the run


@dataclass(frozen=True)
class Workshop:
    """Where the runs of a study are made and kept.

    Attributes:
        store: Of records.
        cache_dir: Of image features.
        progress: Whether bars are shown.
        call: A name of the study's call, which no other has.
        encoded: What this process has seen in the cache, so that a hundred runs look once.
    """

    store: RunStore
    cache_dir: Path
    progress: bool
    call: str = field(default_factory=lambda: uuid4().hex)
    encoded: set[tuple] = field(default_factory=set)

    def encode(self, method: Method, images: ImageSet, config: TrainConfig | None = None) -> None:
        """Fill the cache with the features that the method will ask for; one process does, others wait.

        They are those of the recipe's views, without one those of the view of evaluation.
        """
        if not method.keeps_image_tower:
            return
        config = config or TrainConfig(views=0)
        how = {"progress": self.progress, "crop": config.crop, "flip": config.flip}
        this = (method.clip.fingerprint, images.fingerprint, config.views, config.crop, config.flip)
        if this in self.encoded:
            return
        of_images = sha256(method.clip.fingerprint, images.card.name)  # two sets of these may share some
        with self.store.lock(f"features-{of_images[:16]}", wait=True):
            for view in range(config.views) or [None]:
                image_features(method.clip, images, view, self.cache_dir, **how)
        self.encoded.add(this)


def execute(run: Run, workshop: Workshop, failed_before: str | None, wait: bool) -> str:
    """Make a run and keep its record, unless it is there or another process makes it; say what became of it.

    Args:
        run: The run.
        workshop: Where it is made and kept.
        failed_before: When the run failed, if it had before this call: that record does not count.
        wait: Wait where another process makes the run, rather than leave it.

    Returns:
        "done", "failed" or "busy".
    """
    store = workshop.store
    with store.lock(run.id, wait) as held:
        if not held:
            return BUSY
        record = store.read(run.id)
        if record is None or (record["status"] == FAILED and record["finished"] == failed_before):
            store.begin(run.id, workshop.call)
            with random_turn():  # accelerate's state, too, is the whole process's
                start = time.perf_counter()
                try:
                    status, results = DONE, _results(run, workshop)
                except Exception:
                    status, results = FAILED, {"traceback": traceback.format_exc()}
                record = record_of(run, status, time.perf_counter() - start, results)
            store.write(run.id, record)
        store.end(run.id)
        return record["status"]


def record_of(run: Run, status: str, seconds: float | None, results: dict[str, Any]) -> dict[str, Any]:
    """The record of a run; `results` of one that failed is its traceback."""
    return {
        "status": status,
        "settings": run.settings,
        "given": list(run.given),
        "inputs": run.inputs,
        "finished": datetime.now(UTC).isoformat(),
        "seconds": seconds,
        "made with": {"medvlp": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()},
    } | results


def _results(run: Run, workshop: Workshop) -> dict[str, Any]:
    clip = run.clip.get()
    protocol = run.protocol
    train, val = run.data.get().cut(protocol.num_shots, protocol.seed, protocol.scenario)
    test, new_test = tested_images(run)
    if protocol.base_to_new:
        train, val = train.of_classes(test.card), None if val is None else val.of_classes(test.card)
    method = _untrained(run, train.card, new_test)
    history = _train(method, run, train, val, workshop)
    best = history[history["best"]] if history["best"].any() else history[-1:]
    kept = history[-1:] if run.config.keep == "last" else best
    results = _tested(method, test, workshop) | {
        "validation": None,
        "kept epoch": kept.iloc[0].to_dict() if len(kept) else None,
        "n_trainable": sum(parameter.numel() for parameter in learned_parameters(method).values()),
        "device": str(clip.device),
    }
    if val is not None:
        results["validation"] = loss_and_metrics(_logits(method, val, workshop), val.labels)
    if protocol.base_to_new:
        of_new = _tested(_for_new(method, run, new_test), new_test, workshop)
        b, n = results["metrics"]["accuracy"], of_new["metrics"]["accuracy"]
        both = 2 * b * n / (b + n) if b + n else 0.0
        results["metrics"] |= {"base accuracy": b, "new accuracy": n, "harmonic mean": both}
        results["new"] = of_new
    return results


def check_methods(runs: Sequence[Run], store: RunStore, progress: bool) -> None:
    """Build each of the package's methods that the store lacks a run of, so that no run finds it impossible.

    A method of your own is built in its runs alone.

    Raises:
        ValueError: a method that cannot be built for its card and CLIP, or not be transferred.
    """
    differing: dict[str, Run] = {}
    for run in runs:
        if METHODS.get(run.method) is run.kind and (store.read(run.id) or {}).get("status") != DONE:
            inputs = {key: run.inputs[key] for key in ("arguments", "base_to_new", "clip", "card")}
            inputs["arguments"] = inputs["arguments"] | {"seed": None}
            differing.setdefault(json.dumps([run.method, inputs], sort_keys=True), run)
    for run in tqdm(differing.values(), "methods", leave=False, delay=2, disable=not progress):
        test, new_test = tested_images(run)
        card = test.card if run.protocol.base_to_new else run.data.get().data.card
        try:
            with random_turn():
                _untrained(run, card, new_test)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{run.method} on {run.data.name}: {error} No run was started.") from error


def _untrained(run: Run, card: DataCard, new_test: ImageSet | None) -> Method:
    """The run's method before training; an error where it cannot be transferred and has to be."""
    method = run.kind(run.clip.get(), card, **_arguments_for(card, run))
    if run.protocol.base_to_new:
        _for_new(method, run, new_test)
    return method


def tested_images(run: Run) -> tuple[ImageSet, ImageSet | None]:
    """The run's test images; of base classes and of new ones, where it has these."""
    test = run.test.get().data.test
    if not run.protocol.base_to_new:
        return test, None
    base, new = base_and_new(test.card)
    return test.of_classes(base), test.of_classes(new)


def _for_new(method: Method, run: Run, new_test: ImageSet) -> Method:
    """The method with the new classes."""
    given = _arguments_for(new_test.card, run)
    changes = {name: given[name] for name in ("symptoms", "representations") if given.get(name) is not None}
    return transfer(method, new_test.card, changes)


def _arguments_for(card: DataCard, run: Run) -> dict[str, Any]:
    """The method's arguments; of symptoms that are given, those of the card's classes."""
    symptoms = run.arguments.get("symptoms")
    if not isinstance(symptoms, Mapping):
        return run.arguments
    others = set(run.data.get().data.card.classnames) - set(card.classnames)
    kept = {name: phrases for name, phrases in symptoms.items() if name not in others}
    return run.arguments | {"symptoms": kept}


def _train(
    method: Method, run: Run, train: ImageSet, val: ImageSet | None, workshop: Workshop
) -> pd.DataFrame:
    """The history of training; without a row for a method that learns nothing."""
    learns = any(parameter.requires_grad for parameter in method.parameters())
    if not learns and not method.fits_before_training:
        return pd.DataFrame({"epoch": [], "best": pd.Series(dtype=bool)})
    if learns and run.config.views != "fresh":
        workshop.encode(method, train, run.config)
    if val is not None:
        workshop.encode(method, val)
    config = replace(run.config, average=run.protocol.average)
    history = fit(method, train, val, config, cache_dir=workshop.cache_dir, progress=False)
    if history.attrs.get("interrupted"):  # fit returned what it had
        raise KeyboardInterrupt
    return history


def _logits(method: Method, images: ImageSet, workshop: Workshop) -> Tensor:
    """The finished method's logits, (N, n_cls)."""
    workshop.encode(method, images)
    return finite_logits(method, images, Reading(workshop.cache_dir, progress=False))


def _tested(method: Method, test: ImageSet, workshop: Workshop) -> dict[str, Any]:
    """Metrics and logits of test images. The metrics are those of the probabilities that are kept."""
    logits = _logits(method, test, workshop).numpy()  # (N, n_cls)
    packed = pack(logits)
    workshop.store.write_test(test)
    metrics = metric_values(test.labels.numpy(), unpack(packed))
    return {"metrics": metrics, "test": test.fingerprint, "logits": packed}
