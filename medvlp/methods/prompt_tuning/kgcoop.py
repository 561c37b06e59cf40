"""KgCoOp: CoOp, held near the text features of a hand-written template."""

from typing import Any, ClassVar

from torch import Tensor

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.slots import FIRST_CTX
from medvlp.data.cards import DataCard
from medvlp.methods.base import check_at_least
from medvlp.methods.prompt_tuning.coop import TRAINER, ContextPrompts
from medvlp.methods.zero_shot import template_features


class KgCoOp(ContextPrompts):
    r"""Knowledge-guided context optimization.

        t_c = text([SOS] v_1 .. v_M name_c . [EOS]) / |.|                        (D,)
        w_c = text([SOS] template with name_c [EOS]) / |.|                       (D,), not learned
        logits[b, c] = exp(logit_scale) * f_b . t_c
        loss = cross-entropy + weight * (1 - mean_c t_c . w_c)

    Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023, arXiv
    2303.13283. Learned is v alone (`ctx`): 2,048 numbers at ViT-B/16 with M = 4.

    The penalty is that of the authors' code. Their paper writes mean_c |t_c - w_c|^2, which is twice that:
    a `weight` of 16 here is 8 there. With weight 0 it is `CoOp`.

    Notes:
        The authors write one template for each data set, such as "a photo of a {}, a type of pet.": give it
        as `templates`. By default it is the card's first.

        The authors see a new random view of each image in every epoch: `views="fresh"` in the recipe, which
        encodes every image in every epoch. By default four views of each are encoded once.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        weight: Of the penalty.
        templates: Of w_c, each with a `{}` for the class name; of several the mean of the features. None: the
            card's first.
        n_ctx: M, the number of context vectors. None: as many as `ctx_init` has words, and 16 without.
        ctx_init: Words that the context starts from; "" draws it as CoOp does.
        csc: Class-specific context, as in `CoOp`.
        position: Where the class name stands, as in `CoOp`.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.
        seed: Of the context's start, where it is drawn.

    Attributes:
        ctx: v, (M, w), or (n_cls, M, w) with csc; w is the text width.
        w: (n_cls, D), the features that t is held near.
        config: the arguments by name, fit for JSON; `KgCoOp(clip, card, **config)` builds the same again.

    Raises:
        ValueError: a negative weight, a template without `{}`, and what `CoOp` raises.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> kgcoop = medvlp.KgCoOp(clip, card, templates=["a photo of a {}."])
        >>> logits, penalty = kgcoop.training_logits(clip.encode_texts(["skin", "hair"]))
        >>> penalty.shape
        torch.Size([2])
    """

    # htyao89/KgCoOp, configs/trainers/KgCoOp/vit_b16_ep100_ctxv1.yaml
    recipe: ClassVar[dict[str, Any]] = TRAINER | {"epochs": 100, "batch_size": 128, "lr": 0.002}

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        weight: float = 8.0,
        templates: list[str] | None = None,
        n_ctx: int | None = None,
        ctx_init: str = FIRST_CTX,
        csc: bool = False,
        position: str = "end",
        logit_scale: float | None = None,
        seed: int = 1,
    ) -> None:
        """Start the context and encode the template; see the class."""
        super().__init__(clip, card, locals())
        check_at_least(0, {"weight": weight})
        self.weight = weight
        self.constant("w", template_features(clip, card, templates))

    def training_logits(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, n_cls) of normalised image features (B, D), and the penalty (B,), the same for all."""
        t = self.class_features()  # (n_cls, D)
        penalty = self.weight * (1 - (t * self.w).sum(dim=-1).mean())
        logits = self.logit_scale * image_features.to(t) @ t.T + self.logit_bias
        return logits, penalty.expand(len(logits))
