"""IVLP: learned prompts in the first blocks of both towers, each tower's own.

`ClassTexts` are the texts of all methods that have such prompts in the text tower.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.hooks import image_blocks, image_width, text_blocks
from medvlp.backbone.prompts.slots import FIRST_CTX, find_slots, slots_in_words, slotted, word_tokens
from medvlp.backbone.prompts.walks import encode_text_prompts
from medvlp.data.card_parts import plain_name
from medvlp.data.cards import DataCard
from medvlp.methods.base import check_at_least
from medvlp.methods.prompt_tuning.vpt import DEEP_TRAINER, PromptedTower, depth_in, drawn

DEPTH = 9  # of the prompts of MaPLe and PromptSRC, in towers of 12 blocks


class ClassTexts(nn.Module):
    """The texts of all classes, whose first n_ctx tokens learned vectors replace, block by block.

    With the words "a photo of a" and n_ctx 2 a text is `[SOS] v1 v2 of a name . [EOS]`, as in the code of
    MaPLe's authors: what the vectors do not replace stays. Words of fewer than n_ctx tokens are left out,
    so that it is `[SOS] v1 .. vn name . [EOS]`. Positions are added to the vectors of block 0 alone.

    Args:
        clip: The frozen model. Each call is given it again: it is no part of this module.
        classnames: In label order; an underscore is read as a space.
        n_ctx: Vectors before a block, the same for all classes.
        words: Before the name; "" for none.

    Attributes:
        first: (n_ctx, w), the embeddings of the tokens that are replaced, or None without words.

    Raises:
        ValueError: n_ctx below 1, or a text with more tokens than the tower takes.
    """

    def __init__(self, clip: Clip, classnames: Sequence[str], n_ctx: int, words: str = FIRST_CTX) -> None:
        """Tokenize the texts; see the class."""
        super().__init__()
        check_at_least(1, {"n_ctx": n_ctx})
        names = [plain_name(name) for name in classnames]
        _, known = word_tokens(clip, words)  # (m,)
        self.first: Tensor | None = None
        if len(known) < n_ctx:
            texts = [slotted(name, n_ctx, "end") for name in names]
            tokens, slots = find_slots(clip, texts)  # (n_cls, L) each
        else:
            tokens, slots = slots_in_words(clip, words, names, n_ctx)  # (n_cls, L) each
            self.first = clip.token_embedding(known[:n_ctx]).detach().float()
        self.register_buffer("tokens", tokens.to(clip.device), persistent=False)
        self.register_buffer("slots", slots.to(clip.device), persistent=False)

    def forward(self, clip: Clip, ctx: Tensor) -> Tensor:
        """Text features (n_cls, D), L2-normalised, with ctx[i] before block i; ctx is (depth, n_ctx, w)."""
        vectors = [v.repeat(len(self.tokens), 1)[None] for v in ctx]  # (1, n_cls * n_ctx, w) each
        t = encode_text_prompts(clip, self.tokens, self.slots, vectors)  # (1, n_cls, D)
        return F.normalize(t[0].float(), dim=-1)


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
