"""TrainConfig: the recipe of a training run."""

from dataclasses import dataclass
from math import cos, pi

from torch import nn

from medvlp.backbone.clip import PRECISIONS
from medvlp.data.errors import unknown_name
from medvlp.methods.linear_probe import CLASS_WEIGHT
from medvlp.study.metrics import METRICS

SELECTION = ("loss", *METRICS)  # what the best epoch may be chosen by
LOWER_IS_BETTER = ("loss", "ECE")
KEEP = ("best", "last")
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class TrainConfig:
    """How `fit` trains. The defaults are ViP's recipe (arXiv 2409.00341), but for `views`.

    `dataclasses.replace(config, lr=0.001)` is the same recipe with another learning rate.

    Attributes:
        epochs: E, passes over the training images.
        batch_size: images a step, over all processes together. In each epoch the last, smaller batch is left
            out, as in CoOp, unless there is no other.
        lr: learning rate at the start of the cosine; see `learning_rate`.
        optimizer: "sgd" or "adamw".
        momentum: of SGD.
        weight_decay: on everything that is trained; AdamW's is decoupled from the gradient.
        warmup_lr: learning rate of the first epoch, constant; None for no such epoch.
        seed: of the order of the images, the views drawn and dropout. What the learned tensors start from is
            the method's own affair.
        precision: "fp32", "bf16" or "fp16" (GPU only), of the forward pass; learned tensors stay as they are.
        views: what is seen of each image. A number K: one of K random views (random resized crop, bicubic,
            and flip), drawn anew each epoch; "fresh": a new random view each epoch, as in the papers;
            0: no augmentation, the view of evaluation.
        class_weight: None: every image counts the same in the loss, as in the papers; "balanced": every class
            does, N images of n_cls classes weighing N / (n_cls * N_c) each (as scikit-learn's "balanced").
        metric: what the best epoch is chosen by on the validation images: "loss" or a metric of `evaluate`.
        keep: the weights at the end, those of the "best" epoch by validation or of the "last".
        num_workers: processes that read images where features are not cached. None: one a core, 8 at most;
            none for phantoms, which every process would draw again.
    """

    epochs: int = 50
    batch_size: int = 32
    lr: float = 0.002
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_lr: float | None = 1e-5
    seed: int = 1
    precision: str = "fp32"
    views: int | str = 4
    class_weight: str | None = None
    metric: str = "accuracy"
    keep: str = "best"
    num_workers: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a name that is unknown or a number that makes no sense."""
        for field in ("epochs", "batch_size", "seed", "lr", "momentum", "weight_decay"):
            value, kind = (
                getattr(self, field),
                int if field in ("epochs", "batch_size", "seed") else int | float,
            )
            if not isinstance(value, kind) or isinstance(value, bool):
                wanted = "a whole number" if kind is int else "a number"
                raise ValueError(f"TrainConfig: {field} is {value!r}; give {wanted}.")
        choices = {"precision": PRECISIONS, "class_weight": CLASS_WEIGHT, "metric": SELECTION, "keep": KEEP}
        choices |= {"optimizer": OPTIMIZERS}
        for field, names in choices.items():
            if getattr(self, field) not in names:
                raise ValueError(unknown_name(field, getattr(self, field), names, "TrainConfig"))
        whole = isinstance(self.views, int) and not isinstance(self.views, bool)
        if self.views != "fresh" and not (whole and self.views >= 0):
            raise ValueError(
                f"TrainConfig: views is {self.views!r}; it must be 'fresh', or a number of cached views, "
                "0 for no augmentation."
            )
        for field, least in {"epochs": 1, "batch_size": 1, "momentum": 0, "weight_decay": 0}.items():
            if not getattr(self, field) >= least:
                raise ValueError(
                    f"TrainConfig: {field} is {getattr(self, field)}; it must be {least} or more."
                )
        if not self.lr > 0 or not (self.warmup_lr is None or self.warmup_lr > 0):
            raise ValueError(
                f"TrainConfig: lr is {self.lr} and warmup_lr {self.warmup_lr}; learning rates are above 0."
            )

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, 1 to E, the same for all its steps.

            lr_1 = warmup_lr,    lr_e = lr / 2 (1 + cos(pi (e - 2) / E))  for e = 2..E

        and with `warmup_lr=None` lr_e = lr / 2 (1 + cos(pi (e - 1) / E)). So the cosine starts over after the
        warm-up epoch, with period E: it ends a little above zero. That is what CoOp's trainer does (Dassl,
        `ConstantWarmupScheduler` over torch's `CosineAnnealingLR`, with its default WARMUP_RECOUNT).
        """
        if self.warmup_lr is not None and epoch == 1:
            return self.warmup_lr
        t = epoch - (1 if self.warmup_lr is None else 2)  # epochs of the cosine gone by
        return self.lr / 2 * (1 + cos(pi * t / self.epochs))

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value of `metric` is better than another; a tie is not."""
        return value < than if self.metric in LOWER_IS_BETTER else value > than


def recipe(method: nn.Module | type[nn.Module]) -> TrainConfig:
    """The recipe that a method was published with: what `fit` uses where it is given none.

    It is the method's own `recipe`, fields of `TrainConfig` by name, over the defaults.
    `dataclasses.replace(recipe(CoOp), epochs=20)` is the same for fewer epochs.
    """
    return TrainConfig(**getattr(method, "recipe", {}))
