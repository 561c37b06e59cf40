"""Learned context around the class names: what CoOp and the methods built on it share."""

from typing import Any

import torch
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.slots import tokenize_slots, word_tokens
from medvlp.data.cards import DataCard
from medvlp.data.errors import unknown_name
from medvlp.methods.parameters import factor_on_cosines
from medvlp.methods.prompt_texts import POSITIONS, STD, plain_name, slotted

N_CTX = 16  # context vectors where neither a number nor words say how many: CoOp's
TRAINER: dict[str, Any] = {  # what the authors' recipes share, but for new crops and flips in every epoch
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "warmup_lr": 1e-5,
    "keep": "last",
}


class ContextPrompts(nn.Module):
    """The texts `[SOS] v_1 .. v_M name . [EOS]` of all classes, with learned v, tokenized once.

    A method built on it encodes them, has `logits_from_features` and keeps its arguments in `config`.
    An underscore in a class name is read as a space.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        random: What is drawn is drawn from it.
        n_ctx: M. None: as many as `ctx_init` has tokens, and 16 without words.
        ctx_init: Words whose token embeddings v starts from; "" draws v, with standard deviation 0.02.
        csc: Vectors for each class; with words every class starts from them.
        position: Where the class name stands: at the "end" after the context, in its "middle" or in "front".
        logit_scale: The factor on cosines; by default the CLIP's own.

    Attributes:
        ctx: v, (M, w), or (n_cls, M, w) with csc; w is the text width.
        tokens: (n_cls, L) token ids.
        positions: (n_cls, M) where the context stands in them.

    Raises:
        ValueError: an unknown position; n_ctx below 1, or not the number of the words' tokens; a class name
            that is too long for the tower.
    """

    config: dict[str, Any]

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        random: torch.Generator,
        *,
        n_ctx: int | None,
        ctx_init: str,
        csc: bool,
        position: str,
        logit_scale: float | None,
    ) -> None:
        """Tokenize the texts and start v; see the class."""
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(unknown_name("position", position, POSITIONS))
        if n_ctx is not None and n_ctx < 1:
            raise ValueError(f"n_ctx must be at least 1, got {n_ctx}.")
        self.clip, self.card = clip, card
        self.logit_scale = factor_on_cosines(clip, logit_scale)
        n_cls = len(card.classnames)
        if ctx_init:
            words = word_embeddings(clip, ctx_init)  # (M, w)
            if n_ctx not in (None, len(words)):
                raise ValueError(
                    f"ctx_init={ctx_init!r} has {len(words)} tokens, but n_ctx is {n_ctx}; leave n_ctx out, "
                    "or draw the context with ctx_init=''."
                )
            start = words.repeat(n_cls, 1, 1) if csc else words
        else:
            M = N_CTX if n_ctx is None else n_ctx
            shape = (n_cls, M, clip.text_width) if csc else (M, clip.text_width)
            start = nn.init.normal_(torch.empty(shape), std=STD, generator=random)
        self.ctx = nn.Parameter(start.to(clip.device))
        tokens, positions = _tokenize(clip, card, self.ctx.shape[-2], position)
        self._buffer("tokens", tokens)
        self._buffer("positions", positions)

    def _buffer(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor that moves with the module and follows from its configuration, so is not saved."""
        self.register_buffer(name, tensor.to(self.clip.device), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of preprocessed images: (B, 3, H, W) -> (B, n_cls)."""
        return self.logits_from_features(self.clip.encode_images(images))

    def extra_repr(self) -> str:
        """What distinguishes this method from another, for `print`."""
        shown = {key: value for key, value in self.config.items() if key != "symptoms"}
        return ", ".join([f"card={self.card.name!r}", *(f"{k}={v!r}" for k, v in shown.items())])


def word_embeddings(clip: Clip, words: str) -> Tensor:
    """The token embeddings of words at the beginning of a text, (M, w), float32."""
    _, ids = word_tokens(clip, words)  # (M,)
    return clip.token_embedding(ids).detach().float()


def _tokenize(clip: Clip, card: DataCard, n_ctx: int, position: str) -> tuple[Tensor, Tensor]:
    """Token ids (n_cls, L) and positions of the context (n_cls, n_ctx) of all classes."""
    texts = []
    for classname in card.classnames:
        text = slotted(plain_name(classname), n_ctx, position)
        try:
            tokenize_slots(clip, [text])
        except ValueError as error:
            raise ValueError(f"class {classname!r}, with {n_ctx} context vectors: {error}") from error
        texts.append(text)
    return tokenize_slots(clip, texts)
