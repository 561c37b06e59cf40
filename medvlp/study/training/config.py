"""TrainConfig: the recipe of a training run."""

from math import cos, pi
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from medvlp.backbone.features import CROP
from medvlp.data.errors import check_kinds, frozen_config
from medvlp.methods.base import Method
from medvlp.study.metrics import METRICS

SELECTION = ("loss", *METRICS)  # what the best epoch may be chosen by
LOWER_IS_BETTER = ("loss", "ECE")


@frozen_config
class TrainConfig:
    """How `fit` trains. The defaults are ViP's recipe (arXiv 2409.00341), but for `views`.

    `dataclasses.replace(config, lr=0.001)` is the same recipe with another learning rate.

    Attributes:
        epochs: E, passes over the training images.
        batch_size: images a step, over all processes together.
        drop_last: whether in each epoch the last, smaller batch is left out, as in CoOp, unless there is no
            other.
        lr: learning rate at the start of the cosine; see `learning_rate`.
        optimizer: "sgd" or "adamw".
        eps: of AdamW: added to the root of the mean squared gradient that a step is divided by.
        momentum: of SGD.
        weight_decay: on everything that is trained; AdamW's is decoupled from the gradient.
        schedule: whether the cosine falls after each "epoch" or each "step".
        warmup_lr: learning rate of the first epoch, constant; None for no such epoch.
        seed: of the order of the images, the views drawn and dropout. What the learned tensors start from is
            the method's own affair.
        precision: "fp32", "bf16" or "fp16" (GPU only), of the forward pass; learned tensors stay as they are.
        views: what is seen of each image. A number K: one of K random views (random resized crop, bicubic,
            and flip), drawn anew each epoch; "fresh": a new random view each epoch, as in the papers;
            0: no augmentation, the view of evaluation.
        crop: the smallest part of an image's area that a random view keeps.
        flip: whether random views are mirrored, half of them.
        class_weight: None: every image counts the same in the loss, as in the papers; "balanced": every class
            does, N images of n_cls classes weighing N / (n_cls * N_c) each (as scikit-learn's "balanced").
        metric: what the best epoch is chosen by on the validation images: "loss" or a metric of `evaluate`.
        keep: the weights at the end, those of the "best" epoch by validation or of the "last".
        average: whether the weights at the end are averaged over epochs. None: as the method was published
            (`EpochAverage.published`) where the last epoch is kept; keep="best" asks for that epoch's own.
            False: not. True: so in any case, `EpochAverage(epochs)` for a method that was published without.
        num_workers: processes that read images. None: one a core, 8 at most; where features are not cached
            none for phantoms, which every process would draw again.

    Example:
        >>> import medvlp
        >>> medvlp.TrainConfig(epochs=10).lr
        0.002
        >>> medvlp.TrainConfig(optimizer="adam")
        Traceback (most recent call last):
        ValueError: unknown optimizer 'adam' in TrainConfig; did you mean 'adamw'? Choices: 'sgd', 'adamw'.
    """

    epochs: PositiveInt = 50
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 0.002
    drop_last: bool = True
    optimizer: Literal["sgd", "adamw"] = "sgd"
    eps: PositiveFloat = 1e-8
    momentum: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Literal["epoch", "step"] = "epoch"
    warmup_lr: PositiveFloat | None = 1e-5
    seed: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    views: NonNegativeInt | Literal["fresh"] = 4
    crop: Annotated[float, Field(gt=0, le=1)] = CROP
    flip: bool = True
    class_weight: Literal["balanced"] | None = None
    metric: Literal[SELECTION] = "accuracy"
    keep: Literal["best", "last"] = "best"
    average: bool | None = None
    num_workers: NonNegativeInt | None = None

    def learning_rate(self, epoch: int, done: float = 0.0) -> float:
        """Learning rate of an epoch, 1 to E, the same for all its steps unless `schedule` is "step".

            lr_1 = warmup_lr,    lr_e = lr / 2 (1 + cos(pi (e - 2) / E))  for e = 2..E

        and with `warmup_lr=None` lr_e = lr / 2 (1 + cos(pi (e - 1) / E)). So the cosine starts over after the
        warm-up epoch, with period E: it ends a little above zero. That is what CoOp's trainer does (Dassl,
        `ConstantWarmupScheduler` over torch's `CosineAnnealingLR`, with its default WARMUP_RECOUNT). With
        schedule="step" `done`, the part of the epoch that has gone by, is added to e.
        """
        if self.warmup_lr is not None and epoch == 1:
            return self.warmup_lr
        t = epoch - (1 if self.warmup_lr is None else 2)  # epochs of the cosine gone by
        t += done if self.schedule == "step" else 0
        return self.lr / 2 * (1 + cos(pi * t / self.epochs))


def val_column(metric: str) -> str:
    """The column of a validation metric in a history: "balanced accuracy" is val_balanced_accuracy."""
    return "val_" + metric.replace(" ", "_").replace("-", "_")


def recipe(method: Method | type[Method]) -> TrainConfig:
    """The recipe that a method was published with: what `fit` uses where it is given none.

    It is the method's own `recipe`, fields of `TrainConfig` by name, over the defaults.
    `dataclasses.replace(recipe(CoOp), epochs=20)` is the same for fewer epochs.

    Example:
        >>> import medvlp
        >>> medvlp.recipe(medvlp.CILMP).epochs
        100
    """
    check_kinds(recipe, locals())
    return TrainConfig(**method.recipe)
