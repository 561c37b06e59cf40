"""PromptSRC: IVLP that is held near the frozen towers while it learns."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.slots import FIRST_CTX, in_templates
from medvlp.data.cards import DataCard
from medvlp.methods.base import check_at_least
from medvlp.methods.prompt_tuning.ivlp import IVLP


class PromptSRC(IVLP):
    r"""Prompting with self-regulating constraints.

        loss_b  = CE_b + text_weight * |t - t0|_1 / (n_cls D)            L_SCL-text
                       + image_weight * |f_b - f0_b|_1 / D               L_SCL-image
                       + logits_weight * KL(q0_b || q_b) / n_cls         L_SCL-logits
        q_b     = softmax(exp(logit_scale) * f_b . t_c)_c,    q0_b with f0_b and t0
        theta   = sum_e a_e theta_e / sum_e a_e                          Gaussian average over epochs

    Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023,
    arXiv 2307.06948. f and t are the normalised features of `IVLP`; f0 and t0 those of the frozen towers,
    t0_c the normalised mean of the features, not normalised, of class c in many templates. The divergence is
    as the authors compute it; the division by n_cls is theirs, too. The loss is `fit`'s, by
    `training_logits`; predictions are IVLP's.

    Notes:
        For few shots of all classes the authors train 50 epochs, and choose mean and deviation of the average
        by data set: 30 and 30, or 45 and 5. `fit` takes 15/20 and 1/20 of the epochs, those of their 20
        epochs, by itself; theirs for 50 are `callbacks=[EpochAverage(50, mean=30, std=30)]`.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        n_ctx, n_image_ctx, depth, image_depth, ctx_init, logit_scale, seed: See `IVLP`.
        templates: Of t0, each with a `{}` for the class name. None: the card's. The authors have 60 for
            photographs.
        text_weight: Of L_SCL-text.
        image_weight: Of L_SCL-image.
        logits_weight: Of L_SCL-logits; 1 in the paper.

    Attributes:
        frozen_text_features: (n_cls, D), t0.
        config: the arguments by name, fit for JSON; `PromptSRC(clip, card, **config)` builds the same again.

    Raises:
        ValueError: as `IVLP`, a weight below 0, no template or one without `{}`.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> src = medvlp.PromptSRC(clip, card, depth=2, image_depth=2)
        >>> src.ctx.shape[:2], src.image_prompts.shape[:2]
        (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    # configs/trainers/PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx.yaml of muzairkhattak/PromptSRC: the recipe is
    # IVLP's, mean 15 and deviation 1 of 20 epochs
    average: ClassVar[dict[str, Any]] = {"mean": 15 / 20, "std": 1 / 20, "tensors": None}
    frozen_text_features: Tensor  # (n_cls, D)

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        n_ctx: int = 4,
        n_image_ctx: int = 4,
        depth: int | None = None,
        image_depth: int | None = None,
        ctx_init: str = FIRST_CTX,
        templates: list[str] | None = None,
        text_weight: float = 25.0,
        image_weight: float = 10.0,
        logits_weight: float = 1.0,
        logit_scale: float | None = None,
        seed: int = 1,
    ) -> None:
        """Encode the templates, beside what IVLP does; see the class."""
        super(IVLP, self).__init__(clip, card, locals())
        self._draw()
        weights = {"text_weight": text_weight, "image_weight": image_weight, "logits_weight": logits_weight}
        check_at_least(0, weights)
        self.text_weight, self.image_weight, self.logits_weight = weights.values()
        templates = None if templates is None else list(templates)
        self.config["templates"] = templates
        by_template = in_templates(card.templates if templates is None else templates, card.classnames)
        features = [clip.encode_texts(texts, normalize=False) for texts in by_template]  # (n_cls, D) each
        t0 = F.normalize(torch.stack(features).mean(dim=0), dim=-1)  # (n_cls, D)
        self.constant("frozen_text_features", t0)

    def training_logits(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, n_cls), and what the three constraints add to each image's loss, (B,).

        `inputs` are images (B, 3, H, W), with `image_depth=0` normalised image features (B, D).
        """
        f = inputs if self.keeps_image_tower else self.image_features(inputs)  # (B, D)
        t, t0 = self.class_features(), self.frozen_text_features  # (n_cls, D) each
        f = f.to(t)
        logits = self.logit_scale * f @ t.T + self.logit_bias  # (B, n_cls)
        penalty = (self.text_weight * F.l1_loss(t, t0)).expand(len(f))  # (B,)
        if self.image_weight or self.logits_weight:
            with torch.no_grad():
                f0 = f if self.keeps_image_tower else self.clip.encode_images(inputs).to(t)  # (B, D)
                logits0 = self.logit_scale * f0 @ t0.T  # (B, n_cls)
            kl = F.kl_div(logits.log_softmax(1), logits0.log_softmax(1), reduction="none", log_target=True)
            penalty = penalty + self.image_weight * (f - f0).abs().mean(dim=1)
            penalty = penalty + self.logits_weight * kl.mean(dim=1)  # the mean over classes divides by n_cls
        return logits, penalty
