"""Learned prompts in the first blocks of both towers: what VPT, IVLP, MaPLe and PromptSRC share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.hooks import encode_deep_text
from medvlp.backbone.prompts.image_walk import encode_image_prompts
from medvlp.backbone.prompts.slots import FIRST_CTX, STD, find_slots, slots_in_words, slotted, word_tokens
from medvlp.data.card_parts import plain_name
from medvlp.methods.base import Method, check_at_least

DEPTH = 9  # of the prompts of MaPLe and PromptSRC, in towers of 12 blocks


class PromptedTower(Method):
    """A method that may have learned prompts in the image tower.

    Attributes:
        image_prompts: (depth, n, width of the image tower); None leaves the tower as it is.
    """

    image_prompts: Tensor | None

    @property
    def keeps_image_tower(self) -> bool:
        """True without prompts."""
        return self.image_prompts is None

    def image_features(self, images: Tensor) -> Tensor:
        """f: features of preprocessed images as the prompted tower sees them, (B, D), L2-normalised."""
        if self.image_prompts is None:
            return super().image_features(images)
        f = encode_image_prompts(self.clip, images, self.image_prompts)  # (B, D)
        return F.normalize(f.to(self.image_prompts), dim=-1)


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
        t = encode_deep_text(clip, self.tokens, self.slots, vectors)  # (1, n_cls, D)
        return F.normalize(t[0].float(), dim=-1)


def drawn(shape: Sequence[int], generator: torch.Generator, first: Tensor | None = None) -> Tensor:
    """Prompts (depth, n, width) of standard deviation 0.02; those before block 0 are `first`, if given."""
    prompts = nn.init.normal_(torch.empty(*shape), std=STD, generator=generator)
    if first is not None:
        prompts[0] = first
    return prompts


def depth_in(
    blocks: Sequence[nn.Module], name: str, depth: int | None, least: int, default: int | None = None
) -> int:
    """`depth`; if it is None, `default`, or all blocks where there are fewer or there is no default.

    Raises:
        ValueError: a depth, called `name`, that is below `least` or more than the tower has blocks.
    """
    if depth is None:
        return min(default or len(blocks), len(blocks))
    if not least <= depth <= len(blocks):
        raise ValueError(f"{name} must be from {least} to {len(blocks)}, the tower's blocks, got {depth}.")
    return depth
