"""LP++: a linear probe of images beside the texts, with step sizes that follow from the features."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.data.cards import DataCard
from medvlp.data.datasets import ImageSet
from medvlp.methods.base import READING, Method, Reading, check_at_least
from medvlp.methods.zero_shot import ZeroShot

START = 250  # alpha before the first step is this, times the mean cosine of images and their class's text
EVERY = 10  # steps of w and b to one of alpha
MOMENTUM = 0.9


class LPPlusPlus(Method):
    r"""A linear probe of the images, and the texts with one learned weight a class.

        logits[b, c] = f_b . w_c + b_c + alpha_c f_b . t_c

    with f the normalised image feature and t_c the normalised text feature: Huang et al., "LP++: A
    Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024, arXiv 2404.02285, for medical CLIPs in
    Shakeri et al., "Few-shot Adaptation of Medical Vision-Language Models", MICCAI 2024, arXiv 2409.03868.
    `medvlp.fit` starts from the training images F (N, D), with the labels y,

        w_c = sum of f_i over the images of class c,    b_c = 0
        alpha_c = 250 mean_k (mean of f_i . t_k over the images of class k)

    and goes down the mean cross-entropy of all images at once by `steps`: of w and b by gradient descent with
    momentum 0.9, and at every tenth of alpha, too, with rates that no validation has to choose,

        rate of w, b  = 4 N / (largest eigenvalue of F^T F)
        rate of alpha = N / (4 max_c sum_i (f_i . t_c)^2)

    The last step is kept; validation images play no part. `steps=0` trains nothing.

    Notes:
        The step of alpha goes along the sum of its gradients over all steps so far, as in both of the
        authors' programs, which never set that gradient to zero.

        The authors' b starts at torch's random numbers, here at 0. In the mean at alpha's start a class
        without a training image counts as 0, as theirs.

        The program of Shakeri et al. takes the step that is best on validation images; the one for
        arXiv 2506.17500, github.com/jusiro/SS-Text, takes the last, as here.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order, and their texts.
        steps: Of w and b, 300 as the authors have.
        knowledge: The texts of t_c, as `ZeroShot` has it.

    Attributes:
        w: (n_cls, D), 0 before `fit`.
        b: (n_cls,), 0 before `fit`.
        alpha: (n_cls,), the CLIP's own factor on cosines before `fit`, which is zero-shot.
        config: the arguments by name, fit for JSON; `LPPlusPlus(clip, card, **config)` builds the same again.

    Raises:
        ValueError: fewer than 0 steps, unknown knowledge.

    Example:
        >>> import medvlp
        >>> clip, data = medvlp.load_clip("tiny"), medvlp.load_dataset("phantom-derm", num_shots=4)
        >>> method = medvlp.LPPlusPlus(clip, data.card, steps=20)
        >>> history = medvlp.fit(method, data.train, None, progress=False)
        >>> bool(method.w.any()), bool(method.alpha.any())
        (True, True)
    """

    recipe: ClassVar[dict[str, Any]] = {"keep": "last"}
    modality: ClassVar[str] = "weights"

    text_features: Tensor  # (n_cls, D), t_c

    def __init__(self, clip: Clip, card: DataCard, *, steps: int = 300, knowledge: str = "templates") -> None:
        """Encode the texts; see the class."""
        super().__init__(clip, card, locals())
        check_at_least(0, {"steps": steps})
        self.steps = steps
        t = F.normalize(ZeroShot(clip, card, knowledge).text_features, dim=-1)  # (n_cls, D)
        self.constant("text_features", t)
        starts = torch.zeros_like(t), t.new_zeros(len(t)), t.new_full((len(t),), self.logit_scale)
        self.w, self.b, self.alpha = (nn.Parameter(start, requires_grad=False) for start in starts)

    def before_training(self, train: ImageSet, val: ImageSet | None, reading: Reading = READING) -> None:
        """Start from the training images, and take all steps."""
        f = image_features(self.clip, train, **vars(reading)).features.to(self.w)  # (N, D)
        y, N = train.labels.to(f.device), len(f)  # (N,)
        L = F.one_hot(y, len(self.w)).to(f)  # (N, n_cls)
        cosines = f @ self.text_features.T  # (N, n_cls)
        of_class = (L * cosines).sum(dim=0) / L.sum(dim=0).clamp(min=1)  # (n_cls,)
        w, b, alpha = L.T @ f, torch.zeros_like(self.b), torch.full_like(self.alpha, START * of_class.mean())
        rate = 4 * N / torch.linalg.matrix_norm(f, 2).item() ** 2
        rate_alpha = N / (4 * cosines.square().sum(dim=0).max())
        for tensor in (w, b, alpha):
            tensor.requires_grad_()
        optimizer = torch.optim.SGD([w, b], rate, MOMENTUM)
        for step in range(1, self.steps + 1):
            F.cross_entropy(f @ w.T + b + alpha * cosines, y).backward()  # to alpha's gradient it adds
            optimizer.step()
            optimizer.zero_grad()
            if step % EVERY == 0:
                alpha.data -= rate_alpha * alpha.grad
        for own, learned in ((self.w, w), (self.b, b), (self.alpha, alpha)):
            own.data.copy_(learned.detach())

    def logits_from_features(self, image_features: Tensor) -> Tensor:
        """Logits of normalised image features: (B, D) -> (B, n_cls)."""
        f = image_features.to(self.w)
        return f @ self.w.T + self.b + self.alpha * (f @ self.text_features.T)

    def class_features(self, f: Tensor | None = None) -> Tensor:
        """The directions of w_c + alpha_c t_c, (n_cls, D), L2-normalised."""
        return F.normalize(self.w + self.alpha[:, None] * self.text_features, dim=-1)
