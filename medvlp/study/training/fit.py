"""fit: train what a method learns, knowing nothing of the method."""

import time
import warnings
from collections.abc import Sequence
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from medvlp.backbone.features import image_features
from medvlp.data.datasets import ImageSet
from medvlp.methods.base import check_method
from medvlp.methods.parameters import load_own_tensors, own_tensors
from medvlp.study.evaluation import loss_and_metrics, predict_logits
from medvlp.study.training.batches import FeatureBatches, ImageBatches, class_weights, epoch_seed
from medvlp.study.training.callbacks import Callback
from medvlp.study.training.checkpoints import RunState, run_facts
from medvlp.study.training.config import LOWER_IS_BETTER, TrainConfig, recipe
from medvlp.study.training.devices import Logits, make_optimizer, one_accelerator


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

    Where the method `keeps_image_tower`, the tower is frozen and its features are computed once
    for each view. With `views=0` that is exactly training without augmentation. With K views it is the
    recipe's augmentation seen through K samples of it, the same K in every run, not a new one each epoch;
    `views="fresh"` is the recipe itself, and encodes every image in every epoch.

    The same call gives the same numbers, bit for bit, on the same machine and number of processes (on a GPU
    as far as its kernels are deterministic), whether or not it was stopped and went on from a checkpoint.
    The method trains on its CLIP's device; under `accelerate launch` or `notebook_launcher` each process
    takes its part of every batch, so the recipe is the same on any number of GPUs. (A notebook that has
    trained something in its own process cannot launch others: torch's gradients do not survive a fork.)

    Args:
        method: A `Method`.
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

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> vip = medvlp.ViP(clip, data.card)
        >>> config = medvlp.TrainConfig(epochs=2, batch_size=8, views=0)
        >>> history = medvlp.fit(vip, data.train, data.val, config, progress=False)
        >>> history["epoch"].tolist(), sorted(history["best"])
        ([1, 2], [False, True])
    """
    config = config or recipe(method)
    _check(method, train, val, config)
    with (
        one_accelerator(method, config) as accelerator,
        torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []),
    ):
        method.to(accelerator.device)
        progress = progress and accelerator.is_main_process

        # Data: what the method takes from it before the first step, and features of a frozen image tower.
        with accelerator.main_process_first():  # the others find the features in the cache
            method.before_training(train, val, cache_dir, progress=progress)
            parameters = [p for p in method.parameters() if p.requires_grad]
            cached = method.keeps_image_tower
            if cached and parameters and val is not None:
                image_features(method.clip, val, cache_dir=cache_dir, progress=progress)
            if cached and parameters and config.views != "fresh":
                batches = FeatureBatches(method.clip, train, config, cache_dir, progress)
            else:
                batches = ImageBatches(method.clip, train, config)

        # Nothing is left to train by gradients: the history is one row, of epoch 0.
        if not parameters:
            start = time.perf_counter()
            _finish(method, val, cache_dir, progress)
            row = {"epoch": 0, "lr": nan, "loss": nan}
            row |= {} if val is None else _validate(method, val, config, 0, accelerator, cache_dir, progress)
            return pd.DataFrame([row | {"seconds": time.perf_counter() - start, "best": val is not None}])

        # What steps are made with.
        model = accelerator.prepare(Logits(method, isinstance(batches, FeatureBatches)))
        optimizer = make_optimizer(config, parameters)
        if accelerator.scaler:  # without one accelerate's steps do the same as torch's, and take longer
            optimizer = accelerator.prepare(optimizer)
        weight = class_weights(config, train)  # (n_cls,)
        weight = None if weight is None else weight.to(accelerator.device)

        # A checkpoint: the run goes on from it, if it is there.
        run = RunState(method, optimizer, accelerator.scaler, callbacks, kept=_copy(own_tensors(method)))
        path = Path(checkpoint) if checkpoint else None
        facts = run_facts(method, train, val, config, callbacks) if path else {}
        if path:
            run.resume(path, facts)

        # Epochs: steps, validation, callbacks, and the checkpoint.
        E, done, steps = config.epochs, len(run.history), max(1, len(train) // config.batch_size)
        bar = tqdm(
            total=E * steps,
            initial=done * steps,
            desc=f"{type(method).__name__}, {train.card.name}",
            unit="step",
            disable=not progress,
        )
        shown: dict[str, Any] = {}  # beside the bar
        with bar:
            try:
                for epoch in range(done + 1, E + 1):
                    start, lr = time.perf_counter(), config.learning_rate(epoch)
                    shown["epoch"] = f"{epoch}/{E}"
                    method.train()
                    loss = _steps(model, batches, optimizer, weight, config, epoch, accelerator, bar, shown)
                    row = {"epoch": epoch, "lr": lr, "loss": loss}
                    if val is not None:
                        row |= _validate(method, val, config, epoch, accelerator, cache_dir, progress)
                    row["seconds"] = time.perf_counter() - start
                    for callback in callbacks:
                        callback.on_epoch_end(method, epoch, row)
                    run.history.append(row)
                    if config.keep == "last" or _best(run.history, config) is row:
                        run.kept = _copy(own_tensors(method))
                    shown |= {key: row[key] for key in ("loss", _column(config.metric)) if key in row}
                    bar.set_postfix(shown, refresh=False)
                    if path and accelerator.is_main_process:
                        run.write(path, facts)
            except KeyboardInterrupt:
                if accelerator.is_main_process:
                    tqdm.write(_interrupted(run.history, config))
            except FloatingPointError:
                load_own_tensors(method, run.kept, "the best epoch")
                raise

        # The weights that are kept.
        load_own_tensors(method, run.kept, "the epoch kept")
        for callback in callbacks if run.history else ():
            callback.on_fit_end(method)
        _finish(method, val, cache_dir, progress)
        best = _best(run.history, config)
        return pd.DataFrame([row | {"best": row is best} for row in run.history])


def _check(method: nn.Module, train: ImageSet, val: ImageSet | None, config: TrainConfig) -> None:
    """Raise what `fit` says it raises before it starts; warn of validation on test images."""
    check_method(method)
    train.check(method.card, type(method).__name__)
    if val is not None:
        val.check(method.card, type(method).__name__)
        if val.split == "test":
            warnings.warn(
                "validation on test images: the epoch is then chosen on the test set.", stacklevel=3
            )
    elif config.keep == "best":
        raise ValueError("fit needs validation images to find the best epoch; give val, or keep='last'.")
    learns = any(parameter.requires_grad for parameter in method.parameters())
    if not learns and not method.fits_before_training:
        raise ValueError(f"{type(method).__name__} has nothing to train: no parameter requires a gradient.")


def _steps(
    model: nn.Module,
    batches: FeatureBatches | ImageBatches,
    optimizer: Optimizer,
    weight: Tensor | None,
    config: TrainConfig,
    epoch: int,
    accelerator: Accelerator,
    bar: tqdm,
    shown: dict[str, Any],
) -> float:
    """One pass over the training images; the mean loss over those that were used."""
    process, n_processes = accelerator.process_index, accelerator.num_processes
    total, count = 0.0, 0
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate(epoch)
    torch.manual_seed(epoch_seed(config, epoch, f"process {process}"))
    for step, batch in enumerate(batches.epoch(epoch, process, n_processes), start=1):
        logits, penalty = model(batch.inputs)  # (b, n_cls), (b,)
        loss = F.cross_entropy(logits.float(), batch.labels, weight=weight, reduction="sum")
        loss = loss + penalty.float().sum()
        value = loss.item()
        if not isfinite(value):
            raise FloatingPointError(_not_finite(f"loss is {value} at step {step} of epoch {epoch}", config))
        loss = loss * (n_processes / batch.size)  # processes average theirs: that of the mean loss
        accelerator.backward(loss) if accelerator.scaler else loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total, count = total + value, count + batch.size
        shown["loss"] = value / max(1, len(logits))
        bar.set_postfix(shown, refresh=False)
        bar.update()
    if n_processes > 1:
        total = accelerator.reduce(torch.tensor(total, device=accelerator.device), "sum").item()
    return total / count


def _validate(
    method: nn.Module,
    val: ImageSet,
    config: TrainConfig,
    epoch: int,
    accelerator: Accelerator,
    cache_dir: str | Path | None,
    progress: bool,
) -> dict[str, float]:
    """Loss and metrics on the validation images, computed as `evaluate` does, by the history's columns."""
    process, n_processes = accelerator.process_index, accelerator.num_processes
    if n_processes == 1 or method.keeps_image_tower:
        logits = predict_logits(method, val, cache_dir, progress)  # (N, n_cls)
    else:  # each process works out its part
        rows = torch.arange(process, len(val), n_processes)
        logits = torch.zeros(len(val), len(method.card.classnames))
        if len(rows):
            logits[rows] = predict_logits(method, val.subset(rows), cache_dir, progress)
        logits = accelerator.reduce(logits.to(accelerator.device), "sum").cpu()
    if not logits.isfinite().all():
        what = f"logits are not finite on validation images after epoch {epoch}"
        raise FloatingPointError(_not_finite(what, config))
    values = loss_and_metrics(logits, val.labels.cpu())
    if isnan(values[config.metric]):
        raise ValueError(
            f"{config.metric} is undefined on these validation images (a class may be missing); "
            "choose the best epoch by another metric."
        )
    return {_column(metric): value for metric, value in values.items()}


def _finish(method: nn.Module, val: ImageSet | None, cache_dir: str | Path | None, progress: bool) -> None:
    """Let the method do what it does last, and leave it in evaluation mode."""
    method.eval()
    method.after_training(val, cache_dir, progress=progress)


def _best(history: list[dict[str, Any]], config: TrainConfig) -> dict[str, Any] | None:
    """The history's best row by validation; the earliest of equals."""
    column = _column(config.metric)
    better = min if config.metric in LOWER_IS_BETTER else max  # these give the first of equals
    return better((row for row in history if column in row), key=lambda row: row[column], default=None)


def _interrupted(history: list[dict[str, Any]], config: TrainConfig) -> str:
    best, column = _best(history, config), _column(config.metric)
    kept = "the weights are those from before training"
    if history and config.keep == "last":
        kept = f"the weights are those of epoch {len(history)}"
    elif best:
        kept = f"the weights are those of epoch {best['epoch']} ({column} {best[column]:.4g})"
    return f"interrupted in epoch {len(history) + 1} of {config.epochs}: {kept}."


def _not_finite(what: str, config: TrainConfig) -> str:
    advice = f"a lower lr than {config.lr:g}"
    if config.precision != "fp32":
        advice += f", or precision='fp32' instead of {config.precision!r}"
    return f"the {what}; the weights of the best epoch before that are kept. Try {advice}."


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _column(metric: str) -> str:
    """The history's column of a metric: "balanced accuracy" is val_balanced_accuracy."""
    return "val_" + metric.replace(" ", "_").replace("-", "_")
