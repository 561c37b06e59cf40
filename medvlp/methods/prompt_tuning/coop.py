"""CoOp: context vectors before the class names, learned."""

from typing import Any, ClassVar

from medvlp.backbone.clip import Clip
from medvlp.data.cards import DataCard
from medvlp.methods.prompt_tuning.context import TRAINER, ContextPrompts


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
