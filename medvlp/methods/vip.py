"""ViP: visual symptoms of each class, read with learned context and merged by learned attention."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf, sqrt

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.hooks import in_parts
from medvlp.backbone.prompts.slots import POSITIONS, STD, find_slots, slotted, symptom_text
from medvlp.backbone.prompts.walks import encode_prompts
from medvlp.data.cards import DataCard
from medvlp.data.errors import brief, check_choice
from medvlp.methods.base import Method
from medvlp.methods.zero_shot import checked_symptoms, score_table

AGGREGATIONS = ("merge", "mean", "max")


def prompt_text(symptom: str, n_ctx: int, position: str) -> str:
    """A symptom's text with a `SLOT` for each context vector; `position` is where the symptom stands."""
    return slotted(symptom_text(symptom).removesuffix("."), n_ctx, position)


def merge(T: Tensor, g: Tensor, Wq: Tensor, Wk: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """ViP's merge prompt: one text feature for each class, and the attention over its symptoms.

    Args:
        T: (n_cls, m, D) symptom features, not normalised; classes with fewer than m filled up.
        g: (n_cls, D) the merge prompt.
        Wq: (D, D).
        Wk: (D, D).
        mask: (n_cls, m) True where there is a symptom.

    Returns:
        t (n_cls, D), not normalised, and the attention (n_cls, m), zero where the mask is False.
    """
    q = g @ Wq.T  # (n_cls, D)
    k = T @ Wk.T  # (n_cls, m, D)
    scores = torch.einsum("cd,cmd->cm", q, k) / sqrt(T.shape[-1])  # (n_cls, m)
    attention = scores.masked_fill(~mask, -inf).softmax(dim=-1)  # (n_cls, m)
    return g + torch.einsum("cm,cmd->cd", attention, T), attention


class ViP(Method):
    r"""Visual symptom-guided prompt tuning.

        T_c = text([SOS] v_1 .. v_M symptom_ci . [EOS])_i                        (m_c, D), not normalised
        t_c = g_c + softmax((W_q g_c) (W_k T_c)^T / sqrt(D)) T_c                 (D,)
        logits[b, c] = exp(logit_scale) * f_b . t_c / |t_c|

    with f_b the normalised image feature: Fang et al., "Aligning Medical Images with General Knowledge from
    Large Language Models", MICCAI 2024, arXiv 2409.00341. Learned are the context prompt v (`ctx`), the
    merge prompt g (`g`) and W_q, W_k (`Wq`, `Wk`); both towers are frozen, and the class name is nowhere in
    a prompt. v and g start with standard deviation 0.02, W_q and W_k Xavier normal.

    The switches are the paper's ablations: `context=False` reads the symptoms plainly (merge prompt alone);
    `aggregation="mean"` or `"max"` does without the merge prompt (context prompt alone). How the paper takes
    mean and maximum is unknown; here they are those of T_c, coordinate by coordinate, in place of t_c.
    Without either nothing is learned.

    Notes:
        The authors see a new random view of each image in every epoch: `views="fresh"` in the recipe, which
        encodes every image in every epoch. By default four views of each are encoded once.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order, and their symptoms.
        n_ctx: M, the number of context vectors.
        csc: Class-specific context: M vectors for each class, not shared.
        position: Where the symptom stands, as in CoOp: at the "end" after the context, in the "middle" of
            it, or at the "front" of it. The full stop comes last.
        context: Whether there is a context prompt.
        aggregation: How a class's symptoms become one feature: "merge", "mean" or "max".
        symptoms: Your own symptoms, {classname: [phrase, ...]} for every class; replaces the card's.
        knowledge: The kind of knowledge of the card that is read.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own. Prompts only
            turn t_c, so it bounds what they can learn: two classes' logits lie at most twice this factor
            apart. Large CLIPs have 100; a small one with less may need a larger factor here.
        seed: Of the learned tensors' start.

    Attributes:
        ctx: (M, w), or (n_cls, M, w) with csc; w is the text width.
        g: (n_cls, D), the merge prompts.
        Wq: (D, D), W_q; with `Wk` shared by the classes.
        Wk: (D, D), W_k.
        symptoms: {classname: [phrase, ...]}, in label order.
        config: the arguments by name, fit for JSON; `ViP(clip, card, **config)` builds the same again.

    Raises:
        ValueError: a class without symptoms, a symptom with too many tokens, an unknown switch.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> vip = medvlp.ViP(clip, card, n_ctx=4)
        >>> list(vip.merge_weights().columns)
        ['classname', 'symptom', 'weight']
    """

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        n_ctx: int = 4,
        csc: bool = False,
        position: str = "end",
        context: bool = True,
        aggregation: str = "merge",
        symptoms: Mapping[str, Sequence[str]] | None = None,
        knowledge: str = "symptoms",
        logit_scale: float | None = None,
        seed: int = 1,
    ) -> None:
        """Tokenize the prompts and draw the learned tensors; see the class."""
        super().__init__(clip, card, locals())
        check_choice("position", position, POSITIONS)
        check_choice("aggregation", aggregation, AGGREGATIONS)
        if n_ctx < 1:
            raise ValueError(f"n_ctx must be at least 1, got {n_ctx}; context=False does without context.")
        self.context, self.aggregation = context, aggregation
        self.symptoms = checked_symptoms(card, knowledge, symptoms)
        self.config["symptoms"] = None if symptoms is None else self.symptoms

        self._counts = [len(phrases) for phrases in self.symptoms.values()]  # m_c
        n_cls, D, device = len(self._counts), clip.embed_dim, clip.device
        mask = torch.arange(max(self._counts)) < torch.tensor(self._counts)[:, None]  # (n_cls, m)
        M = n_ctx if context else 0
        pairs = [(name, phrase) for name, phrases in self.symptoms.items() for phrase in phrases]
        texts = [prompt_text(phrase, M, position) for _, phrase in pairs]
        called = [
            f"class {brief(c)}, symptom {brief(phrase)}, with {M} context vectors" for c, phrase in pairs
        ]
        tokens, slots = find_slots(clip, texts, called)
        self.constant("mask", mask)
        self.constant("tokens", tokens)  # (N, L), N all symptoms of all classes
        self.constant("slots", slots)  # (N, L)

        random = torch.Generator().manual_seed(seed)
        if context:
            shape = (n_cls, n_ctx, clip.text_width) if csc else (n_ctx, clip.text_width)
            self.ctx = nn.Parameter(nn.init.normal_(torch.empty(shape), std=STD, generator=random).to(device))
        else:
            encode = partial(clip.model.encode_text, normalize=False)
            self.constant("plain_features", in_parts(encode, self.tokens).float())  # (N, D)
        if aggregation == "merge":
            g = nn.init.normal_(torch.empty(n_cls, D), std=STD, generator=random)
            Wq, Wk = (nn.init.xavier_normal_(torch.empty(D, D), generator=random) for _ in range(2))
            self.g, self.Wq, self.Wk = (nn.Parameter(start.to(device)) for start in (g, Wq, Wk))

    def class_features(self, f: Tensor | None = None) -> Tensor:
        """The classes' text features, (n_cls, D), L2-normalised."""
        T = self._by_class(self.symptom_features())  # (n_cls, m, D)
        if self.aggregation == "merge":
            t, _ = merge(T, self.g, self.Wq, self.Wk, self.mask)
        elif self.aggregation == "mean":
            t = T.sum(dim=1) / self.mask.sum(dim=1, keepdim=True)  # what fills up is zero
        else:
            t = T.masked_fill(~self.mask[..., None], -inf).amax(dim=1)
        return F.normalize(t, dim=-1)

    def symptom_features(self) -> Tensor:
        """T: features of all symptoms, class after class, (N, D), not normalised."""
        if not self.context:
            return self.plain_features
        prompts = self.ctx  # (M, w)
        if self.ctx.ndim == 3:  # class-specific: each symptom reads its own class's
            of_class = zip(self.ctx, self._counts, strict=True)
            prompts = torch.cat([v.expand(m, -1, -1) for v, m in of_class])  # (N, M, w)
        return encode_prompts(self.clip, self.tokens, self.slots, prompts)

    @torch.no_grad()
    def merge_weights(self) -> pd.DataFrame:
        """What the merge prompt attends to: rows of classname, symptom, weight; weights of a class sum to 1.

        Raises:
            ValueError: aggregation "mean" or "max", which learns no weights.
        """
        if self.aggregation != "merge":
            raise ValueError(f"aggregation={self.aggregation!r} learns no weights; take aggregation='merge'.")
        T = self._by_class(self.symptom_features())  # (n_cls, m, D)
        _, attention = merge(T, self.g, self.Wq, self.Wk, self.mask)  # (n_cls, m)
        of_class = zip(self.symptoms, attention, self._counts, strict=True)
        weights = {name: row[None, :m] for name, row, m in of_class}  # (1, m_c) each; the rest fills up
        return score_table(weights, self.symptoms, "weight")

    def _by_class(self, T: Tensor) -> Tensor:
        """(N, D) -> (n_cls, m, D), classes with fewer than m symptoms filled up with zeros."""
        # the gradient of `pad_sequence` would take n_cls times the memory of T
        return T.new_zeros(*self.mask.shape, T.shape[1]).masked_scatter(self.mask[..., None], T)
