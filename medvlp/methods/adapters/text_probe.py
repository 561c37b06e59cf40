"""The text-informed linear probe: class weights that start at the texts and are held near them."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import training_features
from medvlp.backbone.prompts.slots import in_templates
from medvlp.data.cards import DataCard
from medvlp.data.datasets import ImageSet
from medvlp.methods.base import READING, Method, Reading, check_at_least
from medvlp.methods.prompt_tuning.coop import TRAINER
from medvlp.methods.zero_shot import ZeroShot


class TextProbe(Method):
    r"""A linear probe whose class weights start at the class's text feature and are held near it.

        logits[b, c] = exp(logit_scale) * f_b . w_c / |w_c|,    w_c = t_c at the start
        loss = cross-entropy + 1 / n_cls sum_c lambda_c |w_c - t_c|^2
        lambda_c = mean of softmax(zero-shot logits)_c over the training images of class c

    with f_b the normalised image feature and t_c the text feature, not normalised: CLAP, Silva-Rodriguez et
    al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024, arXiv
    2312.12730. A class that zero-shot already knows is held tighter. lambda is found once, before training,
    as in the authors' code; `constraint=False` does without it (their ZS-LP). Learned are n_cls x D numbers.

    `LPPlusPlus` and `SSText` are the other text-informed probes.

    Notes:
        The authors' t_c is the feature of one template: knowledge="classnames". By default t_c points to the
        mean of all templates of the card, as in `TipAdapter` and `CLIPAdapter`.

        The authors train on 20 cached views of each image, as the recipe here. An epoch of theirs draws as
        many pairs of image and view as there are images, so that an image may come twice or not at all; here
        each comes once, in one of its views.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order, and their texts.
        constraint: Whether the weights are held near the texts.
        multiplier_views: Random views an image that lambda is found from, 20 as the authors have;
            0: the view of evaluation.
        knowledge: The texts that t_c points to, as `ZeroShot` has it. Its length is that of the feature of
            the class name in the first template, as the tower gives it.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.

    Attributes:
        w: (n_cls, D), the class weights.
        multipliers: (n_cls,), lambda; 1 before training, and for a class without a training image.
        config: the arguments by name, fit for JSON; `TextProbe(clip, card, **config)` builds the same again.

    Raises:
        ValueError: fewer than 0 views, unknown knowledge.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> probe = medvlp.TextProbe(clip, card)
        >>> tuple(probe.w.shape) == (len(card.classnames), clip.embed_dim)
        True
    """

    # SGD_lr1e-1_B256_ep300.yaml of github.com/jusiro/CLAP, with Dassl's momentum. The authors too train on 20
    # cached random views, and take the last epoch.
    recipe: ClassVar[dict[str, Any]] = TRAINER | {
        "epochs": 300,
        "batch_size": 256,
        "lr": 0.1,
        "weight_decay": 0.0,
        "views": 20,
    }

    modality: ClassVar[str] = "weights"

    text_features: Tensor  # (n_cls, D), t_c, not normalised
    multipliers: Tensor

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        constraint: bool = True,
        multiplier_views: int = 20,
        knowledge: str = "templates",
        logit_scale: float | None = None,
    ) -> None:
        """Encode the texts; see the class."""
        super().__init__(clip, card, locals())
        check_at_least(0, {"multiplier_views": multiplier_views})
        self.constraint = constraint
        direction = F.normalize(ZeroShot(clip, card, knowledge).text_features, dim=-1)  # (n_cls, D)
        (texts,) = in_templates(card.templates[:1], card.classnames)
        t = clip.encode_texts(texts, normalize=False).norm(dim=-1, keepdim=True) * direction  # (n_cls, D)
        self.constant("text_features", t)
        self.register_buffer("multipliers", torch.ones(len(t), device=t.device))
        self.w = nn.Parameter(t.clone())

    @torch.no_grad()
    def before_training(self, train: ImageSet, val: ImageSet | None, reading: Reading = READING) -> None:
        """Find lambda from the training images."""
        if not self.constraint:
            return
        views = self.config["multiplier_views"]
        f = training_features(self.clip, train, views, **vars(reading))  # (K, N, D)
        labels = train.labels.to(f.device)  # (N,)
        t = F.normalize(self.text_features, dim=-1)  # (n_cls, D)
        p = (self.logit_scale * f @ t.T).softmax(dim=-1)  # (K, N, n_cls)
        p_true = p.mean(dim=0).gather(1, labels[:, None])[:, 0]  # (N,)
        for c in labels.unique().tolist():
            self.multipliers[c] = p_true[labels == c].mean()

    def class_features(self, f: Tensor | None = None) -> Tensor:
        """The class weights' directions, (n_cls, D), L2-normalised."""
        return F.normalize(self.w, dim=-1)

    def training_logits(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, n_cls) of normalised image features (B, D), and the penalty, the same for each (B,)."""
        logits = self.logits_from_features(image_features)
        penalty = self.penalty() if self.constraint else logits.new_zeros(())
        return logits, penalty.expand(len(logits))

    def penalty(self) -> Tensor:
        """1 / n_cls sum_c lambda_c |w_c - t_c|^2, ()."""
        distance = (self.w - self.text_features).pow(2).sum(dim=-1)  # (n_cls,)
        return (self.multipliers * distance).mean()
