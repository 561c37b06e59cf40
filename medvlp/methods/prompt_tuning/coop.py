"""CoOp: context vectors before the class names, learned; and what the methods built on it share."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.slots import POSITIONS, STD, find_slots, slots_in_words, slotted, word_tokens
from medvlp.backbone.prompts.walks import encode_prompts
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


class CoOp(ContextPrompts):
    r"""Context optimization.

        t_c = text([SOS] v_1 .. v_M name_c . [EOS]) / |.|                        (D,)
        logits[b, c] = exp(logit_scale) * f_b . t_c

    with f_b the normalised image feature: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV
    130, 2022, arXiv 2109.01134. Learned is v alone (`ctx`): 8,192 numbers at ViT-B/16 with M = 16. Both
    towers are frozen.

    Notes:
        The authors see a new random view of each image in every epoch: `views="fresh"` in the recipe, which
        encodes every image in every epoch. By default four views of each are encoded once.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        n_ctx: M, the number of context vectors. None: 16, or as many as `ctx_init` has words, as in the
            authors' code.
        ctx_init: Words that the context starts from, such as "a photo of a"; "" draws it from a normal
            distribution of standard deviation 0.02. Where words have several tokens, the vectors are those
            of the first n_ctx tokens and the others stay in the text; with as many as there are tokens all
            are learned. (Not where the name stands in the "middle" or at the "front": then all are.)
        csc: Class-specific context: M vectors for each class, not shared. With words each class starts from
            them (in the authors' code words undo csc).
        position: Where the class name stands: at the "end" after the context, in the "middle" of it, or at
            the "front" of it. The full stop comes last.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.
        seed: Of the context's start.

    Attributes:
        ctx: v, (M, w), or (n_cls, M, w) with csc; w is the text width.
        config: the arguments by name, fit for JSON; `CoOp(clip, card, **config)` builds the same again.

    Raises:
        ValueError: an unknown position; n_ctx below 1, or not the number of the words' tokens; a class name
            that is too long for the tower.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> coop = medvlp.CoOp(clip, card, ctx_init="a photo of a")
        >>> len(coop.ctx)
        4
    """

    # KaiyangZhou/CoOp, configs/trainers/CoOp/vit_b16.yaml, which the authors use with 8 and 16 shots;
    # 100 epochs with 2 and 4 shots, 50 with one (COOP.md)
    recipe: ClassVar[dict[str, Any]] = TRAINER | {"epochs": 200, "batch_size": 32, "lr": 0.002}

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        n_ctx: int | None = None,
        ctx_init: str = "",
        csc: bool = False,
        position: str = "end",
        logit_scale: float | None = None,
        seed: int = 1,
    ) -> None:
        """Tokenize the prompts and start the context; see the class."""
        super().__init__(clip, card, locals())
