"""Learned context around the class names: what CoOp and the methods built on it share."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.hooks import encode_prompts
from medvlp.backbone.prompts.slots import POSITIONS, STD, find_slots, slots_in_words, slotted, word_tokens
from medvlp.data.cards import DataCard
from medvlp.data.errors import brief, check_choice
from medvlp.methods.base import Method

N_CTX = 16  # context vectors where neither a number nor words say how many: CoOp's
TRAINER: dict[str, Any] = {  # what the authors' recipes share, but for new crops and flips in every epoch
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "warmup_lr": 1e-5,
    "keep": "last",
}
DEEP_TRAINER = TRAINER | {"batch_size": 4, "views": "fresh"}  # the same of prompts in the towers' blocks


class ContextPrompts(Method):
    """The texts `[SOS] v_1 .. v_M name . [EOS]` of all classes, with learned v, tokenized once.

    An underscore in a class name is read as a space.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        arguments: Of the method. Read here are `n_ctx`, `ctx_init`, `csc`, `position` and `seed`, which mean
            what they mean in `CoOp`.
        random: What is drawn is drawn from it; by default from a generator with the method's seed.

    Attributes:
        ctx: v, (M, w), or (n_cls, M, w) with csc; w is the text width.
        tokens: (n_cls, L) token ids.
        slots: (n_cls, L) True where the context stands in them.

    Raises:
        ValueError: an unknown position; n_ctx below 1, or not the number of the words' tokens; a class name
            that is too long for the tower.
    """

    def __init__(
        self, clip: Clip, card: DataCard, arguments: Mapping[str, Any], random: torch.Generator | None = None
    ) -> None:
        """Tokenize the texts and start v; see the class."""
        super().__init__(clip, card, arguments)
        n_ctx, ctx_init, position = (arguments[name] for name in ("n_ctx", "ctx_init", "position"))
        csc, random = arguments.get("csc", False), random or torch.Generator().manual_seed(arguments["seed"])
        check_choice("position", position, POSITIONS)
        if n_ctx is not None and n_ctx < 1:
            raise ValueError(f"n_ctx must be at least 1, got {n_ctx}.")
        n_cls = len(card.classnames)
        if ctx_init:
            _, ids = word_tokens(clip, ctx_init)  # (m,)
            words = clip.token_embedding(ids).detach().float()  # (m, w)
            M = min(len(ctx_init.split()), len(words)) if n_ctx is None else n_ctx
            M = len(words) if n_ctx is None and position != "end" else M
            if len(words) < M or (len(words) > M and position != "end"):
                raise ValueError(
                    f"ctx_init={brief(ctx_init)} has {len(words)} tokens, but n_ctx is {n_ctx}; leave n_ctx "
                    "out, or draw the context with ctx_init=''."
                )
            start = words[:M].repeat(n_cls, 1, 1) if csc else words[:M]
        else:
            M = N_CTX if n_ctx is None else n_ctx
            shape = (n_cls, M, clip.text_width) if csc else (M, clip.text_width)
            start = nn.init.normal_(torch.empty(shape), std=STD, generator=random)
        self.ctx = nn.Parameter(start.to(clip.device))
        M = self.ctx.shape[-2]
        if ctx_init and len(words) > M:
            tokens, slots = slots_in_words(clip, ctx_init, card.plain_names, M)
        else:
            texts = [slotted(name, M, position) for name in card.plain_names]
            called = [f"class {brief(name)}, with {M} context vectors" for name in card.classnames]
            tokens, slots = find_slots(clip, texts, called)
        self.constant("tokens", tokens)
        self.constant("slots", slots)

    def class_features(self, f: Tensor | None = None) -> Tensor:
        """t: the classes' text features, (n_cls, D), L2-normalised."""
        return F.normalize(encode_prompts(self.clip, self.tokens, self.slots, self.ctx), dim=-1)
