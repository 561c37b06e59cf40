"""CILMP: LLM representations of each class, edited in low rank for every image, as prompts in every layer."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.hooks import encode_deep_text, image_blocks, image_width, in_parts, text_blocks
from medvlp.backbone.prompts.slots import FIRST_CTX, find_slots, slotted, word_tokens
from medvlp.backbone.prompts.walks import SlotVectors, TextWalk, can_walk_text
from medvlp.data.card_parts import plain_name
from medvlp.data.cards import DataCard
from medvlp.data.errors import brief, check_choice
from medvlp.knowledge.representations import Representations, shipped_representations
from medvlp.methods.base import check_at_least
from medvlp.methods.interventions import ConditionalLoReFT, EditedRows, LoReFT
from medvlp.methods.prompt_tuning.vpt import PromptedTower, depth_in, drawn

INTERVENTIONS = ("conditional", "unconditional", "none")


class CILMP(PromptedTower):
    r"""Conditional intervention of LLM representations for prompt learning.

        h'     = h + R (W1 h + W2 (h * g(f)) + b - R^T h)                        (d,), g: D -> r -> d linear
        tokens = B A dropout(h')                                                 (L_c, w), for each block
        t_c(f) = text([SOS] ctx tokens_c(f) name . [EOS]) / |.|                  (D,)
        logits[b, c] = exp(logit_scale) * f_b . t_c(f_b)

    Du et al., "Medical Knowledge Intervention Prompt Tuning for Medical Image Classification", IEEE TMI
    44(12), 2025, doi 10.1109/TMI.2025.3584841, arXiv 2511.12639; the intervention is `ConditionalLoReFT`.
    h is a row of the class's LLM representation (L_c, d). Its first `prefix_length` rows are edited by one
    intervention and its last `suffix_length` rows by another, the rows between stay as they are. f_b is the
    normalised image feature, itself prompted, so that the text of a class differs from image to image.

    Before each of the first `depth` text blocks, context and tokens are replaced by that block's own: its own
    ctx, interventions, A and B, to which no position is added but before block 0. In the same way learned
    vectors stand after the patches before each of the first `image_depth` image blocks. Both towers are
    frozen. In a BERT tower depth counts layers of its encoder; what stands before the first is given to its
    embedding layer, which adds positions and normalises.

    The ablations are `intervention="unconditional"` (`LoReFT`, which knows no image) and "none" (h' = h for
    all rows, then also without dropout), rank, lengths, depth, and `orthonormal`.

    The authors' code does the same with work that changes nothing; here only what the logits depend on is
    computed where open_clip's own towers allow it (`TextWalk`, `walk_image`), and all of it by hooks in other
    towers (`encode_deep_text`, `encode_deep_images`).

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        representations: (L_c, d) for each class, also as {classname: tensor}. None: those that ship with the
            package for this card. A string is the fingerprint that the shipped ones must have.
        intervention: "conditional", "unconditional" or "none".
        rank: r, of the interventions and of A and B.
        prefix_length: P.
        suffix_length: S. A class needs at least P + S rows.
        depth: Text blocks whose input is replaced, from 1 to all; None is all.
        image_depth: Image blocks whose prompts are replaced, from 0 (no prompts) to all; None is all.
        n_ctx: Context vectors before each text block. Those of block 0 start as the embedding of
            "a photo of a" if that has n_ctx tokens, the others from a normal distribution of deviation 0.02
            (the paper does not say how these start; the same for the image prompts).
        n_image_ctx: Prompts before each image block.
        dropout: p, of the numbers of an edited row that are dropped in training.
        dropout_per_image: A mask for each image, as the authors draw them. By default one mask serves a
            batch: the same chances, far less work.
        orthonormal: Keep R^T R = I in training; the authors have it at the start only.
        condition_scale: What the condition's W2 and G2 are multiplied with at the start. The authors' is 1,
            with which the prompts hardly follow the image in our short runs; at 30 they do (notebook 04).
        logit_scale: The factor on cosines; by default the CLIP's own.
        seed: Of the learned tensors' start.

    Attributes:
        ctx: (depth, n_ctx, w).
        image_prompts: (image_depth, n_image_ctx, width of the image tower).
        sites: one `EditedRows` for each text block whose input is replaced.
        classnames: the classes in label order.
        lengths: L_c of each class.
        config: the arguments by name, fit for JSON, with the representations' fingerprint.

    Raises:
        ValueError: a class without representation, with fewer rows than P + S or more than its text has room
            for; an argument out of its range; an image tower without tokens unless image_depth is 0.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> cilmp = medvlp.CILMP(clip, card, depth=1, image_depth=0)
        >>> len(cilmp.sites), cilmp.keeps_image_tower
        (1, True)
    """

    conditional: ClassVar[bool] = True
    # the paper's; the views are new ones in every epoch
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 100,
        "batch_size": 64,
        "lr": 0.0025,
        "views": "fresh",
        "keep": "last",
    }
    average: ClassVar[dict[str, Any]] = {"mean": 1.0, "std": 0.3, "tensors": ("ctx", "image_prompts")}

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        representations: Representations | Mapping[str, Tensor] | str | None = None,
        *,
        intervention: str = "conditional",
        rank: int = 8,
        prefix_length: int = 4,
        suffix_length: int = 4,
        depth: int | None = None,
        image_depth: int | None = None,
        n_ctx: int = 4,
        n_image_ctx: int = 4,
        dropout: float = 0.1,
        dropout_per_image: bool = False,
        orthonormal: bool = False,
        condition_scale: float = 1.0,
        logit_scale: float | None = None,
        seed: int = 1,
    ) -> None:
        """Lay out the texts and draw the learned tensors; see the class."""
        super().__init__(clip, card, locals())
        check_choice("intervention", intervention, INTERVENTIONS)
        check_at_least(1, {"rank": rank, "n_ctx": n_ctx, "n_image_ctx": n_image_ctx})
        lengths = {"prefix_length": prefix_length, "suffix_length": suffix_length}
        check_at_least(0, lengths | {"condition_scale": condition_scale})
        self.classnames = list(card.classnames)
        representations = _representations(card, representations)
        self.config["representations"] = representations.fingerprint
        depth = depth_in(text_blocks(clip), "depth", depth, 1)
        if image_depth != 0:
            image_depth = depth_in(image_blocks(clip), "image_depth", image_depth, 0)

        states = representations.for_card(card)  # (L_c, d) each
        P, S = (0, 0) if intervention == "none" else (prefix_length, suffix_length)
        self.lengths = dict(zip(self.classnames, map(len, states), strict=True))
        for name, length in self.lengths.items():
            if length < P + S:
                raise ValueError(
                    f"class {brief(name)} has a representation of {length} rows, fewer than prefix_length "
                    f"{P} + suffix_length {S}; shorten these, or take longer representations."
                )
        self.constant("h_first", torch.stack([h[:P] for h in states]))  # (n_cls, P, d)
        self.constant("h_middle", torch.cat([h[P : len(h) - S] for h in states]))  # (M, d)
        self.constant("h_last", torch.stack([h[len(h) - S :] for h in states]))  # (n_cls, S, d)
        self._middle_counts = [len(h) - P - S for h in states]
        tokens, slots = _tokenize(clip, self.lengths, n_ctx)
        self.constant("tokens", tokens)  # (n_cls, L)
        self.constant("slots", slots)  # (n_cls, L)
        self.walk = None
        if can_walk_text(clip.model.text):
            self.walk = TextWalk(clip.model.text, self.tokens, self.slots, n_ctx, P, S)

        random = torch.Generator().manual_seed(seed)
        w, d = clip.text_width, representations.dim
        _, words = word_tokens(clip, FIRST_CTX)  # (m,)
        first = clip.token_embedding(words).detach().float() if len(words) == n_ctx else None
        self.ctx = nn.Parameter(drawn((depth, n_ctx, w), random, first))
        self.image_prompts = None
        if image_depth:
            self.image_prompts = nn.Parameter(drawn((image_depth, n_image_ctx, image_width(clip)), random))

        def intervention_on(n_rows: int) -> nn.Module | None:
            switches = {"orthonormal": orthonormal, "generator": random}
            if n_rows == 0:
                return None
            if intervention == "unconditional":
                return LoReFT(d, rank, **switches)
            return ConditionalLoReFT(d, rank, clip.embed_dim, condition_scale=condition_scale, **switches)

        drop = (dropout, dropout_per_image)
        sites = [
            EditedRows(intervention_on(P), intervention_on(S), drop, d, rank, w, random) for _ in range(depth)
        ]
        self.sites = nn.ModuleList(sites)
        self.to(clip.device)

    def class_features(self, f: Tensor) -> Tensor:
        """t: the classes' text features for each image, (B, D) -> (B, n_cls, D), L2-normalised."""
        return in_parts(self._class_features, f.to(self.ctx), texts=len(self.classnames))

    def _class_features(self, f: Tensor) -> Tensor:
        with parametrize.cached():  # an orthonormal R is computed once
            vectors = [self.slot_vectors(f, i) for i in range(len(self.sites))]
        if self.walk is not None:
            t = self.walk(self.clip.model.text, vectors)  # (B or 1, n_cls, D)
        else:
            rows = [torch.cat(self._by_class(v), dim=1) for v in vectors]
            t = encode_deep_text(self.clip, self.tokens, self.slots, rows)
        return F.normalize(t.to(self.ctx), dim=-1).expand(len(f), -1, -1)

    def slot_vectors(self, f: Tensor, site: int) -> SlotVectors:
        """Context and tokens before text block `site`, as `TextWalk` reads them; f (B, D) is normalised."""
        edges, middle = self.sites[site](self.h_first, self.h_middle, self.h_last, f.to(self.ctx))
        return SlotVectors(self.ctx[site], edges, middle)

    def _by_class(self, vectors: SlotVectors) -> list[Tensor]:
        """Context and rows of each class in their order, (B or 1, n_ctx + L_c, w)."""
        P, B = self.h_first.shape[1], len(vectors.edges)
        ctx = vectors.ctx.expand(B, -1, -1)  # (B, n_ctx, w)
        by_class = zip(vectors.edges.unbind(1), vectors.middle.split(self._middle_counts), strict=True)
        return [
            torch.cat([ctx, edges[:, :P], middle.expand(B, -1, -1), edges[:, P:]], dim=1)
            for edges, middle in by_class
        ]


def _representations(
    card: DataCard, given: Representations | Mapping[str, Tensor] | str | None
) -> Representations:
    if isinstance(given, Representations):
        return given
    if isinstance(given, Mapping):
        return Representations(dict(given))
    shipped = shipped_representations(card)
    if given is not None and given != shipped.fingerprint:
        raise ValueError(
            f"the representations wanted are {given[:12]}, those that ship with medvlp for card "
            f"{card.name!r} are {shipped.fingerprint[:12]}; pass the representations themselves."
        )
    return shipped


def _tokenize(clip: Clip, lengths: dict[str, int], n_ctx: int) -> tuple[Tensor, Tensor]:
    """Token ids of the classes' texts (n_cls, L), and True at their n_ctx + L_c slots, (n_cls, L)."""
    texts = [slotted(plain_name(name), n_ctx + length, "end") for name, length in lengths.items()]
    called = [
        f"class {brief(name)}, with {n_ctx} context vectors and a representation of {length} rows"
        for name, length in lengths.items()
    ]
    return find_slots(clip, texts, called)
