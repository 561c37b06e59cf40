"""MaPLe: prompts in both towers, the image tower's made from the text tower's."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.hooks import image_blocks, image_width, text_blocks
from medvlp.backbone.prompts.slots import FIRST_CTX
from medvlp.data.cards import DataCard
from medvlp.methods.prompt_tuning.ivlp import DEPTH, ClassTexts
from medvlp.methods.prompt_tuning.vpt import DEEP_TRAINER, PromptedTower, depth_in, drawn


class MaPLe(PromptedTower):
    r"""Multi-modal prompt learning.

        [_, W_i]      = L_i([P_{i-1}, W_{i-1}])                 i = 1..J, and then without P replaced
        [x_i, E_i, _] = V_i([x_{i-1}, E_{i-1}, Q_{i-1}])        i = 1..J, and then without Q replaced
        Q_i           = F_i(P_i) = P_i A_i^T + b_i              the coupling
        logits[b, c]  = exp(logit_scale) * f_b . t_c            f_b, t_c normalised

    with L_i and V_i the towers' blocks, W a class's words, x the class token and E the patches: Khattak et
    al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117. Learned are P (`ctx`) and the
    coupling functions F_i (`A`, `b`). Q has no values of its own: with free ones it would be `IVLP`.

    As in the authors' code the coupling functions start like torch's linear layers, all but the first of
    them from one draw, and what ctx does not replace of the words "a photo of a" stays in the text.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        n_ctx: Vectors before a block, in both towers.
        depth: J, blocks with vectors of their own, from 1. None: 9, or all of the tower with the fewest.
        ctx_init: Words before the class name, from whose first n_ctx tokens the vectors of block 0 start. If
            they have fewer, they are left out and all vectors are drawn, with standard deviation 0.02, as the
            vectors of later blocks are.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.
        seed: Of the learned tensors' start.

    Attributes:
        ctx: (depth, n_ctx, w), P; w is the text width.
        A: (depth, width, w), the matrices of F_i; width is the image tower's.
        b: (depth, width), their biases.
        config: the arguments by name, fit for JSON; `MaPLe(clip, card, **config)` builds the same again.

    Raises:
        ValueError: a number out of its range, a text with too many tokens, an image tower without tokens.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> maple = medvlp.MaPLe(clip, card, depth=2)
        >>> maple.ctx.shape[:2] == maple.image_prompts.shape[:2]
        True
    """

    # configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml of muzairkhattak/multimodal-prompt-learning
    recipe: ClassVar[dict[str, Any]] = DEEP_TRAINER | {"epochs": 5, "lr": 0.0035}

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        n_ctx: int = 2,
        depth: int | None = None,
        ctx_init: str = FIRST_CTX,
        logit_scale: float | None = None,
        seed: int = 1,
    ) -> None:
        """Tokenize the texts and draw the learned tensors; see the class."""
        super().__init__(clip, card, locals())
        fewest = min(text_blocks(clip), image_blocks(clip), key=len)
        depth = depth_in(fewest, "depth", depth, 1, DEPTH)
        random = torch.Generator().manual_seed(seed)
        self.texts = ClassTexts(clip, card.classnames, n_ctx, ctx_init)
        w, width = clip.text_width, image_width(clip)
        self.ctx = nn.Parameter(drawn((depth, n_ctx, w), random, self.texts.first))
        of_draw = [0, *[1] * (depth - 1)]  # the first has one of its own
        A, b = (
            nn.init.uniform_(torch.empty(2, *shape), -(w**-0.5), w**-0.5, generator=random)
            for shape in ((width, w), (width,))
        )
        self.A, self.b = nn.Parameter(A[of_draw]), nn.Parameter(b[of_draw])
        self.to(clip.device)

    @property
    def image_prompts(self) -> Tensor:
        """Q, the prompts of the image tower: (depth, n_ctx, width)."""
        return torch.baddbmm(self.b[:, None], self.ctx, self.A.mT)

    def class_features(self, f: Tensor | None = None) -> Tensor:
        """t: the classes' text features, (n_cls, D), L2-normalised."""
        return self.texts(self.clip, self.ctx)
