"""CoCoOp: CoOp whose context moves with the image."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import TEXTS_AT_ONCE, Clip
from medvlp.backbone.prompts.slots import FIRST_CTX
from medvlp.backbone.prompts.walks import encode_text_prompts
from medvlp.data.cards import DataCard
from medvlp.data.errors import check_kinds
from medvlp.methods.prompt_tuning.coop import TRAINER, ContextPrompts

REDUCTION = 16  # the meta-net's hidden width is D over this


class CoCoOp(ContextPrompts):
    r"""Conditional context optimization.

        pi(f) = W2 relu(W1 f + b1) + b2                                          D -> D / 16 -> w
        t_c(f) = text([SOS] v_1 + pi(f) .. v_M + pi(f) name_c . [EOS]) / |.|     (D,)
        logits[b, c] = exp(logit_scale) * f_b . t_c(f_b)

    with f_b the normalised image feature: Zhou et al., "Conditional Prompt Learning for Vision-Language
    Models", CVPR 2022, arXiv 2203.05557. Learned are v (`ctx`) and the meta-net pi (`meta_net`): 35,360
    numbers at ViT-B/16 with M = 4. Both towers are frozen.

    Every image has texts of its own: a batch takes B * n_cls of them through the text tower.

    Notes:
        The authors see a new random view of each image in every epoch: `views="fresh"` in the recipe, which
        encodes every image in every epoch. By default four views of each are encoded once.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        n_ctx: M, the number of context vectors. None: as many as `ctx_init` has words, and 16 without.
        ctx_init: Words that the context starts from; "" draws it as CoOp does.
        position: Where the class name stands, as in `CoOp`; the authors have "end" only.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.
        seed: Of the learned tensors' start. The meta-net starts as torch's linear layers do.

    Attributes:
        ctx: v, (M, w); w is the text width.
        meta_net: pi.
        config: the arguments by name, fit for JSON; `CoCoOp(clip, card, **config)` builds the same again.

    Raises:
        ValueError: an unknown position; n_ctx below 1, or not the number of the words' tokens; a class name
            that is too long for the tower.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> cocoop = medvlp.CoCoOp(clip, card)
        >>> tuple(cocoop.class_features(clip.encode_texts(["skin", "hair"])).shape) == (2, 2, clip.embed_dim)
        True
    """

    conditional: ClassVar[bool] = True
    # KaiyangZhou/CoOp, configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml
    recipe: ClassVar[dict[str, Any]] = TRAINER | {"epochs": 10, "batch_size": 1, "lr": 0.002}

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        n_ctx: int | None = None,
        ctx_init: str = FIRST_CTX,
        position: str = "end",
        logit_scale: float | None = None,
        seed: int = 1,
    ) -> None:
        """Tokenize the prompts, start the context and draw the meta-net; see the class."""
        check_kinds(CoCoOp.__init__, {"self": self, "seed": seed})  # it is used before the others are checked
        random = torch.Generator().manual_seed(seed)
        super().__init__(clip, card, locals(), random)
        hidden = max(1, clip.embed_dim // REDUCTION)
        self.meta_net = nn.Sequential(
            _linear(clip.embed_dim, hidden, random), nn.ReLU(), _linear(hidden, clip.text_width, random)
        ).to(clip.device)

    def class_features(self, f: Tensor) -> Tensor:
        """t: the classes' text features for each image, (B, D) -> (B, n_cls, D), L2-normalised."""
        f, n_cls = f.to(self.ctx), len(self.tokens)
        at_once = max(1, TEXTS_AT_ONCE // n_cls)  # images; bounds the memory of evaluation
        features = []
        for part in (self.ctx + self.meta_net(f)[:, None]).split(at_once):  # (b, M, w)
            vectors = part[:, None].expand(-1, n_cls, -1, -1).flatten(1, 2)  # (b, n_cls * M, w)
            features.append(encode_text_prompts(self.clip, self.tokens, self.slots, [vectors]).float())
        return F.normalize(torch.cat(features), dim=-1)  # (B, n_cls, D)


def _linear(n_in: int, n_out: int, random: torch.Generator) -> nn.Linear:
    """A linear layer that starts as torch's do, uniform within 1 / sqrt(n_in), drawn from `random`."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(n_in**-0.5), n_in**-0.5, generator=random)
    return layer
