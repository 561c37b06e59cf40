"""Tip-Adapter and Tip-Adapter-F: training images as a cache that is asked beside the texts."""

from typing import Any, ClassVar

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features, training_features
from medvlp.data.cards import DataCard
from medvlp.data.datasets import ImageSet
from medvlp.methods.base import READING, Method, Reading, check_at_least
from medvlp.methods.zero_shot import ZeroShot

N_BETA, N_ALPHA = 200, 20  # steps of the search, as the authors' configurations have them
AT_ONCE = 2**25  # numbers in memory during the search
LEAST = 0.1  # the smallest beta and alpha searched


class TipAdapter(Method):
    r"""Zero-shot logits, and votes of the training images that are alike.

        logits[b, c] = exp(logit_scale) f_b . t_c + alpha (exp(-beta (1 - f_b F^T)) L)_c

    with f_b the normalised image feature, t_c the zero-shot feature of class c, F (N, D) the normalised
    features of the N training images (`keys`) and L (N, n_cls) their one-hot labels (`values`): Zhang et al.,
    "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv 2207.09519.
    Tip-Adapter trains nothing; Tip-Adapter-F (`trained=True`) trains the keys, N x D numbers, 16,384,000 for
    ImageNet with 16 shots and ResNet-50.

    `medvlp.fit` fills the cache. Afterwards alpha and beta are those with the best accuracy on the validation
    images, on the authors' grid: 200 values of beta from 0.1 up to `beta_max` and 20 of alpha from 0.1 up to
    `alpha_max`, upper ends left out; of equals the smallest beta, then the smallest alpha. The authors choose
    the epoch of Tip-Adapter-F on the test images; here it is chosen on the validation images.

    An image's key is the mean over its random views, normalised.

    Notes:
        The authors' mean over views is of features that are not normalised yet; here they are.

        They search up to 7 and 3 for ImageNet, as here, and up to 50 elsewhere: `beta_max`, `alpha_max`.

        Tip-Adapter-F sees a new random view of each image in every epoch: `views="fresh"` in the recipe. By
        default it sees four views of each, whose features are computed once. All else is as theirs: AdamW
        with an eps of 1e-4, a cosine that falls with each step, the last, smaller batch, and crops of at
        least half of the image.

        The authors' t_c is the mean over templates, seven for ImageNet and one elsewhere:
        knowledge="templates", the default.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order, and their texts.
        trained: Tip-Adapter-F.
        alpha: Weight of the cache before the search, so in training; the authors' for ImageNet.
        beta: Sharpness of the cache, likewise.
        tune: Search alpha and beta. False: they stay as given.
        alpha_max: Upper end of the search; the authors take 3 for ImageNet and up to 30 elsewhere.
        beta_max: Likewise; 7 for ImageNet.
        cache_views: Random views an image whose mean is its key; 0: the view of evaluation. They are what
            fitting costs: 10 views of 1,000 images are 10,000 images to encode, once.
        cache_crop: The smallest part of the image's area in such a view.
        knowledge: The texts of t_c, as `ZeroShot` has it.
        n_cache: N; `fit` sets it. It is here so that a saved cache can be loaded.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.

    Attributes:
        keys: (N, D), F.
        values: (N, n_cls), L.
        alpha: () as found by the search; with `beta` saved with the cache.
        beta: ().
        search: DataFrame of beta, alpha and val_accuracy, after a search.
        config: the arguments by name, fit for JSON; `TipAdapter(clip, card, **config)` builds the same again.

    Raises:
        ValueError: a number that makes no sense, unknown knowledge.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> tip = medvlp.TipAdapter(clip, card, cache_views=0)
        >>> len(tip.keys)  # medvlp.fit(tip, train, val) fills the cache
        0
    """

    # configs/imagenet.yaml and main.py of github.com/gaopengcuhk/Tip-Adapter, with torch's weight decay
    recipe: ClassVar[dict[str, Any]] = {
        **{"epochs": 20, "batch_size": 256, "drop_last": False, "crop": 0.5, "keep": "best"},
        **{"optimizer": "adamw", "lr": 0.001, "eps": 1e-4, "weight_decay": 0.01},
        **{"schedule": "step", "warmup_lr": None},
    }

    keys: Tensor
    values: Tensor
    text_features: Tensor  # (n_cls, D), t_c

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        trained: bool = False,
        alpha: float = 1.17,
        beta: float = 1.0,
        tune: bool = True,
        alpha_max: float = 3.0,
        beta_max: float = 7.0,
        cache_views: int = 10,
        cache_crop: float = 0.5,
        knowledge: str = "templates",
        n_cache: int = 0,
        logit_scale: float | None = None,
    ) -> None:
        """Encode the texts; the cache is empty yet. See the class."""
        super().__init__(clip, card, locals())
        check_at_least(0, {"alpha": alpha, "beta": beta, "cache_views": cache_views, "n_cache": n_cache})
        if not min(alpha_max, beta_max) > LEAST:
            raise ValueError(f"alpha_max and beta_max must be above {LEAST}, got {alpha_max} and {beta_max}.")
        if not 0 < cache_crop <= 1:
            raise ValueError(f"cache_crop is a part of the image above 0 and up to 1, got {cache_crop}.")
        self.search: pd.DataFrame | None = None
        self.constant("text_features", ZeroShot(clip, card, knowledge).text_features)
        self._fill(torch.zeros(n_cache, clip.embed_dim), torch.zeros(n_cache, len(card.classnames)))

    def _fill(self, keys: Tensor, values: Tensor) -> None:
        """Take this cache, (N, D) and (N, n_cls), and start from the alpha and beta of the configuration."""
        device = self.clip.device
        self.config["n_cache"], self.search = len(keys), None
        if self.config["trained"]:
            self.keys = nn.Parameter(keys.to(device))
        else:
            self.register_buffer("keys", keys.to(device))
        self.register_buffer("values", values.to(device))
        for name in ("alpha", "beta"):
            self.register_buffer(name, torch.tensor(float(self.config[name]), device=device))

    def before_training(self, train: ImageSet, val: ImageSet | None, reading: Reading = READING) -> None:
        """Fill the cache with the training images, and forget any other."""
        views, crop = self.config["cache_views"], self.config["cache_crop"]
        f = training_features(self.clip, train, views, **vars(reading), crop=crop)  # (K, N, D)
        values = F.one_hot(train.labels, len(self.card.classnames)).float()  # (N, n_cls)
        self._fill(F.normalize(f.mean(dim=0), dim=-1), values)

    @torch.no_grad()
    def after_training(self, val: ImageSet | None, reading: Reading = READING) -> None:
        """Choose alpha and beta on the validation images; without them both stay as they are."""
        if val is None or not self.config["tune"]:
            return
        f = image_features(self.clip, val, **vars(reading)).features.to(self.keys)  # (N_val, D)
        labels = val.labels.to(f.device)  # (N_val,)
        alphas, betas = _steps(self.config["alpha_max"], N_ALPHA), _steps(self.config["beta_max"], N_BETA)
        weights = torch.tensor(alphas, device=f.device)[:, None, None]  # (N_ALPHA, 1, 1)
        at_once = max(1, AT_ONCE // (len(self.keys) + N_ALPHA * len(self.text_features)))  # images
        parts = list(zip(f.split(at_once), labels.split(at_once), strict=True))
        right = torch.zeros(N_BETA, N_ALPHA, device=f.device)  # images
        steps = {"total": len(parts) * N_BETA, "unit": "beta", "desc": "alpha and beta"}
        with tqdm(**steps, leave=False, delay=2, disable=not reading.progress) as bar:
            for part, of_part in parts:  # (b, D), (b,)
                text_logits = super().logits_from_features(part)  # (b, n_cls)
                affinity = part @ self.keys.T  # (b, N)
                for i, beta in enumerate(betas):
                    logits = text_logits + weights * self._votes(affinity, beta)  # (N_ALPHA, b, n_cls)
                    right[i] += (logits.argmax(dim=-1) == of_part).sum(dim=-1)
                    bar.update()
        grid = pd.MultiIndex.from_product([betas, alphas], names=["beta", "alpha"])
        accuracy = (right / len(labels)).flatten().tolist()
        self.search = pd.DataFrame({"val_accuracy": accuracy}, index=grid).reset_index()
        best = self.search.loc[self.search["val_accuracy"].idxmax()]  # the first of equals
        self.alpha.fill_(best["alpha"])
        self.beta.fill_(best["beta"])

    def logits_from_features(self, image_features: Tensor) -> Tensor:
        """Logits of normalised image features: (B, D) -> (B, n_cls).

        Raises:
            RuntimeError: the cache is empty.
        """
        if not len(self.keys):
            raise RuntimeError("the cache is empty; call medvlp.fit(method, data.train, data.val) first.")
        f = image_features.to(self.keys)  # (B, D)
        return super().logits_from_features(f) + self.alpha * self._votes(f @ self.keys.T, self.beta)

    def _votes(self, affinity: Tensor, beta: float | Tensor) -> Tensor:
        """What the cache says, (B, n_cls), from cosines with the keys, (B, N)."""
        return torch.exp(-beta * (1 - affinity)) @ self.values


def _steps(upper: float, n: int) -> list[float]:
    """n numbers from LEAST up to `upper`, which is left out."""
    return [LEAST + i * (upper - LEAST) / n for i in range(n)]
