"""fit: train what a method learns, knowing nothing of the method."""

import time
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from medvlp.backbone.features import image_features
from medvlp.backbone.sources import random_turn
from medvlp.data.datasets import ImageSet
from medvlp.data.errors import check_kinds
from medvlp.data.files import check_file_writable
from medvlp.methods.base import Method, Reading, load_own_tensors, own_tensors
from medvlp.study.evaluation import loss_and_metrics, predict_logits
from medvlp.study.training.batches import (
    FeatureBatches,
    ImageBatches,
    Logits,
    class_weights,
    epoch_seed,
    make_optimizer,
    n_steps,
    one_accelerator,
)
from medvlp.study.training.callbacks import Callback, EpochAverage
from medvlp.study.training.checkpoints import Run, SoFar, states_of
from medvlp.study.training.config import LOWER_IS_BETTER, TrainConfig, recipe, val_column


def fit(
    method: Method,
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
    cross-entropy and penalty together is minimised; `before_training(train, val, reading)`, called once at
    the start, and `after_training(val, reading)`, called with the weights that are kept, see `Reading`. Where
    that leaves nothing to train by gradients, as in a linear probe, the history is one row, of epoch 0.

    Where the method `keeps_image_tower`, the tower is frozen and its features are computed once
    for each view. With `views=0` that is exactly training without augmentation. With K views it is the
    recipe's augmentation seen through K samples of it, the same K in every run, not a new one each epoch;
    `views="fresh"` is the recipe itself, and encodes every image in every epoch.

    The same call gives the same numbers, bit for bit, on the same machine and number of processes (on a GPU
    as far as its kernels are deterministic), whether or not it was stopped and went on from a checkpoint, and
    whatever other threads do: those that fit, too, take turns.
    The method trains on its CLIP's device; under `accelerate launch` or `notebook_launcher` each process
    takes its part of every batch, so the recipe is the same on any number of GPUs. (A notebook that has
    trained something in its own process cannot launch others: torch's gradients do not survive a fork.)

    Args:
        method: A `Method`.
        train: Training images, of the method's classes.
        val: Validation images. None only with `keep="last"`.
        config: The recipe; by default the one that the method was published with, see `recipe`.
        checkpoint: A file that is replaced, whole, after each epoch. Where it exists the run goes on from it.
            One that is finished goes on with more epochs, too, and says so; not where epochs are averaged.
        callbacks: Told of each epoch; see `Callback`. A method that was published with an average over epochs
            gets it without being told; see `TrainConfig.average`.
        cache_dir: Of the image features; by default the features' own.
        progress: Show bars.

    Returns:
        One row an epoch: epoch (from 1), lr, loss (the mean over the epoch's images, penalty included),
        val_loss (cross-entropy) and val_ with each metric of `evaluate`, seconds, and best (True for one
        epoch; ties: the earliest). Stopped by Ctrl-C it has the whole epochs so far, the method their best
        weights (its own before training, if none), and `history.attrs["interrupted"]` is True. Ctrl-C before
        the first step raises KeyboardInterrupt, and the method is as it was.

    Raises:
        ValueError: nothing to train, an empty set, a label outside the card, other classes than the method's,
            a damaged checkpoint or one of another run, a metric that is undefined on the validation images.
        OSError: a checkpoint or cache that cannot be written; found before training.
        FloatingPointError: the loss is no longer finite. After this and any other error the method holds the
            best weights before it.

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
    check_kinds(fit, locals())
    config = config or recipe(method)
    _check(method, train, val, config)
    if checkpoint:
        check_file_writable(checkpoint)
    callbacks = _with_average(callbacks, method, config)
    go_back, run = _way_back(method), None
    try:
        with (
            torch.enable_grad(),  # and what it was before, also where Ctrl-C comes as a no_grad ends
            random_turn(devices=[method.clip.device] if method.clip.device.type == "cuda" else []),
            one_accelerator(method, config) as accelerator,
        ):
            method.to(accelerator.device)
            reading = Reading(cache_dir, progress and accelerator.is_main_process, config.num_workers)
            ready = _prepare(method, train, val, config, callbacks, accelerator, checkpoint, reading)
            if ready.checkpoint and ready.optimizer:
                ready.resume()
            run = ready  # from here on there is something to keep
            if run.optimizer:
                _train(run)
            return _finish(run)
    except KeyboardInterrupt:
        if run is None:
            go_back()
            raise
        run.forget_unfinished_epoch()
        with one_accelerator(method, config) as run.accelerator:  # the first may be at an end
            if run.accelerator.is_main_process:
                tqdm.write(_interrupted(run))
            history = _finish(run)  # again, where it was there already
        history.attrs["interrupted"] = True
        return history
    except Exception:
        load_own_tensors(method, run.so_far.kept, "the best epoch") if run else go_back()
        raise


def _with_average(callbacks: Sequence[Callback], method: Method, config: TrainConfig) -> Sequence[Callback]:
    """The callbacks, and the average that the recipe asks for, unless one of them is an average."""
    published, wanted = EpochAverage.published(method, config.epochs), config.average
    if wanted is None:
        wanted = published is not None and config.keep == "last"
    if not wanted or any(isinstance(callback, EpochAverage) for callback in callbacks):
        return callbacks
    return [published or EpochAverage(config.epochs), *callbacks]


def _check(method: Method, train: ImageSet, val: ImageSet | None, config: TrainConfig) -> None:
    """Raise what `fit` says it raises before it starts; warn of validation on test images."""
    train.check(method.card, type(method).__name__)
    if val is not None:
        val.check(method.card, type(method).__name__)
        if val.split == "test":
            warnings.warn("validation on test images: the epoch is chosen on the test set.", stacklevel=3)
    elif config.keep == "best":
        raise ValueError("fit needs validation images to find the best epoch; give val, or keep='last'.")
    learns = any(parameter.requires_grad for parameter in method.parameters())
    if not learns and not method.fits_before_training:
        raise ValueError(f"{type(method).__name__} has nothing to train: no parameter requires a gradient.")


def _way_back(method: Method) -> Callable[[], None]:
    """What gives a method the attributes and tensors again that it has now, beside its CLIP."""
    of_clip, tensors = set(method.clip.modules()), _copy(own_tensors(method))
    own = [module for module in method.modules() if module not in of_clip]
    states = [{n: copy(v) if isinstance(v, dict) else v for n, v in vars(module).items()} for module in own]

    def go_back() -> None:
        for module, state in zip(own, states, strict=True):
            vars(module).clear()
            vars(module).update(state)
        load_own_tensors(method, tensors, "the start")

    return go_back


def _prepare(
    method: Method,
    train: ImageSet,
    val: ImageSet | None,
    config: TrainConfig,
    callbacks: Sequence[Callback],
    accelerator: Accelerator,
    checkpoint: str | Path | None,
    reading: Reading,
) -> Run:
    """The run before its first step, with what the method takes from the data, and cached features."""
    with accelerator.main_process_first():  # the others find the features in the cache
        method.before_training(train, val, reading)
        parameters = [p for p in method.parameters() if p.requires_grad]
        batches = val_features = None
        if parameters and method.keeps_image_tower and val is not None:
            val_features = image_features(method.clip, val, **vars(reading)).features  # (N, D)
        if parameters and method.keeps_image_tower and config.views != "fresh":
            batches = FeatureBatches(method.clip, train, config, reading)
        elif parameters:
            batches = ImageBatches(method.clip, train, config)
    # Without a scaler accelerate's optimiser is the same as torch's, and takes longer.
    optimizer = make_optimizer(config, parameters) if parameters else None
    if parameters and accelerator.scaler:
        optimizer = accelerator.prepare(optimizer)
    so_far = SoFar(_copy(own_tensors(method)), [], states_of(callbacks))
    path = Path(checkpoint) if checkpoint else None
    parts = accelerator, optimizer, batches, so_far, path, reading, val_features
    return Run(method, train, val, config, callbacks, *parts)


def _train(run: Run) -> None:
    """Epochs: steps, validation, callbacks, and the checkpoint."""
    method, train, config, accelerator = run.method, run.train, run.config, run.accelerator
    model = accelerator.prepare(Logits(method, isinstance(run.batches, FeatureBatches)))
    weight = class_weights(config, train)  # (n_cls,)
    weight = None if weight is None else weight.to(accelerator.device)
    E, done, steps = config.epochs, len(run.so_far.history), n_steps(config, len(train))
    counts = {"total": E * steps, "initial": done * steps, "unit": "step"}
    name, shown = f"{type(method).__name__}, {train.card.name}", {}  # `shown` stands beside the bar
    with tqdm(**counts, desc=name, disable=not run.reading.progress) as bar:
        for epoch in range(done + 1, E + 1):
            start = time.perf_counter()
            row = {"epoch": epoch, "lr": config.learning_rate(epoch)}
            row["loss"] = _steps(run, model, weight, epoch, steps, bar, shown)
            row |= _validate(run, epoch)
            row["seconds"] = time.perf_counter() - start
            for callback in run.callbacks:
                callback.on_epoch_end(method, epoch, row)
            history, kept = [*run.so_far.history, row], run.so_far.kept
            if config.keep == "last" or _best(history, config) is row:
                kept = _copy(own_tensors(method))
            run.so_far = SoFar(kept, history, states_of(run.callbacks))
            shown |= {key: row[key] for key in ("loss", val_column(config.metric)) if key in row}
            bar.set_postfix(shown, refresh=False)
            if run.checkpoint and accelerator.is_main_process:
                run.write()


def _finish(run: Run) -> pd.DataFrame:
    """The history, once the weights that are kept are in place; the same when it is done twice.

    Of a method that takes no steps, `before_training` having fitted it, the history is one row, of epoch 0.
    """
    method, history, start = run.method, run.so_far.history, time.perf_counter()
    load_own_tensors(method, run.so_far.kept, "the epoch kept")
    for callback in run.callbacks if history else ():
        callback.on_fit_end(method)
    method.eval()
    method.after_training(run.val, run.reading)
    if run.optimizer:
        best = _best(history, run.config)
        return pd.DataFrame([row | {"best": row is best} for row in history])
    row = {"epoch": 0, "lr": nan, "loss": nan} | _validate(run, 0)
    return pd.DataFrame([row | {"seconds": time.perf_counter() - start, "best": run.val is not None}])


def _steps(
    run: Run, model: nn.Module, weight: Tensor | None, epoch: int, steps: int, bar: tqdm, shown: dict
) -> float:
    """One pass over the training images; the mean loss over those that were used."""
    config, accelerator, optimizer = run.config, run.accelerator, run.optimizer
    process, n_processes = accelerator.process_index, accelerator.num_processes
    total, count, shown["epoch"] = 0.0, 0, f"{epoch}/{config.epochs}"
    run.method.train()
    torch.manual_seed(epoch_seed(config, epoch, f"process {process}"))
    for step, batch in enumerate(run.batches.epoch(epoch, process, n_processes), start=1):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate(epoch, (step - 1) / steps)
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


def _validate(run: Run, epoch: int) -> dict[str, float]:
    """Loss and metrics on the validation images, computed as `evaluate` does, by the history's columns."""
    method, val, config, accelerator = run.method, run.val, run.config, run.accelerator
    if val is None:
        return {}
    process, n_processes = accelerator.process_index, accelerator.num_processes
    if n_processes == 1 or method.keeps_image_tower:
        logits = predict_logits(method, val, run.reading, run.val_features)  # (N, n_cls)
    else:  # each process works out its part
        rows = torch.arange(process, len(val), n_processes)
        logits = torch.zeros(len(val), len(method.card.classnames))
        if len(rows):
            logits[rows] = predict_logits(method, val.subset(rows), run.reading)
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
    return {val_column(metric): value for metric, value in values.items()}


def _best(history: list[dict[str, Any]], config: TrainConfig) -> dict[str, Any] | None:
    """The history's best row by validation; the earliest of equals."""
    column = val_column(config.metric)
    better = min if config.metric in LOWER_IS_BETTER else max  # these give the first of equals
    return better((row for row in history if column in row), key=lambda row: row[column], default=None)


def _interrupted(run: Run) -> str:
    config, history = run.config, run.so_far.history
    best, column, done = _best(history, config), val_column(config.metric), len(history)
    if done == config.epochs or not run.optimizer:
        return "interrupted after the last step: the training is complete."
    kept = "the weights are those from before training"
    if done and config.keep == "last":
        kept = f"the weights are those of epoch {done}"
    elif best:
        kept = f"the weights are those of epoch {best['epoch']} ({column} {best[column]:.4g})"
    return f"interrupted in epoch {done + 1} of {config.epochs}: {kept}."


def _not_finite(what: str, config: TrainConfig) -> str:
    advice = f"a lower lr than {config.lr:g}"
    if config.precision != "fp32":
        advice += f", or precision='fp32' instead of {config.precision!r}"
    return f"the {what}; the weights of the best epoch before that are kept. Try {advice}."


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
