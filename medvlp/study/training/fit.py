"""fit: train what a method learns, knowing nothing of the method."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from medvlp.backbone.features import image_features
from medvlp.data.datasets import ImageSet
from medvlp.methods.parameters import load_own_tensors, own_tensors
from medvlp.study.evaluation import predict_logits
from medvlp.study.metrics import weighted_metrics
from medvlp.study.training.batches import FeatureBatches, ImageBatches, class_weights, epoch_seed
from medvlp.study.training.callbacks import Callback
from medvlp.study.training.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from medvlp.study.training.checks import check_training
from medvlp.study.training.config import TrainConfig, recipe
from medvlp.study.training.devices import Logits, one_accelerator
from medvlp.study.training.optimizers import load_optimizer_tensors, make_optimizer, optimizer_tensors


def fit(
    method: nn.Module,
    train: ImageSet,
    val: ImageSet | None,
    config: TrainConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train the parameters of `method` that require gradients, by cross-entropy, and keep the best epoch's.

    A method may bring more: `training_logits(inputs) -> (logits (B, n_cls), penalty (B,))`, where the mean of
    cross-entropy and penalty together is minimised; `before_training(train, val, cache_dir, progress)`,
    called once at the start, and `after_training(val, cache_dir, progress)`, called with the weights that are
    kept; `progress` says whether to show bars. Where that leaves nothing to train by gradients, as in a
    linear probe, the history is one row, of epoch 0.

    Where the method has `logits_from_features`, the image tower is frozen and its features are computed once
    for each view. With `views=0` that is exactly training without augmentation. With K views it is the
    recipe's augmentation seen through K samples of it, the same K in every run, not a new one each epoch;
    `views="fresh"` is the recipe itself, and encodes every image in every epoch.

    The same call gives the same numbers, bit for bit, on the same machine and number of processes (on a GPU
    as far as its kernels are deterministic), whether or not it was stopped and went on from a checkpoint.
    The method trains on its CLIP's device; under `accelerate launch` or `notebook_launcher` each process
    takes its part of every batch, so the recipe is the same on any number of GPUs. (A notebook that has
    trained something in its own process cannot launch others: torch's gradients do not survive a fork.)

    Args:
        method: A module with `.clip`, `.card`, `.config` and `forward(images) -> logits`.
        train: Training images, of the method's classes.
        val: Validation images. None only with `keep="last"`.
        config: The recipe; by default the one that the method was published with, see `recipe`.
        checkpoint: A file that is replaced, whole, after each epoch. Where it exists the run goes on from it.
        callbacks: Told of each epoch; see `Callback`.
        cache_dir: Of the image features; by default the features' own.
        progress: Show bars.

    Returns:
        One row an epoch: epoch (from 1), lr, loss (the mean over the epoch's images, penalty included),
        val_loss (cross-entropy) and val_ with each metric of `evaluate`, seconds, and best (True for one
        epoch; ties: the earliest). Stopped by Ctrl-C it has the epochs so far, and the method their best
        weights (its own before training, if none).

    Raises:
        ValueError: nothing to train, an empty set, a label outside the card, other classes than the method's,
            a damaged checkpoint or one of another run, a metric that is undefined on the validation images.
        FloatingPointError: the loss is no longer finite; the method holds the best weights before that.
    """
    config = config or recipe(method)
    check_training(method, train, val, config)
    with one_accelerator(method, config) as accelerator:
        if hasattr(method, "before_training"):
            with accelerator.main_process_first():  # the others find the features in the cache
                bars = progress and accelerator.is_main_process
                method.before_training(train, val, cache_dir, progress=bars)
        trainer = _Trainer(method, train, val, config, accelerator, callbacks, cache_dir, progress)
        with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
            return trainer.run(Path(checkpoint) if checkpoint else None)


