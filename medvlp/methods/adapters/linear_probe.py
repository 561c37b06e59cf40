"""The linear probe: logistic regression on frozen image features."""

from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, recall_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.utils import skip_init
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import Features, image_features
from medvlp.data.cards import DataCard
from medvlp.data.datasets import ImageSet
from medvlp.data.errors import check_choice
from medvlp.methods.base import READING, Method, Reading

CLASS_WEIGHT = (None, "balanced")
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


class LinearProbe(Method):
    r"""Logistic regression on the normalised image features.

        logits = W f + b,    p(c | image) = softmax_c(logits)

    with f (D,) the normalised image feature; the linear probe of Radford et al. 2021 (CLIP, section 3.2).
    scikit-learn's LogisticRegression finds W (n_cls, D) and b (n_cls,) on features standardised by the
    training images; the standardisation is then folded into W and b. C, the weight of the data against the
    penalty, is the one of `C_GRID` with the best balanced accuracy on the validation images (ties: the
    lower log loss there).

    Args:
        clip: The frozen image tower.
        card: Gives the classes in label order.
        class_weight: None: every image counts the same; "balanced": every class does, as
            `TrainConfig.class_weight` has it for the prompts.

    `medvlp.fit(probe, train, val)` fits it, without steps. Then `chosen_C` is that C and `search` a DataFrame
    of what was tried; `print(probe)` says so where that C is the smallest or the largest of them.

    Example:
        >>> import medvlp
        >>> clip, data = medvlp.load_clip("tiny"), medvlp.load_dataset("phantom-derm", num_shots=4)
        >>> probe = medvlp.LinearProbe(clip, data.card)
        >>> history = medvlp.fit(probe, data.train, data.val)
        >>> history["epoch"].tolist(), probe.chosen_C in probe.search["C"].tolist()
        ([0], True)
    """

    modality: ClassVar[str] = "weights"

    fitted: Tensor  # () bool, saved and moved with the weights

    def __init__(self, clip: Clip, card: DataCard, *, class_weight: str | None = None) -> None:
        """A probe without weights yet; see the class."""
        super().__init__(clip, card, locals())
        check_choice("class_weight", class_weight, CLASS_WEIGHT)
        # without the start that nn.Linear draws: nothing is asked of the probe before it is fitted
        self.linear = skip_init(nn.Linear, clip.embed_dim, len(card.classnames), device=clip.device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.linear.requires_grad_(False)
        self.register_buffer("fitted", torch.tensor(False, device=clip.device))
        self.chosen_C: float | None = None
        self.search: pd.DataFrame | None = None

    def before_training(self, train: ImageSet, val: ImageSet | None, reading: Reading = READING) -> None:
        """Fit on the features of `train` and choose C on those of `val`.

        Raises:
            ValueError: no validation images, or a class without a training image.
        """
        if val is None:
            raise ValueError("a linear probe needs validation images to choose C; give val.")
        if missing := [repr(name) for name, n in train.counts.items() if not n]:
            raise ValueError(f"no training image of {', '.join(missing)}; a probe needs one of each class.")
        x, y = _arrays(image_features(self.clip, train, **vars(reading)))  # (N, D), (N,)
        x_val, y_val = _arrays(image_features(self.clip, val, **vars(reading)))

        labels = range(len(self.card.classnames))
        present = np.unique(y_val)  # balanced accuracy is the mean recall of the classes that validation has
        models, rows = [], []
        for C in tqdm(
            C_GRID, desc="linear probe", unit="C", leave=False, delay=2, disable=not reading.progress
        ):
            # second order: it also ends at the minimum where C is large
            regression = LogisticRegression(
                C=C, class_weight=self.config["class_weight"], solver="newton-cg", tol=1e-7
            )
            model = make_pipeline(StandardScaler(), regression).fit(x, y)
            probabilities = model.predict_proba(x_val)  # (N_val, n_cls)
            recall = recall_score(y_val, probabilities.argmax(1), labels=present, average="macro")
            rows.append((C, recall, log_loss(y_val, probabilities, labels=labels)))
            models.append(model)
        self.search = pd.DataFrame(rows, columns=["C", "val_balanced_accuracy", "val_log_loss"])
        by = ["val_balanced_accuracy", "val_log_loss"]
        best = self.search.sort_values(by, ascending=[False, True]).index[0]
        self.chosen_C = float(self.search["C"][best])
        self._copy_weights(models[best])

    def extra_repr(self) -> str:
        """With the chosen C, and whether one beyond those that were tried may be better."""
        if self.chosen_C is None:
            return super().extra_repr()
        said = f"{super().extra_repr()}, C={self.chosen_C:g}"
        for C, most, more in ((C_GRID[0], "smallest", "smaller"), (C_GRID[-1], "largest", "larger")):
            if self.chosen_C == C:
                said += f", the {most} that was tried: a {more} one may be better"
        return said

    def logits_from_features(self, image_features: Tensor) -> Tensor:
        """Logits of normalised image features: (B, D) -> (B, n_cls)."""
        self._check_fitted()
        return self.linear(image_features.to(self.linear.weight.dtype))

    def class_features(self, f: Tensor | None = None) -> Tensor:
        """The directions of the rows of W, (n_cls, D)."""
        self._check_fitted()
        return nn.functional.normalize(self.linear.weight, dim=-1)

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise RuntimeError("the linear probe is not fitted; call medvlp.fit(probe, train, val) first.")

    def _copy_weights(self, model: Pipeline) -> None:
        """Fold W ((f - mean) / std) + b into one linear layer."""
        scaler, regression = model[0], model[1]
        weight = regression.coef_ / scaler.scale_  # (n_cls, D), or (1, D) for two classes
        bias = regression.intercept_ - weight @ scaler.mean_  # (n_cls,) or (1,)
        if len(weight) == 1:  # two classes: scikit-learn has only the second's log-odds z; softmax(-z/2, z/2)
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(weight).float())
            self.linear.bias.copy_(torch.from_numpy(bias).float())
            self.fitted.fill_(True)


def _arrays(features: Features) -> tuple[np.ndarray, np.ndarray]:
    return features.features.cpu().double().numpy(), features.labels.cpu().numpy()
