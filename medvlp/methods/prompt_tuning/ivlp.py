"""IVLP: learned prompts in the first blocks of both towers, each tower's own."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.hooks import image_blocks, image_width, text_blocks
from medvlp.backbone.prompts.slots import FIRST_CTX
from medvlp.data.cards import DataCard
from medvlp.methods.prompt_tuning.context import DEEP_TRAINER
from medvlp.methods.prompt_tuning.deep_prompts import DEPTH, ClassTexts, PromptedTower, depth_in, drawn


class IVLP(PromptedTower):
    r"""Independent vision-language prompting.

        [_, W_i]      = L_i([P_{i-1}, W_{i-1}])                 i = 1..J, and then without P replaced
        [x_i, E_i, _] = V_i([x_{i-1}, E_{i-1}, Q_{i-1}])        the same with the image prompts Q
        logits[b, c]  = exp(logit_scale) * f_b . t_c            f_b, t_c normalised

    with L_i and V_i the towers' blocks, W a class's words, x the class token and E the patches: Khattak et
    al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117, whose baseline it is (their image
    prompts are coupled to P, these are not). Learned are P (`ctx`) and Q (`image_prompts`). Before each of
    the first `depth` blocks they are replaced by that block's own; those of the last of these run through the
    blocks that are left. Recipe and sizes are those of PromptSRC's authors, who start from it (ICCV 2023,
    arXiv 2307.06948); MaPLe's had 2 and 2 prompts in all 12 blocks.

    With `image_depth=0` it is deep language prompting, and image features are computed once.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        n_ctx: Vectors before a text block.
        n_image_ctx: Vectors before an image block.
        depth: J, text blocks with vectors of their own, from 1. None: 9, or all of a tower with fewer.
        image_depth: The same of the image tower, from 0 (no prompts).
        ctx_init: Words before the class name, from whose first n_ctx tokens the vectors of block 0 start. If
            they have fewer, they are left out and all vectors are drawn, with standard deviation 0.02, as the
            vectors of later blocks and of images are.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.
        seed: Of the learned tensors' start.

    Attributes:
        ctx: (depth, n_ctx, w), P; w is the text width.
        image_prompts: (image_depth, n_image_ctx, width of the image tower), Q, or None.
        config: the arguments by name, fit for JSON; `IVLP(clip, card, **config)` builds the same again.

    Raises:
        ValueError: a number out of its range, a text with too many tokens, an image tower without tokens
            unless image_depth is 0.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> ivlp = medvlp.IVLP(clip, card, depth=2, image_depth=0)
        >>> ivlp.ctx.shape[:2], ivlp.keeps_image_tower
        (torch.Size([2, 4]), True)
    """

    # configs/trainers/IVLP/vit_b16_c2_ep20_batch4_4+4ctx.yaml of muzairkhattak/PromptSRC
    recipe: ClassVar[dict[str, Any]] = DEEP_TRAINER | {"epochs": 20, "lr": 0.0025}

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
        logit_scale: float | None = None,
        seed: int = 1,
    ) -> None:
        """Tokenize the texts and draw the learned tensors; see the class."""
        super().__init__(clip, card, locals())
        self._draw()

    def _draw(self) -> None:
        """Tokenize the texts and draw the learned tensors, as the arguments in `config` say."""
        clip, config = self.clip, self.config
        n_ctx, n_image_ctx = config["n_ctx"], config["n_image_ctx"]
        if n_image_ctx < 1:
            raise ValueError(f"n_image_ctx must be at least 1, got {n_image_ctx}; image_depth=0 has none.")
        depth = depth_in(text_blocks(clip), "depth", config["depth"], 1, DEPTH)
        random = torch.Generator().manual_seed(config["seed"])
        self.texts = ClassTexts(clip, self.card.classnames, n_ctx, config["ctx_init"])
        self.ctx = nn.Parameter(drawn((depth, n_ctx, clip.text_width), random, self.texts.first))
        self.image_prompts = None
        if config["image_depth"] != 0:
            image_depth = depth_in(image_blocks(clip), "image_depth", config["image_depth"], 0, DEPTH)
            self.image_prompts = nn.Parameter(drawn((image_depth, n_image_ctx, image_width(clip)), random))
        self.to(clip.device)

    def class_features(self, f: Tensor | None = None) -> Tensor:
        """t: the classes' text features, (n_cls, D), L2-normalised."""
        return self.texts(self.clip, self.ctx)