class _Trainer:
    """One run of `fit`."""

    def __init__(
        self,
        method: nn.Module,
        train: ImageSet,
        val: ImageSet | None,
        config: TrainConfig,
        accelerator: Accelerator,
        callbacks: Sequence[Callback],
        cache_dir: str | Path | None,
        progress: bool,
    ) -> None:
        self.method, self.train, self.val, self.config = method.to(accelerator.device), train, val, config
        self.accelerator, self.callbacks, self.cache_dir = accelerator, callbacks, cache_dir
        self.progress = progress and accelerator.is_main_process
        self.process, self.n_processes = accelerator.process_index, accelerator.num_processes
        self.parameters = {name: p for name, p in method.named_parameters() if p.requires_grad}
        self.history: list[dict[str, Any]] = []
        self.kept = _copy(own_tensors(method))
        self.shown: dict[str, Any] = {}  # beside the bar

    def run(self, checkpoint: Path | None) -> pd.DataFrame:
        """All epochs that are left, then the weights that are kept."""
        if not self.parameters:
            return self._without_steps()
        self._prepare()
        facts = self._facts() if checkpoint else {}
        if checkpoint:
            self._resume(checkpoint, facts)
        E, steps = self.config.epochs, max(1, len(self.train) // self.config.batch_size)
        name = f"{type(self.method).__name__}, {self.train.card.name}"
        done = len(self.history)
        with tqdm(
            total=E * steps, initial=done * steps, desc=name, unit="step", disable=not self.progress
        ) as bar:
            try:
                for epoch in range(done + 1, E + 1):
                    self._epoch(epoch, bar)
                    if checkpoint and self.accelerator.is_main_process:
                        write_checkpoint(checkpoint, facts, self._state(epoch))
            except KeyboardInterrupt:
                if self.accelerator.is_main_process:
                    tqdm.write(self._interrupted())
            except FloatingPointError:
                load_own_tensors(self.method, self.kept, "the best epoch")
                raise
        load_own_tensors(self.method, self.kept, "the epoch kept")
        for callback in self.callbacks if self.history else ():
            callback.on_fit_end(self.method)
        self._finish()
        best = self._best()
        return pd.DataFrame([row | {"best": row is best} for row in self.history])

    def _without_steps(self) -> pd.DataFrame:
        """The history of a method that `before_training` has fitted."""
        start = time.perf_counter()
        self._finish()
        row = {"epoch": 0, "lr": nan, "loss": nan} | ({} if self.val is None else self._validate(0))
        return pd.DataFrame([row | {"seconds": time.perf_counter() - start, "best": self.val is not None}])

    def _prepare(self) -> None:
        """What steps are made with."""
        self.batches = self._batches()
        weight = class_weights(self.config, self.train)  # (n_cls,)
        self.weight = None if weight is None else weight.to(self.accelerator.device)
        logits = Logits(self.method, isinstance(self.batches, FeatureBatches))
        optimizer = make_optimizer(self.config, self.parameters)
        self.model = self.accelerator.prepare(logits)
        # without a scaler of the loss accelerate's steps do the same as torch's, and take longer
        self.optimizer = self.accelerator.prepare(optimizer) if self.accelerator.scaler else optimizer

    def _finish(self) -> None:
        """Let the method do what it does last, and leave it in evaluation mode."""
        self.method.eval()
        if hasattr(self.method, "after_training"):
            self.method.after_training(self.val, self.cache_dir, progress=self.progress)

    def _epoch(self, epoch: int, bar: tqdm) -> None:
        """Train and validate once; then history, kept weights and callbacks know of it."""
        start, lr = time.perf_counter(), self.config.learning_rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        row = {"epoch": epoch, "lr": lr, "loss": self._steps(epoch, bar)}
        if self.val is not None:
            row |= self._validate(epoch)
        row["seconds"] = time.perf_counter() - start
        for callback in self.callbacks:
            callback.on_epoch_end(self.method, epoch, row)
        self.history.append(row)
        if self.config.keep == "last" or self._best() is row:
            self.kept = _copy(own_tensors(self.method))
        column = _column(self.config.metric)
        self.shown |= {key: row[key] for key in ("loss", column) if key in row}
        bar.set_postfix(self.shown, refresh=False)

    def _steps(self, epoch: int, bar: tqdm) -> float:
        """One pass over the training images; the mean loss over those that were used."""
        device, total, count = self.accelerator.device, 0.0, 0
        self.shown["epoch"] = f"{epoch}/{self.config.epochs}"
        self.method.train()
        torch.manual_seed(epoch_seed(self.config, epoch, f"process {self.process}"))
        for step, batch in enumerate(self.batches.epoch(epoch, self.process, self.n_processes), start=1):
            logits, penalty = self.model(batch.inputs)  # (b, n_cls), (b,)
            loss = F.cross_entropy(logits.float(), batch.labels, weight=self.weight, reduction="sum")
            loss = loss + penalty.float().sum()
            value = loss.item()
            if not isfinite(value):
                raise FloatingPointError(self._not_finite(f"loss is {value}", epoch, step))
            loss = loss * (self.n_processes / batch.size)  # processes average theirs: that of the mean loss
            self.accelerator.backward(loss) if self.accelerator.scaler else loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            total, count = total + value, count + batch.size
            self.shown["loss"] = value / max(1, len(logits))
            bar.set_postfix(self.shown, refresh=False)
            bar.update()
        if self.n_processes > 1:
            total = self.accelerator.reduce(torch.tensor(total, device=device), "sum").item()
        return total / count

    @torch.no_grad()
    def _validate(self, epoch: int) -> dict[str, float]:
        """Loss and metrics on the validation images, computed as `evaluate` does."""
        labels = self.val.labels.cpu()  # (N,)
        logits = self._val_logits()  # (N, n_cls)
        if not logits.isfinite().all():
            raise FloatingPointError(self._not_finite("logits are not finite on validation images", epoch))
        probabilities = logits.double().softmax(dim=1).numpy()
        values = {"loss": F.cross_entropy(logits.double(), labels).item()}
        weights = np.ones((1, len(labels)))  # the metrics' form for resamples, of one: every image once
        values |= weighted_metrics(labels.numpy(), probabilities, weights).iloc[0].to_dict()
        metric = self.config.metric
        if isnan(values[metric]):
            raise ValueError(
                f"{metric} is undefined on these validation images (a class may be missing); "
                "choose the best epoch by another metric."
            )
        return {_column(name): float(value) for name, value in values.items()}

    def _val_logits(self) -> Tensor:
        """Logits of all validation images, (N, n_cls) on the CPU; each process works out its part."""
        if self.n_processes == 1 or hasattr(self.method, "logits_from_features"):
            return predict_logits(self.method, self.val, self.cache_dir, self.progress)
        rows = torch.arange(self.process, len(self.val), self.n_processes)
        logits = torch.zeros(len(self.val), len(self.method.card.classnames))
        if len(rows):
            logits[rows] = predict_logits(self.method, self.val.subset(rows), self.cache_dir, self.progress)
        return self.accelerator.reduce(logits.to(self.accelerator.device), "sum").cpu()

    def _batches(self) -> FeatureBatches | ImageBatches:
        clip, cache_dir = self.method.clip, self.cache_dir
        if not hasattr(self.method, "logits_from_features"):
            return ImageBatches(clip, self.train, self.config)
        with self.accelerator.main_process_first():  # the others find them in the cache
            if self.val is not None:
                image_features(clip, self.val, cache_dir=cache_dir, progress=self.progress)
            if self.config.views == "fresh":
                return ImageBatches(clip, self.train, self.config)
            return FeatureBatches(clip, self.train, self.config, cache_dir, self.progress)

    def _best(self) -> dict[str, Any] | None:
        """The history's best row by validation; the earliest of equals."""
        column, best = _column(self.config.metric), None
        for row in self.history:
            if column in row and (best is None or self.config.is_better(row[column], best[column])):
                best = row
        return best

    def _facts(self) -> dict[str, Any]:
        """What makes this run this run, for its checkpoints."""
        config = asdict(self.config)
        del config["num_workers"]  # changes no number
        return {
            "method": type(self.method).__name__,
            "method config": self.method.config,
            "config": config,
            "clip": self.method.clip.fingerprint,
            "card": self.method.card.hash,
            "train": self.train.fingerprint,
            "val": None if self.val is None else self.val.fingerprint,
            "callbacks": [type(callback).__name__ for callback in self.callbacks],
        }

    def _state(self, epoch: int) -> Checkpoint:
        remembered = optimizer_tensors(self.optimizer, self.parameters)
        tensors = {"own": own_tensors(self.method), "kept": self.kept, "optimizer": remembered}
        tensors |= {f"callback {i}": callback.state_dict() for i, callback in enumerate(self.callbacks)}
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}
        return Checkpoint(epoch, self.history, scaler, tensors)

    def _resume(self, path: Path, facts: dict[str, Any]) -> None:
        """Go on from the checkpoint, if there is one."""
        state = read_checkpoint(path, facts)
        if state is None:
            return
        where = f"checkpoint {path}"
        load_own_tensors(self.method, state.tensors["own"], where)
        self.kept = {
            name: tensor.to(self.accelerator.device) for name, tensor in state.tensors["kept"].items()
        }
        remembered = state.tensors.get("optimizer", {})
        load_optimizer_tensors(self.optimizer, self.parameters, remembered)
        for i, callback in enumerate(self.callbacks):
            callback.load_state_dict(state.tensors.get(f"callback {i}", {}))
        if self.accelerator.scaler and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.history = state.history

    def _interrupted(self) -> str:
        epoch, best = len(self.history) + 1, self._best()
        kept = "the weights are those from before training"
        if best:
            column = _column(self.config.metric)
            kept = f"the weights are those of epoch {best['epoch']} ({column} {best[column]:.4g})"
        if self.history and self.config.keep == "last":
            kept = f"the weights are those of epoch {len(self.history)}"
        return f"interrupted in epoch {epoch} of {self.config.epochs}: {kept}."

    def _not_finite(self, what: str, epoch: int, step: int | None = None) -> str:
        config = self.config
        at = f"at step {step} of epoch {epoch}" if step else f"after epoch {epoch}"
        advice = f"a lower lr than {config.lr:g}"
        if config.precision != "fp32":
            advice += f", or precision='fp32' instead of {config.precision!r}"
        return f"the {what} {at}; the weights of the best epoch before that are kept. Try {advice}."


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _column(metric: str) -> str:
    """The history's column of a metric: "balanced accuracy" is val_balanced_accuracy."""
    return "val_" + metric.replace(" ", "_").replace("-", "_")
