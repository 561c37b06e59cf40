"""SS-Text and SS-Text+: class weights solved from the images' features and the texts, without a step."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.data.cards import DataCard
from medvlp.data.datasets import ImageSet
from medvlp.methods.base import READING, Method, Reading
from medvlp.methods.zero_shot import ZeroShot

LEAST = 1e-3  # lambda


class SSText(Method):
    r"""Class weights between a class's images and its text, the minimum of a loss in one formula.

        loss = -1 / N sum_i exp(logit_scale) f_i . w_y(i) + 1/2 sum_c lambda_c |w_c - t_c|^2
        w_c  = exp(logit_scale) / (N lambda_c) S_c + t_c,    S_c = sum of f_i over the images of class c
        logits[b, c] = exp(logit_scale) * f_b . w_c / |w_c|

    with f_i the normalised features of the N training images, y(i) their classes and t_c the zero-shot
    feature. SS-Text holds all classes alike, lambda_c = 1 / N: Silva-Rodriguez et al., "Full Conformal
    Adaptation of Medical Vision-Language Models", IPMI 2025, arXiv 2506.06076. SS-Text+ (`plus=True`) is for
    classes of unequal size: Silva-Rodriguez et al., "Few-Shot, Now for Real: Medical VLMs Adaptation without
    Balanced Sets or Validation", MICCAI 2025, arXiv 2506.17500. There a class of N_c images has
    lambda_c = 1 / N_c, so that of a rare one the text counts for more, and then the weights part:

        w_c <- w_c - d_c / |d_c|,    d_c = 2 w_c - mean_k w_k

    lambda is at least 0.001. `medvlp.fit` solves this; there is no step, nothing to choose, and validation
    images play no part. A class without a training image has the weight t_c, before it is parted.

    Notes:
        The authors' t_c is the mean over texts of features as their towers give them; here it is the
        zero-shot feature, and the images' features, too, are normalised.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order, and their texts.
        plus: SS-Text+.
        knowledge: The texts of t_c, as `ZeroShot` has it.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.

    Attributes:
        w: (n_cls, D), the class weights; t before `fit`.
        config: the arguments by name, fit for JSON; `SSText(clip, card, **config)` builds the same again.

    Raises:
        ValueError: unknown knowledge.

    Example:
        >>> import medvlp
        >>> clip, data = medvlp.load_clip("tiny"), medvlp.load_dataset("phantom-derm", num_shots=4)
        >>> method = medvlp.SSText(clip, data.card, plus=True)
        >>> history = medvlp.fit(method, data.train, None, progress=False)
        >>> history["epoch"].tolist(), method.w.shape == (2, clip.embed_dim)
        ([0], True)
    """

    recipe: ClassVar[dict[str, Any]] = {"keep": "last"}
    modality: ClassVar[str] = "weights"

    text_features: Tensor  # (n_cls, D), t_c

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        plus: bool = False,
        knowledge: str = "templates",
        logit_scale: float | None = None,
    ) -> None:
        """Encode the texts; see the class."""
        super().__init__(clip, card, locals())
        self.plus = plus
        self.constant("text_features", ZeroShot(clip, card, knowledge).text_features)
        self.w = nn.Parameter(self.text_features.clone(), requires_grad=False)

    @torch.no_grad()
    def before_training(self, train: ImageSet, val: ImageSet | None, reading: Reading = READING) -> None:
        """Solve for w."""
        f = image_features(self.clip, train, **vars(reading)).features.to(self.w)  # (N, D)
        L = F.one_hot(train.labels, len(self.w)).to(self.w)  # (N, n_cls)
        N = L.sum(dim=0) if self.plus else L.new_tensor([len(L)])  # (n_cls,) or (1,), whose inverse is lambda
        strength = N.clamp(max=1 / LEAST)[:, None] / len(L)  # 1 / (N lambda)
        w = strength * self.logit_scale * (L.T @ f) + self.text_features  # (n_cls, D)
        self.w.copy_(w - F.normalize(2 * w - w.mean(dim=0), dim=-1) if self.plus else w)

    def class_features(self, f: Tensor | None = None) -> Tensor:
        """The class weights' directions, (n_cls, D), L2-normalised."""
        return F.normalize(self.w, dim=-1)
